"""Strata and levels: where a token lies, what holds there, and every contradiction by field."""

import math
from dataclasses import replace

import pytest

from monitors.errors import MonitorError
from monitors.thresholds import Levels, LevelThreshold, Marks, Stratum, Thresholds

BOUNDS = (64, 256, 1024)
WARNING = LevelThreshold(alpha=0.01, offset=2.0, strata=BOUNDS)
CRITICAL = LevelThreshold(alpha=0.001, offset=3.0, strata=(64,), absent=(256, 1024))
STRATA = tuple(Stratum(bound, offset) for bound, offset in zip(BOUNDS, (0.0, 0.5, 1.25), strict=True))
THRESHOLDS = Thresholds(STRATA, Levels(WARNING, CRITICAL), clear_offset=1.5)


def problems(**changes: object) -> dict[str, str]:
    with pytest.raises(MonitorError) as caught:
        replace(THRESHOLDS, **changes)
    return {problem.field: problem.wanted for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("token", "bound"),
    [(1, 64), (64, 64), (65, 256), (256, 256), (257, 1024), (1024, 1024), (1025, 1024), (9**9, 1024)],
)
def test_a_token_lies_in_the_first_stratum_that_reaches_it(token, bound):
    assert THRESHOLDS.stretch_at(token).max_tokens == bound


def test_a_stretch_has_the_strata_offset_and_the_levels_that_stand_there():
    assert THRESHOLDS.stretch_at(10) == (64, 0.0, Marks(clear=1.5, warning=2.0, critical=3.0))
    assert THRESHOLDS.stretch_at(100) == (256, 0.5, Marks(clear=1.5, warning=2.0, critical=None))
    assert THRESHOLDS.max_tokens == 1024


@pytest.mark.parametrize(
    ("warning", "critical", "max_tokens"),
    [
        (BOUNDS, (), 1024),
        ((64,), BOUNDS, 1024),  # one level is enough
        ((64, 1024), (256,), 1024),
        ((64, 256), (64,), 256),  # nothing fires in the last stratum
        ((64, 1024), (64,), 64),  # nor in the hole before it
        ((256, 1024), (), 0),
    ],
)
def test_thresholds_stand_as_far_as_each_stratum_has_a_level(warning, critical, max_tokens):
    def level(of: LevelThreshold, stands: tuple[int, ...]) -> LevelThreshold | None:
        absent = tuple(bound for bound in BOUNDS if bound not in stands)
        return replace(of, strata=stands, absent=absent) if stands else None

    found = replace(THRESHOLDS, levels=Levels(level(WARNING, warning), level(CRITICAL, critical)))
    assert found.max_tokens == max_tokens


def test_a_level_that_stands_nowhere_is_none():
    only = Thresholds(STRATA, Levels(None, replace(CRITICAL, strata=BOUNDS, absent=())), clear_offset=3.0)
    assert only.stretch_at(1).marks == Marks(clear=3.0, warning=None, critical=3.0)
    assert [name for name, _ in only.levels.named()] == ["critical"]


def test_a_stratum_that_a_level_does_not_speak_of_is_refused_by_name():
    found = problems(levels=Levels(replace(WARNING, strata=(64, 256)), CRITICAL))
    assert found == {"levels.warning": "the stratum up to 1024 tokens, in strata or in absent"}


def test_contradictions_are_refused_by_field():
    assert list(problems(strata=())) == ["strata", "levels.warning", "levels.critical"]
    assert list(problems(levels=Levels(None, None))) == ["levels"]
    assert list(problems(strata=(STRATA[0], STRATA[0], *STRATA[1:]))) == ["strata.1.max_tokens"]
    assert list(problems(levels=Levels(replace(WARNING, strata=(*BOUNDS, 4096)), CRITICAL))) == ["levels.warning"]
    assert list(problems(levels=Levels(WARNING, replace(CRITICAL, offset=1.9)), clear_offset=0.0)) == [
        "levels.critical.offset"
    ]
    assert problems(levels=Levels(WARNING, replace(CRITICAL, alpha=0.02))) == {
        "levels.critical.alpha": "at most the warning's, 0.01"
    }
    assert problems(strata=(*STRATA[:2], Stratum(1024, 0.25))) == {
        "strata.2.offset": "at least that of the stratum before, 0.5"
    }
    assert list(problems(clear_offset=2.5)) == ["clear_offset"]
    assert list(problems(clear_offset=math.nan)) == ["clear_offset"]


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("alpha", {"alpha": 0.0}),
        ("alpha", {"alpha": 1}),
        ("alpha", {"alpha": "1 %"}),
        ("offset", {"offset": math.inf}),
        ("strata", {"strata": ()}),
        ("absent.0", {"absent": (256,)}),
    ],
)
def test_a_bad_level_is_refused_by_field(field, changes):
    with pytest.raises(MonitorError) as caught:
        replace(WARNING, **changes)
    assert [problem.field for problem in caught.value.problems] == [field]


def test_a_bad_stratum_is_refused_by_field():
    with pytest.raises(MonitorError) as caught:
        Stratum(0, math.nan)
    assert [problem.field for problem in caught.value.problems] == ["max_tokens", "offset"]
