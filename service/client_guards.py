"""What a server says of how far its readings and scores can be trusted. Conventions as in `client_events`."""

from dataclasses import dataclass
from typing import Literal

InputState = Literal["unspecified", "alive", "untested", "silent", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionGuard:
    """What marks tokens as off the dictionary's distribution."""

    active: bool = False
    """Without the dictionary's own figures no token is marked, and that says nothing of it."""
    max_fvu: float = 0.0
    source: str = ""
    """Where the limit comes from, or why there is none."""
    usual_ratio: float = 0.0
    """Share of ordinary tokens above it by its definition."""


NO_GUARD = ReconstructionGuard()
"""What a server that knows of none says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """What the dictionary reads on two forms of its model."""

    first: str
    """The form it was trained on."""
    against: str
    tokens: int
    residual_relative_error: float
    median_correlation: float
    flip_ratio: float
    first_l0: float
    against_l0: float
    first_variance_explained: float
    against_variance_explained: float
    may_be_served: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorInput:
    """A latent or probe, and how it has behaved since the server started."""

    name: str
    feature: int | None
    """None for a probe."""
    tokens: int
    active_tokens: int
    silent_tokens: int
    """Since it was last active."""
    density_ratio: float | None
    """Share of tokens at which it is active in ordinary text; None if unknown."""
    silence_probability: float | None
    state: InputState


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorDrift:
    """How far a monitor's values have moved from those of its calibration."""

    has_reference: bool = False
    replies: int = 0
    statistic_psi: float | None = None
    """None without a reference, and until there are `min_replies`."""
    token_score_psi: float | None = None
    expected_psi: float | None = None
    """What `statistic_psi` would be on average if nothing had moved."""
    min_replies: int = 0
