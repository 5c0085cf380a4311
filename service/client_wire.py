"""Turns wire messages into the client's dataclasses.

The annotations of a dataclass say how to read its message: `tuple[X, ...]` is a repeated field, `X | None` a field
that may be unset, a `Literal` an enum. So there is no converter to write per message, and none to forget a field in.
"""

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal, TypeGuard, TypeVar, get_args, get_origin, get_type_hints

from google.protobuf.json_format import MessageToDict

from service.client_catalog import WatchedFeature
from service.client_events import Alert, Baseline, Event, Finished, Started, Token
from service.client_reply import ScoreResult

T = TypeVar("T")
Read = Callable[[Any], Any]


def decode(cls: Callable[..., T], message: Any) -> T:
    """`message` as a `cls`. Fields of `cls` that the message lacks keep their defaults."""
    return cls(**{name: read(message) for name, read in _plan(cls, message.DESCRIPTOR)})


def decode_event(response: Any, watched: tuple[WatchedFeature, ...]) -> list[Event]:
    """The events in one GenerateResponse. `watched` is that of the stream's Started; one of a newer kind is none."""
    match response.WhichOneof("event"):
        case "started":
            return [_decode_started(response.started)]
        case "tokens":
            return [replace(decode(Token, token), watched=watched) for token in response.tokens.tokens]
        case "alert":
            return [decode(Alert, response.alert)]
        case "finished":
            return [decode(Finished, response.finished)]
        case "baseline":
            # One event inside another of the same shape.
            return [Baseline(event) for event in decode_event(response.baseline, watched) if _is_of_a_twin(event)]
        case _:
            return []


def _is_of_a_twin(event: Event) -> TypeGuard[Started | Token | Alert]:
    return isinstance(event, Started | Token | Alert)


def decode_score(response: Any) -> ScoreResult:
    """A ScoreResponse, its tokens knowing what their readings are of."""
    result = decode(ScoreResult, response)
    return replace(result, tokens=tuple(replace(token, watched=result.watched) for token in result.tokens))


def _decode_started(message: Any) -> Started:
    started = decode(Started, message)
    last = started.last_prompt_token
    return replace(started, last_prompt_token=replace(last, watched=started.watched)) if last else started


@dataclass(frozen=True, slots=True)
class WireField:
    """Where a dataclass's field comes from."""

    name: str
    """Name in the message."""
    is_duration: bool


def wire_field(name: str, descriptor: Any) -> WireField | None:
    """The message's field behind the dataclass's `name`; `total_seconds` may be a Duration called `total`."""
    if name in descriptor.fields_by_name:
        return WireField(name, is_duration=False)
    bare = descriptor.fields_by_name.get(name.removesuffix("_seconds"))
    if bare is not None and bare.message_type and bare.message_type.full_name == "google.protobuf.Duration":
        return WireField(bare.name, is_duration=True)
    return None


@cache
def _plan(cls: Any, descriptor: Any) -> list[tuple[str, Read]]:
    """How to read each field of `cls`, worked out once per class."""
    hints = get_type_hints(cls)
    sources = [(field.name, wire_field(field.name, descriptor)) for field in fields(cls)]
    return [
        (name, _read_duration(source.name) if source.is_duration else _reader(source.name, hints[name], descriptor))
        for name, source in sources
        if source is not None
    ]


def _reader(name: str, hint: Any, descriptor: Any) -> Read:
    origin, args = get_origin(hint), get_args(hint)
    if origin is types.UnionType:
        read = _reader(name, args[0], descriptor)
        return lambda message: read(message) if message.HasField(name) else None
    if origin is tuple and is_dataclass(args[0]):
        return lambda message: tuple(decode(args[0], item) for item in getattr(message, name))
    if origin is tuple and get_origin(args[0]) is Literal:
        names_of = _enum_names(descriptor.fields_by_name[name].enum_type)
        return lambda message: tuple(names_of(value) for value in getattr(message, name))
    if origin is tuple:
        return lambda message: tuple(getattr(message, name))
    if origin is Literal:
        name_of = _enum_names(descriptor.fields_by_name[name].enum_type)
        return lambda message: name_of(getattr(message, name))
    if origin is Mapping:
        return lambda message: MessageToDict(getattr(message, name))
    if hint is datetime:
        return lambda message: getattr(message, name).ToDatetime(tzinfo=UTC)
    if isinstance(hint, type) and is_dataclass(hint):
        return lambda message: decode(hint, getattr(message, name))
    return lambda message: getattr(message, name)


def _read_duration(name: str) -> Read:
    return lambda message: getattr(message, name).ToTimedelta().total_seconds() if message.HasField(name) else None


def _enum_names(enum: Any) -> Callable[[int], str]:
    """FINISH_REASON_EOS -> eos; a number that a newer server may send -> unspecified."""
    prefix = next(iter(enum.values)).name.removesuffix("UNSPECIFIED")
    names = {value.number: value.name.removeprefix(prefix).lower() for value in enum.values}
    return lambda value: names.get(value, "unspecified")
