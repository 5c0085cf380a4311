"""What the dashboard is made of: PromQL expressions of the chosen servers, and the four kinds of panels."""

from string import ascii_uppercase
from typing import Any, NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef, FieldColorModeId, Threshold, ThresholdsMode
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
RED = "red"
GREEN = "green"


# Expressions


def series(name: str, where: str = "") -> str:
    """The series of the chosen instances."""
    return f'{name}{{instance=~"$instance"{"," + where if where else ""}}}'


def rate(name: str, *, by: str = "", where: str = "") -> str:
    grouping = f" by ({by}) " if by else ""
    return f"sum{grouping}(rate({series(name, where)}[$__rate_interval]))"


def mean(name: str, *, by: str = "") -> str:
    return f"{rate(name + '_sum', by=by)} / {rate(name + '_count', by=by)}"


def quantile(share: float, name: str, *, by: str = "", where: str = "") -> str:
    grouping = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(name + '_bucket', by=grouping, where=where)})"


# Panels


class Bound(NamedTuple):
    """Where a number turns red: from `value` upwards, or below it."""

    value: float
    is_from: bool = True


def query(expr: str, legend: str = "__auto", ref: str = "A") -> Any:
    return prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(ref)


def lines(title: str, unit: str, queries: dict[str, str], description: str = "") -> Any:
    """`queries` maps each legend to its expression."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .min(0)
        .fill_opacity(8)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .height(8)
        .span(8)
    )
    for ref, (legend, expr) in zip(ascii_uppercase, queries.items(), strict=False):
        panel.with_target(query(expr, legend, ref))
    return panel


def quantiles(title: str, unit: str, name: str, description: str = "") -> Any:
    exprs = {f"p{round(share * 100)}": quantile(share, name) for share in (0.5, 0.95, 0.99)}
    return lines(title, unit, exprs, description)


def stacked(panel: Any) -> Any:
    return panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(30)


def number(title: str, unit: str, expr: str, description: str, *, bad: Bound | None = None) -> Any:
    if bad is None:
        steps = [Threshold(value=None, color=GREEN)]
    else:
        low, high = (GREEN, RED) if bad.is_from else (RED, GREEN)
        steps = [Threshold(value=None, color=low), Threshold(value=bad.value, color=high)]
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .graph_mode(BigValueGraphMode.NONE)
        .thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .with_target(query(expr))
        .height(4)
        .span(4)
    )


def activation_heatmap() -> Any:
    """One per chosen feature. Most tokens read 0, so the colours grow with a root of the count."""
    expr = rate("telltale_feature_activation_bucket", by="le", where='feature="$feature"')
    return (
        heatmap.Panel()
        .title("$feature")
        .description("Tokens per second by reading / reference scale.")
        .datasource(DATASOURCE)
        .with_target(query(expr, "{{le}}").format(PromQueryFormat.HEATMAP))
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Blues")
            .scale(HeatmapColorScale.EXPONENTIAL)
            .exponent(0.3)
            .steps(32)
        )
        .repeat("feature")
        .repeat_direction("h")
        .height(7)
        .span(8)
    )
