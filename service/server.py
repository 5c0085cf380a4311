"""All that runs in the process: engine, gRPC, HTTP, health, metrics, and an orderly end.

Told to stop it drains: health says NOT_SERVING, new requests are refused, running ones finish, and what is left when
the time is up ends with a Finished of its own. Told to hurry, it does not wait.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from typing import Any

from grpc_health.v1 import health, health_pb2
from prometheus_client import CollectorRegistry
from telltale.v1 import generation_pb2

from monitors.monitor_spec import MonitorSpec
from monitors.policy import MAX_HOLD_TOKENS
from sae_runtime.reasoning import delimiters_of
from sae_runtime.sae import SAE
from service import wire_alerts
from service.admission import Admission
from service.alert_keeper import AlertKeeper
from service.alert_records import RecordMaker
from service.alert_servicer import AlertServicer
from service.assembly import Parts
from service.bookkeeper import Bookkeeper
from service.config import NO_DICTIONARY, Settings
from service.decoder_likeness import DecoderLikeness
from service.delivery import Delivery
from service.engine import Engine
from service.errors import ConfigError, NotReady
from service.feature_servicer import FeatureServicer, NoFeatures
from service.grpc_server import ALERTS, FEATURES, GENERATION, MONITORS, bind, make_grpc_server
from service.guard_metrics import GuardMetrics
from service.guards import Guarded, Guards
from service.http import HttpServer
from service.journal_keeper import JournalKeeper, JournalStatus
from service.journal_metrics import JournalMetrics
from service.metrics import Metrics, WatchedMetric
from service.replay import ReplayHost
from service.scheduler import Scheduler
from service.servicer import GenerationServicer, MonitorServicer, make_server_info
from service.wire_policies import MAX_POLICIES
from service.wire_requests import MAX_STOP_STRINGS, MAX_WATCHED_FEATURES, RequestLimits, RequestReader
from service.wire_responses import ResponseWriter
from service.wire_steering import MAX_STEERING

logger = logging.getLogger(__name__)

LIVENESS = ""
"""Health name of the process; the services' own names say whether it takes requests."""

_HEALTH_SECONDS = 0.5
_STOP_GRACE_SECONDS = 2.0
_FINISH_SECONDS = 10.0


