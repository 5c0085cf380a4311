"""One role's run through a monitor: inputs of scored tokens in, scores and alerts out.

    rolling mean   m_k = mean of component k's last `window` token scores
    score          S_t = combination of (m_k - center_k) / scale_k
    statistic      T   = max over t >= min_tokens of S_t - g(t), the number that thresholds are calibrated on

`t` counts this track's scored tokens. `monitors.reference` has the same for a whole reply at once, the obvious way, and
the tests hold this code to it.
"""

from collections import deque
from dataclasses import dataclass
from math import fsum
from statistics import fmean
from typing import Literal, NamedTuple

from monitors.alarm import Alarm, Transition
from monitors.combination import Cascade
from monitors.components import Component, FeatureScore, Inputs
from monitors.monitor_spec import MonitorSpec, Role
from monitors.thresholds import Level


@dataclass(frozen=True, slots=True)
class ComponentPart:
    """A component's part in an alert's score."""

    component: str
    score: float
    """Standardised."""
    contribution: float
    """What it gave to the monitor's score; those of all components sum to it."""
    features: tuple[tuple[int, float], ...]
    """(latent, its mean weighted contribution over the window), summing to the component's rolling mean before it is
    standardised; empty for a probe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A monitor that reached a level, or whose alert ended."""

    monitor: str
    state: Literal["firing", "cleared"]
    """A rise from warning to critical is a second alert that is firing."""
    level: Level
    """The level reached; for a cleared one, the level it had."""
    position: int
    """Token whose reading took the score across the threshold."""
    span_start: int
    """First position in the window that ends at `position`: the text the alert is about."""
    score: float
    threshold: float
    """The one crossed, at this length of reply."""
    components: tuple[ComponentPart, ...]
    """In the order of the spec."""
    role: Role = "assistant"
    """Whose words were scored."""
    validated: bool = False
    pack_sha256: str = ""
    beyond_calibration: bool = False
    """Whether the reply had grown longer than the thresholds stand for: no rate is known there."""


class MonitorUpdate(NamedTuple):
    """What one scored token did."""

    score: float
    components: tuple[float, ...]
    """Standardised scores of the components, in the order of the spec."""
    level: Level | None
    """Level of the alert that is open after this token."""
    alert: Alert | None
    """The alert that this token raised or cleared."""

    @property
    def firing(self) -> bool:
        """Whether an alert is open after this token."""
        return self.level is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorSummary:
    """A monitor's whole request, as far as one role goes."""

    monitor: str
    role: Role = "assistant"
    max_score: float | None
    """Largest score from the `min_tokens`-th scored token on. None if there were fewer."""
    max_statistic: float | None
    """Largest excess over the length profile, the statistic that levels are calibrated on. None if max_score is."""
    mean_score: float | None
    """The score that one window over all scored tokens gives; None if no token was scored. Of a cascade, the mean of
    its scores at the tokens at which the gate was open; None if it never was."""
    num_scored: int
    """Tokens scored."""
    num_fired: int
    """Alerts raised, rises to critical included."""
    level: Level | None
    """Highest level reached."""
    first_fired_position: int | None
    """Position of the first alert; None if it never fired."""
    beyond_calibration: bool = False
    """Whether more tokens were scored than the thresholds stand for (`Thresholds.max_tokens`)."""


class _ComponentRun:
    """A component's window and all of its token scores."""

    def __init__(self, component: Component, window: int) -> None:
        self.component = component
        self.window: deque[float] = deque(maxlen=window)
        self.all: list[float] = []
        self.parts: deque[tuple[float, ...]] = deque(maxlen=window)

    def push(self, parts: tuple[float, ...]) -> float:
        """The standardised score with one more token."""
        token_score = parts[0] if len(parts) == 1 else fsum(parts)
        self.parts.append(parts)
        self.all.append(token_score)
        self.window.append(token_score)
        # Summed anew each time: a running sum would keep the rounding error of every large score that has left it.
        return self.component.standardised(fsum(self.window) / len(self.window))

    def feature_means(self) -> tuple[tuple[int, float], ...]:
        if not isinstance(self.component.score, FeatureScore):
            return ()
        return tuple(zip(self.component.latents, map(fmean, zip(*self.parts, strict=True)), strict=True))


