"""A search's results as a table in a terminal, CSV, JSON, and the best recipe as a command."""

import csv
import io
import shlex
from dataclasses import asdict
from typing import Any

from rich.table import Table

from discovery.train_settings import defaults_for
from discovery.tune_ledger import COMPLETED, FAILED, STOPPED, UNFINISHED, Row, best_of
from discovery.tune_search import Plan, Search

CSV_FILE, JSON_FILE = "results.csv", "results.json"

_ORDER = (COMPLETED, STOPPED, UNFINISHED, FAILED)


def ranked(rows: list[Row]) -> list[Row]:
    """Best first: completed trials by score, then those that got farthest."""

    def key(row: Row) -> tuple[float, ...]:
        first = not row.is_within_limit if row.status == COMPLETED else -len(row.reports)
        return (_ORDER.index(row.status), first, row.last.score if row.last else 0.0, row.number)

    return sorted(rows, key=key)


def result_table(search: Search, rows: list[Row]) -> Table:
    """For a person, best first."""
    table = Table(title=f"{search.folder.name}: {search.objective.words()}")
    fields = list(search.plans[0].fields) if search.plans else []
    for heading in ("trial", *(name.replace("_", " ") for name in fields), "reports"):
        table.add_column(heading, justify="right")
    table.add_column("", no_wrap=True)
    for heading in ("score", "FVU", "L0", "silent"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("front", justify="center")
    for row in ranked(rows):
        last = row.last
        figures = ("", "", "", "")
        if last is not None:
            figures = (f"{last.score:.4f}", f"{last.fvu:.4f}", f"{last.l0:.1f}", f"{last.dead_ratio:.1%}")
        cells = [
            str(row.number),
            *(
                f"{row.fields[name]:.4g}" if isinstance(row.fields[name], float) else str(row.fields[name])
                for name in fields
            ),
        ]
        style = None if row.status == COMPLETED else "dim"
        table.add_row(
            *cells,
            f"{len(row.reports)}/{search.settings.reports}",
            row.status,
            *figures,
            "*" if row.is_on_front else "",
            style=style,
        )
    return table


def failures(rows: list[Row]) -> list[str]:
    """Each failed trial with its error, one line each."""
    return [f"trial {row.number} failed: {' '.join((row.error or '').split())}" for row in rows if row.status == FAILED]


def result_csv(rows: list[Row]) -> str:
    """All trials in order. Two runs of the same search give the same text, as far as their decisions agree."""
    records = [row.record() for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def result_record(search: Search, rows: list[Row]) -> dict[str, Any]:
    """For machines: the table, every report, where trials ran, the front, the best and its command."""
    best = best_of(rows)
    return {
        "objective": search.objective.words(),
        "trials": [
            row.record()
            | {"nodes": sorted({report.node for report in row.reports})}
            | {"history": [report._asdict() for report in row.reports]}
            for row in rows
        ],
        "front": [row.number for row in rows if row.is_on_front],
        "best": None if best is None else best.number,
        "train_command": None if best is None else train_command(search, search.plans[best.number]),
    }


def train_command(search: Search, plan: Plan) -> str:
    """`telltale lab train` with this recipe: what differs from its defaults."""
    settings = search.settings
    words = ["telltale", "lab", "train"]
    for source in settings.sources:
        words += ["--source", source]
    words += ["--output", str(search.folder / "best"), "--recipe", plan.settings.activation]
    defaults = asdict(defaults_for(plan.settings.activation))
    for name, value in asdict(plan.settings).items():
        # train's precision depends on the machine.
        if value != defaults[name] or name == "precision":
            words += ["--" + name.replace("_", "-"), str(value)]
    if settings.target_l0 is not None and plan.settings.activation == "batchtopk":
        words += ["--target-l0", str(settings.target_l0)]
    return shlex.join(words)
