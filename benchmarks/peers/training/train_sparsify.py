"""Trains with sparsify: its SparseCoder under its own Trainer, on a "model" that looks the residuals up.

    python train_sparsify.py --data DATA --rate 7e-3 --num-steps 250 --output RUN [--variant adam]

The Trainer hooks a module of a language model; here that module's output is the next batch. Its optimiser is the
default one (sign descent with momentum, schedule-free), or Adam with its linear schedule as a variant. Settings are its
defaults but for those below; README.md says why each was changed. All changes are meant in its favour.
"""

import torch
from common import (
    AUX_WEIGHT,
    DEAD_AFTER_TOKENS,
    WARMUP_STEPS,
    Batches,
    Run,
    parse_run,
    variance_explained,
    write_result,
)
from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer
from torch import Tensor, nn

HOOKPOINT = "layers.15"


class ResidualModel(nn.Module):
    """Stands for a language model: whatever tokens it is given, `layers.15` puts out the residuals in `batch_BD`."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"15": nn.Identity()})
        self.batch_BD = torch.zeros(1, d_model)
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}
        self.device = torch.device("cpu")

    @property
    def base_model(self) -> nn.Module:
        return self

    def forward(self, input_ids: Tensor) -> Tensor:  # noqa: ARG002 - the interface
        return self.layers["15"](self.batch_BD[None])


class BatchDataset:
    """One item a step. Asking for it puts the next batch into the model; its ids only say how many tokens there are."""

    def __init__(self, model: ResidualModel, batches: Batches, num_steps: int) -> None:
        self.model, self.batches, self.num_steps = model, batches, num_steps

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index >= self.num_steps:
            raise IndexError(index)
        self.model.batch_BD = next(self.batches)
        return {"input_ids": torch.ones(len(self.model.batch_BD), dtype=torch.long)}


def new_trainer(run: Run, batches: Batches) -> Trainer:
    model = ResidualModel(batches.resid_ND.shape[1])
    config = TrainConfig(
        SparseCoderConfig(num_latents=run.num_latents, k=run.k),
        batch_size=1,
        optimizer="adam" if run.variant == "adam" else "signum",
        lr=run.rate,
        lr_warmup_steps=WARMUP_STEPS,
        auxk_alpha=AUX_WEIGHT,
        dead_feature_threshold=DEAD_AFTER_TOKENS,
        hookpoints=[HOOKPOINT],
        init_seeds=[run.seed],
        save_every=10**9,
        log_to_wandb=False,
        save_dir=str(run.output),
        run_name="dictionary",
    )
    return Trainer(config, BatchDataset(model, batches, run.num_steps), model)


def main() -> None:
    run = parse_run()
    if run.recipe != "topk":
        raise SystemExit(f"recipe must be topk with sparsify, got {run.recipe}")
    batches = Batches(run)
    trainer = new_trainer(run, batches)
    save, trainer.save = trainer.save, batches.stop  # it saves at the end of fit: not part of training
    trainer.fit()
    save()
    saved = SparseCoder.load_from_disk(run.output / "dictionary" / HOOKPOINT)
    write_result(
        run,
        "sparsify",
        ["eai-sparsify"],
        batches,
        own_variance_explained=variance_explained(lambda x_BD: saved(x_BD).sae_out, run.data),
    )


if __name__ == "__main__":
    main()
