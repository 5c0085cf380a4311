"""How the speed and memory of a server on a CPU grow: with streams, dictionary width, watched features and context.

    python -m benchmarks.serving_growth --record benchmarks/results/serving_growth.json      # some ten minutes
    python -m benchmarks.serving_growth --only streams width --rounds 1                      # a part

The embedded model through the gRPC server with the client, two threads, every token fully encoded, `lying` at work
unless said otherwise; servers keep no journal (`--no-journal`). Each curve changes one thing:

    streams    1 to 64 at once, on a server with so many slots of 1,024 positions
    width      latents of the dictionary, 8k to 131k; random ones in bf16, about 64 active, no monitor; 1 and 16 streams
    watched    features that a request watches, 1 to 256; 1 and 16 streams
    context    positions of prompt and reply together, 128 to 8,192: attention goes over so many at the end, over 96
               fewer when the reply begins; one stream
    passes     rows of one pass of the model alone, 1 to 64, in this process, at 64 positions: what a server adds
               to it is the rest of a step of `streams`

Points of a curve take turns, round by round. Tokens per second are those between the last stream's first token and the
first stream's last one. Memory is what the process holds after that, and what it planned. Beside a step's time stand
the processor's milliseconds that the client and the server's event loop spend on a token: the two take them from the
model's threads. Ends with one JSON line; `benchmarks.serving_growth_plots` draws it and writes its tables.
"""

import argparse
import asyncio
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.examples import random_sae
from benchmarks.memory import held_bytes
from benchmarks.recording import facts, keep
from benchmarks.serving_client import MONITOR, PROMPT, Served, Times, served, streams
from benchmarks.serving_peers import native_model, read_bandwidth, slots
from benchmarks.serving_rounds import prompt_of
from benchmarks.timing_lock import turn
from sae_runtime.checkpoint import Manifest, save_sae

