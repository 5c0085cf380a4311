"""Events of the engine, and facts of the catalog -> wire messages."""

from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from telltale.v1 import feature_pb2, generation_pb2, types_pb2

from sae_runtime.steering import SteeringReport
from service import wire_guards, wire_monitors, wire_twin
from service.catalog import Catalog
from service.reconstruction_guard import ReconstructionGuard
from service.request import (
    AlertEvent,
    BaselineEvent,
    Event,
    FinishedEvent,
    FinishReason,
    Request,
    StartedEvent,
    Timings,
    TokenEvent,
)
from service.twin import baseline_of

_REASONS = {
    FinishReason.EOS: generation_pb2.FINISH_REASON_EOS,
    FinishReason.STOP_SEQUENCE: generation_pb2.FINISH_REASON_STOP_SEQUENCE,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
    FinishReason.CONTEXT_LENGTH: generation_pb2.FINISH_REASON_CONTEXT_LENGTH,
    FinishReason.ALERT_STOP: generation_pb2.FINISH_REASON_ALERT_STOP,
    FinishReason.SHUTDOWN: generation_pb2.FINISH_REASON_SHUTDOWN,
}

# A token with every option on is about 3 KB, and gRPC's clients take messages of up to 4 MiB by default.
MAX_TOKENS_PER_CHUNK = 256


class ResponseWriter:
    """Writes wire messages, for one served model and dictionary."""

    def __init__(self, catalog: Catalog, special_ids: Iterable[int], guard: ReconstructionGuard) -> None:
        self._catalog, self._guard = catalog, guard
        self._special_ids = frozenset(special_ids)

    # --- a generation ---

    def responses(self, events: Sequence[Event], request: Request) -> list[Any]:
        """Events as GenerateResponses; tokens that follow each other share one.

        Those of an unsteered twin come behind those of the request itself, but for its end.
        """
        others = [event.event for event in events if isinstance(event, BaselineEvent)]
        responses = self._own([event for event in events if not isinstance(event, BaselineEvent)], request)
        if not others:
            return responses
        marked = [wire_twin.baseline(response) for response in self._own(others, baseline_of(request))]
        at = len(responses) - (bool(responses) and responses[-1].HasField("finished"))
        return [*responses[:at], *marked, *responses[at:]]

    def _own(self, events: Sequence[Event], request: Request) -> list[Any]:
        responses: list[Any] = []
        for event in events:
            if isinstance(event, TokenEvent):
                if not _has_room(responses):
                    responses.append(generation_pb2.GenerateResponse(tokens=types_pb2.TokenChunk()))
                responses[-1].tokens.tokens.append(self.token(event))
            elif isinstance(event, StartedEvent):
                responses.append(generation_pb2.GenerateResponse(started=self.started(event, request)))
            elif isinstance(event, AlertEvent):
                responses.append(generation_pb2.GenerateResponse(alert=wire_monitors.alert(event)))
            elif isinstance(event, FinishedEvent):
                responses.append(generation_pb2.GenerateResponse(finished=finished(event, request)))
        return responses

    def started(self, event: StartedEvent, request: Request) -> Any:
        return generation_pb2.Started(
            request_id=request.request_id,
            seed=request.sampling.seed,
            prompt_tokens=len(request.prompt_ids),
            watched=self.watched(request.watched),
            monitors=self.monitors(request),
            model=self.model(),
            sae=self.sae(),
            watch_generation=self._catalog.generation,
            last_prompt_token=self.token(event.last_prompt_token),
            max_tokens=request.sampling.max_tokens,
            hold_tokens=event.hold_tokens,
            reconstruction_guard=wire_guards.reconstruction_guard(self._guard),
        )

    def token(self, event: TokenEvent) -> Any:
        return types_pb2.Token(
            index=event.index,
            id=event.id,
            text=event.text,
            special=event.id in self._special_ids,
            is_prompt=event.is_prompt,
            readings=event.readings,
            steered_readings=event.steered_readings,
            top_features=[types_pb2.FeatureReading(feature=f, value=v) for f, v in event.top_features],
            logprob=event.logprob,
            scores=[wire_monitors.score(score) for score in event.scores],
            fvu=event.fvu,
            l0=event.l0,
            is_first_position=event.index == 0,
            off_scale=event.off_scale,
            role=event.role or "",
            off_distribution=event.off_distribution,
        )

    def score(self, events: Sequence[Event], request: Request) -> Any:
        """A whole Score request's events as its one response."""
        end = events[-1]
        assert isinstance(end, FinishedEvent)
        return generation_pb2.ScoreResponse(
            request_id=request.request_id,
            watched=self.watched(request.watched),
            tokens=[self.token(event) for event in events if isinstance(event, TokenEvent)],
            monitors=[wire_monitors.summary(s, end.off_distribution) for s in end.monitors],
            alerts=[wire_monitors.alert(event) for event in events if isinstance(event, AlertEvent)],
            usage=generation_pb2.Usage(prompt_tokens=len(request.prompt_ids)),
            steering=steering_report(end.steering),
            model=self.model(),
            sae=self.sae(),
            monitor_definitions=self.monitors(request),
            reconstruction_guard=wire_guards.reconstruction_guard(self._guard),
            off_distribution_tokens=wire_guards.num_off(end.off_distribution),
        )

    # --- the catalog ---

    def watched(self, latents: Sequence[int]) -> list[Any]:
        named = self._catalog.watchlist.by_index
        return [
            types_pb2.WatchedFeature(
                feature=latent,
                name=named[latent].name if latent in named else "",
                reference_scale=named[latent].reference_scale if latent in named else 0,
                validated=latent in named and named[latent].validated,
            )
            for latent in latents
        ]

    def monitors(self, request: Request) -> list[Any]:
        """The monitors that run in a request."""
        return [wire_monitors.monitor(self._catalog.monitors_by_name[m.name], request) for m in request.monitors]

    def model(self) -> Any:
        facts = self._catalog.model
        return types_pb2.ModelInfo(
            name=facts.identity.name,
            weights_sha256=facts.identity.weights_sha256,
            quantization=facts.identity.quantization,
            dtype=facts.identity.dtype,
            device=facts.identity.device,
            num_layers=facts.num_layers,
            d_model=facts.d_model,
            vocab_size=facts.vocab_size,
            context_length=facts.context_length,
            eos_token_ids=facts.eos_token_ids,
        )

    def sae(self) -> Any:
        """None, which leaves the field unset, without a dictionary."""
        manifest = self._catalog.manifest
        if manifest is None:
            return None
        return types_pb2.SaeInfo(
            name=manifest.name,
            sha256=manifest.sae_sha256,
            hook_point=manifest.hook_point,
            num_latents=manifest.num_latents,
            activation=manifest.activation,
            verified=not self._catalog.mismatches,
            mismatches=self._catalog.mismatches,
            resid_norm_mean=manifest.resid_norm_mean or 0,
        )

    def feature(self, latent: int, *, with_evidence: bool) -> Any:
        """A latent, named or not."""
        feature = feature_pb2.Feature(index=latent, decoder_norm=self._catalog.direction_norms[latent])
        named = self._catalog.watchlist.by_index.get(latent)
        if named is not None:
            feature.name, feature.description = named.name, named.description
            feature.reference_scale, feature.validated = named.reference_scale, named.validated
            feature.default_watched = named.default_watched
            if with_evidence:
                feature.evidence.CopyFrom(ParseDict(dict(named.evidence), Struct()))
        return feature