class Track:
    """A spec at work on the tokens of one role."""

    def __init__(self, spec: MonitorSpec, role: Role) -> None:
        self.spec, self.role = spec, role
        self._alarm = Alarm(spec.min_tokens, spec.cooldown_tokens)
        self._stretch = spec.thresholds.stretch_at(1)
        self._runs = [_ComponentRun(component, spec.window) for component in spec.components]
        self._positions: deque[int] = deque(maxlen=spec.window)
        self._max_score: float | None = None
        self._max_statistic: float | None = None
        self._open_scores: list[float] = []
        """Of a cascade: its scores while the gate was open."""
        self._num_fired = 0
        self._first_fired_position: int | None = None

    @property
    def level(self) -> Level | None:
        """Level of the open alert."""
        return self._alarm.level

    @property
    def highest_level(self) -> Level | None:
        """Highest level reached so far."""
        return self._alarm.highest

    @property
    def span_start(self) -> int | None:
        """First position of the window as it is; None if nothing was scored."""
        return self._positions[0] if self._positions else None

    def observe(self, position: int, inputs: Inputs) -> MonitorUpdate:
        """Scores one token. MonitorError, and nothing changed, for a missing or non-finite input."""
        parts = [run.component.score.parts(inputs) for run in self._runs]  # all, before anything is kept
        scores = tuple([run.push(part) for run, part in zip(self._runs, parts, strict=True)])
        self._positions.append(position)
        score = self.spec.combination.score(scores)
        combination = self.spec.combination
        if isinstance(combination, Cascade) and combination.is_open(scores):
            self._open_scores.append(score)
        num_scored = self._alarm.num_scored + 1
        if num_scored > self._stretch.max_tokens:
            self._stretch = self.spec.thresholds.stretch_at(num_scored)
        excess = score - self._stretch.profile
        transition = self._alarm.step(excess, self._stretch.marks)
        if num_scored >= self.spec.min_tokens:
            self._max_score = score if self._max_score is None else max(self._max_score, score)
            self._max_statistic = excess if self._max_statistic is None else max(self._max_statistic, excess)
        alert = None if transition is None else self._alert(transition, score, scores)
        return MonitorUpdate(score, scores, self._alarm.level, alert)

    def summary(self) -> MonitorSummary:
        """The request so far."""
        return MonitorSummary(
            monitor=self.spec.name,
            role=self.role,
            max_score=self._max_score,
            max_statistic=self._max_statistic,
            mean_score=self._mean_score(),
            num_scored=self._alarm.num_scored,
            num_fired=self._num_fired,
            level=self._alarm.highest,
            first_fired_position=self._first_fired_position,
            beyond_calibration=self._is_beyond_calibration,
        )

    @property
    def _is_beyond_calibration(self) -> bool:
        return self._alarm.num_scored > self.spec.thresholds.max_tokens

    def _mean_score(self) -> float | None:
        if not self._alarm.num_scored:
            return None
        if isinstance(self.spec.combination, Cascade):
            # Over all tokens a gate that opens at few of them is closed in the mean, whatever was read.
            return fmean(self._open_scores) if self._open_scores else None
        return self.spec.combination.score([run.component.standardised(fmean(run.all)) for run in self._runs])

    def _alert(self, transition: Transition, score: float, scores: tuple[float, ...]) -> Alert:
        position = self._positions[-1]
        if transition.raised:
            self._note_fired(position)
        contributions = self.spec.combination.contributions(scores)
        return Alert(
            monitor=self.spec.name,
            state="firing" if transition.raised else "cleared",
            level=transition.level,
            position=position,
            span_start=self._positions[0],
            score=score,
            threshold=self._stretch.profile + transition.mark,
            components=tuple(
                ComponentPart(run.component.name, z, contribution, run.feature_means())
                for run, z, contribution in zip(self._runs, scores, contributions, strict=True)
            ),
            role=self.role,
            validated=self.spec.validated,
            pack_sha256=self.spec.pack_sha256,
            beyond_calibration=self._is_beyond_calibration,
        )

    def _note_fired(self, position: int) -> None:
        self._num_fired += 1
        if self._first_fired_position is None:
            self._first_fired_position = position
