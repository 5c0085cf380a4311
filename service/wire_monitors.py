"""Monitors, their scores, alerts and summaries -> wire messages."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from telltale.v1 import generation_pb2, types_pb2

from monitors.monitor_spec import REPLY_ROLES, Kind, MonitorSpec, Role
from monitors.pack import MonitorPack
from monitors.pack_parts import PackComponent
from monitors.thresholds import Level, Stretch
from monitors.track import MonitorSummary
from service import wire_guards
from service.guards import Guards
from service.monitor_packs import ServedMonitor
from service.reconstruction_guard import OffDistribution
from service.request import AlertEvent, Request, Score, Withheld

_LEVELS: dict[Level | None, Any] = {
    None: types_pb2.SEVERITY_UNSPECIFIED,
    "warning": types_pb2.SEVERITY_WARNING,
    "critical": types_pb2.SEVERITY_CRITICAL,
}
_STATES = {"firing": types_pb2.ALERT_STATE_FIRING, "cleared": types_pb2.ALERT_STATE_CLEARED}
_KINDS: dict[Kind, Any] = {
    "feature": types_pb2.MONITOR_KIND_FEATURE,
    "features": types_pb2.MONITOR_KIND_FEATURES,
    "probe": types_pb2.MONITOR_KIND_PROBE,
    "ensemble": types_pb2.MONITOR_KIND_ENSEMBLE,
    "cascade": types_pb2.MONITOR_KIND_CASCADE,
}


# --- definitions ----------------------------------------------------------------------------------------------------


def monitor(served: ServedMonitor, request: Request | None = None, *, with_evidence: bool = False) -> Any:
    """A monitor as defined; for a request, with what its thresholds were not set on."""
    pack, spec = served.pack, served.spec
    thresholds = spec.thresholds
    assert pack.calibration is not None  # as there are thresholds
    levels = list(thresholds.levels.named())
    first = thresholds.stretches[0]
    message = types_pb2.Monitor(
        name=pack.name,
        description=pack.description,
        threshold=first.profile + min(level.offset for _, level in levels),
        clear_threshold=first.profile + thresholds.clear_offset,
        window=pack.window,
        min_tokens=pack.min_tokens,
        cooldown_tokens=pack.cooldown_tokens,
        severity=_LEVELS[levels[-1][0]],
        threshold_source=pack.calibration.source,
        validated=pack.validated,
        features=spec.latents,
        scores_prompt=not set(spec.roles) <= {"assistant", "reasoning"},
        kind=_KINDS[pack.kind],
        version=pack.version,
        pack_sha256=spec.pack_sha256,
        components=[_component(component) for component in pack.components],
        combination=combination_words(pack),
        levels=[
            types_pb2.MonitorLevel(severity=_LEVELS[name], alpha=level.alpha, absent=level.absent)
            for name, level in levels
        ],
        strata=[_stratum(stretch) for stretch in thresholds.stretches],
        roles=pack.roles,
        calibration_method=pack.calibration.method,
        limits=pack.limits,
        validated_reason=pack.validated_reason,
        mismatches=served.mismatches,
        temperatures=pack.bindings.temperatures,
        cautions=() if request is None else cautions(served, request),
    )
    if with_evidence:
        message.calibration.CopyFrom(_struct(pack.calibration.figures))
        message.evidence.CopyFrom(_struct(pack.evidence))
    return message


def watched_monitor(served: ServedMonitor, guards: Guards, *, with_evidence: bool = False) -> Any:
    """A monitor as defined, with how its inputs and values have behaved so far."""
    message = monitor(served, with_evidence=with_evidence)
    message.inputs.extend(map(wire_guards.monitor_input, guards.inputs_of(served)))
    message.drift.CopyFrom(wire_guards.monitor_drift(guards.drift(served.pack.name)))
    return message


def combination_words(pack: MonitorPack) -> str:
    """How a pack's components become its score."""
    if pack.kind != "cascade":
        return _rule_words(pack, pack.components)
    *listened, gate = pack.components
    heard = _rule_words(pack, listened)
    return f"{heard} while {gate.name} is above {pack.gate_threshold:g}, else {pack.closed_score:g}"


def _rule_words(pack: MonitorPack, components: Sequence[PackComponent]) -> str:
    names = [component.name for component in components]
    match pack.rule:
        case None:
            return names[0]
        case "sum":
            return " + ".join(f"{component.weight:g} * {component.name}" for component in components)
        case rule:
            return f"{rule} of {', '.join(names)}"


