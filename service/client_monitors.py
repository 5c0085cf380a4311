"""Monitors as the client hands them on. Conventions as in `client_events`. Knows nothing of gRPC."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from service.client_guards import MonitorDrift, MonitorInput

Severity = Literal["unspecified", "info", "warning", "critical"]
MonitorKind = Literal["unspecified", "feature", "features", "probe", "ensemble", "cascade"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorComponent:
    """One of the scores that a monitor is made of."""

    name: str
    reads: str
    """What it reads, in words."""
    hook_point: str
    """Where a probe reads; empty for latents."""
    features: tuple[int, ...]
    method: str
    """How a probe was fitted; empty for latents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorLevel:
    """A level of alerts."""

    severity: Severity
    alpha: float
    """Share of benign replies that it was set to reach at most."""
    absent: tuple[int, ...]
    """Strata, by `max_tokens`, in which it does not fire: there were too few replies to set it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorStratum:
    """Thresholds in a range of a reply's length."""

    max_tokens: int
    """Last scored token of the range, counted from 1."""
    warning: float | None
    """None if that level is absent here."""
    critical: float | None
    clear: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitor:
    """A monitor as defined on the server, by its pack."""

    name: str
    description: str
    threshold: float
    """Of its lowest level, for short replies; `strata` has all."""
    clear_threshold: float
    window: int
    min_tokens: int
    cooldown_tokens: int
    severity: Severity
    """Highest level that its alerts can reach."""
    threshold_source: str
    """What the thresholds rest on, in words."""
    validated: bool
    features: tuple[int, ...]
    scores_prompt: bool
    kind: MonitorKind = "unspecified"
    version: int = 0
    pack_sha256: str = ""
    components: tuple[MonitorComponent, ...] = ()
    """In the order of `MonitorScore.components`."""
    combination: str = ""
    """How the components become a score, in words."""
    levels: tuple[MonitorLevel, ...] = ()
    strata: tuple[MonitorStratum, ...] = ()
    roles: tuple[str, ...] = ()
    """Whose words are scored."""
    calibration_method: str = ""
    """conformal_by_length bounds the false positives per reply; plain_quantile and by_hand do not."""
    limits: str = ""
    """What it does not show."""
    validated_reason: str = ""
    mismatches: tuple[str, ...] = ()
    """Where what is served is not what the pack was made for."""
    temperatures: tuple[float, ...] = ()
    cautions: tuple[str, ...] = ()
    """What of the request at hand the thresholds were not set on."""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    """Numbers; from `get_monitor` alone."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """Measurements for and against it; from `get_monitor` alone."""
    inputs: tuple[MonitorInput, ...] = ()
    """How they have behaved since the server started; from `list_monitors` and `get_monitor` alone."""
    drift: MonitorDrift | None = None
    """How far its values have moved; from `list_monitors` and `get_monitor` alone."""
