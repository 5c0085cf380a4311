"""What a caller asks for, in Python's terms, and the wire request that it becomes.

`Steering` and `Policy` are a request's operations and consequences; `GenerateOptions` and `ScoreOptions` are the
keyword arguments of the client's methods. The server checks values; here only what can't be put on the wire at all is
refused, with the same exception.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

from telltale.v1 import generation_pb2, types_pb2

from service.errors import InvalidRequest

SteeringOp = Literal["add", "scale", "set", "project_out", "cap"]
StrengthUnit = Literal["raw", "relative"]
PositionScope = Literal["all", "prompt", "generated"]
PolicyAction = Literal["annotate", "stop", "steer"]
AlertLevel = Literal["unspecified", "warning", "critical"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    """system, user or assistant."""
    content: str


Prompt = str | Sequence[Message | Mapping[str, str]] | Sequence[int]
"""Text; a conversation, whose messages may also be `{"role": ..., "content": ...}`; or token ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """One operation on the residual. The wire contract has the equations."""

    direction: int | str | bytes | Sequence[float]
    """A latent; the name of a feature; or a vector of the model's width, as floats or little-endian fp32 bytes."""
    op: SteeringOp = "add"
    strength: float = 0.0
    unit: StrengthUnit = "raw"
    """`raw`, or `relative` to the residual's norm."""
    scope: PositionScope = "all"
    window: tuple[int, int] | None = None
    """First position steered, and the first no longer steered; position 0 is the prompt's first token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertCondition:
    """True while an alert of a monitor is open."""

    monitor: str
    level: AlertLevel = "unspecified"
    """Lowest level that counts; unspecified is any."""
    roles: Sequence[str] = ()
    """Whose words the alert may be about; empty is any that the monitor scores."""
    has_fired: bool = False
    """Also true once such an alert has cleared."""


@dataclass(frozen=True, slots=True)
class AllOf:
    """All of these conditions."""

    conditions: "Sequence[Condition]"


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one of these conditions."""

    conditions: "Sequence[Condition]"


Condition = AlertCondition | AllOf | AnyOf


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Keeps a reply back until a policy has seen what comes next."""

    tokens: int | None = None
    """None: the largest window of the monitors in the condition."""
    reveal: bool = False
    """Tell withheld text in the alert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What happens when a monitor fires, or when a condition over several is true."""

    monitor: str = ""
    """The condition is any alert of this one; or give `condition`."""
    action: PolicyAction = "annotate"
    steering: Sequence[Steering] = ()
    """For `steer`: applied from the position after the one that fired."""
    condition: Condition | None = None
    name: str = ""
    """Told in alerts and at the end. Unset: the monitor's, or `policy-N`."""
    hold: Hold | None = None
    """For `stop` and `steer`."""


class ReadOptions(TypedDict, total=False):
    """What to read. Absent keys take the server's defaults."""

    watch: Sequence[int | str]
    """Features to read at every token, by latent or name."""
    monitors: Sequence[str]
    """Monitors to run, by name."""
    top_features: int
    """Largest latents to report per token, 0 to 64."""
    include_prompt: bool
    """Yield the prompt's tokens too."""
    include_logprobs: bool
    no_defaults: bool
    """Read nothing that is not asked for."""
    steering: Sequence[Steering]
    label: str
    """The caller's own mark, echoed in alerts."""
    timeout_seconds: float
    """Deadline of the whole call, retries included."""


class ScoreOptions(ReadOptions, total=False):
    """Keyword arguments of `score`."""


class GenerateOptions(ReadOptions, total=False):
    """Keyword arguments of `generate` and `complete`."""

    temperature: float
    """0 is greedy."""
    top_p: float
    min_p: float
    top_k: int
    repetition_penalty: float
    max_tokens: int
    seed: int
    stop: Sequence[str]
    ignore_eos: bool
    policies: Sequence[Policy]
    baseline: bool
    """Generate the same beside it without steering, and compare."""


_SAMPLING = ("temperature", "top_p", "min_p", "top_k", "repetition_penalty", "max_tokens", "seed", "ignore_eos", "stop")
_WATCH = ("monitors", "top_features", "include_prompt", "include_logprobs", "no_defaults")


def generate_request(prompt: Prompt, options: GenerateOptions, *, features: Sequence[int]) -> Any:
    """The GenerateRequest for these arguments; `features` is `options["watch"]` as latents.

    Raises:
        InvalidRequest: a value that does not fit its field.
        TypeError: an option that does not exist.
    """
    _refuse_unknown(options, GenerateOptions.__optional_keys__)
    request = generation_pb2.GenerateRequest()
    _fill(request, prompt, options, features)
    for name in _SAMPLING:
        if name in options:
            _set(request.sampling, name, options[name], path="sampling")  # type: ignore[literal-required]
    for position, policy in enumerate(options.get("policies", ())):
        _fill_policy(request.policies.add(), policy, path=f"policies[{position}]")
    _set(request, "baseline", options.get("baseline", False))
    return request


def score_request(prompt: Prompt, options: ScoreOptions, *, features: Sequence[int]) -> Any:
    """The ScoreRequest for these arguments; otherwise as `generate_request`."""
    _refuse_unknown(options, ScoreOptions.__optional_keys__)
    request = generation_pb2.ScoreRequest()
    _fill(request, prompt, options, features)
    return request


def _refuse_unknown(options: Iterable[str], known: frozenset[str]) -> None:
    # A TypedDict is checked by type checkers only, and a misspelt option must not be a silent one.
    unknown = sorted(set(options) - known)
    if unknown:
        raise TypeError(f"unknown options {', '.join(unknown)}. Known are {', '.join(sorted(known))}.")