NUM_STREAMS = (1, 2, 4, 8, 16, 32, 64)
WIDTHS = (8192, 16384, 32768, 65536, 131072)
NUM_WATCHED = (1, 4, 16, 64, 256)
CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192)
CURVES = ("streams", "width", "watched", "context", "passes")
TOKENS = 96
"""Of each stream, and twice as many as there are streams besides: the first decode while the last is still read."""
BYTES_READ = {"width": 576 + 2 * 576 // 32, "context": 2 * 2 * 30 * 3 * 64}
"""What another latent, or live position, adds to what a step of one stream reads: its part of the encoder in 8 bits, 32
to a scale, or keys and values of all blocks in bf16."""
RESID_NORM = 170.25
"""Usual ||residual|| of the embedded model where its dictionary reads."""
_D_MODEL = 576
_LIVE, _PASSES = 64, 40
_PROMPT_IDS = tuple(range(1000, 1100))


@dataclass(frozen=True, slots=True)
class Point:
    """A place on a curve, and how it is measured."""

    at: int
    num_streams: int
    flags: tuple[str, ...]
    """Of the server; points with the same ones share a server."""
    options: Mapping[str, Any]
    """Of each request."""
    num_tokens: int
    prompt: str | Sequence[int] = PROMPT


def points(curve: str, folder: Path) -> list[Point]:
    """Those of a curve; dictionaries that it needs are written to `folder`."""
    reads = {"no_defaults": True, "watch": list(range(16)), "monitors": [MONITOR]}
    if curve == "streams":
        return [
            Point(n, n, ("--slots", str(n), "--context-length", "1024"), reads, TOKENS + 2 * n) for n in NUM_STREAMS
        ]
    shared = ("--slots", "16", "--context-length", "1024")
    if curve == "width":
        bare = {"no_defaults": True, "watch": list(range(16))}
        return [
            Point(
                width,
                n,
                ("--sae", str(_dictionary(width, folder)), "--allow-unverified", *shared),
                bare,
                TOKENS + 2 * n,
            )
            for width in WIDTHS
            for n in (1, 16)
        ]
    if curve == "watched":
        return [
            Point(number, n, shared, reads | {"watch": list(range(number))}, TOKENS + 2 * n)
            for number in NUM_WATCHED
            for n in (1, 16)
        ]
    alone = ("--slots", "1", "--context-length", str(CONTEXTS[-1]))
    return [Point(length, 1, alone, reads, TOKENS, prompt_of(_PROMPT_IDS, length - TOKENS)) for length in CONTEXTS]


def _dictionary(width: int, folder: Path) -> Path:
    """A random one, made once."""
    path = folder / str(width)
    if not path.exists():
        sae = random_sae(width, torch.Generator().manual_seed(0))
        sae.scale = _D_MODEL**0.5 / RESID_NORM  # so that readings are standard normal, as its threshold expects
        # The weights of no model: it is served as unverified.
        made = Manifest(
            name=f"random-{width}", model_name="none", model_sha256="0" * 64, quantization="gguf-q4_1",
            hook_point="layers.15.output", d_model=_D_MODEL, num_latents=width, activation="batchtopk",
            dtype="bfloat16", scale=sae.scale,
        )  # fmt: skip
        save_sae(sae, made, path)
    return path


async def measure(curves: Iterable[str], rounds: int, threads: int, lock: Path | None) -> dict[str, Any]:
    """Curves: for each point, medians over rounds."""
    torch.set_num_threads(threads)
    gc.freeze()  # as the servers do
    result: dict[str, Any] = {"benchmark": "serving_growth"}
    with tempfile.TemporaryDirectory() as name:
        for curve in curves:
            if curve == "passes":
                with turn(lock):
                    result[curve] = {"points": passes(), "threads": threads, **_circumstances()}
                continue
            found = points(curve, Path(name))
            taken: dict[int, list[dict[str, float]]] = {number: [] for number in range(len(found))}
            for _ in range(rounds):
                async for number, figures in one_round(found, threads, lock):
                    taken[number].append(figures)
                    print(curve, found[number].at, found[number].num_streams, figures, file=sys.stderr, flush=True)
            figures_of = [
                {"at": point.at, "streams": point.num_streams, **medians(taken[number])}
                for number, point in enumerate(found)
            ]
            with turn(lock):
                circumstances = _circumstances()
            result[curve] = {"points": figures_of, "rounds": rounds, "threads": threads, **circumstances}
            if curve in BYTES_READ:
                result[curve]["bytes_read_for_each"] = BYTES_READ[curve]
    return result


def _circumstances() -> dict[str, Any]:
    """Of a curve, which may be measured alone: when, where, and what the memory gave."""
    return {"read_bandwidth_bytes_per_second": float(f"{read_bandwidth():.3g}"), **facts()}


def passes() -> list[dict[str, float]]:
    """Decode passes of the embedded model alone, without reading or drawing: median milliseconds, by number of rows."""
    model = native_model()
    assert model.blocks is not None
    cache = slots(model, NUM_STREAMS[-1], 2 * _LIVE)
    found = []
    for num_rows in NUM_STREAMS:
        rows, seconds = list(range(num_rows)), []
        with torch.inference_mode():
            model.blocks.logits(torch.ones(num_rows, _LIVE, dtype=torch.long), cache, rows, [0] * num_rows)
            for _ in range(_PASSES):
                started = time.perf_counter()
                model.blocks.logits(torch.ones(num_rows, 1, dtype=torch.long), cache, rows, [_LIVE] * num_rows)
                seconds.append(time.perf_counter() - started)
        milliseconds = 1e3 * statistics.median(seconds)
        found.append({"at": num_rows, "pass_milliseconds": float(f"{milliseconds:.4g}")})
    return found


async def one_round(
    found: Sequence[Point], threads: int, lock: Path | None
) -> AsyncIterator[tuple[int, dict[str, float]]]:
    """The number of each point, and its figures; one server at a time."""
    flags: tuple[str, ...] | None = None
    async with AsyncExitStack() as stack:
        for number, point in enumerate(found):
            with turn(lock):
                if point.flags != flags:
                    await stack.aclose()
                    flags = point.flags
                    arguments = [*flags, "--threads", str(threads), "--no-journal"]
                    server = await stack.enter_async_context(served("service.cli", "serve", *arguments))
                    await _run(server, point, 8)  # warms up
                yield number, await _measured(server, point)


async def _run(server: Served, point: Point, num_tokens: int) -> list[Times]:
    return await streams(server.client, num_tokens, [point.options] * point.num_streams, prompt=point.prompt)


async def _measured(server: Served, point: Point) -> dict[str, float]:
    loop_began, client_began = _main_thread_seconds(server.process.pid), time.process_time()
    times = await _run(server, point, point.num_tokens)
    loop, client = _main_thread_seconds(server.process.pid) - loop_began, time.process_time() - client_began
    info, num_tokens = await server.client.server_info(), point.num_streams * point.num_tokens
    rate = steady_rate(times)
    return {
        "tokens_per_second": rate,
        "step_milliseconds": 1e3 * point.num_streams / rate,
        "event_loop_milliseconds_a_token": 1e3 * loop / num_tokens,
        "client_milliseconds_a_token": 1e3 * client / num_tokens,
        "held_bytes": float(held_bytes(server.process.pid)[0]),
        "planned_bytes": float(info.planned_memory_bytes),
    }


def steady_rate(times: Sequence[Times]) -> float:
    """Tokens per second of all streams, while all of them decode: from the last first token to the first last one.

    Raises:
        ValueError: there is no such time.
    """
    begin, end = max(each[0] for each in times), min(each[-1] for each in times)
    if begin >= end:
        raise ValueError("streams must overlap: the first had ended when the last began; ask for more tokens")
    return sum(begin < at <= end for each in times for at in each) / (end - begin)


def medians(taken: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure; bytes whole, others to four digits."""
    found = {name: statistics.median(each[name] for each in taken) for name in taken[0]}
    return {name: round(value) if name.endswith("_bytes") else float(f"{value:.4g}") for name, value in found.items()}


def _main_thread_seconds(process_id: int) -> float:
    """Processor time of a process's first thread, which the event loop is on, to the nanosecond."""
    return int(Path(f"/proc/{process_id}/task/{process_id}/schedstat").read_text().split()[0]) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CURVES, default=CURVES, metavar="CURVE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="curves that were not measured stay as they are there"
    )
    parser.add_argument("--lock", type=Path, metavar="FILE", help="held while something is timed, a point at a time")
    args = parser.parse_args()
    result = asyncio.run(measure(args.only, args.rounds, args.threads, args.lock))
    if args.record is not None:
        keep(args.record, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
