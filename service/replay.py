"""Doing an alert's request again, from its record: read the recorded tokens, then write the reply anew.

    requests = plan(record, served)
    result = compared(record, served, requests, await run(requests.read), await run(requests.generated))

Reading comes first: with the recorded tokens given, nothing but the model, the steering and the monitor can make a
difference. Writing anew needs the same draws as well. Policies are not followed again: what they switched on is in the
record, with the position from which it was in force. Knows neither engine nor wire.
"""

import base64
import secrets
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from monitors.alert_record import AlertRecord, Enclosure, KeptText, SteeringRef
from monitors.monitor_spec import Role
from sae_runtime.errors import SteeringError
from sae_runtime.reasoning import Delimiters, reasoning_flags
from sae_runtime.steering_spec import PositionScope, SteeringLimits, SteeringOp, SteeringSpec, StrengthUnit
from service.alert_records import model_ref, sae_ref
from service.catalog import Catalog
from service.errors import NotPossible
from service.replay_result import Comparison, Replayed, ReplayResult, compare, default_tolerance
from service.request import AlertEvent, Event, Replay, Request, SamplingParams, TokenEvent


@dataclass(frozen=True, slots=True)
class ReplayHost:
    """What a replay runs on."""

    catalog: Catalog
    tokenizer: Any
    limits: SteeringLimits
    context_length: int
    server_version: str
    passes: Callable[[], str]
    """How passes are run, in words; it may change."""
    reasoning: tuple[Delimiters, ...] = ()
    """What encloses reasoning in replies, for records that don't say."""


class ReplayRequests(NamedTuple):
    """Both ways of doing it again."""

    read: Request
    generated: Request | None
    """None for text that the model did not write, and for an alert in the prompt."""


def plan(record: AlertRecord, host: ReplayHost) -> ReplayRequests:
    """The requests of a replay. NotPossible if the record lacks its text, or what is served can't do it."""
    text = record.text
    if not isinstance(text, KeptText):
        raise NotPossible(f"Alert {record.id} can't be replayed: its text was not kept.")
    _check(record, text, host)
    watched = tuple(series.feature for series in record.readings if series.feature is not None)
    steering, later = _steering(record.steering, host.limits)
    ids = (*text.prompt_ids, *text.reply_ids)
    reply = range(len(text.prompt_ids), len(ids))
    reasoning = host.reasoning if text.reasoning is None else _delimiters(text.reasoning)
    spec = host.catalog.monitors_by_name[record.monitor].spec
    if record.generation is None and text.messages[0].role == "text":
        spec = spec.for_plain_text()
    common = {
        "watched": watched,
        "monitors": (spec,),
        "steering": steering,
        "replay": Replay(reply.start, later),
        "reasoning": reasoning,
    }
    roles = _prompt_roles(text)
    flags = reasoning_flags(host.tokenizer, ids, reply.start, reply.stop, reasoning)
    reply_roles: list[Role] = ["reasoning" if flag else "assistant" for flag in flags]
    read = Request(
        request_id=_new_id(),
        prompt_ids=ids,
        prompt_roles=(*roles, *reply_roles),
        scored_positions=frozenset(reply),
        include_prompt=True,
        score_only=True,
        **common,  # type: ignore[arg-type]
    )
    if record.generation is None or not text.reply_ids:
        return ReplayRequests(read, None)
    return ReplayRequests(
        read,
        Request(
            request_id=_new_id(),
            prompt_ids=text.prompt_ids,
            prompt_roles=roles,
            include_prompt=True,
            sampling=_sampling(record, text),
            **common,  # type: ignore[arg-type]
        ),
    )


def compared(
    record: AlertRecord,
    host: ReplayHost,
    requests: ReplayRequests,
    read: Sequence[Event],
    generated: Sequence[Event] | None,
    tolerance: float | None = None,
) -> ReplayResult:
    """What the replays gave, against the record. Without a tolerance it is the one that suits the number format."""
    largest = default_tolerance(record) if tolerance is None else tolerance

    def comparison(events: Sequence[Event]) -> Comparison:
        return compare(record, _replayed(events), requests.read.watched, largest)

    return ReplayResult(
        differences=tuple(differences(record, host)),
        read=comparison(read),
        generated=None if generated is None else comparison(generated),
    )