class Server:
    """All that runs in the process; made on the event loop it serves on."""

    def __init__(self, settings: Settings, parts: Parts, journal: JournalKeeper | None = None) -> None:
        """`journal` is what alerts are kept in, None for nowhere; it is closed with the server."""
        self.settings = settings
        self.journal = journal
        self.registry = CollectorRegistry()
        self.version = metadata.version("telltale-llm")
        catalog = parts.catalog
        self.metrics = Metrics(
            self.registry,
            watched=[WatchedMetric(f.slug, f.reference_scale) for f in catalog.watchlist.default_watched],
            monitors={monitor.pack.name: kinds_of_alerts(monitor.spec) for monitor in catalog.monitors},
            queue_limit=settings.max_queued_requests,
            model=catalog.model.identity.name,
            sae=NO_DICTIONARY if catalog.manifest is None else catalog.manifest.name,
            quantization=catalog.model.identity.quantization,
            version=self.version,
        )
        self._runner = parts.runner
        self._journal_metrics: JournalMetrics | None = None
        keep = None
        if journal is not None:
            packs = {monitor.pack.name: monitor.spec.pack_sha256 for monitor in catalog.monitors}
            self._journal_metrics = JournalMetrics(self.registry, packs)
            maker = RecordMaker(catalog, parts.runner.language_model.tokenizer, self.version, self._passes)
            keep = AlertKeeper(maker, journal).keep
        guarded = Guarded.of(catalog)
        self.guards = Guards(guarded, catalog, parts.runner.probe_names)
        self.books = Bookkeeper(self.metrics, self.guards, GuardMetrics(self.registry, self.guards))
        self.delivery = Delivery(self.books.observe)
        self.engine = Engine(
            parts.runner,
            Scheduler(parts.slots, settings.prefill_chunk_tokens),
            Admission(
                num_slots=parts.slots,
                max_requests=settings.max_queued_requests,
                max_prompt_tokens=settings.max_queued_prompt_tokens,
            ),
            steering_limits=parts.steering_limits,
            server_watch=catalog.default_latents,
            guarded=guarded.latents,
            max_fvu=guarded.reconstruction.max_fvu,
            slow_consumer_seconds=settings.slow_consumer_seconds,
            publish=self.delivery.publish,
            keep=keep,
        )
        self.health = health.aio.HealthServicer()
        self._grpc = make_grpc_server(settings, self._make_servicers(parts), self.health, self.metrics)
        self._http: HttpServer | None = None
        self.grpc_port = 0

    @property
    def http_port(self) -> int:
        return self._http.port if self._http else 0

    # --- life ---

    async def start(self) -> None:
        """Open the ports, warm the model up, and say SERVING."""
        await self._set_health(live=True, ready=False)
        self.metrics.observe_state(self.engine.state())
        host = self.settings.host
        try:
            self.grpc_port = bind(self._grpc, self.settings)
            self._http = HttpServer(host, self.settings.http_port, self.registry, self._health_facts)
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"grpc_port and http_port must be free on {host}. Got: {error}") from None
        await self._grpc.start()
        if self.journal is not None:
            self.journal.start()
        self.engine.start()
        await asyncio.to_thread(self.engine.wait_warm)
        if not self.engine.is_healthy:
            raise NotReady("The model failed on its first tokens; the log has the cause.")
        await self.update_health()

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event) -> int:
        """Serve until `stop`, then drain until done, or `hurry`. The process's exit code."""
        while not stop.is_set() and self.engine.is_healthy:
            await _wait_for(stop, _HEALTH_SECONDS)
            await self.update_health()
        if not self.engine.is_healthy:
            logger.error("the engine is gone; the server ends")
        await self._drain(hurry)
        is_healthy = self.engine.is_healthy
        return 0 if await self.close() and is_healthy else 1

    async def _drain(self, hurry: asyncio.Event) -> None:
        await self.health.enter_graceful_shutdown()
        await _wait_for(hurry, self.settings.drain_delay_seconds)
        self.engine.admission.is_draining = True
        self.metrics.observe_state(self.engine.state())
        seconds, num_active = self.settings.drain_timeout_seconds, self.engine.num_active
        if num_active:
            logger.info("shutting down: %d requests have up to %g s to finish", num_active, seconds)
        await _until(lambda: self.engine.is_idle or hurry.is_set(), seconds)
        # From the engine, so that clients get a Finished and not the transport's bare UNAVAILABLE.
        self.engine.finish_all()
        await _until(lambda: self.engine.is_idle or not self.engine.is_healthy, _FINISH_SECONDS)
        self.delivery.close_watchers()

    async def close(self) -> bool:
        """Close the ports and stop the engine; False if its thread hangs."""
        await self._grpc.stop(_STOP_GRACE_SECONDS)
        if self._http is not None:
            await asyncio.to_thread(self._http.close)
        has_stopped = await asyncio.to_thread(self.engine.stop)
        if self.journal is not None:
            # After the engine, which may still raise alerts. One that hangs may find the journal closed.
            await asyncio.to_thread(self.journal.close)
        return has_stopped

    # --- health and metrics ---

    async def update_health(self) -> None:
        """Tell the health service how things are."""
        live = self._is_live()
        self.metrics.observe_state(self.engine.state())
        if self.journal is not None and self._journal_metrics is not None:
            seconds, precisions = self.journal.take_append_seconds(), self.journal.precisions
            self._journal_metrics.observe(self.journal.status, seconds, precisions)
        await self._set_health(live=live, ready=live and not self.engine.admission.is_draining)

    def _is_live(self) -> bool:
        # Never merely for being busy: a step that takes long is the sign, not a queue.
        return self.engine.is_healthy and self.engine.stalled_seconds() < self.settings.stall_seconds

    async def _set_health(self, *, live: bool, ready: bool) -> None:
        def status(ok: bool) -> Any:
            states = health_pb2.HealthCheckResponse
            return states.SERVING if ok else states.NOT_SERVING

        await self.health.set(LIVENESS, status(live))
        for service in (GENERATION, FEATURES, MONITORS):
            await self.health.set(service.full_name, status(ready))
        # Requests without alerts go on when the journal can't be written, so that only this service is not ready then.
        keeps_alerts = self.journal is not None and self.journal.status.is_writable
        await self.health.set(ALERTS.full_name, status(ready and keeps_alerts))

    def _health_facts(self) -> dict[str, Any]:
        state = self.engine.state()
        return {
            "serving": self._is_live() and not state.is_draining,
            "engine_up": state.is_up,
            "draining": state.is_draining,
            "stalled_seconds": round(self.engine.stalled_seconds(), 3),
            "requests_running": state.requests_running,
            "requests_waiting": state.requests_waiting,
            "journal": None if self.journal is None else _journal_facts(self.journal.status),
        }

    # --- what answers ---

    def _make_servicers(self, parts: Parts) -> dict[Any, Any]:
        settings, catalog = self.settings, parts.catalog
        tokenizer = parts.runner.language_model.tokenizer
        limits = RequestLimits(
            context_length=parts.context_length,
            max_new_tokens_default=settings.max_new_tokens_default,
            top_features_cap=min(settings.top_features_cap, catalog.num_latents),
            max_request_seconds=settings.max_request_seconds,
            slots=parts.slots,
        )
        reader = RequestReader(
            catalog, tokenizer, parts.steering_limits, limits, delimiters_of(tokenizer, settings.reasoning_delimiters)
        )
        writer = ResponseWriter(catalog, tokenizer.all_special_ids, self.guards.guarded.reconstruction)
        server_info = make_server_info(
            self.engine, catalog, reader, writer, self.guards, version=self.version, limits=_limits(settings, parts),
            planned_memory_bytes=parts.planned_memory.total_bytes, passes=self._passes,
            journal=self._journal_info,
        )  # fmt: skip
        host = ReplayHost(
            catalog,
            tokenizer,
            parts.steering_limits,
            parts.context_length,
            self.version,
            self._passes,
            reader.reasoning,
        )
        return {
            GENERATION: GenerationServicer(self.engine, self.delivery, reader, writer, self.metrics, server_info),
            FEATURES: _feature_servicer(parts, writer),
            MONITORS: MonitorServicer(catalog, self.delivery, self.guards),
            ALERTS: AlertServicer(
                self.journal, self.engine, self.delivery, host, max_request_seconds=settings.max_request_seconds
            ),
        }

    def _passes(self) -> str:
        """How they are run, in words; asked each time, since it may change."""
        return self._runner.passes

    def _journal_info(self) -> Any:
        if self.journal is None:
            return None
        return wire_alerts.journal_info(self.journal.status, keeps_text=self.settings.journal_text)


