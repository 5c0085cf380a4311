"""benchmarks.replays: what it makes of comparisons, and thresholds that the shipped packs can be lowered to."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.replays import OFFSETS, lowered, summarize
from monitors.pack import MonitorPack
from service.client_alerts import ReplayComparison, SeriesComparison

PACKS = Path(__file__).parents[1] / "monitors" / "packs" / "SmolLM2-135M-Instruct"


def comparison(*differences, first_difference=None):
    series = tuple(
        SeriesComparison(
            name="p", kind="probe", num_compared=4, largest_difference=off, scale=2.0, within_tolerance=off <= 0.2
        )
        for off in differences
    )
    return ReplayComparison(
        reproduced=all(each.within_tolerance for each in series),
        tolerance=0.1,
        num_tokens=8,
        first_difference=first_difference,
        raised_again=True,
        series=series,
    )


def test_differences_are_in_units_of_the_largest_recorded_value():
    found = summarize([comparison(0.02, 0.1), comparison(0.5)])
    assert (found["replays"], found["reproduced"], found["raised_again"], found["tolerance"]) == (2, 1, 2, 0.1)
    assert found["by_kind"]["probe"] == {
        "series": 3, "within_tolerance": 2, "not_zero": 3, "median": 0.05, "95%": 0.25, "largest": 0.25,
    }  # fmt: skip


def test_a_replay_is_exact_if_nothing_differs():
    nearly, elsewhere, unraised = comparison(0.0, 1e-7), comparison(0.0, first_difference=3), comparison(0.0)
    elsewhere = replace(elsewhere, reproduced=False)
    unraised = replace(unraised, reproduced=False, raised_again=False)
    found = summarize([comparison(0.0, 0.0), nearly, elsewhere, unraised])
    assert (found["reproduced"], found["exact"]) == (2, 1)


def test_a_series_of_zeros_has_no_share():
    still = comparison(0.0)
    zero = replace(still, series=tuple(replace(each, scale=0.0) for each in still.series))
    assert summarize([zero])["by_kind"]["probe"] == {"series": 1, "within_tolerance": 1, "not_zero": 0}


@pytest.mark.parametrize("name", OFFSETS)
def test_a_lowered_monitor_scores_as_before(name):
    pack = MonitorPack.load(PACKS / f"{name}.pack.yaml")
    made = lowered(pack)
    assert made.frozen_sha256 == pack.frozen_sha256 and not made.validated
    assert made.thresholds.levels.warning.offset == OFFSETS[name]
