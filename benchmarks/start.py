"""How long the server takes from the start of its process to the line that says it is ready, with a warm cache.

    python -m benchmarks.start [--starts 5] [--record benchmarks/results/start.json] [FLAGS OF telltale serve]

Beside each start stands a process that does no more than import torch and transformers' model, which any program that
runs the model must, with Python's garbage collector off, as the server has it meanwhile: in turns, so that a drift of
the machine's speed falls on both, and figures are ratios to it. The
parts of a start are those of `benchmarks.start_phases`; what they leave is the interpreter, gRPC and HTTP. Figures are
medians over starts; the first, which isn't counted, warms the caches. Servers take none of the TELLTALE_* variables,
and keep no journal (`--no-journal`) unless the flags name one. Ends with one JSON line.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.recording import facts, write
from benchmarks.serving_client import start_server

IMPORTS = (
    "import gc; gc.disable(); import torch; from transformers import LlamaForCausalLM, AutoTokenizer; "
    "LlamaForCausalLM, AutoTokenizer"
)


def import_seconds() -> float:
    """Of a process that imports the libraries and ends."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.perf_counter() - started


def start_seconds(module: str, *arguments: str) -> tuple[float, dict[str, float]]:
    """Of a server, until it is ready; and of the parts of its start, if it tells them."""
    started = time.perf_counter()
    process, _ = start_server(module, *arguments, stderr=subprocess.PIPE)
    seconds = time.perf_counter() - started
    process.terminate()
    _, log = process.communicate()
    return seconds, next((json.loads(each)["phases"] for each in log.splitlines() if '"phases"' in each), {})


def measure(starts: int, *arguments: str) -> dict[str, Any]:
    """Medians, and ratios within the run."""
    rounds = []
    for _ in range(starts + 1):
        seconds, _ = start_seconds("service.cli", "serve", *arguments)
        told, phases = start_seconds("benchmarks.start_phases", *arguments)
        rounds.append({"import": import_seconds(), "ready": seconds, **phases, "rest": told - sum(phases.values())})
    return {"benchmark": "start", "starts": starts, **summarize(rounds[1:]), **facts()}


def summarize(rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Medians of seconds, and of ratios within a round, with the least and the largest."""
    seconds = {name: [each[name] for each in rounds] for name in rounds[0]}
    ratios = {name: [each[name] / each["import"] for each in rounds] for name in rounds[0] if name != "import"}
    return {
        "seconds": {name: round(statistics.median(each), 2) for name, each in seconds.items()},
        "seconds_of_starts": {name: [round(min(each), 2), round(max(each), 2)] for name, each in seconds.items()},
        "to_import_ratio": {name: round(statistics.median(each), 3) for name, each in ratios.items()},
        "to_import_ratio_of_starts": {
            name: [round(min(each), 3), round(max(each), 3)] for name, each in ratios.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=5, help="counted starts, after one that warms the caches")
    parser.add_argument("--record", type=Path, metavar="FILE", help="also write the JSON there")
    args, serve = parser.parse_known_args()
    result = measure(args.starts, *serve)
    if args.record is not None:
        write(args.record, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