def _journal_facts(status: JournalStatus) -> dict[str, Any]:
    """For `/healthz`. Without errors' texts, which name places: whoever may know them has the log."""
    return {
        "entries": status.num_entries,
        "writable": status.is_writable,
        "write_failures": status.num_write_failures,
        "forwarded": status.is_forwarded,
        "forward_up": not status.forward_error,
        "waiting": status.num_waiting,
        "lag_seconds": round(status.lag_seconds, 3),
    }


def _feature_servicer(parts: Parts, writer: ResponseWriter) -> FeatureServicer | NoFeatures:
    sae = parts.runner.sae
    if not isinstance(sae, SAE):
        return NoFeatures()
    return FeatureServicer(parts.catalog, writer, DecoderLikeness(sae.W_dec).cosines)


def kinds_of_alerts(spec: MonitorSpec) -> list[tuple[str, str]]:
    """(level, role) that alerts of a monitor may have."""
    return [(level, role) for level, _ in spec.thresholds.levels.named() for role in spec.roles]


def _limits(settings: Settings, parts: Parts) -> Any:
    return generation_pb2.Limits(
        slots=parts.slots,
        context_length=parts.context_length,
        max_queued_requests=settings.max_queued_requests,
        max_queued_prompt_tokens=settings.max_queued_prompt_tokens,
        max_steering_relative_norm=settings.max_steering_relative_norm,
        prefill_chunk_tokens=settings.prefill_chunk_tokens,
        max_top_features=min(settings.top_features_cap, parts.catalog.num_latents),
        max_watched_features=MAX_WATCHED_FEATURES,
        max_steering_operations=MAX_STEERING,
        max_stop_strings=MAX_STOP_STRINGS,
        max_request_seconds=settings.max_request_seconds,
        max_policies=MAX_POLICIES,
        max_hold_tokens=MAX_HOLD_TOKENS,
    )


async def _wait_for(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition() and loop.time() < end:
        await asyncio.sleep(0.02)
