"""A server that speaks telltale.v1 over a real port and has no model: what it says is scripted by the test."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from telltale.v1 import (
    feature_pb2,
    feature_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    monitor_pb2,
    monitor_pb2_grpc,
    types_pb2,
)

READY_SERVICE = "telltale.v1.GenerationService"
PAGE_SIZE = 2
WATCHED = [
    types_pb2.WatchedFeature(feature=7, name="lying", reference_scale=4.0, validated=True),
    types_pb2.WatchedFeature(feature=30, reference_scale=0.0),
]
MONITOR = types_pb2.Monitor(
    name="lying",
    description="Says what it holds to be false",
    threshold=0.5,
    clear_threshold=0.25,
    window=2,
    min_tokens=1,
    severity=types_pb2.SEVERITY_WARNING,
    threshold_source="1 % of benign replies",
    features=[7],
    kind=types_pb2.MONITOR_KIND_FEATURE,
    version=2,
    pack_sha256="cd" * 32,
    limits="It reads the instruction.",
)
MODEL = types_pb2.ModelInfo(name="tiny", weights_sha256="ab" * 32, quantization="none", num_layers=2, d_model=4)
SAE = types_pb2.SaeInfo(name="tiny-sae", hook_point="layers.1.output", num_latents=32, mismatches=["other weights"])
FEATURES = [
    feature_pb2.Feature(index=7, name="lying", description="lies", reference_scale=4.0, validated=True),
    feature_pb2.Feature(index=9, name="hedging", description="doubts", default_watched=True),
    feature_pb2.Feature(index=12, name="honesty", description="facts"),
]
FEATURES[0].evidence.update({"auroc": 0.9, "num_positive": 200})
FEATURES[0].statistics.CopyFrom(
    feature_pb2.LatentStatistics(
        num_tokens=1000, num_active=30, density_ratio=0.03, max_reading=8.0, mean_reading=2.0,
        sources=[feature_pb2.SourceShare(source="novels", share_ratio=0.75)],
        histogram=feature_pb2.Histogram(edges=[1, 2, 4, 8], counts=[10, 0, 20]),
    )
)  # fmt: skip
FEATURES[0].explanation.CopyFrom(
    feature_pb2.Explanation(
        title="what is not true", summary="Lies\x1b[2J.", dominant_tokens=["lie"], explainer="somebody",
        detection=feature_pb2.ExplanationScore(balanced_accuracy=0.75, num_windows=40),
    )
)  # fmt: skip
FEATURES[0].promoted.add(text=" lies", logit=1.25, id=3)
EXAMPLE = feature_pb2.Example(
    reading=8.0,
    source="novels",
    focus=1,
    tokens=[
        feature_pb2.ExampleToken(text="A", reading=0.0, id=1),
        feature_pb2.ExampleToken(text=" lie", reading=8.0, id=2),
        feature_pb2.ExampleToken(text=",\n", reading=2.0, id=3),
    ],
)
FEATURES[0].examples.append(EXAMPLE)
ALERT = types_pb2.Alert(
    request_id="r1",
    label="job",
    monitor="lying",
    state=types_pb2.ALERT_STATE_FIRING,
    severity=types_pb2.SEVERITY_WARNING,
    position=3,
    span_start=2,
    score=0.75,
    threshold=0.5,
    contributions=[types_pb2.Contribution(feature=7, value=0.75)],
    time_seconds=1.5,
)


def token(index: int, text: str, *, reading: float = 0.0, is_prompt: bool = False) -> Any:
    return types_pb2.Token(
        index=index,
        id=index + 100,
        text=text,
        is_prompt=is_prompt,
        is_first_position=index == 0,
        readings=[reading, 0.5],
        fvu=0.25,
        l0=2,
        scores=[types_pb2.MonitorScore(monitor="lying", value=reading / 4, firing=reading > 2)],
    )


def started() -> Any:
    return generation_pb2.Started(
        request_id="r1",
        seed=2**63,
        prompt_tokens=2,
        watched=WATCHED,
        monitors=[MONITOR],
        model=MODEL,
        sae=SAE,
        last_prompt_token=token(1, "b", reading=1.0, is_prompt=True),
        max_tokens=8,
    )


def finished() -> Any:
    return generation_pb2.Finished(
        reason=generation_pb2.FINISH_REASON_LENGTH,
        usage=generation_pb2.Usage(prompt_tokens=2, completion_tokens=3),
        timings=generation_pb2.Timings(
            decode=duration_pb2.Duration(nanos=100_000_000), total=duration_pb2.Duration(seconds=1)
        ),
        steering=generation_pb2.SteeringReport(positions_changed=3, mean_relative_norm=0.5, max_relative_norm=1.5),
        monitors=[generation_pb2.MonitorSummary(monitor="lying", max_score=0.75, fired=True, first_fired_position=3)],
        tapped_tokens=5,
    )


def reply() -> list[Any]:
    """A whole stream: two chunks, of one and of two tokens, with an alert between."""
    chunk = generation_pb2.GenerateResponse
    return [
        chunk(started=started()),
        chunk(tokens=types_pb2.TokenChunk(tokens=[token(2, "He"), token(3, "llo\x1b[2J", reading=3.0)])),
        chunk(alert=ALERT),
        chunk(tokens=types_pb2.TokenChunk(tokens=[token(4, " ✓\n", reading=1.0)])),
        chunk(finished=finished()),
    ]


@dataclass
class Failure:
    """A status to end a call with."""

    code: grpc.StatusCode
    message: str = ""
    details: list[Any] = field(default_factory=list)
    trailers: tuple[tuple[str, str], ...] = ()

    async def abort(self, context: Any) -> None:
        context.set_trailing_metadata(self.trailers)
        if not self.details:
            await context.abort(self.code, self.message)
        packed = [any_pb2.Any() for _ in self.details]
        for target, detail in zip(packed, self.details, strict=True):
            target.Pack(detail)
        status = status_pb2.Status(code=code_pb2.Code.Value(self.code.name), message=self.message, details=packed)
        await context.abort_with_status(rpc_status.to_status(status))


def invalid(*violations: tuple[str, str]) -> Failure:
    bad_request = error_details_pb2.BadRequest()
    for name, description in violations:
        bad_request.field_violations.add(field=name, description=description)
    return Failure(grpc.StatusCode.INVALID_ARGUMENT, "the request is invalid", [bad_request])


class FakeServer(
    generation_pb2_grpc.GenerationServiceServicer,
    feature_pb2_grpc.FeatureServiceServicer,
    monitor_pb2_grpc.MonitorServiceServicer,
):
    """Answers as scripted, and remembers what it was asked."""

    def __init__(self) -> None:
        self._forget()

    async def __aenter__(self) -> Self:
        # A second server must not be able to share the port.
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(self, self._server)
        feature_pb2_grpc.add_FeatureServiceServicer_to_server(self, self._server)
        monitor_pb2_grpc.add_MonitorServiceServicer_to_server(self, self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    async def reset(self) -> None:
        """Ready, and back to the answers it gives by itself."""
        self._forget()
        await self.set_ready(True)

    def _forget(self) -> None:
        self.failures: list[Failure] = []
        """Ends of the next calls, one each, before they answer anything."""
        self.reply: Callable[[], list[Any]] = reply
        self.fail_after: tuple[int, Failure] | None = None
        """Messages to send before a stream fails."""
        self.hang_after: int | None = None
        """Messages to send before a stream goes silent for ever."""
        self.requests: list[Any] = []
        self.metadata: dict[str, Any] = {}
        self.received = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def set_ready(self, ready: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(READY_SERVICE, status)

    async def _receive(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.received.set()
        self.metadata = dict(context.invocation_metadata())
        if self.failures:
            await self.failures.pop(0).abort(context)

    async def Generate(self, request: Any, context: Any) -> Any:
        try:
            await self._receive(request, context)
            for number, response in enumerate(self.reply()):
                if self.fail_after and number == self.fail_after[0]:
                    await self.fail_after[1].abort(context)
                if number == self.hang_after:
                    await asyncio.Event().wait()
                yield response
        finally:
            if self.hang_after is not None:
                self.cancelled.set()

    async def Score(self, request: Any, context: Any) -> Any:
        await self._receive(request, context)
        return generation_pb2.ScoreResponse(
            request_id="r2",
            watched=WATCHED,
            tokens=[token(0, "a", reading=99.0), token(1, "b", reading=4.0), token(3, "c\n", reading=2.0)],
            monitors=[generation_pb2.MonitorSummary(monitor="lying", scored_tokens=2)],
            alerts=[ALERT],
            model=MODEL,
            sae=SAE,
        )

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        await self._receive(request, context)
        return generation_pb2.GetServerInfoResponse(
            version="1.2.3",
            model=MODEL,
            sae=SAE,
            limits=generation_pb2.Limits(slots=4, context_length=512, max_steering_relative_norm=20),
            sampling_defaults=types_pb2.SamplingParams(temperature=0, max_tokens=256),
            default_watched=WATCHED,
            default_monitors=["lying"],
            passes="native kernels",
        )

    async def ListFeatures(self, request: Any, context: Any) -> Any:
        await self._receive(request, context)
        first = int(request.page_token or 0)
        after = first + PAGE_SIZE
        return feature_pb2.ListFeaturesResponse(
            features=FEATURES[first:after], next_page_token=str(after) if after < len(FEATURES) else ""
        )

    async def GetFeature(self, request: Any, context: Any) -> Any:
        await self._receive(request, context)
        for feature in FEATURES:
            if request.WhichOneof("key") == "index" and feature.index == request.index:
                return feature_pb2.GetFeatureResponse(feature=feature)
            if request.WhichOneof("key") == "name" and feature.name == request.name:
                return feature_pb2.GetFeatureResponse(feature=feature)
        return await context.abort(grpc.StatusCode.NOT_FOUND, "No such feature.")

    async def SearchFeatures(self, request: Any, context: Any) -> Any:
        await self._receive(request, context)
        first = int(request.page_token or 0)
        after = first + min(request.page_size or PAGE_SIZE, PAGE_SIZE)
        named, newer = feature_pb2.MATCHED_FIELD_NAME, 99
        where = [[named, feature_pb2.MATCHED_FIELD_ACTIVE_TOKENS], [newer], [named]]
        return feature_pb2.SearchFeaturesResponse(
            matches=[
                feature_pb2.FeatureMatch(feature=feature, score=9 - i, matched=where[i])
                for i, feature in enumerate(FEATURES)
            ][first:after],
            next_page_token=str(after) if after < len(FEATURES) else "",
            num_matches=len(FEATURES),
        )

    async def ListMonitors(self, request: Any, context: Any) -> Any:
        await self._receive(request, context)
        return monitor_pb2.ListMonitorsResponse(monitors=[MONITOR])

    async def GetMonitor(self, request: Any, context: Any) -> Any:
        await self._receive(request, context)
        if request.name != MONITOR.name:
            return await context.abort(grpc.StatusCode.NOT_FOUND, "No such monitor.")
        whole = types_pb2.Monitor()
        whole.CopyFrom(MONITOR)
        whole.evidence.update({"auroc": 0.9})
        return monitor_pb2.GetMonitorResponse(monitor=whole)

    async def WatchAlerts(self, request: Any, context: Any) -> Any:
        await self._receive(request, context)
        yield monitor_pb2.WatchAlertsResponse(alert=ALERT)