def cautions(served: ServedMonitor, request: Request) -> Iterator[str]:
    """What of a request a monitor's thresholds were not set on."""
    temperatures, thresholds = served.pack.bindings.temperatures, served.spec.thresholds
    if not request.score_only:
        at = request.sampling.temperature
        # A 32-bit float on the wire is not the double of the pack.
        if temperatures and not any(abs(at - known) < 1e-6 for known in temperatures):
            known = ", ".join(f"{temperature:g}" for temperature in temperatures)
            yield f"thresholds were set on replies sampled at temperature {known}, this one is sampled at {at:g}"
    longest = thresholds.max_tokens
    if _most_scored(served.spec, request) > longest:
        if thresholds.stretch_at(longest + 1).marks.can_fire:
            yield f"thresholds were set on replies of up to {longest} tokens, this one may have more"
        else:
            yield f"no level stands after {longest} scored tokens, this one may have more: it can't fire there"
    if request.steering:
        yield "thresholds were set on replies that were not steered"
    if others := _other_roles(served.spec, request):
        words = ", ".join(others)
        yield f"no false-positive rate is known for words of {words}, unless thresholds were set on such text"


def _other_roles(spec: MonitorSpec, request: Request) -> list[Role]:
    """Those that are not a reply's and of which the monitor scores words of the request."""
    spec = _as_asked(spec, request)
    others = [role for role in spec.roles if role not in REPLY_ROLES]
    # Position 0 is never scored.
    said = {request.prompt_role(position) for position in range(1, len(request.prompt_ids))} if others else set()
    return [role for role in others if not said.isdisjoint(spec.token_roles(role))]


def _as_asked(spec: MonitorSpec, request: Request) -> MonitorSpec:
    """The monitor as the request has it, which may be for a plain text."""
    return next((one for one in request.monitors if one.name == spec.name), spec)


def _most_scored(spec: MonitorSpec, request: Request) -> int:
    """Most tokens that one run of a monitor's may count: a reply's, or in a prompt that is read those of one role."""
    if not request.score_only:
        return request.sampling.max_tokens
    # Position 0 is never scored.
    spec = _as_asked(spec, request)
    roles = Counter(request.prompt_role(position) for position in range(1, len(request.prompt_ids)))
    return max(sum(roles[one] for one in spec.token_roles(role)) for role in spec.roles)


def _component(component: PackComponent) -> Any:
    return types_pb2.MonitorComponent(
        name=component.name,
        reads=component.reads,
        hook_point=component.hook_point or "",
        features=[part.feature for part in component.features],
        method="" if component.probe is None else component.probe.method,
    )


def _stratum(stretch: Stretch) -> Any:
    def threshold(mark: float | None) -> float | None:
        return None if mark is None else stretch.profile + mark

    marks = stretch.marks
    return types_pb2.MonitorStratum(
        max_tokens=stretch.max_tokens,
        warning=threshold(marks.warning),
        critical=threshold(marks.critical),
        clear=stretch.profile + marks.clear,
    )


def _struct(facts: Any) -> Struct:
    return ParseDict(dict(facts), Struct())


# --- what happens ---------------------------------------------------------------------------------------------------


def score(of: Score) -> Any:
    return types_pb2.MonitorScore(
        monitor=of.monitor,
        value=of.value,
        firing=of.level is not None,
        components=of.components,
        level=_LEVELS[of.level],
    )


def alert(event: AlertEvent, *, with_text: bool = True) -> Any:
    """`with_text` is for the request's own stream: what was withheld there is nobody else's."""
    raised = event.alert
    return types_pb2.Alert(
        request_id=event.request_id,
        label=event.label,
        monitor=raised.monitor,
        state=_STATES[raised.state],
        severity=_LEVELS[raised.level],
        position=raised.position,
        span_start=raised.span_start,
        score=raised.score,
        threshold=raised.threshold,
        contributions=[
            types_pb2.Contribution(feature=feature, value=value, component=part.component)
            for part in raised.components
            for feature, value in part.features
        ],
        validated=raised.validated,
        time_seconds=event.time_seconds,
        components=[
            types_pb2.ComponentPart(component=part.component, score=part.score, contribution=part.contribution)
            for part in raised.components
        ],
        role=raised.role,
        pack_sha256=raised.pack_sha256,
        beyond_calibration=raised.beyond_calibration,
        policies=event.policies,
        withheld=None if event.withheld is None else _withheld(event.withheld, with_text=with_text),
        alert_id=event.id,
        off_distribution_tokens=event.off_distribution_tokens,
    )


def _withheld(of: Withheld, *, with_text: bool) -> Any:
    return types_pb2.Withheld(
        first_position=of.first_position, tokens=of.num_tokens, text=of.text if with_text else None
    )


def summary(of: MonitorSummary, off: OffDistribution | None) -> Any:
    return generation_pb2.MonitorSummary(
        monitor=of.monitor,
        max_score=of.max_score,
        mean_score=of.mean_score,
        scored_tokens=of.num_scored,
        fired=of.num_fired > 0,
        first_fired_position=of.first_fired_position,
        max_statistic=of.max_statistic,
        level=_LEVELS[of.level],
        alerts=of.num_fired,
        role=of.role,
        beyond_calibration=of.beyond_calibration,
        off_distribution_tokens=wire_guards.num_off_of(off, of.monitor, of.role),
    )
