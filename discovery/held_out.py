"""Figures of a dictionary in training, on residuals that it is not trained on.

    loss         what the recipe's gradients are of, with lambda as it is (topk, batchtopk: D * FVU)
    fvu          sum ||x - x_hat||^2 / sum ||x - mean||^2         (mean: of the held-out tokens)
    l0           mean number of active latents
    dead_ratio   share of latents that are active at none of the tokens

fvu, l0 and dead_ratio are those of `reconstruction`, of the weights as they are at that step.

Shape suffixes: N tokens, F latents, D model width.
"""

from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from discovery.activations import activate
from discovery.dictionary_trainer import Trainer
from discovery.errors import HarvestError
from discovery.finished_dictionary import fold_trained_norms
from discovery.reconstruction import ReconstructionSums
from discovery.shard_stream import read_shard
from discovery.shards import finished_shards, load_manifest, shard_paths
from sae_runtime.errors import one_line

_ENCODE_ENTRIES = 2**24
"""Entries of [N, F] held at once."""


class HeldOutFigures(NamedTuple):
    """See the module."""

    loss: float
    fvu: float
    l0: float
    dead_ratio: float
    num_tokens: int


def load_held_out(folders: list[Path], max_tokens: int) -> Tensor:
    """[N, D] bf16: the first ordinary residuals of each harvest, as many of each. HarvestError if there are none."""
    pieces = []
    for folder in folders:
        wanted = max_tokens // len(folders)
        for path in shard_paths(folder):
            if wanted <= 0:
                break
            pieces.append(read_shard(path)[:wanted])
            wanted -= len(pieces[-1])
    if not sum(map(len, pieces)):
        raise HarvestError(f"validation must have residuals, got none in {', '.join(map(str, folders))}")
    return torch.cat(pieces)


@torch.inference_mode()
def measure(run: Trainer, resid_ND: Tensor) -> HeldOutFigures:
    """Figures of the dictionary as it is now."""
    sae, settings = run.sae, run.settings
    if settings.has_fixed_l0:  # ranks by pre-activation times row norm until it is finished
        sae = deepcopy(sae)
        fold_trained_norms(sae)
    sums = ReconstructionSums.of(sae)
    penalty = gate_error = 0.0
    norm_F = sae.W_dec.norm(dim=-1)
    for part_ND in torch.split(resid_ND, max(64, _ENCODE_ENTRIES // sae.num_latents)):
        x_ND = part_ND.to(norm_F.device).float()
        if settings.has_fixed_l0:
            sums.add(sae, x_ND)
            continue
        act = activate(sae, sae.preactivate(x_ND), slice(None), norm_F=norm_F, bandwidth=settings.bandwidth)
        sums.add(sae, x_ND, f_NF=act.f)
        penalty += float(act.penalty.sum())
        if act.gate is not None:
            gate_error += float((x_ND - sae.decode(act.gate)).square().sum())
    figures = sums.figures()
    fvu = 1 - figures["variance_explained"]
    weight = run.sparsity_weight * settings.sparsity_ramp_at(run.num_steps_done)
    squared = sae.scale**2 * (sums.error + gate_error)
    return HeldOutFigures(
        loss=sae.d_model * fvu if settings.has_fixed_l0 else (squared + weight * penalty) / sums.num_tokens,
        fvu=fvu,
        l0=figures["l0"],
        dead_ratio=figures["dead_ratio"],
        num_tokens=sums.num_tokens,
    )


def check_held_out(sources: list[Path], validation: list[Path]) -> None:
    """HarvestError if validation is no whole harvest of the same model and place, or has documents trained on."""
    wanted = load_manifest(sources[0])["settings"]
    for folder in validation:
        finished_shards(folder)  # or an error that says what is wrong with it
        settings = load_manifest(folder)["settings"]
        for field in ("model_sha256", "quantization", "hook_point", "bos_policy", "d_model"):
            if settings.get(field) != wanted.get(field):
                raise HarvestError(
                    f"--validation {folder}: {field} must be {wanted.get(field)}, as in {sources[0]}, "
                    f"got {settings.get(field)}"
                )
    trained_on = set().union(*(_documents(folder) for folder in sources))
    for folder in validation:
        shared = _documents(folder) & trained_on
        if folder.resolve() in {source.resolve() for source in sources} or shared:
            what = f"{len(shared)} of its documents" if shared else "it too"
            raise HarvestError(f"--validation {folder} must not be trained on, but --source has {what}")


def _documents(folder: Path) -> set[int]:
    """Hashes of a harvest's documents."""
    found: set[int] = set()
    for path in shard_paths(folder):
        try:
            with safe_open(path, framework="pt") as file:
                if "documents_N" in file.keys():  # noqa: SIM118 - not a dict
                    found.update(file.get_tensor("documents_N").unique().tolist())
        except (SafetensorError, OSError) as error:
            raise HarvestError(f"{path} is no readable shard: {one_line(error)}") from None
    return found
