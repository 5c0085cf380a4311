"""What the trainers of all libraries share: the residuals, in one file and one order, and what is said of a run.

Runs in each library's own environment, so that it needs torch and safetensors alone. `prepare.py` writes the files.

    residuals.safetensors    resid_ND   [N, D] bf16, shuffled: batch n is tokens n * B to (n + 1) * B, for everybody
                             mean_D     [D] their mean
    held_out.safetensors     resid_ND   [M, D] bf16, massive activations left out

Shape suffixes: N training tokens, M held-out tokens, B tokens of a batch, D model width.
"""

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

BATCH_SIZE = 2048
WARMUP_STEPS = 20
"""At a few hundred steps; then the rate is constant, and falls to 0 over the last half of the steps."""
DECAY_SHARE = 0.5
DEAD_AFTER_TOKENS = 200_000
"""A latent that has been silent for so long counts as dead, to each library's auxiliary loss."""
AUX_WEIGHT = 1 / 32


@dataclass(frozen=True)
class Run:
    """What is trained."""

    data: Path
    recipe: str
    """topk or batchtopk."""
    rate: float
    num_latents: int
    k: int
    num_steps: int
    output: Path
    """Folder: the dictionary in the library's own format, and result.json."""
    seed: int
    paced: int
    """If above 0, stop every so many steps, print the seconds they took and wait for a line: see `speed.py`."""
    variant: str
    """What differs from the settings that README.md states, if anything."""

    @property
    def num_tokens(self) -> int:
        return self.num_steps * BATCH_SIZE

    @property
    def dead_after_steps(self) -> int:
        return DEAD_AFTER_TOKENS // BATCH_SIZE


def parse_run(argv: list[str] | None = None) -> Run:
    """The arguments that every library's script takes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="folder with what prepare.py wrote")
    parser.add_argument("--recipe", choices=["topk", "batchtopk"], default="topk")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--num-latents", type=int, default=8192)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--num-steps", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--paced", type=int, default=0)
    parser.add_argument("--variant", default="")
    return Run(**vars(parser.parse_args(argv)))


class Batches:
    """Batches of `residuals.safetensors` in order, from the first again at the end; fp32, as every library takes them.

    Times itself: `seconds` are those between the first batch being asked for and `stop()`.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.count, self.dtype = run, 0, torch.float32
        with safe_open(run.data / "residuals.safetensors", framework="pt") as file:
            self.mean_D: Tensor = file.get_tensor("mean_D")
            self.resid_ND: Tensor = file.get_tensor("resid_ND")
        self.num_batches = len(self.resid_ND) // BATCH_SIZE
        self.began = self.began_cpu = 0.0
        self.seconds = self.processor_seconds = 0.0

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        """[B, D] fp32."""
        if self.count == 0:
            self.began, self.began_cpu = time.perf_counter(), time.process_time()
        elif self.run.paced and self.count % self.run.paced == 0:
            self._report()
        number = self.count % self.num_batches
        self.count += 1
        return self.resid_ND[number * BATCH_SIZE : (number + 1) * BATCH_SIZE].to(self.dtype)

    def stop(self) -> None:
        self.seconds, self.processor_seconds = time.perf_counter() - self.began, time.process_time() - self.began_cpu

    def _report(self) -> None:
        self.stop()
        print(json.dumps({"steps": self.run.paced, "seconds": self.seconds}), flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        self.began, self.began_cpu = time.perf_counter(), time.process_time()


@torch.no_grad()
def variance_explained(reconstruct: Callable[[Tensor], Tensor], data: Path) -> float:
    """1 - sum ||x - x_hat||^2 / sum ||x - mean||^2 over the held-out tokens, `x_hat` as the library itself makes it."""
    with safe_open(data / "residuals.safetensors", framework="pt") as file:
        mean_D = file.get_tensor("mean_D").double()
    with safe_open(data / "held_out.safetensors", framework="pt") as file:
        resid_MD = file.get_tensor("resid_ND").float()
    error = spread = 0.0
    for x_BD in torch.split(resid_MD, BATCH_SIZE):
        error += float((x_BD.double() - reconstruct(x_BD).double()).square().sum())
        spread += float((x_BD.double() - mean_D).square().sum())
    return 1 - error / spread


def write_result(run: Run, library: str, packages: list[str], batches: Batches, **fields: Any) -> None:
    """result.json in the run's folder, written last: a run that has one is done."""
    result = {
        "library": library,
        "recipe": run.recipe,
        "rate": run.rate,
        "variant": run.variant,
        "num_latents": run.num_latents,
        "k": run.k,
        "num_steps": run.num_steps,
        "tokens": run.num_tokens,
        "distinct_tokens": min(run.num_tokens, batches.num_batches * BATCH_SIZE),
        "seed": run.seed,
        "seconds": round(batches.seconds, 1),
        "processor_seconds": round(batches.processor_seconds, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "versions": {name: version(name) for name in ["torch", *packages]},
        "machine": machine(),
        **fields,
    }
    partial = run.output / "result.json.partial"
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(run.output / "result.json")


def machine() -> dict[str, Any]:
    """Where it ran."""
    return {
        "processor": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
