"""One monitor on one request: readings in, scores and alerts out.

    token score   s_t = sum_i w_i * g(f_i / scale_i),  g(x) = x (linear)  or  log(1 + max(x, 0)) (log1p)
    score         S_t = mean of the last `window` token scores
    statistic     max over t >= min_tokens of S_t, the number that thresholds are calibrated on

`t` counts scored tokens. Position 0 carries a massive activation in every sequence and is never scored; prompt tokens
are scored only if the spec asks. `max_rolling_mean` is the statistic of a whole reply at once: calibration uses it, and
the tests hold the streaming code to it.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, NamedTuple, get_args

from monitors import checks
from monitors.components import Transform, WeightedFeature
from monitors.errors import Problem, shown
from monitors.rules import Rule, RuleState, Severity, Transition


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorSpec:
    """What a monitor watches, when it fires, and what its threshold rests on."""

    name: str
    description: str
    features: tuple[WeightedFeature, ...]
    """At least one, no latent twice."""
    transform: Transform
    rule: Rule
    score_prompt: bool = False
    """Whether prompt tokens are scored, and so can raise alerts, too."""
    validated: bool = False
    """Whether held-out evidence supports the name. Travels to the client with every alert."""
    threshold_source: str
    """A sentence saying where the threshold comes from."""
    sae_sha256: str
    """Weights hash of the dictionary whose latents are meant."""

    def __post_init__(self) -> None:
        indices = [part.feature for part in self.features]
        checks.refuse(
            checks.slug("name", self.name),
            None if indices else Problem("features", "at least one feature", "none"),
            *(
                Problem(f"features.{i}.feature", "a latent that the monitor does not use yet", shown(index))
                for i, index in enumerate(indices)
                if index in indices[:i]
            ),
            checks.choice("transform", self.transform, get_args(Transform)),
            checks.flag("score_prompt", self.score_prompt),
            checks.flag("validated", self.validated),
            checks.sentence("threshold_source", self.threshold_source),
            checks.sha256("sae_sha256", self.sae_sha256),
        )

    def contributions(self, readings: Mapping[int, float]) -> tuple[float, ...]:
        """Summands of one token's score, in the order of `features`; their `math.fsum` is the token score.

        Raises MonitorError if a reading is missing or not finite, or a summand too large to be averaged.
        """
        return tuple(self._contribution(part, readings) for part in self.features)

    def _contribution(self, part: WeightedFeature, readings: Mapping[int, float]) -> float:
        if part.feature not in readings:
            checks.refuse(Problem(f"readings.{part.feature}", "a reading", "nothing"))
        reading = float(readings[part.feature])  # arithmetic on a numpy float32 would stay float32
        if not checks.is_summable(reading):  # before max(reading, 0) can make a harmless 0 of a NaN
            checks.refuse(checks.finite(f"readings.{part.feature}", reading))
        contribution = part.contribution(reading, self.transform)
        if not checks.is_summable(contribution):
            checks.refuse(checks.finite(f"contributions.{part.feature}", contribution))
        return contribution


@dataclass(frozen=True, slots=True)
class Alert:
    """A monitor that started or stopped firing."""

    monitor: str
    state: Literal["firing", "cleared"]
    severity: Severity
    position: int
    """Token whose reading took the score across the threshold."""
    span_start: int
    """First position in the window that ends at `position`: the text the alert is about."""
    score: float
    threshold: float
    """The one crossed: the rule's `threshold` if firing, its `clear_threshold` if cleared."""
    contributions: tuple[tuple[int, float], ...]
    """(latent, its mean contribution over the window), in the order of the spec; they sum to `score`."""
    validated: bool


@dataclass(frozen=True, slots=True)
class MonitorUpdate:
    """What one token did."""

    score: float | None
    """Rolling mean ending here, from the first scored token on; None at a token that is not scored."""
    token_score: float | None
    """This token's own score; None at a token that is not scored."""
    firing: bool
    """Whether an alert is open after this token."""
    alert: Alert | None
    """The alert that this token raised or cleared."""


@dataclass(frozen=True, slots=True)
class MonitorSummary:
    """A monitor's whole request."""

    monitor: str
    max_score: float | None
    """Largest score from the `min_tokens`-th scored token on, the statistic that `threshold` is calibrated on.
    None if there were fewer."""
    mean_score: float | None
    """Mean of all token scores; None if no token was scored."""
    num_scored: int
    """Tokens scored."""
    num_fired: int
    """Times it fired."""
    first_fired_position: int | None
    """Position of the first firing alert; None if it never fired."""


