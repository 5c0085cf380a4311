"""The population stability index against its definition, its limits, and its distribution if nothing has moved."""

import math
import random
from itertools import pairwise

import pytest

from monitors.errors import MonitorError
from monitors.stability import Histogram, bin_counts, expected_index, stability_index


def obvious_index(reference, live):
    """Bin by bin, with half a value more in each."""
    total = 0.0
    for e, a in zip(reference, live, strict=True):
        expected = (e + 0.5) / (sum(reference) + 0.5 * len(reference))
        actual = (a + 0.5) / (sum(live) + 0.5 * len(live))
        total += (actual - expected) * math.log(actual / expected)
    return total


@pytest.mark.parametrize(
    ("reference", "live"), [([10, 20, 30], [30, 20, 10]), ([5, 5], [0, 10]), ([1, 0, 9], [0, 4, 0])]
)
def test_it_is_its_definition(reference, live):
    assert stability_index(reference, live) == pytest.approx(obvious_index(reference, live), rel=1e-12)
    assert stability_index(reference, live) == pytest.approx(stability_index(live, reference), rel=1e-12)


def test_the_same_shares_have_none_and_an_empty_bin_is_finite():
    assert stability_index([10, 30], [10, 30]) == 0
    assert 1 < stability_index([100, 0], [0, 100]) < math.inf


def test_bins_are_those_of_a_slower_reference():
    generator = random.Random(3)
    values = [round(generator.gauss(0, 1), 1) for _ in range(500)]  # with ties
    made = Histogram.of(values)
    bounds = [-math.inf, *made.edges, math.inf]
    slow = [sum(low <= v < high for v in values) for low, high in pairwise(bounds)]
    assert list(made.counts) == slow == bin_counts(made.edges, values)
    assert made.num_values == 500 and made.num_bins == 10
    assert max(made.counts) < 2 * min(made.counts)


def test_values_that_are_mostly_the_same_have_fewer_bins_and_the_same_ones_none():
    shut = Histogram.of([0.0] * 95 + [1.0, 2.0, 3.0, 4.0, 5.0])  # every tenth of them lies at the lowest value
    assert (shut.edges, shut.counts) == ((1.0,), (95, 5))
    assert stability_index(shut.counts, bin_counts(shut.edges, [0.0] * 60 + [3.0] * 40)) > 0.2
    assert Histogram.of([0.0] * 55 + list(range(1, 46))).num_bins == 5
    assert Histogram.of([1.0, 1.0]) is None and Histogram.of([]) is None


def test_without_drift_it_has_the_mean_and_spread_of_its_chi_square():
    """(1/n + 1/m) chi-square with B - 1 = 9 degrees of freedom: over 400 runs the mean is known to 2.4 %."""
    generator = random.Random(0)
    num_reference, num_live, num_runs = 2000, 500, 400
    found = []
    for _ in range(num_runs):
        reference = Histogram.of([generator.gauss(0, 1) for _ in range(num_reference)])
        live = bin_counts(reference.edges, [generator.gauss(0, 1) for _ in range(num_live)])
        found.append(stability_index(reference.counts, live))
    mean = sum(found) / num_runs
    # The bins are deciles of the reference sample, so that its own noise enters all the same.
    assert mean == pytest.approx(expected_index(10, num_reference, num_live), rel=0.12)
    variance = sum((x - mean) ** 2 for x in found) / num_runs
    assert variance == pytest.approx(2 * 9 * (1 / num_reference + 1 / num_live) ** 2, rel=0.4)
    assert max(found) < 0.1


@pytest.mark.parametrize(("shift", "spread"), [(1.0, 1.0), (0.0, 2.5)])
def test_with_drift_it_is_large(shift, spread):
    generator = random.Random(1)
    reference = Histogram.of([generator.gauss(0, 1) for _ in range(2000)])
    live = bin_counts(reference.edges, [generator.gauss(shift, spread) for _ in range(500)])
    assert stability_index(reference.counts, live) > 0.4


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        (None, "an object of two lists"),
        ({"edges": [1.0], "counts": 3}, "an object of two lists"),
        ({"edges": [2.0, 1.0], "counts": [1, 1, 1]}, "edges: wanted one number or more, rising"),
        ({"edges": [], "counts": [1]}, "edges: wanted one number or more, rising"),
        ({"edges": [1.0], "counts": [1]}, "counts: wanted 2 counts, got 1"),
        ({"edges": [1.0], "counts": [1, -1]}, "counts.1: wanted a whole number of at least 0, got -1"),
        ({"edges": [1.0], "counts": [0, 0]}, "counts: wanted a count above 0"),
        ({"edges": [math.nan], "counts": [1, 0]}, "edges.0: wanted a finite number"),
        ({"edges": ["a"], "counts": [1, 0]}, "edges.0: wanted a finite number"),
    ],
)
def test_a_broken_histogram_is_refused_by_name(facts, wanted):
    with pytest.raises(MonitorError, match=wanted):
        Histogram.from_json(facts)


def test_it_comes_back_from_json():
    made = Histogram.of([float(i) for i in range(50)])
    assert Histogram.from_json(made.as_json()) == made
