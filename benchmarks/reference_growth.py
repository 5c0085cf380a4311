"""How the reference deployment's shape grows on a GPU: with streams, dictionary width, watched features and context.

    python -m benchmarks.reference_growth --device cuda > growth.json
    python -m benchmarks.reference_growth --device cpu --layers 2 --quantization none --only watched    # a try-out

Llama 3.2 3B's shape with random weights, in the engine without gRPC, as `benchmarks.reference` has it; each curve
changes one thing:

    streams    1 to 256 at once
    width      latents of the dictionary, 8k to 131k; 1 and 32 streams
    watched    features that a request watches, 1 to 256; 1 and 32 streams
    context    positions of prompt and reply together, 128 to 8,192; one stream

At each point decoding is measured with everything read and with nothing read, by turns, and the cost of monitoring is
the median of the turns' ratios. On a GPU the most memory that was taken stands beside it. Ends with one JSON line.
"""

import argparse
import gc
import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.recording import facts
from benchmarks.reference import PROMPT_TOKENS, Measured, run, unmonitored
from benchmarks.reference_parts import LLAMA_3_2_3B, prepare
from service.assembly import Parts

NUM_STREAMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WIDTHS = (8192, 16384, 32768, 65536, 131072)
NUM_WATCHED = (1, 4, 16, 64, 256)
CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192)
CURVES = ("streams", "width", "watched", "context")
_FEW_AND_MANY = (1, 32)
_WATCHED, _WARM_UP_TOKENS = 64, 8


@dataclass(frozen=True, slots=True)
class Point:
    """A place on a curve; points of the same width, slots and length share a server."""

    at: int
    num_streams: int
    num_latents: int
    num_slots: int
    num_watched: int
    prompt_tokens: int
    context_length: int


def points(curve: str, num_latents: int, num_tokens: int) -> Iterator[Point]:
    """Those of a curve, with so many latents where it is not about them."""
    usual = PROMPT_TOKENS, PROMPT_TOKENS + num_tokens + 1
    many = _FEW_AND_MANY[-1]
    match curve:
        case "streams":
            for n in NUM_STREAMS:
                yield Point(n, n, num_latents, NUM_STREAMS[-1], _WATCHED, *usual)
        case "width":
            for width in WIDTHS:
                for n in _FEW_AND_MANY:
                    yield Point(width, n, width, many, _WATCHED, *usual)
        case "watched":
            for number in NUM_WATCHED:
                for n in _FEW_AND_MANY:
                    yield Point(number, n, num_latents, many, number, *usual)
        case "context":
            for length in CONTEXTS:
                yield Point(length, 1, num_latents, 1, _WATCHED, max(1, length - num_tokens), CONTEXTS[-1] + 1)


def measure(args: argparse.Namespace, folder: Path, shape: Mapping[str, int] = LLAMA_3_2_3B) -> dict[str, Any]:
    """Curves by name, as `main` prints them."""
    result: dict[str, Any] = {"benchmark": "reference_growth"}
    for curve in args.only:
        result[curve], parts, served = [], None, None
        for point in points(curve, args.latents, args.tokens):
            server = point.num_latents, point.num_slots, point.context_length
            if server != served:
                parts = None  # before the next one is made, which needs the room
                gc.collect()
                parts, served = _server(args, folder, shape, point), server
            assert parts is not None
            result[curve].append(at(parts, point, args))
    gpu = {"gpu": torch.cuda.get_device_name()} if args.device.startswith("cuda") else {}
    return result | {"arguments": {"layers": args.layers, "quantization": args.quantization}} | gpu | facts()


def _server(args: argparse.Namespace, folder: Path, shape: Mapping[str, int], point: Point) -> Parts:
    settings = {"latents": point.num_latents, "streams": [point.num_slots]}
    parts = prepare(argparse.Namespace(**vars(args) | settings), folder, shape, point.context_length)
    parts.runner.warm_up()
    return parts


def at(parts: Parts, point: Point, args: argparse.Namespace) -> dict[str, Any]:
    """Speed and memory at a point."""
    on_gpu = args.device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    ways = {"monitored": (parts.runner, tuple(range(point.num_watched))), "unmonitored": (unmonitored(parts), ())}

    def turn(way: str, num_tokens: int) -> Measured:
        runner, watched = ways[way]
        return run(
            runner, parts.steering_limits, point.num_streams, num_tokens, watched, prompt_tokens=point.prompt_tokens
        )

    for way in ways:
        turn(way, min(_WARM_UP_TOKENS, args.tokens))  # records what is not recorded yet
    taken: dict[str, list[Measured]] = {way: [] for way in ways}
    for number in range(args.repeats):
        for way in ways if number % 2 == 0 else reversed(ways):
            taken[way].append(turn(way, args.tokens))
    costs = [
        a.step_milliseconds / b.step_milliseconds - 1
        for a, b in zip(taken["monitored"], taken["unmonitored"], strict=True)
    ]
    peak = {"peak_memory_bytes": torch.cuda.max_memory_allocated()} if on_gpu else {}
    return {
        "at": point.at,
        "streams": point.num_streams,
        "tokens_per_second": round(statistics.median(each.tokens_per_second for each in taken["monitored"]), 1),
        "step_ms": round(statistics.median(each.step_milliseconds for each in taken["monitored"]), 3),
        "unmonitored_step_ms": round(statistics.median(each.step_milliseconds for each in taken["unmonitored"]), 3),
        "monitoring_costs_percent": round(100 * statistics.median(costs), 2),
        "planned_memory_bytes": parts.planned_memory.total_bytes,
        **peak,
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quantization", default="nf4", choices=["nf4", "int8", "none"])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--latents", type=int, default=65536, help="where the curve is not about them")
    parser.add_argument("--tokens", type=int, default=64, help="of each reply")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CURVES, default=CURVES, metavar="CURVE")
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(args, Path(folder))))


if __name__ == "__main__":
    main()
