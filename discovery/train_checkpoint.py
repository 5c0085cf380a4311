"""Checkpoints of a training run: whole or absent, the last two kept, and named errors for everything else.

A checkpoint is `checkpoints/step-00000500.ckpt` in the run's folder. It is written beside its name, forced to disk and
renamed, so that a kill or a full disk leaves the ones before it as they were. On the way back the newest readable one
is taken: a damaged one (its archive carries checksums) is named on stderr and the one before it used instead.

Knows nothing of Lightning: `lightning_module.AtomicCheckpoints` has Lightning write and read this way.
"""

import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from discovery.errors import TrainError
from sae_runtime.errors import plain_reason
from sae_runtime.whole_files import drop_partials, whole_file

FOLDER = "checkpoints"
KEPT = 2

_DAMAGED = (zipfile.BadZipFile, EOFError, RuntimeError, KeyError, ValueError)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps of the run in `folder` belongs."""
    return folder / FOLDER / f"step-{step:08d}.ckpt"


def checkpoint_paths(folder: Path) -> list[Path]:
    """All checkpoints of the run in `folder`, oldest first."""
    return sorted((folder / FOLDER).glob("step-*.ckpt"))


def save_checkpoint(state: Any, path: Path) -> None:
    """Write `state` so that `path` is the old file or the new one, never a part. TrainError if it can't be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            torch.save(state, partial)
    except (OSError, RuntimeError) as error:
        raise TrainError(f"checkpoint {path} can't be written: {plain_reason(error)}; {_what_is_left(path)}") from error


def load_checkpoint(path: Path) -> Any:
    """Read a checkpoint, tensors and plain values only. TrainError if it is not whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {broken}")
        return torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise TrainError(f"checkpoint {path} is not there") from None
    except _DAMAGED as error:
        raise TrainError(f"checkpoint {path} is truncated or damaged: {plain_reason(error)}") from None


def newest_checkpoint(folder: Path) -> tuple[Path, Any] | None:
    """The newest readable checkpoint and what it holds; None if there is none at all.

    TrainError if there are checkpoints and none can be read: to begin anew is for the user to decide.
    """
    problems = []
    for path in reversed(checkpoint_paths(folder)):
        try:
            found = path, load_checkpoint(path)
        except TrainError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            print(f"{problem}; going on from {path.name}", file=sys.stderr)
        return found
    if problems:
        raise TrainError("; ".join(problems) + f"; delete {folder / FOLDER} to begin anew")
    return None


def drop_old_checkpoints(folder: Path) -> None:
    """Delete all but the newest ones, and what an interrupted write left behind."""
    for path in checkpoint_paths(folder)[:-KEPT]:
        path.unlink()
    drop_partials(folder / FOLDER)


def _what_is_left(path: Path) -> str:
    before = [other.name for other in checkpoint_paths(path.parent.parent) if other != path]
    if before:
        return f"{before[-1]} is kept, and the same command goes on from it"
    return "there is none before it, and the same command begins anew"
