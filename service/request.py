"""A request as the engine takes it, and the events that come back. Plain data: no tensors, no wire messages."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from monitors.monitor_spec import MonitorSpec, Role
from monitors.policy import Policy
from monitors.thresholds import Level
from monitors.track import Alert, MonitorSummary
from sae_runtime.reasoning import Delimiters
from sae_runtime.steering import SteeringReport
from sae_runtime.steering_spec import SteeringSpec
from service.reconstruction_guard import OffDistribution


class FinishReason(StrEnum):
    """Why a generation that ended well ended."""

    EOS = "eos"
    STOP_SEQUENCE = "stop_sequence"
    LENGTH = "length"
    CONTEXT_LENGTH = "context_length"
    ALERT_STOP = "alert_stop"
    SHUTDOWN = "shutdown"
    SCORED = "scored"
    """All of a Score request was read."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn; see the proto for ranges. Checked by the servicer."""

    temperature: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


class Place(NamedTuple):
    """Where a token stands in a conversation."""

    message: int
    start: int
    end: int
    """Characters [start, end) of that message's content."""


@dataclass(frozen=True, slots=True)
class Replay:
    """That a request does again what another did: its alerts are compared, and nobody else is told of them."""

    num_prompt: int
    """Tokens of the first one's prompt."""
    steering: tuple[tuple[tuple[SteeringSpec, ...], str, int], ...] = ()
    """What policies had switched on: (operations, whose, from which position on)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Everything the engine needs to know of one request."""

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams = SamplingParams()
    watched: tuple[int, ...] = ()
    """Latents to read at every token."""
    monitors: tuple[MonitorSpec, ...] = ()
    top_features: int = 0
    include_prompt: bool = False
    include_logprobs: bool = False
    steering: tuple[SteeringSpec, ...] = ()
    policies: tuple[Policy, ...] = ()
    policy_steering: Mapping[str, tuple[SteeringSpec, ...]] = field(default_factory=dict)
    """By name of a STEER policy: what to apply from the position after the one at which it came to apply."""
    label: str = ""
    deadline: float | None = None
    """In `time.monotonic()` seconds."""
    score_only: bool = False
    """Read the prompt and end."""
    scored_positions: frozenset[int] | None = None
    """Prompt positions that monitors score as if the assistant had written them; None for none. Of a plain text a
    monitor of `text` scores them as that (`MonitorSpec.for_plain_text`)."""
    reasoning: tuple[Delimiters, ...] = ()
    """What encloses reasoning in the reply."""
    prompt_roles: tuple[Role | None, ...] = ()
    """Whose words each prompt token is, None for a template's; empty if no monitor scores prompts. An assistant's
    earlier words are None: they were scored when they were written."""
    with_baseline: bool = False
    """Generate the same beside it without steering: `twin.baseline_of` it."""
    length_reason: FinishReason = FinishReason.LENGTH
    """What to call reaching `max_tokens`: CONTEXT_LENGTH if the context, not the client, set it."""
    conversation: tuple[tuple[str, str], ...] = ()
    """Role and content of each message that the prompt was made of; empty for a text and for token ids."""
    places: tuple["Place | None", ...] = ()
    """Where each prompt token stands in the conversation; empty if no monitor scores prompts."""
    replay: "Replay | None" = None
    """For a request that does again what another did."""

    @property
    def all_steering(self) -> list[tuple[tuple[SteeringSpec, ...], str, int]]:
        """Operations that are in force from the beginning, or from a known position on: (specs, whose, from where)."""
        return [(self.steering, "request", 0), *(self.replay.steering if self.replay else ())]

    @property
    def num_prompt(self) -> int:
        """Tokens that are prompt to steering; others of `prompt_ids` are a reply that is read and not written anew."""
        return len(self.prompt_ids) if self.replay is None else self.replay.num_prompt

    def prompt_role(self, position: int) -> Role | None:
        """Whose words a prompt token is, for monitors."""
        if self.scored_positions is not None and position in self.scored_positions:
            is_reasoning = bool(self.prompt_roles) and self.prompt_roles[position] == "reasoning"
            return "reasoning" if is_reasoning else "assistant"
        return self.prompt_roles[position] if self.prompt_roles else None


class Score(NamedTuple):
    """A monitor's score at one token."""

    monitor: str
    value: float
    components: tuple[float, ...]
    """Standardised scores of its components."""
    level: Level | None
    """Of the alert that is open."""


