"""A monitor's numbers for one whole reply at once, the obvious way, straight from their definitions.

The tests hold the streaming code (`monitors.track`) to them, which calibration runs as well; offline `max_rolling_mean`
alone is used, where windows and the thresholds of single latents are chosen. Rows of `token_scores` are components in
the order of the spec, columns the reply's scored tokens.
"""

from collections.abc import Sequence
from math import fsum
from statistics import fmean

from monitors import checks
from monitors.components import Inputs
from monitors.monitor_spec import MonitorSpec


def token_scores(spec: MonitorSpec, reply: Sequence[Inputs]) -> list[list[float]]:
    """Each component's score of each token. MonitorError for a missing or non-finite input."""
    return [[fsum(c.score.parts(inputs)) for inputs in reply] for c in spec.components]


def reply_scores(spec: MonitorSpec, token_scores: Sequence[Sequence[float]]) -> list[float]:
    """The monitor's score at each scored token."""
    rolling = [rolling_means(row, spec.window) for row in token_scores]
    return [
        spec.combination.score([c.standardised(mean) for c, mean in zip(spec.components, means, strict=True)])
        for means in zip(*rolling, strict=True)
    ]


def reply_statistic(spec: MonitorSpec, token_scores: Sequence[Sequence[float]]) -> float | None:
    """The largest excess over the length profile from the `min_tokens`-th scored token on; None if there are fewer."""
    counted = list(enumerate(reply_scores(spec, token_scores), start=1))[spec.min_tokens - 1 :]
    return max((score - spec.thresholds.stretch_at(t).profile for t, score in counted), default=None)


def rolling_means(scores: Sequence[float], window: int) -> list[float]:
    """The mean of up to `window` scores that end at each one."""
    return [fmean(scores[max(0, end - window) : end]) for end in range(1, len(scores) + 1)]


def max_rolling_mean(token_scores: Sequence[float], window: int, min_tokens: int) -> float | None:
    """The largest mean of up to `window` scores that end at one, the first `min_tokens - 1` ends left out: the
    statistic of one component by itself, in its own units. None if there are fewer than `min_tokens` scores.

    Raises MonitorError if a score is not finite: `max` over NaN depends on the order.
    """
    checks.refuse(
        checks.count("window", window, at_least=1),
        checks.count("min_tokens", min_tokens, at_least=1),
        *(checks.finite(f"token_scores.{i}", float(score)) for i, score in enumerate(token_scores)),
    )
    return max(rolling_means(token_scores, window)[min_tokens - 1 :], default=None)
