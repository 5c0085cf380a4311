"""What each policy costs: time to the first token that is seen, between tokens, and throughput, against no policy.

    python -m benchmarks.policies [--rounds 5] [--tokens 96] [--streams 1 4] [--record benchmarks/results/policies.json]

One server with the embedded model, two monitors of one latent each that never fire, so that every reply has the same
tokens and all that differs is the policy. In each round every policy has its turn, in another order each time, and is
measured against the mean of the plain replies before and after it, so that a drift of the machine's speed falls on
both. Figures are medians over rounds, with the smallest and the largest. Ends with one JSON line.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from monitors.components import WeightedFeature
from monitors.pack import MonitorPack
from monitors.pack_parts import Bindings, PackCalibration, PackComponent
from monitors.thresholds import Levels, LevelThreshold, Stratum, Thresholds
from service.assembly import assemble
from service.catalog import Catalog, what_is_served
from service.client import TelltaleClient
from service.client_events import Token
from service.client_request import AlertCondition, AllOf, AnyOf, Hold, Policy, Steering
from service.config import Settings
from service.monitor_packs import ServedMonitor
from service.server import Server

PROMPT = "The history of navigation at sea began when people first"
NAMES = ("first", "second")
LATENTS = (3, 17)
WINDOW = 16
NEVER = 1e9


def policies() -> dict[str, list[Policy]]:
    """Those that are measured, by name; `none` is what they are measured against."""
    first, second = (AlertCondition(monitor=name) for name in NAMES)
    steering = [Steering(direction=LATENTS[0], op="scale", strength=0.0)]
    tree = AnyOf([AllOf([first, second]), AllOf([second, AlertCondition(monitor=NAMES[0], has_fired=True)])])
    found = {
        "none": [],
        "annotate": [Policy(monitor=NAMES[0], action="annotate")],
        "stop": [Policy(monitor=NAMES[0], action="stop")],
        "stop, condition over two": [Policy(condition=tree, action="stop")],
        "steer": [Policy(monitor=NAMES[0], action="steer", steering=steering)],
    }
    for tokens in (1, 4, 16, 64):
        found[f"stop, hold {tokens}"] = [Policy(monitor=NAMES[0], action="stop", hold=Hold(tokens=tokens))]
    return found


@dataclass(frozen=True, slots=True)
class Measured:
    """Equal streams at once."""

    first_seconds: float
    """To the first token that the client sees; mean over the streams."""
    between_seconds: float
    """Between the first and the last token seen, per token; mean over the streams."""
    tokens_per_second: float
    """Of all streams, from the request to the last token."""


async def measure(client: TelltaleClient, chosen: Sequence[Policy], num_streams: int, num_tokens: int) -> Measured:
    """One reply in each of `num_streams` streams."""
    began = time.perf_counter()

    async def stream() -> list[float]:
        options: dict[str, Any] = {"max_tokens": num_tokens, "ignore_eos": True, "policies": chosen}
        events = client.generate(PROMPT, **options)
        return [time.perf_counter() - began async for event in events if isinstance(event, Token)]

    seen = await asyncio.gather(*(stream() for _ in range(num_streams)))
    assert all(len(times) == num_tokens for times in seen), "a policy fired, or a token was lost"
    return Measured(
        first_seconds=statistics.fmean(times[0] for times in seen),
        between_seconds=statistics.fmean((times[-1] - times[0]) / (num_tokens - 1) for times in seen),
        tokens_per_second=num_streams * num_tokens / max(times[-1] for times in seen),
    )


async def run(rounds: int, num_tokens: int, streams: Sequence[int]) -> dict[str, Any]:
    """Everything, each policy beside plain replies."""
    chosen, order = policies(), random.Random(0)
    rows: dict[tuple[int, str], list[tuple[Measured, Measured]]] = {}
    async with serving(max(streams)) as client:
        for round_number in range(rounds + 1):  # the first warms up
            for num_streams in streams:
                names = order.sample(sorted(chosen), len(chosen))
                before = await measure(client, [], num_streams, num_tokens)
                for name in names:
                    own = await measure(client, chosen[name], num_streams, num_tokens)
                    after = await measure(client, [], num_streams, num_tokens)
                    if round_number:
                        rows.setdefault((num_streams, name), []).append((own, _mean(before, after)))
                    before = after
    return {
        "tokens": num_tokens,
        "rounds": rounds,
        "window": WINDOW,
        "rows": [summarize(name, num_streams, rows[num_streams, name]) for num_streams in streams for name in chosen],
        "machine": {"cores": os.cpu_count(), "torch_threads": torch.get_num_threads(), "torch": torch.__version__},
    }


def _mean(one: Measured, other: Measured) -> Measured:
    return Measured(
        (one.first_seconds + other.first_seconds) / 2,
        (one.between_seconds + other.between_seconds) / 2,
        (one.tokens_per_second + other.tokens_per_second) / 2,
    )


def summarize(name: str, num_streams: int, pairs: Sequence[tuple[Measured, Measured]]) -> dict[str, Any]:
    """A policy's medians, and its ratios to the plain replies beside it: [smallest, median, largest] over rounds."""

    def ratios(field: str) -> list[float]:
        found = sorted(getattr(own, field) / getattr(plain, field) for own, plain in pairs)
        return [round(value, 3) for value in (found[0], statistics.median(found), found[-1])]

    def median(field: str) -> float:
        return statistics.median(getattr(own, field) for own, _ in pairs)

    return {
        "policy": name,
        "streams": num_streams,
        "first_ms": round(1000 * median("first_seconds"), 1),
        "between_ms": round(1000 * median("between_seconds"), 2),
        "tokens_per_second": round(median("tokens_per_second"), 1),
        "first_ratio": ratios("first_seconds"),
        "between_ratio": ratios("between_seconds"),
        "throughput_ratio": ratios("tokens_per_second"),
    }


