"""The rolling mean's window, and the first token that counts, chosen on development groups; and the units of the score.

The figure is AUROC of the monitor's own statistic, the largest rolling mean of a reply, averaged over data sets. A
reply with too few scored tokens can't fire and ranks below everything, so a large `min_tokens` pays for the short
replies that it is blind to.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from discovery.discrimination import auroc
from discovery.errors import MonitorLabError
from monitors.reference import max_rolling_mean

WINDOWS = (8, 16, 32)


class WindowFigure(NamedTuple):
    """One setting on development groups."""

    window: int
    min_tokens: int
    auroc: float


class Units(NamedTuple):
    """What makes components comparable: half-way between the labels is 0, their means are -1 and 1."""

    center: float
    scale: float


def choose_window(
    token_scores: Sequence[Sequence[float]],
    labels_I: NDArray[np.int64],
    datasets: Sequence[str],
    *,
    windows: Sequence[int] = WINDOWS,
    min_tokens: Sequence[int] = (8,),
) -> list[WindowFigure]:
    """All settings, best first; of equals the one named first.

    MonitorLabError if no data set has both labels.
    """
    figures = []
    for window in windows:
        for least in min_tokens:
            statistics_I = np.array([statistic(scores, window, least) for scores in token_scores])
            by_set = [
                auroc(statistics_I[inside], labels_I[inside])
                for dataset in dict.fromkeys(datasets)
                if len(set(labels_I[inside := np.asarray(datasets, object) == dataset].tolist())) == 2
            ]
            if not by_set:
                raise MonitorLabError("some data set must have both labels in development groups, got none")
            figures.append(WindowFigure(window, least, float(np.mean(by_set))))
    return sorted(figures, key=lambda figure: -round(figure.auroc, 6))


def statistic(token_scores: Sequence[float], window: int, min_tokens: int) -> float:
    """The largest rolling mean; -inf for a reply that is too short to fire."""
    found = max_rolling_mean(token_scores, window, min_tokens)
    return -math.inf if found is None else found


def units_of(statistics_I: NDArray[np.float64], labels_I: NDArray[np.int64]) -> Units:
    """Center and scale of a component, by the labels' mean statistics.

    MonitorLabError if the positives' mean isn't the larger one.
    """
    finite_I = np.isfinite(statistics_I)
    groups = [statistics_I[finite_I & (labels_I == label)] for label in (0, 1)]
    if not all(len(group) for group in groups):
        raise MonitorLabError(
            "replies of both labels must be long enough to fire, got none with one of them: lower --min-tokens"
        )
    negative, positive = (float(group.mean()) for group in groups)
    if positive <= negative:
        raise MonitorLabError(
            f"positives' mean statistic must be above the negatives', got {positive:.4g} and {negative:.4g}: "
            "nothing was learned that holds for whole replies"
        )
    return Units((positive + negative) / 2, (positive - negative) / 2)
