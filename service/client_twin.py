"""How a steered reply differs from its unsteered twin, as the client hands it on. Conventions as in `client_events`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureDifference:
    """A watched feature over the generated tokens of both replies; None without a token."""

    feature: int
    mean: float | None
    """In the steered reply, taken before steering: what its words say."""
    baseline_mean: float | None
    max: float | None
    baseline_max: float | None
    steered_mean: float | None
    """In the steered reply, as the following blocks read it."""
    steered_max: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorDifference:
    """A monitor's scores of both replies; None where there were too few tokens."""

    monitor: str
    max_score: float | None
    baseline_max_score: float | None
    mean_score: float | None
    baseline_mean_score: float | None
    fired: bool
    baseline_fired: bool
