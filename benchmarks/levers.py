"""Levers for a faster decode step on a CPU, each measured alone against transformers' own step.

    python -m benchmarks.levers                                  # all levers, some of which compile for minutes
    python -m benchmarks.levers --levers fused_products --rows 1

The step is one token for each of several rows, 128 positions live, over the service's cache and without the dictionary.
Lever and baseline take turns in rounds; a ratio is the baseline's time over the lever's, the median of the rounds. A
lever changes a copy of the model. Beside its time stand the largest difference of its logits from those of fp32
weights, and the baseline's own. What came of each is in benchmarks/NOTES.md. Ends with one JSON line.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.lever_compiled import COMPILED
from benchmarks.lever_steps import STEPS, Bench, Made, Step
from benchmarks.recording import facts, keep
from benchmarks.serving_peers import read_bandwidth
from sae_runtime.gguf_file import embedded_gguf_path
from sae_runtime.language_model import LanguageModel, load_language_model

STEPS_A_TURN = 8
LEVERS: Mapping[str, Callable[[Bench], Made]] = STEPS | COMPILED


def median_seconds(step: Step) -> float:
    seconds = []
    for _ in range(STEPS_A_TURN):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def by_turns(bench: Bench, made: Made, rounds: int) -> dict[str, Any]:
    """Times of baseline and lever, and what their logits differ by from fp32's."""
    pairs = []
    for _ in range(rounds):
        bench.baseline()
        baseline = median_seconds(bench.baseline)
        made.step()
        pairs.append((baseline, median_seconds(made.step)))
    ratios = sorted(baseline / lever for baseline, lever in pairs)
    ways = {"": made.step(), "baseline_": bench.baseline()}
    likeliest_B = bench.exact_BV.argmax(-1)
    return {
        "ratio": round(statistics.median(ratios), 2),
        "ratio_lowest": round(ratios[0], 2),
        "ratio_highest": round(ratios[-1], 2),
        "milliseconds": round(1e3 * statistics.median(lever for _, lever in pairs), 2),
        "baseline_milliseconds": round(1e3 * statistics.median(baseline for baseline, _ in pairs), 2),
        **{f"{way}logit_difference": round(bench.difference(ways[way]), 3) for way in ways},
        **{f"{way}most_likely_changed": int((ways[way].argmax(-1) != likeliest_B).sum()) for way in ways},
        **made.facts,
    }


def floor(made: LanguageModel) -> dict[str, float]:
    """What reading all weights once takes: in bf16, and the bytes of the 4-bit file."""
    bandwidth = read_bandwidth()
    sizes = {"bf16": made.weights_bytes, "file": embedded_gguf_path().stat().st_size}
    return {"bytes_per_second": round(bandwidth)} | {
        f"{name}_{what}": value
        for name, size in sizes.items()
        for what, value in (("bytes", size), ("milliseconds", round(1e3 * size / bandwidth, 2)))
    }


def text() -> str:
    """What rows are cut from: one that never changes."""
    return (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")


def measure(names: Sequence[str], rows: Sequence[int], rounds: int) -> dict[str, Any]:
    """All levers by name, each at all numbers of rows."""
    made, exact = load_language_model(dtype="bfloat16"), load_language_model(dtype="float32").model
    described = facts() | {"threads": torch.get_num_threads()}
    found: dict[str, Any] = {"floor": floor(made) | {"facts": described}}
    for num_rows in rows:
        bench = Bench(made, exact, num_rows, text=text())
        for name in names:
            figures = by_turns(bench, LEVERS[name](bench), rounds)
            found.setdefault(name, {"facts": described})[str(num_rows)] = figures
            print(f"{name:32} {num_rows:3} rows: {figures['ratio']:.2f} ({figures['milliseconds']:.2f} ms)", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--levers", nargs="+", choices=list(LEVERS), default=list(LEVERS))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--into", type=Path, help="a file of results, whose other levers stay")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = measure(args.levers, args.rows, args.rounds)
    if args.into is not None:
        keep(args.into, found)
    print(json.dumps({"benchmark": "levers", "levers": found}))


if __name__ == "__main__":
    main()
