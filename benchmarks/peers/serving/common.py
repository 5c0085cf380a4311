"""What the scripts of all peers share: the work, when each token came, and what is said of a run.

Runs in each peer's own environment, so that it needs numpy alone. `prepare.py` writes the files.

    work.json          prompts as token ids, what is watched, what is steered, where the weights lie
    dictionary.npz     enc_DW, enc_bias_W, threshold, center_D, scale: the watched latents' part of the dictionary
                       delta_D: what steering adds to the residual
    saelens/           the whole dictionary in SAELens' format

A *scenario* is a number of requests that begin together. A token has *come* once it and its readings are at hand: for a
peer that reads, that is after the pass that read the token; for one that doesn't, when it was drawn.

Shape suffixes: T tokens, D model width, W watched latents.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, Protocol

import numpy as np

Array = np.ndarray[Any, Any]


class Scenario(NamedTuple):
    """Requests that begin together."""

    num_requests: int
    steered: int | None
    """Which of them is steered, if any."""


SCENARIOS = {"1": Scenario(1, None), "8": Scenario(8, None), "8_steered": Scenario(8, 7)}


@dataclass(frozen=True)
class Work:
    """What every peer does. Fields are the keys of work.json."""

    prompts: list[list[int]]
    """Token ids, as many in each: nobody has to pad."""
    num_tokens: int
    """Generated per request, greedily, through the end of sequence."""
    watched: list[int]
    layer: int
    """Block whose output is read and steered."""
    steered_feature: int
    strength: float
    """Raw: so many decoder rows are added, at every position."""
    monitor: str
    """Run by telltale, which alone has any."""
    model: str
    """Folder in transformers' layout."""
    gguf: str
    """The file that the folder was made of."""

    @staticmethod
    def load(data: Path) -> "Work":
        return Work(**json.loads((data / "work.json").read_text()))

    def save(self, data: Path) -> None:
        (data / "work.json").write_text(json.dumps(asdict(self), indent=1) + "\n")


class Emit(Protocol):
    """Takes a token that has come. Readings are W floats, or None where nothing is read."""

    def __call__(self, request: int, token: int, readings: Sequence[float] | None) -> None: ...


Generate = Callable[[list[list[int]], int | None, Emit], None]
"""Runs requests with these prompts, one of them steered or none, and emits `Work.num_tokens` tokens of each."""


@dataclass
class Timed:
    """One scenario at work: what came, and when."""

    num_requests: int
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.times: list[list[float]] = [[] for _ in range(self.num_requests)]
        self.tokens: list[list[int]] = [[] for _ in range(self.num_requests)]
        self.readings: list[list[list[float]]] = [[] for _ in range(self.num_requests)]

    def emit(self, request: int, token: int, readings: Sequence[float] | None) -> None:
        self.times[request].append(time.perf_counter())
        self.tokens[request].append(token)
        if readings is not None:
            self.readings[request].append([float(value) for value in readings])

    def figures(self, num_tokens: int) -> dict[str, float]:
        """Rates and the time to the first token. ValueError if a request has not got all of its tokens."""
        counts = [len(times) for times in self.times]
        if counts != [num_tokens] * self.num_requests:
            raise ValueError(f"every request must have {num_tokens} tokens, got {counts}")
        ended = max(times[-1] for times in self.times)
        first = fmean(times[0] for times in self.times)
        return {
            "decode_tokens_per_second": self.num_requests * (num_tokens - 1) / (ended - first),
            "tokens_per_second": self.num_requests * num_tokens / (ended - self.started),
            "time_to_first_token_seconds": first - self.started,
        }


def run_scenario(generate: Generate, work: Work, scenario: Scenario) -> Timed:
    """Run it once."""
    timed = Timed(scenario.num_requests)
    generate(work.prompts[: scenario.num_requests], scenario.steered, timed.emit)
    return timed


def own_peak_mib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(
    peer: str,
    packages: list[str],
    make: Callable[[Path, Work, int], Generate],
    *,
    facts: dict[str, Any] | None = None,
    peak_mib: Callable[[], float] = own_peak_mib,
    argv: list[str] | None = None,
) -> None:
    """A peer's script: warm up, run all scenarios in rounds, end with one JSON line.

    Args:
        peer: its name.
        packages: whose versions are told.
        make: the data folder, the work and the number of threads -> the peer, loaded.
        facts: what else is to be told.
        peak_mib: where the memory is, if not in this process.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="folder with what prepare.py wrote")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, after one that warms up")
    parser.add_argument(
        "--paced", action="store_true", help="wait for a line before each round, until the last: run.py"
    )
    parser.add_argument("--output", type=Path, help="also write the JSON here, with tokens and readings")
    args = parser.parse_args(argv)
    work = Work.load(args.data)
    generate = make(args.data, work, args.threads)
    last = {name: run_scenario(generate, work, scenario) for name, scenario in SCENARIOS.items()}  # warms up
    if args.paced:
        print(json.dumps({"ready": peer}), flush=True)
    rounds: list[dict[str, dict[str, float]]] = []
    while sys.stdin.readline() if args.paced else len(rounds) < args.rounds:
        last = {name: run_scenario(generate, work, scenario) for name, scenario in SCENARIOS.items()}
        rounds.append({name: timed.figures(work.num_tokens) for name, timed in last.items()})
        if args.paced:
            print(json.dumps({"round": rounds[-1]}), flush=True)
    result = {
        "peer": peer,
        "rounds": rounds,
        "tokens_per_request": work.num_tokens,
        "prompt_tokens": len(work.prompts[0]),
        "peak_mib": round(peak_mib()),
        "threads": args.threads,
        "versions": {name: version(name) for name in packages},
        "machine": machine(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **(facts or {}),
    }
    if args.output:
        outputs = {
            "tokens": {name: timed.tokens for name, timed in last.items()},
            "readings": last["1"].readings[0],
        }
        args.output.write_text(json.dumps(result | outputs) + "\n")
    print(json.dumps(result), flush=True)


def machine() -> dict[str, Any]:
    """Where it ran."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", "").split()
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
    return {
        "processor": fields.get("model name", platform.machine()),
        "cores": os.cpu_count(),
        "instructions": [flag for flag in wanted if flag in flags],
    }
