"""What the engine tells the metrics: plain records, made once per step and once per request.

The engine thread fills them and knows nothing about Prometheus; `service.metrics` turns them into samples.
"""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from monitors.drift import FinishedReply


class Phase(StrEnum):
    """Which kind of forward pass a step was."""

    PREFILL = "prefill"
    DECODE = "decode"


class Outcome(StrEnum):
    """How a request ended: the label of `telltale_requests_total`, set exactly once per RPC.

    The first group are finish reasons of a stream that ended well, the rest are failures.
    """

    EOS = "eos"
    STOP_SEQUENCE = "stop_sequence"
    LENGTH = "length"
    CONTEXT_LENGTH = "context_length"
    ALERT_STOP = "alert_stop"
    SCORED = "scored"
    SHUTDOWN = "shutdown"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    UNAUTHENTICATED = "unauthenticated"
    INVALID = "invalid"
    REJECTED_QUEUE = "rejected_queue"
    UNAVAILABLE = "unavailable"
    SLOW_CONSUMER = "slow_consumer"
    ALERT_NOT_KEPT = "alert_not_kept"
    ENGINE_ERROR = "engine_error"


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One forward pass."""

    phase: Phase
    """Prefill of one prompt chunk, or one token of every running row."""
    num_rows: int
    """Rows in the pass."""
    num_tokens: int
    """Tokens the model read: rows for decode, the chunk's length for prefill."""
    num_tapped_tokens: int
    """Tokens the tap saw. Must equal `num_tokens`."""
    step_seconds: float
    """Wall time of the pass, its SAE work and sampling included."""
    encode_seconds: float | None
    """Wall time of the SAE part alone; None where it runs beside other parts, and can't be told apart."""
    num_nonfinite_tokens: int
    """Tokens whose residual or readings held NaN or infinity."""
    readings_NW: NDArray[np.float32]
    """Readings of the server's own watch list, one line per ordinary token."""
    inter_token_seconds: list[float] = field(default_factory=list)
    """Per row that emitted a token and had emitted one before: time since that one."""
    num_ordinary_tokens: int = 0
    """Those of traffic that are finite and not off scale: what the guards look at."""
    num_off_distribution: int = 0
    """Of these, those that the dictionary does not describe; 0 without a guard."""
    inputs_NG: NDArray[np.float32] | None = None
    """Readings of the guarded latents at ordinary tokens; None from an engine that guards none."""
    probes_NP: NDArray[np.float32] | None = None
    """Values of all probes at ordinary tokens; None if they were not computed in this pass."""
    num_replayed_tokens: int = 0
    """Of `num_tokens` those of replays, which are no traffic: only what is said of the pass itself counts them."""


@dataclass(frozen=True, slots=True)
class RowFailure:
    """A row that the engine failed: an exception, non-finite values, or a tap that did not see every token."""

    phase: Phase
    num_tokens: int = 0
    """Tokens of a pass that the tap missed, in whole or in part, wanted and seen; 0 for other failures."""
    num_tapped_tokens: int = 0

    @classmethod
    def of(cls, phase: Phase, cause: Exception | None) -> "RowFailure":
        return cls(phase, getattr(cause, "num_wanted", 0), getattr(cause, "num_seen", 0))


@dataclass(frozen=True, slots=True)
class EngineState:
    """Gauges of the engine, as of the end of a step."""

    requests_running: int
    requests_waiting: int
    slots: int
    kv_tokens_used: int
    """Positions holding keys and values of live requests."""
    kv_tokens_capacity: int
    last_step_timestamp_seconds: float
    """Unix time of the last finished step."""
    is_up: bool
    is_draining: bool


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request that reached the engine, whatever became of it."""

    outcome: Outcome
    prompt_tokens: int
    """Prompt tokens the model actually read."""
    completion_tokens: int
    duration_seconds: float
    queue_seconds: float
    prefill_seconds: float | None
    """None if the request never reached prefill. The same for the two below."""
    decode_seconds: float | None
    time_to_first_token_seconds: float | None
    feature_max_W: list[float]
    """Per server-watched feature, its largest reading in the request (position 0 left out); empty if none read."""
    alerts: list[tuple[str, str]] = field(default_factory=list)
    """(monitor, level) of every alert raised."""
    steering_ops: list[str] = field(default_factory=list)
    """Operation names asked for, lower case: add, scale, set, project_out, cap."""
    request_id: str = ""
    withheld_tokens: int = 0
    """Generated tokens that a policy kept from leaving."""
    policy_actions: list[str] = field(default_factory=list)
    """Actions of the policies that came to apply: annotate, stop, steer."""
    is_replay: bool = False
    """Whether it did another request again: that is no traffic."""
    monitored: list[FinishedReply] = field(default_factory=list)
    """What monitors made of the reply, if it came to its end and was not steered: what a calibration is about."""

    @classmethod
    def of_waiting(cls, outcome: Outcome, waited_seconds: float, request_id: str) -> "RequestRecord":
        """A request that ended in the queue."""
        return cls(outcome, 0, 0, waited_seconds, waited_seconds, None, None, None, [], request_id=request_id)
