"""The server process: parts, ports, health, and an orderly end.

`serve` runs until SIGTERM or SIGINT, then drains: health says NOT_SERVING, new requests are refused, running ones
finish, and what is left when the time is up ends with a Finished of its own. A second signal cuts the wait short.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry
from telltale.v1 import feature_pb2, generation_pb2, monitor_pb2

from service import rpc
from service.admission import Admission
from service.assembly import Parts, assemble
from service.config import Settings
from service.delivery import Delivery
from service.engine import Engine, Published
from service.errors import ConfigError, NotReady, ServiceError
from service.http import HttpServer
from service.metrics import Metrics, WatchedMetric
from service.records import RequestRecord
from service.scheduler import Scheduler
from service.servicer import FeatureServicer, GenerationServicer, MonitorServicer, make_server_info
from service.wire_requests import MAX_STEERING, MAX_STOP_STRINGS, MAX_WATCHED, RequestLimits, RequestReader
from service.wire_responses import ResponseWriter

logger = logging.getLogger(__name__)

GENERATION = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]
FEATURES = feature_pb2.DESCRIPTOR.services_by_name["FeatureService"]
MONITORS = monitor_pb2.DESCRIPTOR.services_by_name["MonitorService"]
LIVENESS = ""
"""Health name of the process; the services' own names say whether it takes requests."""

_HEALTH_SECONDS = 0.5
_STOP_GRACE_SECONDS = 2.0
_FINISH_SECONDS = 10.0
_MAX_MESSAGE_BYTES = 4 * 2**20


class Server:
    """All that runs in the process; made on the event loop it serves on."""

    def __init__(self, settings: Settings, parts: Parts) -> None:
        self.settings = settings
        self.registry = CollectorRegistry()
        self.version = metadata.version("telltale-llm")
        catalog = parts.catalog
        self.metrics = Metrics(
            self.registry,
            watched=[WatchedMetric(f.slug, f.reference_scale) for f in catalog.watchlist.default_watched],
            monitors={spec.name: spec.rule.severity for spec in catalog.watchlist.monitors},
            queue_limit=settings.max_queued_requests,
            model=catalog.model.identity.name,
            sae=catalog.manifest.name,
            quantization=catalog.model.identity.quantization,
            version=self.version,
        )
        self.delivery = Delivery(self._observe)
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
            slow_consumer_seconds=settings.slow_consumer_seconds,
            publish=self.delivery.publish,
        )
        self.health = health.aio.HealthServicer()
        self._grpc = self._make_grpc(parts)
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
        host, settings = self.settings.host, self.settings
        try:
            address = f"[{host}]:{settings.grpc_port}" if ":" in host else f"{host}:{settings.grpc_port}"
            self.grpc_port = self._bind(address)
            self._http = HttpServer(host, settings.http_port, self.registry, self._health_facts)
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"grpc_port and http_port must be free on {host}. Got: {error}") from None
        await self._grpc.start()
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
        await _until(lambda: self.engine.num_active == 0 or hurry.is_set(), self.settings.drain_timeout_seconds)
        # From the engine, so that clients get a Finished and not the transport's bare UNAVAILABLE.
        self.engine.finish_all()
        await _until(lambda: self.engine.num_active == 0 or not self.engine.is_healthy, _FINISH_SECONDS)
        self.delivery.close_watchers()

    async def close(self) -> bool:
        """Close the ports and stop the engine; False if its thread hangs."""
        await self._grpc.stop(_STOP_GRACE_SECONDS)
        if self._http is not None:
            await asyncio.to_thread(self._http.close)
        return await asyncio.to_thread(self.engine.stop)

    # --- health and metrics ---

    async def update_health(self) -> None:
        """Tell the health service how things are."""
        live = self._is_live()
        self.metrics.observe_state(self.engine.state())
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

    def _health_facts(self) -> dict[str, Any]:
        state = self.engine.state()
        return {
            "serving": self._is_live() and not state.is_draining,
            "engine_up": state.is_up,
            "draining": state.is_draining,
            "stalled_seconds": round(self.engine.stalled_seconds(), 3),
            "requests_running": state.requests_running,
            "requests_waiting": state.requests_waiting,
        }

    def _observe(self, published: Published) -> None:
        for step in published.steps:
            self.metrics.observe_step(step)
        for failure in published.failures:
            self.metrics.observe_failure(failure)
        for event in published.alerts:
            if event.alert.state == "firing":
                self.metrics.observe_alert(event.alert.monitor, event.alert.severity)
        for record in published.requests:
            self.metrics.observe_request(record)
            _log_request(record)
        if published.state is not None:
            self.metrics.observe_state(published.state)

    # --- gRPC ---

    def _make_grpc(self, parts: Parts) -> Any:
        settings, catalog = self.settings, parts.catalog
        tokenizer = parts.runner.language_model.tokenizer
        limits = RequestLimits(
            context_length=parts.context_length,
            max_new_tokens_default=settings.max_new_tokens_default,
            top_features_cap=min(settings.top_features_cap, catalog.manifest.num_latents),
            max_request_seconds=settings.max_request_seconds,
        )
        reader = RequestReader(catalog, tokenizer, parts.steering_limits, limits)
        writer = ResponseWriter(catalog, tokenizer.all_special_ids)
        server_info = make_server_info(
            self.engine, catalog, reader, writer, version=self.version, limits=_limits(settings, parts),
            planned_memory_bytes=parts.planned_memory_bytes,
        )  # fmt: skip
        generation = GenerationServicer(self.engine, self.delivery, reader, writer, self.metrics, server_info)
        servicers = {
            GENERATION: generation,
            FEATURES: FeatureServicer(catalog, writer),
            MONITORS: MonitorServicer(catalog, self.delivery),
        }
        keys = rpc.ApiKeys(_read_keys(settings.api_keys_file))
        server = grpc.aio.server(options=_options(settings))
        refused = {GENERATION: generation.count_refused}
        for service, servicer in servicers.items():
            handler = rpc.handlers(service, servicer, self.metrics, keys, refused.get(service, _ignore))
            server.add_generic_rpc_handlers([handler])
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        if settings.reflection:
            names = [service.full_name for service in servicers]
            reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
        return server

    def _bind(self, address: str) -> int:
        if not self.settings.uses_tls:
            return int(self._grpc.add_insecure_port(address))
        assert self.settings.tls_key is not None
        assert self.settings.tls_certificate is not None
        pair = (self.settings.tls_key.read_bytes(), self.settings.tls_certificate.read_bytes())
        return int(self._grpc.add_secure_port(address, grpc.ssl_server_credentials([pair])))