def differences(record: AlertRecord, host: ReplayHost) -> Iterator[str]:
    """What is served now and was not when the alert was raised, in words."""
    now = model_ref(host.catalog)
    for field in ("sha256", "quantization", "dtype", "chat_template_sha256"):
        was, is_ = getattr(record.model, field), getattr(now, field)
        if was != is_:
            yield f"model {field}: {was} then, {is_} now"
    sae = sae_ref(host.catalog)
    if record.sae is not None and record.sae != sae:
        now_served = "none" if sae is None else f"{sae.name} {sae.sha256}"
        yield f"dictionary: {record.sae.name} {record.sae.sha256} then, {now_served} now"
    served = host.catalog.monitors_by_name[record.monitor]
    if record.pack is None or record.pack.sha256 != served.spec.pack_sha256:
        was = "none" if record.pack is None else record.pack.sha256
        yield f"pack of {record.monitor}: {was} then, {served.spec.pack_sha256} now"
    if isinstance(record.text, KeptText) and record.text.reasoning is not None:
        then, today = _in_words(_delimiters(record.text.reasoning)), _in_words(host.reasoning)
        if then != today:
            yield f"reasoning delimiters: {then} then, {today} now"
    if record.server_version != host.server_version:
        yield f"server version: {record.server_version} then, {host.server_version} now"
    if record.passes and record.passes != (passes := host.passes()):
        yield f"passes: {record.passes} then, {passes} now"


def _check(record: AlertRecord, text: KeptText, host: ReplayHost) -> None:
    """Raises NotPossible where the served model could not even be asked. A record may come from anywhere."""
    model, num_latents = host.catalog.model, host.catalog.num_latents
    ids = (*text.prompt_ids, *text.reply_ids)
    too_large = next((token for token in ids if token >= model.vocab_size), None)
    unread = next((s.feature for s in record.readings if s.feature is not None and s.feature >= num_latents), None)
    reasons = {
        f"it has no tokens up to its position {record.position}": len(ids) <= record.position,
        "it has no prompt": not text.prompt_ids,
        f"its {len(ids)} tokens do not fit into {host.context_length}": len(ids) > host.context_length,
        f"token {too_large} is beyond the served vocabulary": too_large is not None,
        f"latent {unread} is beyond the served dictionary": unread is not None,
        f"its monitor {record.monitor!r} is not served": record.monitor not in host.catalog.monitors_by_name,
    }
    for reason, holds in reasons.items():
        if holds:
            raise NotPossible(f"Alert {record.id} can't be replayed here: {reason}.")


def _steering(
    refs: Sequence[SteeringRef], limits: SteeringLimits
) -> tuple[tuple[SteeringSpec, ...], tuple[tuple[tuple[SteeringSpec, ...], str, int], ...]]:
    """(what was in force from the beginning, what policies had switched on)."""
    try:
        groups = [
            (tuple(_spec(ref) for ref in group), source, active_from)
            for (source, active_from), group in groupby(refs, key=lambda ref: (ref.source, ref.active_from))
        ]
        for specs, _, _ in groups:
            for spec in specs:
                limits.check(spec)
    except (SteeringError, ValueError) as error:
        raise NotPossible(f"The alert's steering can't be done here: {error}.") from None
    own = tuple(spec for specs, source, _ in groups if source == "request" for spec in specs)
    return own, tuple(group for group in groups if group[1] != "request")


def _spec(ref: SteeringRef) -> SteeringSpec:
    direction: int | tuple[float, ...]
    if ref.vector is None:
        assert ref.feature is not None
        direction = ref.feature
    else:
        data = base64.b64decode(ref.vector, validate=True)
        if len(data) % 4:
            raise SteeringError(f"vector must be whole 32-bit numbers, got {len(data)} bytes")
        direction = struct.unpack(f"<{len(data) // 4}f", data)
    return SteeringSpec(
        direction, SteeringOp(ref.op), ref.strength, StrengthUnit(ref.unit), PositionScope(ref.scope), ref.window
    )


def _delimiters(kept: Sequence[Enclosure]) -> tuple[Delimiters, ...]:
    return tuple(Delimiters(each.opening, each.closing) for each in kept)


def _in_words(delimiters: Sequence[Delimiters]) -> str:
    return ", ".join(f"{each.opening!r} {each.closing!r}" for each in delimiters) or "none"


def _prompt_roles(text: KeptText) -> tuple[Role | None, ...]:
    roles: list[Role | None] = [None] * len(text.prompt_ids)
    for run in text.spoken:
        for position in range(run.start, min(run.end, len(roles))):
            roles[position] = run.role  # type: ignore[call-overload]
    return tuple(roles)


def _sampling(record: AlertRecord, text: KeptText) -> SamplingParams:
    """As then, but no further than the record goes."""
    drawn = record.generation
    assert drawn is not None
    return SamplingParams(
        temperature=drawn.temperature,
        top_p=drawn.top_p,
        min_p=drawn.min_p,
        repetition_penalty=drawn.repetition_penalty,
        top_k=drawn.top_k,
        max_tokens=len(text.reply_ids),
        seed=drawn.seed,
        stop=text.stop,
        ignore_eos=drawn.ignore_eos,
    )


def _replayed(events: Sequence[Event]) -> Replayed:
    replayed = Replayed()
    for event in events:
        if isinstance(event, TokenEvent):
            replayed.tokens[event.index] = event
            replayed.probes[event.index] = event.probes
        elif isinstance(event, AlertEvent):
            replayed.alerts.append(event.alert)
    return replayed


def _new_id() -> str:
    return f"replay-{secrets.token_hex(8)}"
