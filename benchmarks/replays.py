"""How closely replays of alerts come to their records, in a number format: what `alerts replay` tolerates rests on it.

    python -m benchmarks.replays --dtype bfloat16 [--replies 64] [--record benchmarks/results/replays-bfloat16.json]
    python -m benchmarks.replays --dtype bfloat16 --no-native-kernels

A server with the embedded model and two of its monitors, a combination of probes and a set of latents, their thresholds
lowered so that they fire in about half of the replies. Replies of 64 tokens to ordinary requests, four at a time, at
temperature 0.7, every second one steered; then every alert is replayed, alone on the server. Ends with one JSON line.
"""

import argparse
import asyncio
import itertools
import json
import math
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from discovery.question_set import shipped_requests
from monitors.pack import MonitorPack
from monitors.pack_parts import PackCalibration
from monitors.thresholds import Levels, LevelThreshold, Stratum, Thresholds
from service.assembly import assemble
from service.client import TelltaleClient
from service.client_alerts import AlertReplay, ReplayComparison
from service.client_reply import Reply
from service.client_request import Steering
from service.config import Settings
from service.journal_keeper import JournalKeeper
from service.monitor_packs import ServedMonitor
from service.server import Server

OFFSETS = {"deception": -0.2, "medical": -0.7}
"""Thresholds, in the monitors' own units."""
STREAMS, TOKENS = 4, 64


def lowered(pack: MonitorPack) -> MonitorPack:
    """The same monitor with a threshold that about half of the replies exceed."""
    offset = OFFSETS[pack.name]
    return replace(
        pack,
        version=pack.version + 1,
        validated=False,
        validated_reason="Its threshold was lowered for a benchmark.",
        thresholds=Thresholds((Stratum(1024, 0.0),), Levels(LevelThreshold(0.5, offset, (1024,)), None), offset - 0.1),
        calibration=PackCalibration(method="by_hand", source="Lowered so that it fires."),
    )


async def write(client: TelltaleClient, num_replies: int) -> list[Reply]:
    """Replies of `STREAMS` streams at a time."""
    requests = itertools.islice(itertools.cycle(shipped_requests()), num_replies)
    steering = [Steering(direction="medical", op="add", strength=1.0, scope="generated")]
    turn = asyncio.Semaphore(STREAMS)

    async def one(number: int, text: str) -> Reply:
        async with turn:
            return await client.complete(
                [{"role": "user", "content": text}],
                max_tokens=TOKENS,
                temperature=0.7,
                seed=number,
                watch=["medical", "lying"],
                steering=steering if number % 2 else [],
            )

    return await asyncio.gather(*(one(number, request.request) for number, request in enumerate(requests)))


async def run(dtype: str, num_replies: int, journal: Path, *, native_kernels: bool = True) -> dict[str, Any]:
    """Write, then replay."""
    settings = Settings(
        grpc_port=0, http_port=0, slots=STREAMS, context_length=1024, dtype=dtype, journal=str(journal),
        native_kernels=native_kernels,
    )  # fmt: skip
    parts = assemble(settings)
    packs = [monitor.pack for monitor in parts.catalog.monitors if monitor.pack.name in OFFSETS]
    served = tuple(ServedMonitor(lowered(pack)) for pack in packs)
    changed = replace(parts, catalog=replace(parts.catalog, monitors=served))
    server = Server(settings, changed, JournalKeeper.open(settings))
    await server.start()
    try:
        async with TelltaleClient(f"127.0.0.1:{server.grpc_port}") as client:
            replies = await write(client, num_replies)
            told = {alert.alert_id: alert for reply in replies for alert in reply.alerts}
            replays = [await client.journal.replay(alert_id) for alert_id in told]
    finally:
        await server.close()
    if not told:
        raise SystemExit(f"no alert was raised in {num_replies} replies: nothing to replay, give more --replies")
    monitors = [alert.monitor for alert in told.values()]
    return {
        "model": parts.catalog.model.identity.name,
        "dtype": parts.catalog.model.identity.dtype,
        "passes": parts.runner.passes,
        "replies": num_replies,
        "alerts": {name: monitors.count(name) for name in OFFSETS},
        "read": summarize([replay.read for replay in replays]),
        "generated": summarize([replay.generated for replay in replays if replay.generated is not None]),
        "same_text": sum(_same_text(replay) for replay in replays),
        "machine": {"cores": os.cpu_count(), "torch": torch.__version__},
    }


def _same_text(replay: AlertReplay) -> bool:
    return replay.generated is not None and replay.generated.first_difference is None


def summarize(comparisons: Sequence[ReplayComparison]) -> dict[str, Any]:
    """By kind of series: how many, the largest difference in units of the series' largest value."""
    kinds = sorted({series.kind for each in comparisons for series in each.series})
    by_kind: dict[str, dict[str, float]] = {}
    for kind in kinds:
        found = [series for each in comparisons for series in each.series if series.kind == kind]
        relative = sorted(
            series.largest_difference / series.scale for series in found if series.scale and series.num_compared
        )
        by_kind[kind] = {
            "series": len(found),
            "within_tolerance": sum(series.within_tolerance for series in found),
            "not_zero": len(relative),
        }
        if relative:
            by_kind[kind] |= {
                "median": _rounded(statistics.median(relative)),
                "95%": _rounded(relative[math.ceil(0.95 * len(relative)) - 1]),
                "largest": _rounded(relative[-1]),
            }
    return {
        "replays": len(comparisons),
        "tolerance": comparisons[0].tolerance,
        "reproduced": sum(each.reproduced for each in comparisons),
        "exact": sum(_is_exact(each) for each in comparisons),
        "raised_again": sum(each.raised_again for each in comparisons),
        "by_kind": by_kind,
    }


def _is_exact(comparison: ReplayComparison) -> bool:
    return comparison.reproduced and not any(series.largest_difference for series in comparison.series)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--replies", type=int, default=64)
    parser.add_argument("--no-native-kernels", action="store_true", help="compute the model by transformers")
    parser.add_argument("--record", type=Path, help="also write the line to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "alerts.sqlite"
        made = run(args.dtype, args.replies, journal, native_kernels=not args.no_native_kernels)
        figures = asyncio.run(made)
    line = json.dumps(figures)
    if args.record is not None:
        args.record.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
