"""A training run under Lightning: the same steps as `dictionary_trainer.Trainer`, run by `lightning.pytorch.Trainer`.

Optimisation is manual, because the gradients are written by hand (`sparse_gradients`). Each batch brings the place in
the data behind it, and the module keeps that place only once the step is done: Lightning fetches ahead, and a place
taken from the loader would be one batch too far. Checkpoints are Lightning's, plus `position`.

    telltale lab train ...      or, in Python:      fit(Trainer(settings, buffers), folder)
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from discovery.buffers import Place, stream_batches
from discovery.dictionary_trainer import StepFigures, Trainer
from discovery.train_checkpoint import (
    checkpoint_path,
    drop_old_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)

Batch = tuple[Tensor, Place]


class DictionaryModule(LightningModule):
    """`run` with Lightning's interface. `figures` are those of the last step."""

    def __init__(self, run: Trainer) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.run = run
        self.sae = run.sae
        if run.log_threshold is not None:
            self.log_threshold = run.log_threshold
        self.figures: StepFigures | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.run.optimizer

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002 - Lightning passes it by name
        resid_BD, place = batch
        result = self.run.compute_gradients(resid_BD)
        self.optimizers().step()  # Lightning's wrapper, which counts the steps
        self.figures = self.run.finish_step(result, resid_BD)
        self.run.place = place

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["position"] = self.run.position()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.run.set_position(checkpoint["position"], "the checkpoint")


class ResidualBatches:
    """Batches from wherever `run` is: iterate over it after its position has been restored."""

    def __init__(self, run: Trainer) -> None:
        self.run = run

    def __iter__(self) -> Iterator[Batch]:
        settings = self.run.settings
        return stream_batches(self.run.buffers, settings.batch_size, settings.seed, self.run.place)


class ResidualData(LightningDataModule):
    """The run's residuals, as one endless epoch."""

    def __init__(self, run: Trainer) -> None:
        super().__init__()
        self.run = run

    def train_dataloader(self) -> ResidualBatches:
        return ResidualBatches(self.run)


class AtomicCheckpoints(CheckpointIO):
    """Lightning's checkpoints, written and read by `train_checkpoint`. `loaded` has been read already."""

    def __init__(self, loaded: tuple[Path, Any] | None) -> None:
        self.loaded = loaded

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ARG002
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> Any:  # noqa: ARG002
        if self.loaded is not None and self.loaded[0] == Path(path):
            (_, state), self.loaded = self.loaded, None
            return state
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class EverySteps(Checkpoint):
    """A checkpoint every `every` steps and at the end; the last two are kept."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every

    def on_train_batch_end(self, trainer: LightningTrainer, pl_module: DictionaryModule, *_: Any) -> None:
        done = pl_module.run.num_steps_done
        if done % self.every == 0 or done == pl_module.run.settings.num_steps:
            # Logs first: what they keep in memory up to the checkpoint would not be logged again after a kill.
            for logger in trainer.loggers:
                logger.save()
            trainer.save_checkpoint(checkpoint_path(self.folder, done))
            drop_old_checkpoints(self.folder)


def fit(
    run: Trainer,
    folder: Path,
    *,
    checkpoint_every: int = 500,
    loggers: Callable[[int], list[Logger]] = lambda _: [],
    callbacks: list[Callback] | None = None,
) -> None:
    """Train to the end, going on from the newest readable checkpoint in `folder` if there is one.

    `loggers` makes them, given how many steps have been done. TrainError if the checkpoint is of another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = newest_checkpoint(folder)
    if found is not None:
        # Lightning will do it once more; here with the file's name in the error, and for the loggers.
        run.set_position(found[1]["position"], str(found[0]))
    if run.num_steps_done >= run.settings.num_steps and found is not None:
        run.sae.load_state_dict(_weights(found[1]))
        return
    device = run.sae.W_enc.device
    with quiet_lightning():
        trainer = LightningTrainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=[device.index or 0] if device.type == "cuda" else 1,
            max_steps=run.settings.num_steps,
            max_epochs=-1,
            logger=loggers(run.num_steps_done) or False,
            callbacks=[*(callbacks or []), EverySteps(folder, checkpoint_every)],
            plugins=[AtomicCheckpoints(found)],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(DictionaryModule(run), ResidualData(run), ckpt_path=found and str(found[0]))


def _weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The dictionary's weights in a module's state."""
    state: dict[str, Tensor] = checkpoint["state_dict"]
    return {name.removeprefix("sae."): tensor for name, tensor in state.items() if name.startswith("sae.")}


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keeps Lightning's banners and tips off stderr; its errors stay."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
