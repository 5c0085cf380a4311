"""What the client hands to its callers: one frozen dataclass per wire message, with plain Python values.

Fields have the names of the wire contract, where each is documented in full. Three things differ, everywhere: enums
are their lower-case names without prefix (`FINISH_REASON_EOS` is `"eos"`), durations are `*_seconds`, and what may be
unset is None. A test holds every message of the contract against its class. Knows nothing of gRPC.
"""

from dataclasses import dataclass, field
from typing import Literal

from service.client_catalog import ModelInfo, SaeInfo, WatchedFeature
from service.client_guards import NO_GUARD, ReconstructionGuard
from service.client_monitors import Monitor, Severity
from service.client_twin import FeatureDifference, MonitorDifference

FinishReason = Literal["unspecified", "eos", "stop_sequence", "length", "context_length", "alert_stop", "shutdown"]
AlertState = Literal["unspecified", "firing", "cleared"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureReading:
    """A latent and its activation, in the dictionary's units."""

    feature: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorScore:
    """A monitor's score at one token."""

    monitor: str
    value: float
    firing: bool
    components: tuple[float, ...] = ()
    """Standardised, in the order of `Monitor.components`."""
    level: Severity = "unspecified"
    """Of the alert that is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token as the model read it; `readings` are of the very position at which it was read."""

    index: int
    """Position; the prompt starts at 0."""
    id: int
    text: str
    """Text added; may be empty while a character or a possible stop string is incomplete."""
    special: bool
    is_prompt: bool
    is_first_position: bool
    """Position 0."""
    off_scale: bool = False
    """A massive activation, position 0 always: its readings mean nothing and are not scored."""
    readings: tuple[float, ...]
    """One per watched feature, taken before any steering. By name: `reading("lying")`."""
    steered_readings: tuple[float, ...]
    """The same after steering; empty where nothing was steered."""
    top_features: tuple[FeatureReading, ...]
    logprob: float | None
    scores: tuple[MonitorScore, ...]
    fvu: float
    """Fraction of the residual's variance that the dictionary leaves unexplained."""
    l0: int
    """Active latents."""
    role: str = ""
    """Whose words it is; empty for a template's, and in prompts that no monitor scores."""
    off_distribution: bool = False
    """The dictionary does not describe this residual: do not trust what was read here."""
    watched: tuple[WatchedFeature, ...] = field(default=(), repr=False, compare=False)
    """What `readings` are readings of: the request's watched features, shared by all its tokens."""

    def reading(self, feature: str | int) -> float:
        """The reading of a watched feature, by name or latent.

        Raises:
            KeyError: the request does not watch it.
        """
        return self.readings[_position(feature, self.watched)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """A feature's part in a component's score."""

    feature: int
    value: float
    component: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentPart:
    """A component's part in a score."""

    component: str
    score: float
    """Standardised."""
    contribution: float
    """What it gave to the monitor's score; those of all components sum to it."""
    score_unknown: bool = False
    """Whether `score` is 0 because the journal did not keep it yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Withheld:
    """Tokens of a reply that a policy kept from leaving."""

    first_position: int
    tokens: int
    """How many; the last is the one that made the policy apply."""
    text: str | None
    """None unless it was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A monitor that began or ceased to fire."""

    request_id: str
    label: str
    monitor: str
    state: AlertState
    severity: Severity
    """Level reached; of one that cleared, the level it had. A rise to critical is a second alert that is firing."""
    position: int
    """Of the token at which the score crossed."""
    span_start: int
    """First position of the window that was averaged."""
    score: float
    threshold: float
    contributions: tuple[Contribution, ...]
    validated: bool
    """Whether evidence says that this monitor shows what its name says."""
    time_seconds: float
    """Unix time."""
    components: tuple[ComponentPart, ...] = ()
    role: str = ""
    """Whose words were scored."""
    pack_sha256: str = ""
    beyond_calibration: bool = False
    """Whether the reply had grown longer than any that thresholds were set on."""
    policies: tuple[str, ...] = ()
    """Names of the policies that this alert made apply."""
    withheld: Withheld | None = None
    """What those policies kept from leaving."""
    alert_id: str = ""
    """In the server's alert journal; empty if it keeps none."""
    off_distribution_tokens: int | None = None
    """Of the averaged window, tokens that the dictionary does not describe; None without a guard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """First event: what the request became once its prompt was read."""

    request_id: str
    seed: int
    prompt_tokens: int
    watched: tuple[WatchedFeature, ...]
    monitors: tuple[Monitor, ...]
    model: ModelInfo
    sae: SaeInfo | None
    """None if the model is served without a dictionary."""
    watch_generation: int
    last_prompt_token: Token | None
    """Its readings are of the state that produces the first generated token."""
    max_tokens: int
    hold_tokens: int = 0
    """Tokens by which the reply is held back for its policies."""
    reconstruction_guard: ReconstructionGuard = NO_GUARD


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time went. None for what did not happen."""

    queue_seconds: float | None
    prefill_seconds: float | None
    decode_seconds: float | None
    time_to_first_token_seconds: float | None
    total_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringReport:
    """Proof of what steering did."""

    positions_changed: int
    mean_relative_norm: float
    max_relative_norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorSummary:
    """A monitor's account of one request; one for each role it scores."""

    monitor: str
    max_score: float | None
    mean_score: float | None
    scored_tokens: int
    fired: bool
    first_fired_position: int | None
    max_statistic: float | None = None
    """Largest score less what mere length explains: what levels are set on."""
    level: Severity = "unspecified"
    """Highest level reached."""
    alerts: int = 0
    role: str = ""
    beyond_calibration: bool = False
    off_distribution_tokens: int | None = None
    """Scored tokens that the dictionary does not describe; None without a guard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Last event."""

    reason: FinishReason
    matched_stop: str
    matched_token_id: int | None
    usage: Usage
    timings: Timings
    steering: SteeringReport | None
    """None if no steering was asked for."""
    monitors: tuple[MonitorSummary, ...]
    tapped_tokens: int
    policies: tuple[str, ...] = ()
    """Names of the policies that came to apply, in that order."""
    withheld_tokens: int = 0
    """Generated tokens that a policy kept from leaving."""
    twin: "Twin | None" = None
    """The unsteered twin and how it differs; None if none was asked for."""
    off_distribution_tokens: int | None = None
    """Tokens read that the dictionary does not describe; None without a guard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """The unsteered twin's end, and how the two replies differ."""

    baseline: Finished
    """The twin's own end."""
    features: tuple[FeatureDifference, ...]
    """In the order of `Started.watched`."""
    monitors: tuple[MonitorDifference, ...]
    first_difference_position: int | None
    """Where the tokens first differ, one reply's end included; None if they are the same. What was withheld from either
    is not compared."""
    text: str
    """The steered reply."""
    baseline_text: str


@dataclass(frozen=True, slots=True)
class Baseline:
    """An event of the unsteered twin, told apart from those of the reply by its type. Its end is in `Finished.twin`."""

    event: Started | Token | Alert


Event = Started | Token | Alert | Finished | Baseline
"""What a generation yields: one Started, then tokens and alerts, then exactly one Finished. With a baseline its events
come in between."""


def _position(feature: str | int, watched: tuple[WatchedFeature, ...]) -> int:
    for position, candidate in enumerate(watched):
        if feature in (candidate.feature, candidate.name):
            return position
    raise KeyError(f"{feature!r} is not watched: {[candidate.label for candidate in watched]}")
