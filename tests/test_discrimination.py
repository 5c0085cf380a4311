"""discrimination: equal to counting pairs; intervals wide enough for groups."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from discovery.discrimination import auroc, auroc_interval, share_interval, threshold_at
from discovery.small_samples import auroc_by_counts

ROWS = st.lists(
    st.tuples(st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0]), st.integers(0, 1), st.sampled_from("ab")), min_size=1
)


def columns(rows):
    scores, labels, strata = zip(*rows, strict=True)
    return np.array(scores), np.array(labels), list(strata)


def counted(rows, same_stratum):
    """Pair by pair."""
    won = [
        (p > n) + 0.5 * (p == n)
        for p, label, s in rows
        if label
        for n, other, t in rows
        if not other and (s == t or not same_stratum)
    ]
    return sum(won) / len(won) if won else math.nan


@given(ROWS)
def test_auroc_is_the_share_of_pairs_won(rows):
    scores, labels, strata = columns(rows)
    assert auroc(scores, labels) == pytest.approx(counted(rows, False), nan_ok=True)
    within = auroc_interval(scores, labels, [str(n) for n in range(len(rows))], strata=strata).mean
    assert within == pytest.approx(counted(rows, True), nan_ok=True)


def test_auroc_is_scikit_learns():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=300), rng.integers(0, 2, 300)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


def test_an_interval_holds_the_true_value_as_often_as_it_says():
    rng, inside = np.random.default_rng(1), 0
    for number in range(60):
        labels = np.repeat([0, 1], 60)
        scores = rng.normal(size=120) + labels  # AUROC Phi(1 / sqrt 2) = 0.760
        found = auroc_interval(scores, labels, [str(n) for n in range(120)], seed=number)
        assert found.low <= found.mean <= found.high
        inside += found.low <= 0.7602 <= found.high
    assert inside >= 51


def test_copies_within_a_group_make_an_interval_no_narrower():
    rng = np.random.default_rng(2)
    scores, labels = rng.normal(size=40), np.tile([0, 1], 20)
    groups = [str(n) for n in range(40)]
    alone = auroc_interval(scores, labels, groups)
    copied = auroc_interval(np.repeat(scores, 25), np.repeat(labels, 25), np.repeat(groups, 25).tolist())
    assert copied.mean == pytest.approx(alone.mean)
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.1)


def test_the_interval_within_strata_is_about_the_figure_within_strata():
    rng = np.random.default_rng(3)
    labels, strata = rng.integers(0, 2, 200), rng.choice(["a", "b"], 200)
    scores = rng.normal(size=200) + 50 * (strata == "a") + labels
    found = auroc_interval(scores, labels, [str(n) for n in range(200)], strata=strata.tolist())
    assert found.low < found.mean < found.high
    assert found.low > auroc(scores, labels)


def test_all_that_are_right_are_not_all_that_there_are():
    """Resamples of what is told apart without a fault are so too: the interval is of the counts then."""
    scores, labels, groups = np.arange(60.0), np.repeat([0, 1], [54, 6]), [str(n) for n in range(60)]
    found = auroc_interval(scores, labels, groups)
    assert found.mean == found.high == 1 and 0.6 < found.low < 0.95
    missed = share_interval(np.zeros(23, bool), groups[:23])
    assert missed.mean == missed.low == 0 and missed.high == pytest.approx(0.148, abs=0.001)  # Clopper and Pearson


def test_a_few_replies_have_an_interval_that_holds_as_often_as_it_says():
    rng, inside = np.random.default_rng(5), 0
    for number in range(120):
        labels = np.repeat([0, 1], [24, 6])
        scores = rng.normal(size=30) + labels * 1.8124  # AUROC 0.9
        found = auroc_interval(scores, labels, [str(n) for n in range(30)], seed=number)
        inside += found.low <= 0.9 <= found.high
    assert inside >= 108  # 85 % of resampled intervals alone


def test_what_many_groups_say_is_left_alone():
    """Pairs of one question are told apart better than counts allow, which don't know that they are pairs."""
    questions = np.random.default_rng(6).normal(size=200) * 5
    scores, labels = np.concatenate([questions, questions + 2]), np.repeat([0, 1], 200)
    found = auroc_interval(scores, labels, [str(n) for n in [*range(200), *range(200)]])
    low, high = auroc_by_counts(found.mean, 200, 200)
    assert low < found.low and found.high < high


def test_counts_alone_are_judged_by_newcombes_equation():
    """The equation, solved on a grid; and what is said of one label is said of the other."""
    low, high = auroc_by_counts(0.8, 20, 20)
    grid = np.linspace(1e-6, 1 - 1e-6, 200_001)
    variance = grid * (1 - grid) * (1 + 19 * ((1 - grid) / (2 - grid) + grid / (1 + grid))) / 400
    held = grid[np.abs(grid - 0.8) <= 1.959964 * np.sqrt(variance)]
    assert (low, high) == pytest.approx((held.min(), held.max()), abs=1e-4)
    assert auroc_by_counts(0.2, 20, 20) == pytest.approx((1 - high, 1 - low))
    assert auroc_by_counts(0.0, 3, 3)[0] == 0 and auroc_by_counts(1.0, 3, 3)[1] == 1


def test_one_label_has_no_figure():
    assert all(map(math.isnan, auroc_interval(np.zeros(3), np.ones(3, int), ["a", "b", "c"])))
    assert all(map(math.isnan, auroc_interval(np.zeros(0), np.zeros(0, int), [])))
    assert all(map(math.isnan, share_interval(np.zeros(0, bool), [])))


def test_shares_have_intervals_by_group():
    flags = np.array([True, True, False, False])
    found = share_interval(flags, ["a", "a", "b", "b"])
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize(("num", "fpr"), [(50, 0.01), (100, 0.01), (199, 0.01), (300, 0.01), (7, 0.5)])
def test_no_more_than_the_share_exceeds_a_threshold_and_one_more_would(num, fpr):
    negatives = np.random.default_rng(num).normal(size=num)
    threshold = threshold_at(negatives, fpr)
    assert (negatives > threshold).mean() <= fpr < (negatives >= threshold).mean()
    assert math.isnan(threshold_at(np.zeros(0), 0.01))