def _fill(request: Any, prompt: Prompt, options: ReadOptions, features: Sequence[int]) -> None:
    """What both kinds of request have."""
    _fill_prompt(request, prompt)
    _set(request.watch, "features", features, path="watch")
    for name in _WATCH:
        if name in options:
            _set(request.watch, name, options[name], path="watch")  # type: ignore[literal-required]
    for position, steering in enumerate(options.get("steering", ())):
        _fill_steering(request.steering.add(), steering, path=f"steering[{position}]")
    _set(request, "label", options.get("label", ""))


def _fill_prompt(request: Any, prompt: Prompt) -> None:
    if isinstance(prompt, str):
        _set(request, "text", prompt)
    elif not prompt:
        raise InvalidRequest.field("prompt", "must hold a text, a message or a token id at least. Got nothing.")
    elif isinstance(prompt[0], Message | Mapping):
        for position, message in enumerate(prompt):
            _fill_message(request.chat.messages.add(), message, path=f"chat.messages[{position}]")
    else:
        _set(request.token_ids, "ids", prompt, path="token_ids")


def _fill_message(message: Any, given: Any, *, path: str) -> None:
    if isinstance(given, Mapping):
        if set(given) != {"role", "content"}:
            raise InvalidRequest.field(path, f"must have the keys role and content. Got {sorted(map(str, given))}.")
        given = Message(given["role"], given["content"])
    elif not isinstance(given, Message):
        raise InvalidRequest.field(path, f"must be a message. Got {given!r}.")
    _set(message, "role", given.role, path=path)
    _set(message, "content", given.content, path=path)


def _fill_steering(message: Any, steering: Steering, *, path: str) -> None:
    match steering.direction:
        case int(feature):
            _set(message, "feature", feature, path=path)
        case str(name):
            _set(message, "name", name, path=path)
        case bytes(vector):
            message.vector = vector
        case floats:
            message.vector = _pack(floats, path=f"{path}.vector")
    message.op = _enum(types_pb2.SteeringOp, "STEERING_OP", steering.op, choices=SteeringOp, path=f"{path}.op")
    message.unit = _enum(
        types_pb2.StrengthUnit, "STRENGTH_UNIT", steering.unit, choices=StrengthUnit, path=f"{path}.unit"
    )
    message.scope = _enum(
        types_pb2.PositionScope, "POSITION_SCOPE", steering.scope, choices=PositionScope, path=f"{path}.scope"
    )
    _set(message, "strength", steering.strength, path=path)
    if steering.window is not None:
        start, end = steering.window
        _set(message.window, "start", start, path=f"{path}.window")
        _set(message.window, "end", end, path=f"{path}.window")


def _fill_policy(message: Any, policy: Policy, *, path: str) -> None:
    _set(message, "monitor", policy.monitor, path=path)
    message.action = _enum(
        types_pb2.PolicyAction, "POLICY_ACTION", policy.action, choices=PolicyAction, path=f"{path}.action"
    )
    for position, steering in enumerate(policy.steering):
        _fill_steering(message.steering.add(), steering, path=f"{path}.steering[{position}]")
    _set(message, "name", policy.name, path=path)
    if policy.condition is not None:
        _fill_condition(message.condition, policy.condition, path=f"{path}.condition")
    if policy.hold is not None:
        message.hold.SetInParent()
        _set(message.hold, "reveal", policy.hold.reveal, path=f"{path}.hold")
        if policy.hold.tokens is not None:
            _set(message.hold, "tokens", policy.hold.tokens, path=f"{path}.hold")


def _fill_condition(message: Any, condition: Condition, *, path: str) -> None:
    if isinstance(condition, AlertCondition):
        alert, path = message.alert, f"{path}.alert"
        alert.SetInParent()
        _set(alert, "monitor", condition.monitor, path=path)
        alert.level = _enum(types_pb2.Severity, "SEVERITY", condition.level, choices=AlertLevel, path=f"{path}.level")
        _set(alert, "roles", condition.roles, path=path)
        _set(alert, "has_fired", condition.has_fired, path=path)
        return
    kind = "all_of" if isinstance(condition, AllOf) else "any_of"
    several = getattr(message, kind)
    several.SetInParent()
    for position, part in enumerate(condition.conditions):
        _fill_condition(several.conditions.add(), part, path=f"{path}.{kind}.conditions[{position}]")


def _pack(floats: Sequence[float], *, path: str) -> bytes:
    try:
        return struct.pack(f"<{len(floats)}f", *floats)
    except (struct.error, TypeError, OverflowError) as error:
        raise InvalidRequest.field(path, f"must be floats that fit into 32 bits. Got {error}.") from None


def _enum(enum: Any, prefix: str, value: str, *, choices: Any, path: str) -> int:
    if value not in get_args(choices):
        raise InvalidRequest.field(path, f"must be one of {', '.join(get_args(choices))}. Got {value!r}.")
    return int(enum.Value(f"{prefix}_{value.upper()}"))


def _set(message: Any, name: str, value: Any, *, path: str = "") -> None:
    """Set a scalar or repeated field; protobuf refuses wrong types and numbers out of the field's range."""
    try:
        if isinstance(value, str | int | float):
            setattr(message, name, value)
        else:
            getattr(message, name).extend(value)
    except (TypeError, ValueError, AttributeError) as error:
        field = f"{path}.{name}" if path else name
        raise InvalidRequest.field(field, f"can't be sent: {error}. Got {value!r}.") from None