class _ScoredToken(NamedTuple):
    position: int
    token_score: float
    contributions: tuple[float, ...]


class Monitor:
    """A spec at work on one request. Feed it every token, in order."""

    def __init__(self, spec: MonitorSpec) -> None:
        self.spec = spec
        self._state = RuleState(spec.rule)
        self._window: deque[_ScoredToken] = deque(maxlen=spec.rule.window)
        self._token_scores: list[float] = []
        self._max_score: float | None = None
        self._num_fired = 0
        self._first_fired_position: int | None = None
        self._last_position: int | None = None

    def observe(
        self, position: int, readings: Mapping[int, float], is_prompt: bool, is_off_scale: bool = False
    ) -> MonitorUpdate:
        """Takes the readings at one position: latent -> activation, at least those of the spec.

        `is_off_scale` says that the token carries a massive activation: it is not scored, as position 0 never is. The
        first position may be any; each further one must be the next, so that no token can be missed or counted
        twice. Raises MonitorError for a position out of turn and, at tokens that are scored, for a missing or
        non-finite reading; the monitor is then as it was before.
        """
        self._check_position(position)
        if position == 0 or is_off_scale or (is_prompt and not self.spec.score_prompt):
            self._last_position = position
            return MonitorUpdate(score=None, token_score=None, firing=self._state.firing, alert=None)

        contributions = self.spec.contributions(readings)
        token_score = math.fsum(contributions)
        self._last_position = position
        self._token_scores.append(token_score)
        self._window.append(_ScoredToken(position, token_score, contributions))
        # Summed anew each time: a running sum would keep the rounding error of every large score that has left it.
        score = fmean(token.token_score for token in self._window)
        if len(self._token_scores) >= self.spec.rule.min_tokens:
            self._max_score = score if self._max_score is None else max(self._max_score, score)
        transition = self._state.step(score)
        alert = None if transition is None else self._alert(transition, score)
        return MonitorUpdate(score, token_score, self._state.firing, alert)

    def summary(self) -> MonitorSummary:
        """The request so far."""
        return MonitorSummary(
            monitor=self.spec.name,
            max_score=self._max_score,
            mean_score=fmean(self._token_scores) if self._token_scores else None,
            num_scored=len(self._token_scores),
            num_fired=self._num_fired,
            first_fired_position=self._first_fired_position,
        )

    def _check_position(self, position: int) -> None:
        checks.refuse(checks.count("position", position, at_least=0))
        if self._last_position is not None and position != self._last_position + 1:
            wanted = f"{self._last_position + 1}, the one after the last"
            checks.refuse(Problem("position", wanted, shown(position)))

    def _alert(self, transition: Transition, score: float) -> Alert:
        rule = self.spec.rule
        fired = transition is Transition.FIRED
        position = self._window[-1].position
        if fired:
            self._num_fired += 1
            if self._first_fired_position is None:
                self._first_fired_position = position
        means = map(fmean, zip(*(token.contributions for token in self._window), strict=True))
        return Alert(
            monitor=self.spec.name,
            state="firing" if fired else "cleared",
            severity=rule.severity,
            position=position,
            span_start=self._window[0].position,
            score=score,
            threshold=rule.threshold if fired else rule.clear_threshold,
            contributions=tuple(zip((part.feature for part in self.spec.features), means, strict=True)),
            validated=self.spec.validated,
        )


def max_rolling_mean(token_scores: Sequence[float], window: int, min_tokens: int) -> float | None:
    """The statistic of one whole reply: the largest mean of up to `window` scores that end at one, the first
    `min_tokens - 1` ends left out. None if there are fewer than `min_tokens` scores.

    Raises MonitorError if a score is not finite: `max` over NaN depends on the order.
    """
    checks.refuse(
        checks.count("window", window, at_least=1),
        checks.count("min_tokens", min_tokens, at_least=1),
        *(checks.finite(f"token_scores.{i}", float(score)) for i, score in enumerate(token_scores)),
    )
    ends = range(min_tokens, len(token_scores) + 1)
    return max((fmean(token_scores[max(0, end - window) : end]) for end in ends), default=None)
