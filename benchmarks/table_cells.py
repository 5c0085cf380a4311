"""Cells of the tables of `monitors_table`: figures of records in words, a dash for what there is none of."""

from collections.abc import Mapping

from discovery.group_bootstrap import Estimate
from discovery.small_samples import widened_auroc, widened_share


def percent_cell(found: Mapping[str, float]) -> str:
    return f"{found['mean']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"


def number_cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def auroc_cell(found: Mapping[str, float] | None, num_positive: int, num_negative: int) -> str:
    """With its interval, at least as wide as counts demand: records of before may have it narrower."""
    return "-" if found is None else _interval(widened_auroc(_estimate(found), num_positive, num_negative))


def recall_cell(found: Mapping[str, float] | None, num: int) -> str:
    return "-" if found is None else _interval(widened_share(_estimate(found), num))


def column_cell(found: Mapping[str, float] | None, usual: Mapping[str, float] | None) -> str:
    """Of a predictor, with the replies that it could be measured on where these are not the monitor's."""
    if found is None:
        return "-"
    sizes = int(found["num_high"]), int(found["num_low"])
    others = usual is None or sizes != (usual["num_high"], usual["num_low"])
    return auroc_cell(found, *sizes) + (f" ({sizes[0]} / {sizes[1]})" if others else "")


def _estimate(found: Mapping[str, float]) -> Estimate:
    return Estimate(found["mean"], found["low"], found["high"])


def _interval(found: Estimate) -> str:
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"