def _ignore(_method: str, _error: ServiceError) -> None:
    """Only requests to read or generate are counted by outcome."""


def _limits(settings: Settings, parts: Parts) -> Any:
    return generation_pb2.Limits(
        slots=parts.slots,
        context_length=parts.context_length,
        max_queued_requests=settings.max_queued_requests,
        max_queued_prompt_tokens=settings.max_queued_prompt_tokens,
        max_steering_relative_norm=settings.max_steering_relative_norm,
        prefill_chunk_tokens=settings.prefill_chunk_tokens,
        max_top_features=min(settings.top_features_cap, parts.catalog.manifest.num_latents),
        max_watched_features=MAX_WATCHED,
        max_steering_operations=MAX_STEERING,
        max_stop_strings=MAX_STOP_STRINGS,
        max_request_seconds=settings.max_request_seconds,
    )


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # else a second server would silently share the port
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        # The core allows a ping every 5 minutes by default and cuts clients off that ask more often.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # So that clients find new replicas; streams that run may end first.
        ("grpc.max_connection_age_ms", 30 * 60_000),
        ("grpc.max_connection_age_grace_ms", int(settings.max_request_seconds * 1000) + 60_000),
    ]


def _read_keys(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        keys = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ConfigError(f"api_keys_file must be UTF-8 text. {path} is not.") from None
    if not keys:
        raise ConfigError(f"api_keys_file must hold at least one key, one per line. {path} holds none.")
    return keys


def _log_request(record: RequestRecord) -> None:
    """One line per request, never with its text."""
    logger.info(
        "request %s ended: %s, %d prompt and %d generated tokens, %.3f s",
        record.request_id,
        record.outcome.value,
        record.prompt_tokens,
        record.completion_tokens,
        record.duration_seconds,
        extra={"request_id": record.request_id, "outcome": record.outcome.value},
    )


async def _wait_for(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition() and loop.time() < end:
        await asyncio.sleep(0.02)


async def serve(settings: Settings, *, on_ready: Callable[[Server], Awaitable[None]] | None = None) -> int:
    """Run a server until it is told to stop; its exit code. Startup errors are raised."""
    set_up_logging(settings)
    _check_ports(settings)  # loading the model takes longer
    # In a thread that ends: OpenMP keeps a team of workers for every thread that has computed, and where all teams
    # together outnumber the cores it stops spinning at its barriers, which made a step half as slow again.
    with ThreadPoolExecutor(1) as pool:
        load = partial(assemble, settings, progress=sys.stderr.isatty())
        parts = await asyncio.get_running_loop().run_in_executor(pool, load)
    server = Server(settings, parts)
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        await server.start()
        _say_ready(server, parts)
        if on_ready is not None:
            await on_ready(server)
        code = await server.run(stop, hurry)
    except BaseException:
        await server.close()
        raise
    if code and server.engine.stalled_seconds():
        # The engine hangs in a pass; its thread would keep the process from ending.
        os._exit(code)
    return code


def _check_ports(settings: Settings) -> None:
    """ConfigError for a port that is taken. gRPC itself would not say why, and log it in its own way."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    for name, port in (("grpc_port", settings.grpc_port), ("http_port", settings.http_port)):
        if not port:
            continue
        try:
            socket.create_server((settings.host, port), family=family).close()
        except OSError as error:
            raise ConfigError(f"{name} must be free on {settings.host}. Got {port}: {error.strerror}.") from None


def _say_ready(server: Server, parts: Parts) -> None:
    """The one line on stdout that says the ports."""
    if server.settings.log_format == "json":
        line = json.dumps({"event": "ready", "grpc": server.grpc_port, "http": server.http_port})
    else:
        host, catalog = server.settings.host, parts.catalog
        line = (
            f"telltale is ready: gRPC {host}:{server.grpc_port}, HTTP {host}:{server.http_port}; "
            f"{catalog.model.identity.name} ({catalog.model.identity.quantization}, {catalog.model.identity.dtype}), "
            f"dictionary {catalog.manifest.name} at {catalog.manifest.hook_point}"
            f"{' (UNVERIFIED)' if catalog.mismatches else ''}; {parts.slots} slots of {parts.context_length} tokens, "
            f"{parts.planned_memory_bytes / 2**30:.2f} GiB planned"
        )
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def set_up_logging(settings: Settings) -> None:
    """Logs go to stderr: stdout is for the ready line."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())


class _JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        facts |= {key: record.__dict__[key] for key in ("request_id", "outcome") if key in record.__dict__}
        if record.exc_info:
            facts["exception"] = self.formatException(record.exc_info)
        return json.dumps(facts)
