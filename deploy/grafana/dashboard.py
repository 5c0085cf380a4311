"""The Grafana dashboard as code: `python deploy/grafana/dashboard.py` writes dashboards/telltale.json beside it.

Its rows are in rows.py. The tests compare the committed file with `render()` and every metric name with the server's.
"""

import json
from itertools import count
from pathlib import Path
from typing import Any

import rows
from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, VariableOption, VariableRefresh, VariableSort
from panels import DATASOURCE

OUTPUT = Path(__file__).parent / "dashboards" / "telltale.json"


def choice(name: str, label: str, values: str) -> Any:
    """A variable with several values, all of them at first."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(values)
        .multi(True)
        .include_all(True)
        .current(VariableOption(selected=True, text="All", value="$__all"))
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )


def build() -> Any:
    board = (
        dashboard.Dashboard("telltale")
        .uid("telltale")
        .description("A generation server that reads every token's residual: service, engine, features, alerts.")
        .tags(["telltale"])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(choice("instance", "Server", "label_values(telltale_build_info, instance)").all_value(".*"))
        .with_variable(
            choice(
                "feature",
                "Feature",
                'label_values(telltale_feature_active_tokens_total{instance=~"$instance"}, feature)',
            )
        )
    )
    panels_by_row = {
        "Overview": rows.overview_row(),
        "Tokens": rows.token_row(),
        "Engine": rows.engine_row(),
        "Features": rows.feature_row(),
        "Alerts": rows.alert_row(),
        "Steering": rows.steering_row(),
        "RPCs": rows.rpc_row(),
    }
    ids = count(1)
    for title, panels in panels_by_row.items():
        board.with_row(dashboard.Row(title).id(next(ids)))
        for panel in panels:
            board.with_panel(panel.id(next(ids)))
    return board.build()


def render() -> str:
    return json.dumps(build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(render())
