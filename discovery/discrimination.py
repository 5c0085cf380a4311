"""How well scores tell two labels apart, with intervals that know what belongs together.

    AUROC         chance that a positive scores above a negative, ties counting half (Mann and Whitney 1947)
    within        the same over pairs of one stratum alone (one prompt), every pair counting the same
    interval      2.5th to 97.5th percentile over resampled groups (percentile bootstrap), and at least what so few
                  replies allow (`small_samples`); a resample that leaves one label out says nothing and is left out

A score may be -inf: what can't fire ranks below everything.

Shape suffixes: I replies, G groups, R resamples.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from discovery.group_bootstrap import NUM_RESAMPLES, Estimate
from discovery.small_samples import widened_auroc, widened_share

Scores = NDArray[np.float64]
Labels = NDArray[np.int64]

_CELLS_PER_CHUNK = 2**22


def auroc(scores_I: Scores, labels_I: Labels) -> float:
    """NaN if a label is missing."""
    return float(_weighted_auroc(scores_I, labels_I, np.ones((1, len(scores_I))))[0])


def auroc_interval(
    scores_I: Scores, labels_I: Labels, groups: Sequence[str], *, strata: Sequence[str] | None = None, seed: int = 0
) -> Estimate:
    """AUROC, or AUROC within `strata`, with its 95 % group bootstrap interval. All NaN if a label is missing."""

    def figure(weights_RI: NDArray[np.float64]) -> NDArray[np.float64]:
        if strata is None:
            return _weighted_auroc(scores_I, labels_I, weights_RI)
        return _within(scores_I, labels_I, strata, weights_RI)

    compared_I = paired(labels_I, strata)
    num_positive = int(labels_I[compared_I].sum())
    return widened_auroc(_interval(figure, groups, seed), num_positive, int(compared_I.sum()) - num_positive)


def paired(labels_I: Labels, strata: Sequence[str] | None) -> NDArray[np.bool_]:
    """Which replies are compared with any: of strata, in those that have both labels."""
    if strata is None:
        return np.ones(len(labels_I), np.bool_)
    labels_of: dict[str, set[int]] = {}
    for stratum, label in zip(strata, labels_I.tolist(), strict=True):
        labels_of.setdefault(stratum, set()).add(label)
    return np.array([len(labels_of[stratum]) == 2 for stratum in strata], np.bool_)


def share_interval(flags_I: NDArray[np.bool_], groups: Sequence[str], seed: int = 0) -> Estimate:
    """Share of the replies flagged. All NaN of none."""

    def figure(weights_RI: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            return weights_RI @ flags_I.astype(np.float64) / weights_RI.sum(1)

    return widened_share(_interval(figure, groups, seed), len(flags_I))


def threshold_at(negatives: Scores, fpr: float) -> float:
    """The score that at most a share `fpr` of `negatives` exceeds; NaN of none."""
    if not len(negatives):
        return float("nan")
    # One-sided: with 50 negatives none may exceed it at 1 %.
    num_above = int(np.floor(fpr * len(negatives) + 1e-9))
    return float(np.sort(negatives)[len(negatives) - 1 - num_above])


def _interval(
    figure: Callable[[NDArray[np.float64]], NDArray[np.float64]], groups: Sequence[str], seed: int
) -> Estimate:
    names, member_I = np.unique(np.asarray(groups, object).astype(str), return_inverse=True)
    point = float(figure(np.ones((1, len(member_I))))[0]) if len(member_I) else float("nan")
    if not np.isfinite(point):
        return Estimate(*[float("nan")] * 3)
    rng = np.random.default_rng(seed)
    rows = max(1, _CELLS_PER_CHUNK // max(len(member_I), 1))
    resampled = []
    for begin in range(0, NUM_RESAMPLES, rows):
        num = min(rows, NUM_RESAMPLES - begin)
        draws_RG = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=num)
        resampled.append(figure(draws_RG[:, member_I].astype(np.float64)))
    finite = np.concatenate(resampled)
    finite = finite[np.isfinite(finite)]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (float("nan"),) * 2
    return Estimate(point, float(low), float(high))


def _weighted_auroc(scores_I: Scores, labels_I: Labels, weights_RI: NDArray[np.float64]) -> NDArray[np.float64]:
    wins_R, pairs_R = _wins(scores_I, labels_I, weights_RI)
    with np.errstate(invalid="ignore", divide="ignore"):
        return wins_R / pairs_R


def _within(
    scores_I: Scores, labels_I: Labels, strata: Sequence[str], weights_RI: NDArray[np.float64]
) -> NDArray[np.float64]:
    wins_R, pairs_R = np.zeros(len(weights_RI)), np.zeros(len(weights_RI))
    strata_I = np.asarray(strata, object).astype(str)
    for name in np.unique(strata_I):
        inside_I = strata_I == name
        won_R, paired_R = _wins(scores_I[inside_I], labels_I[inside_I], weights_RI[:, inside_I])
        wins_R, pairs_R = wins_R + won_R, pairs_R + paired_R
    with np.errstate(invalid="ignore", divide="ignore"):
        return wins_R / pairs_R


def _wins(
    scores_I: Scores, labels_I: Labels, weights_RI: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """([R] weight of pairs in which the positive is above, ties half; [R] weight of all pairs)."""
    levels, level_I = np.unique(scores_I, return_inverse=True)
    positive_RI, negative_RI = weights_RI * (labels_I == 1), weights_RI * (labels_I == 0)
    order = np.argsort(level_I, kind="stable")
    starts = np.searchsorted(level_I[order], np.arange(len(levels)))
    if not len(levels):
        return np.zeros(len(weights_RI)), np.zeros(len(weights_RI))
    positive_RK = np.add.reduceat(positive_RI[:, order], starts, axis=1)
    negative_RK = np.add.reduceat(negative_RI[:, order], starts, axis=1)
    below_RK = np.cumsum(negative_RK, axis=1) - negative_RK
    wins_R = (positive_RK * (below_RK + 0.5 * negative_RK)).sum(1)
    return wins_R, positive_RI.sum(1) * negative_RI.sum(1)
