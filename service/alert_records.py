"""Alerts as the journal keeps them: what a request knows of one, with what is served beside it."""

import base64
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from monitors.alert_record import (
    AlertRecord,
    Component,
    FeatureShare,
    Generation,
    ModelRef,
    PackRef,
    SaeRef,
    Series,
    SteeringRef,
)
from sae_runtime.steering_spec import SteeringSpec
from service.alert_evidence import InForce, Raised, Trace
from service.alert_text import kept_text
from service.catalog import Catalog
from service.request import SamplingParams


class RecordMaker:
    """Makes records of alerts, for one served model, dictionary and set of monitors."""

    def __init__(self, catalog: Catalog, tokenizer: Any, server_version: str, passes: Callable[[], str]) -> None:
        """`passes` says how passes are run, which may change."""
        self._catalog, self._tokenizer, self._version = catalog, tokenizer, server_version
        self._passes = passes
        self.model, self.sae = model_ref(catalog), sae_ref(catalog)

    def record(self, raised: Raised) -> AlertRecord:
        """What is kept of an alert, its text included."""
        event, request = raised.event, raised.request
        alert = event.alert
        return AlertRecord(
            id=event.id,
            time=datetime.fromtimestamp(event.time_seconds, UTC),
            request_id=event.request_id,
            label=event.label,
            monitor=alert.monitor,
            pack=self.pack_ref(alert.monitor),
            validated=alert.validated,
            state=alert.state,
            level=alert.level,
            cleared_id=raised.cleared_id,
            role=alert.role,
            span_start=alert.span_start,
            position=alert.position,
            score=alert.score,
            threshold=alert.threshold,
            beyond_calibration=alert.beyond_calibration,
            action=raised.action,
            components=tuple(
                Component(name=part.component, score=part.score, contribution=part.contribution)
                for part in alert.components
            ),
            features=tuple(
                FeatureShare(feature=latent, contribution=share)
                for part in alert.components
                for latent, share in part.features
                if share  # a set may have hundreds, of which few are active
            ),
            readings=tuple(self._series(raised)),
            text=kept_text(self._tokenizer, raised),
            # What the client gave is nobody's reply, in a request that generates too.
            generated=not request.score_only and alert.position >= len(request.prompt_ids),
            generation=None if request.score_only else generation(request.sampling),
            steering=tuple(steering_refs(raised.steering)),
            model=self.model,
            sae=self.sae,
            server_version=self._version,
            passes=self._passes(),
        )

    def pack_ref(self, monitor: str) -> PackRef | None:
        """The pack of a monitor that is served; None of one that is not."""
        served = self._catalog.monitors_by_name.get(monitor)
        if served is None:
            return None
        return PackRef(version=str(served.pack.version), sha256=served.spec.pack_sha256)

    def _series(self, raised: Raised) -> Iterator[Series]:
        traces = raised.traces
        yield from self._features(raised.request.watched, traces)
        monitor = raised.event.alert.monitor
        served = self._catalog.monitors_by_name.get(monitor)
        for probe in () if served is None else served.spec.probes:
            values = tuple(trace.probes.get(probe) for trace in traces)
            yield Series(name=probe, kind="probe", values=values)
        yield Series(name=monitor, kind="score", values=tuple(trace.scores.get(monitor) for trace in traces))

    def _features(self, watched: Sequence[int], traces: Sequence[Trace]) -> Iterator[Series]:
        names = self._catalog.watchlist.by_index
        was_steered = any(trace.steered_readings for trace in traces)
        for i, latent in enumerate(watched):
            steered = tuple(trace.steered_readings[i] if trace.steered_readings else None for trace in traces)
            yield Series(
                name=names[latent].name if latent in names else str(latent),
                kind="feature",
                feature=latent,
                values=tuple(trace.readings[i] for trace in traces),
                steered_values=steered if was_steered else (),
            )


def model_ref(catalog: Catalog) -> ModelRef:
    """The served weights."""
    identity = catalog.model.identity
    return ModelRef(
        name=identity.name,
        sha256=identity.weights_sha256,
        quantization=identity.quantization,
        dtype=identity.dtype,
        chat_template_sha256=catalog.model.chat_template_sha256,
    )


def sae_ref(catalog: Catalog) -> SaeRef | None:
    """The served dictionary; None without one."""
    manifest = catalog.manifest
    if manifest is None:
        return None
    return SaeRef(name=manifest.name, sha256=manifest.sae_sha256, hook_point=manifest.hook_point)


def generation(sampling: SamplingParams) -> Generation:
    """How tokens were drawn."""
    return Generation(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed,
        ignore_eos=sampling.ignore_eos,
    )


def steering_refs(in_force: Iterable[InForce]) -> Iterator[SteeringRef]:
    """Operations, in the order they are done."""
    for specs, source, active_from in in_force:
        for spec in specs:
            yield _steering_ref(spec, source, active_from)


def _steering_ref(spec: SteeringSpec, source: str, active_from: int) -> SteeringRef:
    vector = None
    if not isinstance(spec.direction, int):
        vector = base64.b64encode(struct.pack(f"<{len(spec.direction)}f", *spec.direction)).decode()
    return SteeringRef(
        feature=spec.direction if isinstance(spec.direction, int) else None,
        vector=vector,
        op=spec.op.value,
        strength=spec.strength,
        unit=spec.unit.value,
        scope=spec.scope.value,
        window=spec.window,
        source=source,
        active_from=active_from,
    )
