"""What Lightning costs: the same training steps in a plain loop and under Lightning with all its logs, in turns.

    python -m benchmarks.train_overhead --latents 8192 --steps 40 --rounds 3

Processor time is what counts (a shared machine's wall clock says little); both are printed, the last line is JSON.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from discovery.dictionary_trainer import Trainer
from discovery.lightning_module import fit
from discovery.train_logs import CsvLog, Figures, TensorBoardLog
from discovery.train_settings import TrainSettings
from sae_runtime.number_format import has_fast_bfloat16


class MadeBuffers:
    """Sparse combinations of random directions, the same in every buffer: no disk, no model."""

    def __init__(self, d_model: int, num_tokens: int) -> None:
        generator = torch.Generator().manual_seed(0)
        directions = torch.nn.functional.normalize(torch.randn(4 * d_model, d_model, generator=generator), dim=-1)
        active = torch.rand(num_tokens, 4 * d_model, generator=generator) < 0.02
        self.resid_ND = ((active * torch.rand(active.shape, generator=generator)) @ directions).bfloat16()

    def load(self, number: int, seed: int) -> Tensor:  # noqa: ARG002 - the interface
        return self.resid_ND

    def identity(self) -> Any:
        return list(self.resid_ND.shape)

    def harvest_settings(self) -> dict[str, Any]:
        return {}

    def record(self) -> list[dict[str, Any]]:
        return []


class Seconds(NamedTuple):
    """Of all steps of a round."""

    wall: float
    processor: float


def timed(settings: TrainSettings, buffers: MadeBuffers, *, lightning: bool) -> Seconds:
    """Seconds from the first step to the last; setting up is not counted."""
    run = Trainer(settings, buffers)
    began: list[tuple[float, float]] = []
    compute = run.compute_gradients

    def noting(resid_BD: Tensor) -> Any:
        began.append((time.perf_counter(), time.process_time()))
        return compute(resid_BD)

    run.compute_gradients = noting  # type: ignore[method-assign]
    if lightning:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            fit(
                run,
                folder,
                checkpoint_every=10**9,
                loggers=lambda done: [CsvLog(folder, done), TensorBoardLog(folder, done)],
                callbacks=[Figures(run, "overhead")],
            )
    else:
        for _ in run.steps():
            pass
    (wall, processor), *_, (last_wall, last_processor) = began
    return Seconds(last_wall - wall, last_processor - processor)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Training steps under Lightning against a plain loop.")
    parser.add_argument("--latents", type=int, default=8192)
    parser.add_argument("--d-model", type=int, default=576)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    buffers = MadeBuffers(args.d_model, 4 * args.batch_size)
    settings = TrainSettings(
        num_latents=args.latents,
        num_steps=args.steps,
        batch_size=args.batch_size,
        precision="bf16" if has_fast_bfloat16(torch.device("cpu")) else "fp32",
    )
    timed(settings, buffers, lightning=True)  # imports, allocator, threads
    rounds = [
        (timed(settings, buffers, lightning=False), timed(settings, buffers, lightning=True))
        for _ in range(args.rounds)
    ]
    plain, under = ([pair[which] for pair in rounds] for which in (0, 1))
    figures: dict[str, float] = {"steps": args.steps, "latents": args.latents, "batch_size": args.batch_size}
    table = Table("", "plain loop", "Lightning", "ratio", title=f"{args.steps} steps, best of {args.rounds} rounds")
    for name in Seconds._fields:
        best = [min(getattr(seconds, name) for seconds in way) for way in (plain, under)]
        figures |= {f"plain_{name}_seconds": best[0], f"lightning_{name}_seconds": best[1]}
        figures[f"{name}_ratio"] = best[1] / best[0]
        table.add_row(f"{name} seconds", f"{best[0]:.2f}", f"{best[1]:.2f}", f"{best[1] / best[0]:.3f}")
    Console().print(table)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