@dataclass(slots=True)
class TokenEvent:
    """One token that the model has read."""

    index: int
    id: int
    text: str
    is_prompt: bool
    readings: list[float]
    steered_readings: list[float]
    top_features: list[tuple[int, float]]
    logprob: float | None
    scores: list[Score]
    fvu: float
    l0: int
    role: Role | None
    """Whose words it is; None in a prompt whose roles nobody asked for, and for a template's tokens."""
    off_scale: bool
    """A massive activation, position 0 always: its readings mean nothing and are not scored."""
    probes: Mapping[str, float] = field(default_factory=dict)
    """Values of the probes that the request's monitors read; empty where none of them scored the token."""
    off_distribution: bool = False
    """The dictionary does not describe this residual: not to be trusted."""


@dataclass(frozen=True, slots=True)
class StartedEvent:
    """The prompt has been read."""

    last_prompt_token: TokenEvent
    hold_tokens: int = 0
    """Tokens by which the reply is held back as it begins."""


class Withheld(NamedTuple):
    """Tokens of the reply that a policy kept from leaving."""

    first_position: int
    num_tokens: int
    text: str | None
    """None unless a policy that withheld them tells it."""


@dataclass(frozen=True, slots=True)
class AlertEvent:
    """A monitor fired or cleared in this request."""

    request_id: str
    label: str
    alert: Alert
    time_seconds: float
    """Unix time."""
    policies: tuple[str, ...] = ()
    """Policies that this alert made apply."""
    withheld: Withheld | None = None
    """What they kept from leaving, the alert's own token included; None if they hold nothing back."""
    id: str = ""
    """In the journal; empty if none is kept."""
    off_distribution_tokens: int | None = None
    """Of the window that fired; None without a guard."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds; None for what did not happen."""

    queue_seconds: float
    prefill_seconds: float | None
    decode_seconds: float | None
    time_to_first_token_seconds: float | None
    total_seconds: float


@dataclass(frozen=True, slots=True)
class FinishedEvent:
    """The request ended well. Always the last event."""

    reason: FinishReason
    completion_tokens: int
    timings: Timings
    monitors: list[MonitorSummary]
    tapped_tokens: int
    steering: SteeringReport | None = None
    matched_stop: str = ""
    matched_token_id: int | None = None
    policies: tuple[str, ...] = ()
    """Policies that came to apply, in that order."""
    num_withheld: int = 0
    """Generated tokens that never left; they are among `completion_tokens`."""
    off_distribution: OffDistribution | None = None
    """None without a guard."""
    twin: "TwinReport | None" = None
    """The unsteered twin's end, if there was one."""


class FeatureDifference(NamedTuple):
    """A watched latent over the generated tokens of two replies; None without a token."""

    latent: int
    mean: float | None
    baseline_mean: float | None
    max: float | None
    baseline_max: float | None
    steered_mean: float | None
    """As the following blocks read it."""
    steered_max: float | None


@dataclass(frozen=True, slots=True)
class TwinReport:
    """The unsteered twin's end, and how the replies differ."""

    baseline: FinishedEvent
    features: list[FeatureDifference]
    """In the order they are watched in."""
    first_difference_position: int | None
    """None if all tokens are the same."""
    text: str
    baseline_text: str


@dataclass(frozen=True, slots=True)
class BaselineEvent:
    """An event of the unsteered twin."""

    event: StartedEvent | TokenEvent | AlertEvent | FinishedEvent


Event = StartedEvent | TokenEvent | AlertEvent | FinishedEvent | BaselineEvent


class Mailbox:
    """Where the engine leaves a request's events for its handler; never blocks either side.

    The engine thread puts, one event loop takes. At most as many events as tokens the request may have.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._failure: Exception | None = None
        self._oldest_unread: float | None = None

    @property
    def address(self) -> "Mailbox":
        """The mailbox that is read in the end."""
        return self

    def put(self, events: Sequence[Event]) -> None:
        """Engine thread: leave events."""
        with self._lock:
            if self._oldest_unread is None:
                self._oldest_unread = time.monotonic()
            self._events.extend(events)

    def fail(self, failure: Exception) -> None:
        """Engine thread: end the request with an error, the first holds; what was put before is still delivered."""
        with self._lock:
            self._failure = self._failure or failure

    def take(self) -> tuple[list[Event], Exception | None]:
        """Event loop: everything new, and the error that ended the request, if one did."""
        with self._lock:
            events, self._events = self._events, []
            self._oldest_unread = None
            return events, self._failure

    def unread_seconds(self, now: float) -> float:
        """How long the oldest event has been waiting; 0 if none is."""
        with self._lock:
            return 0.0 if self._oldest_unread is None else now - self._oldest_unread
