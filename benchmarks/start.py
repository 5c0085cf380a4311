"""How long the server takes from the start of its process to the line that says it is ready, with a warm cache.

    python -m benchmarks.start [--starts 5]

Beside each start stands a process that does no more than import torch and transformers' model, which any program that
runs the model must: in turns, so that a drift of the machine's speed falls on both, and figures are ratios to it. The
parts of a start are those of `benchmarks.start_phases`; what they leave is the interpreter, gRPC and HTTP. Figures are
medians over starts; the first, which isn't counted, warms the caches. Ends with one JSON line.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

IMPORTS = "import torch; from transformers import LlamaForCausalLM, AutoTokenizer; LlamaForCausalLM, AutoTokenizer"
QUIET = ["--grpc-port", "0", "--http-port", "0", "--log-format", "json", "--log-level", "warning"]


def import_seconds() -> float:
    """Of a process that imports the libraries and ends."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.perf_counter() - started


def start_seconds(module: str, *arguments: str) -> tuple[float, dict[str, float]]:
    """Of a server, until it is ready; and of the parts of its start, if it tells them."""
    command = [sys.executable, "-m", module, *arguments, *QUIET]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
        process.terminate()
        _, log = process.communicate()
    if not line:
        raise RuntimeError(f"the server did not start: {log.strip()}")
    return seconds, next((json.loads(each)["phases"] for each in log.splitlines() if '"phases"' in each), {})


def measure(starts: int, *arguments: str) -> dict[str, Any]:
    """Medians, and ratios within the run."""
    rounds = []
    for _ in range(starts + 1):
        seconds, _ = start_seconds("service.cli", "serve", *arguments)
        told, phases = start_seconds("benchmarks.start_phases", *arguments)
        rounds.append({"import": import_seconds(), "ready": seconds, **phases, "rest": told - sum(phases.values())})
    return summarize(rounds[1:]) | {"starts": starts}


def summarize(rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Medians of seconds, and of ratios within a round."""
    names = rounds[0].keys()
    return {
        "seconds": {name: round(statistics.median(r[name] for r in rounds), 2) for name in names},
        "to_import_ratio": {
            name: round(statistics.median(r[name] / r["import"] for r in rounds), 3) for name in names - {"import"}
        },
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=5, help="counted starts, after one that warms the caches")
    args, serve = parser.parse_known_args()
    print(json.dumps(measure(args.starts, *serve)))


if __name__ == "__main__":
    main()
