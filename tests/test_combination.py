"""How components become one score: by hand, and that contributions always sum to it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitors.combination import Cascade, Combination, Ensemble, Single
from monitors.errors import MonitorError

scores = st.floats(-1e6, 1e6)
COMBINATIONS: list[Combination] = [
    *(Ensemble(rule, (1.0, 1.0)) for rule in ("mean", "sum", "min", "max")),
    Ensemble("sum", (2.0, -0.5)),
    Cascade(gate_threshold=1.0, closed_score=-9.0),
]


@pytest.mark.parametrize(
    ("combination", "z", "score", "contributions"),
    [
        (Single(), (3.0,), 3.0, (3.0,)),
        (Ensemble("mean", (1.0, 1.0)), (3.0, 1.0), 2.0, (1.5, 0.5)),
        (Ensemble("sum", (2.0, -1.0)), (3.0, 1.0), 5.0, (6.0, -1.0)),
        (Ensemble("min", (1.0, 1.0)), (3.0, 1.0), 1.0, (0.0, 1.0)),
        (Ensemble("max", (1.0, 1.0)), (3.0, 1.0), 3.0, (3.0, 0.0)),
        (Ensemble("min", (1.0, 1.0)), (2.0, 2.0), 2.0, (2.0, 0.0)),
        (Cascade(0.5, -4.0), (3.0, 0.6), 3.0, (3.0, 0.0)),
        (Cascade(0.5, -4.0), (3.0, 0.5), -4.0, (0.0, -4.0)),
        (Cascade(0.5, -4.0, Ensemble("min", (1.0, 1.0))), (3.0, 2.0, 0.6), 2.0, (0.0, 2.0, 0.0)),
        (Cascade(0.5, -4.0, Ensemble("sum", (2.0, 1.0))), (3.0, 2.0, 0.6), 8.0, (6.0, 2.0, 0.0)),
        (Cascade(0.5, -4.0, Ensemble("min", (1.0, 1.0))), (3.0, 2.0, 0.5), -4.0, (0.0, 0.0, -4.0)),
    ],
)
def test_by_hand(combination, z, score, contributions):
    assert combination.score(z) == score
    assert combination.contributions(z) == contributions


@pytest.mark.parametrize("rule", ["mean", "sum", "min", "max"])
@given(st.tuples(scores, scores, scores))
def test_a_gate_lets_an_ensemble_through_or_nothing(rule, z):
    ensemble = Ensemble(rule, (1.0, 1.0))
    cascade = Cascade(0.5, -9.0, ensemble)
    assert cascade.num_components == 3
    assert cascade.score(z) == (ensemble.score(z[:2]) if z[2] > 0.5 else -9.0)
    assert math.fsum(cascade.contributions(z)) == pytest.approx(cascade.score(z), rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("combination", COMBINATIONS)
@given(st.tuples(scores, scores))
def test_contributions_sum_to_the_score(combination, z):
    assert math.fsum(combination.contributions(z)) == pytest.approx(combination.score(z), rel=1e-12, abs=1e-9)


@given(st.lists(scores, min_size=2, max_size=5), st.integers(0, 4), st.floats(0, 1e3))
def test_a_rising_component_never_lowers_an_ensemble_of_equals(z, which, rise):
    higher = [value + rise * (k == which % len(z)) for k, value in enumerate(z)]
    for rule in ("mean", "sum", "min", "max"):
        ensemble = Ensemble(rule, (1.0,) * len(z))
        assert ensemble.score(higher) >= ensemble.score(z)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ensemble("median", (1.0, 1.0)), r"^rule: wanted one of mean, sum, min, max, got 'median'$"),
        (lambda: Ensemble("mean", (1.0,)), r"^weights: wanted at least two, one per component, got 1$"),
        (lambda: Ensemble("min", (1.0, 2.0)), r"^weights\.1: wanted 1, since only the rule sum has weights"),
        (lambda: Ensemble("sum", (1.0, 0.0)), r"^weights\.1: wanted a number other than 0, got 0\.0$"),
        (lambda: Ensemble("sum", (1.0, math.nan)), r"^weights\.1: wanted a finite number"),
        (lambda: Cascade(math.inf, -1.0), r"^gate_threshold: wanted a finite number"),
        (lambda: Cascade(1.0, math.nan), r"^closed_score: wanted a finite number"),
    ],
)
def test_a_bad_combination_is_refused_by_field(make, message):
    with pytest.raises(MonitorError, match=message):
        make()
