"""A real server on free ports around a tiny random model, and what tests ask of it."""

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import tiny
import tiny_packs
from telltale.v1 import generation_pb2, types_pb2

from monitors.latent_catalogue import LatentCatalogue
from monitors.pack import MonitorPack
from monitors.watchlist import NamedFeature, Watchlist
from sae_runtime.checkpoint import Manifest
from service.assembly import Parts, model_facts
from service.catalog import Catalog
from service.client import TelltaleClient
from service.client_calls import RetryPolicy
from service.config import NO_JOURNAL, Settings
from service.journal_keeper import JournalKeeper
from service.memory_plan import MemoryPlan
from service.monitor_packs import ServedMonitor
from service.pass_output import PassOutput
from service.server import Server

DEFAULT_WATCHED = (3, 17)
ALWAYS, NEVER = "always", "never"
"""Monitors: one fires at the third token it scores, whatever the text; the other at none."""
GENERATE = "/telltale.v1.GenerationService/Generate"
SCORE = "/telltale.v1.GenerationService/Score"
NO_RETRIES = RetryPolicy(max_attempts=1)


def named_feature(index: int, name: str, *, default_watched: bool = False) -> NamedFeature:
    return NamedFeature(
        index=index,
        name=name,
        description=f"Latent {index} of a test.",
        reference_scale=2.0,
        validated=index == 3,
        default_watched=default_watched,
        evidence={"auroc": 0.75, "examples": ["one", "two"]},
    )


def watchlist() -> Watchlist:
    return Watchlist(
        "0" * 64,
        (
            named_feature(17, "hedging", default_watched=True),
            named_feature(3, "lying", default_watched=True),
            named_feature(40, "calm"),
        ),
    )


def monitor_packs() -> list[MonitorPack]:
    every_latent = tiny_packs.feature_component(*range(tiny.NUM_LATENTS))
    return [
        tiny_packs.pack(
            ALWAYS,
            [every_latent],
            thresholds=tiny_packs.thresholds(None, 1e-6),
            window=1,
            min_tokens=3,
            evidence={"auroc": 0.5},
        ),
        tiny_packs.pack(
            NEVER, [tiny_packs.feature_component(*DEFAULT_WATCHED)], thresholds=tiny_packs.thresholds(1e9, 2e9)
        ),
    ]


def manifest(**changes: object) -> Manifest:
    facts: dict[str, Any] = {
        "name": "tiny-sae",
        "model_name": "tiny",
        "model_sha256": "0" * 64,
        "quantization": "none",
        "hook_point": str(tiny.HOOK_POINT),
        "d_model": tiny.D_MODEL,
        "num_latents": tiny.NUM_LATENTS,
        "activation": "topk",
        "k": 8,
        "resid_norm_mean": 3.0,
    }
    return Manifest(**(facts | changes))


def catalog(
    model: Any,
    *,
    mismatches: tuple[str, ...] = (),
    latents: LatentCatalogue | None = None,
    metrics: dict[str, Any] | None = None,
) -> Catalog:
    norms = tiny.limits(tiny.sae()).direction_norms
    monitors = tuple(map(ServedMonitor, monitor_packs()))
    facts = manifest(metrics=metrics or {})
    return Catalog(model_facts(model), facts, mismatches, watchlist(), norms, monitors, latents)


def parts(*, slots: int = 4, **of_catalog: Any) -> Parts:
    # A model of its own: two engines' taps on one model would see each other's passes.
    model, dictionary = tiny.language_model(), tiny.sae()
    return Parts(
        runner=tiny.model_runner(model, dictionary, num_slots=slots),
        catalog=catalog(model, **of_catalog),
        steering_limits=tiny.limits(dictionary),
        slots=slots,
        context_length=tiny.NUM_POSITIONS,
        planned_memory=MemoryPlan(weights=100, kernels=10, dictionary=7, keys_and_values=4, libraries=2),
    )


@asynccontextmanager
async def serving(
    *,
    slots: int = 4,
    latents: LatentCatalogue | None = None,
    metrics: dict[str, Any] | None = None,
    **settings: object,
) -> AsyncIterator[Server]:
    """A started server; closed at the end, whatever the test did to it. It keeps alerts if a `journal` is given.

    `metrics` are the dictionary's figures.
    """
    chosen = Settings(**({"grpc_port": 0, "http_port": 0, "journal": NO_JOURNAL} | settings))
    server = Server(chosen, parts(slots=slots, latents=latents, metrics=metrics), JournalKeeper.open(chosen))
    await server.start()
    try:
        yield server
    finally:
        await server.close()


def target(server: Server) -> str:
    return f"127.0.0.1:{server.grpc_port}"


def connect(server: Server, **options: Any) -> TelltaleClient:
    return TelltaleClient(target(server), retry=NO_RETRIES, **options)


@asynccontextmanager
async def raw_channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(target(server)) as channel:
        yield channel


def generate_message(text: str = "The sea", **fields: Any) -> Any:
    sampling = types_pb2.SamplingParams(max_tokens=fields.pop("max_tokens", 4), ignore_eos=True)
    return generation_pb2.GenerateRequest(text=text, sampling=sampling, **fields)


async def eventually(condition: Callable[[], object], *, seconds: float = 10.0) -> None:
    """Wait for something that another thread or the server's own tasks bring about; fails if they never do."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


class Gate:
    """Holds a server's forward passes back until it is opened, as a hanging device would."""

    def __init__(self, server: Server, *, free_passes: int = 0) -> None:
        self._free_passes = free_passes
        self._inner = server.engine.runner.forward
        self._open = threading.Event()
        self.num_passes = 0
        """Passes that came to the gate."""
        server.engine.runner.forward = self._forward  # type: ignore[method-assign]

    def _forward(self, *args: Any, **kwargs: Any) -> PassOutput:
        self.num_passes += 1
        assert self.num_passes <= self._free_passes or self._open.wait(20), "nobody opened the gate"
        return self._inner(*args, **kwargs)

    def open(self) -> None:
        self._open.set()


def sample(server: Server, name: str, **labels: str) -> float:
    """A metric's value, in this process."""
    value = server.registry.get_sample_value(name, labels)
    assert value is not None, f"no sample {name} {labels}"
    return value


def outcomes(server: Server) -> dict[str, int]:
    """Requests by outcome, those that are 0 left out."""
    family = next(f for f in server.registry.collect() if f.name == "telltale_requests")
    return {s.labels["outcome"]: int(s.value) for s in family.samples if s.name.endswith("_total") and s.value}


def rpcs_started(server: Server, *methods: str) -> int:
    """RPCs begun of these methods of the generation service."""
    family = next(f for f in server.registry.collect() if f.name == "grpc_server_started")
    wanted = {("telltale.v1.GenerationService", method) for method in methods}
    found = [s for s in family.samples if (s.labels.get("grpc_service"), s.labels.get("grpc_method")) in wanted]
    return int(sum(s.value for s in found if s.name.endswith("_total")))


async def http_get(server: Server, path: str) -> tuple[int, str, str]:
    """Status, content type and body."""

    def fetch() -> tuple[int, str, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}{path}", timeout=10) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["Content-Type"], error.read().decode()

    return await asyncio.to_thread(fetch)


async def healthz(server: Server) -> tuple[int, dict[str, Any]]:
    status, _, body = await http_get(server, "/healthz")
    return status, json.loads(body)