def _has_room(responses: Sequence[Any]) -> bool:
    """Whether the last response is a chunk that can take another token."""
    if not responses or responses[-1].WhichOneof("event") != "tokens":
        return False
    return len(responses[-1].tokens.tokens) < MAX_TOKENS_PER_CHUNK


def finished(event: FinishedEvent, request: Request) -> Any:
    return generation_pb2.Finished(
        reason=_REASONS[event.reason],
        matched_stop=event.matched_stop,
        matched_token_id=event.matched_token_id,
        usage=generation_pb2.Usage(prompt_tokens=len(request.prompt_ids), completion_tokens=event.completion_tokens),
        timings=timings(event.timings),
        steering=steering_report(event.steering),
        monitors=[wire_monitors.summary(s, event.off_distribution) for s in event.monitors],
        tapped_tokens=event.tapped_tokens,
        policies=event.policies,
        withheld_tokens=event.num_withheld,
        off_distribution_tokens=wire_guards.num_off(event.off_distribution),
        twin=None if event.twin is None else wire_twin.twin(event.twin, event, finished(event.twin.baseline, request)),
    )


def timings(times: Timings) -> Any:
    return generation_pb2.Timings(
        queue=_duration(times.queue_seconds),
        prefill=_duration(times.prefill_seconds),
        decode=_duration(times.decode_seconds),
        time_to_first_token=_duration(times.time_to_first_token_seconds),
        total=_duration(times.total_seconds),
    )


def steering_report(report: SteeringReport | None) -> Any:
    if report is None:
        return None
    return generation_pb2.SteeringReport(
        positions_changed=report.positions_changed,
        mean_relative_norm=report.mean_relative_norm,
        max_relative_norm=report.max_relative_norm,
    )


def _duration(seconds: float | None) -> Duration | None:
    if seconds is None:
        return None
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