@asynccontextmanager
async def serving(slots: int) -> AsyncIterator[TelltaleClient]:
    """A server with the two monitors, and a client of it."""
    settings = Settings(grpc_port=0, http_port=0, slots=slots, context_length=1024, shipped_monitors=False)
    parts = assemble(settings)
    monitors = tuple(ServedMonitor(pack_of(*each, parts.catalog)) for each in zip(NAMES, LATENTS, strict=True))
    server = Server(settings, replace(parts, catalog=replace(parts.catalog, monitors=monitors)))
    await server.start()
    try:
        async with TelltaleClient(f"127.0.0.1:{server.grpc_port}") as client:
            yield client
    finally:
        await server.close()


def pack_of(name: str, latent: int, catalog: Catalog) -> MonitorPack:
    """A monitor of one latent that never fires."""
    served = what_is_served(catalog.model, catalog.manifest)
    level = LevelThreshold(0.01, NEVER, (1024,))
    return MonitorPack(
        name=name,
        version=1,
        kind="feature",
        description="A latent, to measure what policies cost.",
        limits="It shows nothing.",
        validated=False,
        validated_reason="Made for a benchmark.",
        bindings=Bindings(
            model_name=served.model_name,
            model_sha256=served.model_sha256,
            quantization=served.quantization,
            sae_sha256=served.sae_sha256,
        ),
        components=(
            PackComponent(
                name="latent", reads="One latent.", features=(WeightedFeature(latent, 1.0, 1.0),), transform="linear"
            ),
        ),
        window=WINDOW,
        min_tokens=1,
        cooldown_tokens=0,
        thresholds=Thresholds((Stratum(1024, 0.0),), Levels(level, None), NEVER / 2),
        calibration=PackCalibration(method="by_hand", source="Never reached."),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, after one that warms up")
    parser.add_argument("--tokens", type=int, default=96, help="tokens per stream")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4], help="streams at once")
    parser.add_argument("--record", type=Path, help="also write the line to this file")
    args = parser.parse_args()
    line = json.dumps(asyncio.run(run(args.rounds, args.tokens, args.streams)))
    if args.record is not None:
        args.record.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
