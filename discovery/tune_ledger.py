"""What a search has come to: a row for every trial, the Pareto front, and the best.

completed    it made its last report
stopped      the scheduler ended it
failed       it ended with an error; the same command tries it again
unfinished   neither; the same command goes on with it
"""

import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple

from discovery.line_files import read_lines
from discovery.tune_search import DECISIONS_FILE, Report, Search

COMPLETED, STOPPED, FAILED, UNFINISHED = "completed", "stopped", "failed", "unfinished"


class Row(NamedTuple):
    """One trial."""

    number: int
    status: str
    fields: dict[str, Any]
    """What was drawn for it."""
    reports: list[Report]
    error: str | None
    is_within_limit: bool = True
    """Of the objective."""
    is_on_front: bool = False
    """No other completed trial has lower FVU and L0."""

    @property
    def last(self) -> Report | None:
        return self.reports[-1] if self.reports else None

    def record(self) -> dict[str, Any]:
        """For JSON and CSV: without what differs from run to run."""
        last = self.last._asdict() if self.last else {}
        names = ("step", "tokens", "score", "loss", "fvu", "l0", "dead_ratio", "num_dead")
        figures = {name: last.get(name) for name in names}
        explained = 1 - self.last.fvu if self.last else None
        return (
            {"trial": self.number, "status": self.status}
            | self.fields
            | {"reports": len(self.reports), "variance_explained": explained}
            | figures
            | {"on_front": self.is_on_front, "error": self.error}
        )


def rows_of(search: Search) -> list[Row]:
    """Every trial, in order."""
    decisions = read_lines(search.folder / DECISIONS_FILE)
    ends = {line["trial"]: line["number"] for line in decisions if line["decision"] == "STOP"}
    rows = [_row(search, number, ends.get(number)) for number in range(len(search.plans))]
    completed = [row for row in rows if row.status == COMPLETED]
    ends_of = [row.last for row in completed if row.last is not None]
    on_front = {completed[index].number for index in pareto_front([(last.l0, last.fvu) for last in ends_of])}
    return [row._replace(is_on_front=row.number in on_front) for row in rows]


def _row(search: Search, number: int, end: int | None) -> Row:
    reports, error = search.reports(number), search.error(number)
    if len(reports) == search.settings.reports:
        status, error = COMPLETED, None
    elif end is not None and len(reports) >= end:
        status, reports, error = STOPPED, reports[:end], None
    else:
        status = FAILED if error is not None else UNFINISHED
    within = not reports or search.objective.is_within_limit(reports[-1].l0)
    return Row(number, status, search.plans[number].fields, reports, error, within)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one beats: at most as large in both, and smaller in one."""
    order = sorted(range(len(points)), key=lambda index: points[index])
    front: list[int] = []
    for index in order:
        if not front or points[index][1] < points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return front


def best_of(rows: list[Row]) -> Row | None:
    """The completed trial of the smallest score, of those within the limit if there are any; None if none is completed.

    A tie goes to the earlier one.
    """
    scored = [
        (not row.is_within_limit, row.last.score, row.number)
        for row in rows
        if row.status == COMPLETED and row.last is not None
    ]
    return rows[min(scored)[2]] if scored else None


def drop_checkpoints(search: Search) -> None:
    """Delete the checkpoints of trials that have ended, but the best one's: they are three times the dictionary."""
    rows = rows_of(search)
    best = best_of(rows)
    for row in rows:
        if row.status in (COMPLETED, STOPPED) and row is not best:
            shutil.rmtree(search.trial_folder(row.number) / "checkpoints", ignore_errors=True)
