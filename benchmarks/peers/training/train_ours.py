"""Trains with `discovery`, as `telltale lab train` does: under Lightning, with its CSV log.

    python train_ours.py --data DATA --recipe topk --rate 3e-3 --num-steps 250 --output RUN [--variant "unit rows"]

Settings are the recipe's defaults but for width, k, steps, rate and warm-up (README.md).
"""

import shutil
from dataclasses import replace
from typing import Any

import torch
from common import BATCH_SIZE, DECAY_SHARE, WARMUP_STEPS, Batches, Run, parse_run, variance_explained, write_result
from torch import Tensor

from discovery.dictionary_trainer import Trainer
from discovery.finished_dictionary import finish
from discovery.lightning_module import fit
from discovery.train_logs import CsvLog, Figures
from discovery.train_settings import TrainSettings, defaults_for
from sae_runtime.checkpoint import load_sae
from sae_runtime.number_format import has_fast_bfloat16

HARVEST = {
    "model_name": "SmolLM2-135M-Instruct",
    "model_sha256": "unknown",
    "quantization": "unknown",
    "hook_point": "layers.15.output",
    "bos_policy": "tokenizer",
}


UNIT_ROWS = "unit rows"
"""The variant whose decoder rows keep norm 1, as in the papers."""


class OneBatchBuffers:
    """Each buffer is the next batch of the file, so that order and clock are the same as the other libraries'."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.sizing = batches, True

    def load(self, number: int, seed: int) -> Tensor:  # noqa: ARG002 - the interface
        if self.sizing:  # scale, mean and threshold are measured over what there is, before the clock and after it
            return self.batches.resid_ND[:200_000]
        return next(self.batches)

    def identity(self) -> Any:
        return len(self.batches.resid_ND)

    def harvest_settings(self) -> dict[str, Any]:
        return HARVEST

    def record(self) -> list[dict[str, Any]]:
        return []


def settings_of(run: Run) -> TrainSettings:
    defaults = defaults_for(run.recipe)
    return replace(
        defaults,
        decoder_norm="unit" if run.variant == UNIT_ROWS else defaults.decoder_norm,
        num_latents=run.num_latents,
        k=run.k,
        num_steps=run.num_steps,
        batch_size=BATCH_SIZE,
        learning_rate=run.rate,
        warmup_steps=WARMUP_STEPS,
        decay_share=DECAY_SHARE,
        seed=run.seed,
        precision="bf16" if has_fast_bfloat16(torch.device("cpu")) else "fp32",  # as `telltale lab train` has it
    )


def main() -> None:
    run = parse_run()
    batches = Batches(run)
    batches.dtype = torch.bfloat16  # it makes fp32 of them itself
    buffers = OneBatchBuffers(batches)
    trainer = Trainer(settings_of(run), buffers)
    buffers.sizing = False
    shutil.rmtree(run.output / "run", ignore_errors=True)
    folder = run.output / "run"
    fit(
        trainer,
        folder,
        checkpoint_every=10**9,
        loggers=lambda done: [CsvLog(folder, done)],
        callbacks=[Figures(trainer, "peer")],
    )
    batches.stop()
    buffers.sizing = True
    finish(trainer, run.output / "dictionary", name="peer")
    shutil.rmtree(folder)
    saved = load_sae(run.output / "dictionary")
    write_result(
        run,
        "ours",
        ["lightning"],
        batches,
        own_variance_explained=variance_explained(saved.reconstruct, run.data),
    )


if __name__ == "__main__":
    main()
