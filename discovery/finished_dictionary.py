"""From a trained dictionary to the one that is served: norms folded, weights rounded, threshold set, manifest written.

Shape suffixes: N tokens, F latents.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from discovery.buffers import Buffers
from discovery.dictionary_trainer import Trainer
from discovery.errors import TrainError
from sae_runtime.checkpoint import Manifest, save_sae
from sae_runtime.errors import CheckpointError
from sae_runtime.sae import SAE


def finish(
    trainer: Trainer,
    folder: Path,
    *,
    name: str,
    target_l0: float | None = None,
    started_from: dict[str, Any] | None = None,
) -> Manifest:
    """Write the trained dictionary to `folder`, in bf16, with its threshold measured on the rounded weights.

    TrainError if the disk is full. The last checkpoint has all steps.
    """
    sae = trainer.sae.requires_grad_(False).to("cpu")
    if not trainer.settings.has_unit_decoder:
        fold_trained_norms(sae)
    sae.to_weights_dtype(torch.bfloat16)
    if trainer.settings.activation == "batchtopk":
        calibrate_threshold(sae, trainer.buffers, target_l0 or trainer.settings.k)
    manifest = manifest_of(
        sae,
        trainer.buffers.harvest_settings(),
        name=name,
        dtype="bfloat16",
        resid_norm_mean=trainer.resid_norm_mean,
        training=training_record(trainer, started_from),
    )
    try:
        return save_sae(sae, manifest, folder)
    except CheckpointError as error:
        if error.__cause__ is None:
            raise
        raise TrainError(f"{error}; the last checkpoint has all steps, and the same command goes on from it") from error


@torch.no_grad()
def fold_trained_norms(sae: SAE) -> None:
    """Scale decoder rows to norm 1 and latents accordingly; reconstructions stay as they are.

    f -> n f if pre-activation, biases and thresholds are multiplied by n > 0. For a dictionary in training alone: there
    topk ranks by n * pre, and batchtopk's one threshold is of n * pre (`sparse_gradients`), which are the folded
    dictionary's pre-activations. (`SAEParts.fold_decoder_norms` is for dictionaries that are served as they are.)
    """
    norm_F = sae.W_dec.norm(dim=-1).clamp_min(1e-8)
    sae.W_dec.div_(norm_F[:, None])
    sae.W_enc.mul_(norm_F)
    for name in ("b_enc", "b_gate", "b_mag"):
        if hasattr(sae, name):
            getattr(sae, name).mul_(norm_F)
    if sae.activation == "jumprelu":
        sae.threshold.mul_(norm_F)


@torch.no_grad()
def calibrate_threshold(sae: SAE, buffers: Buffers, target_l0: float, max_tokens: int = 65536) -> float:
    """Set a batchtopk dictionary's threshold so that its mean L0 over training tokens is `target_l0`; returns it."""
    resid_ND = buffers.load(0, seed=1)[:max_tokens]
    wanted = int(target_l0 * resid_ND.shape[0])
    # Training leaves the threshold about right, so that only what is near it has to be kept and ranked.
    for share in (0.8, 0.4, 0.0):
        values = _preactivations_above(sae, resid_ND, share * float(sae.threshold))
        if values.numel() > wanted:
            sae.threshold.fill_(float(values.kthvalue(values.numel() - wanted).values))
            return float(sae.threshold)
    raise TrainError(f"mean L0 can't be {target_l0}: only {values.numel() / len(resid_ND):.2f} latents are positive")


def _preactivations_above(sae: SAE, resid_ND: Tensor, low: float) -> Tensor:
    parts = (sae.preactivate(part_ND) for part_ND in torch.split(resid_ND, 4096))
    return torch.cat([pre_NF[pre_NF > low] for pre_NF in parts])


def manifest_of(sae: SAE, harvest_settings: dict[str, Any], *, name: str, **fields: Any) -> Manifest:
    """A manifest for `sae`, what it says of the model taken from a harvest's settings."""
    return Manifest(
        name=name,
        model_name=harvest_settings["model_name"],
        model_sha256=harvest_settings["model_sha256"],
        quantization=harvest_settings["quantization"],
        hook_point=harvest_settings["hook_point"],
        bos_policy=harvest_settings["bos_policy"],
        d_model=sae.d_model,
        num_latents=sae.num_latents,
        activation=sae.activation,
        k=sae.k,
        scale=sae.scale,
        apply_b_dec=sae.apply_b_dec,
        normalization=sae.normalization,
        first_position="excluded",
        decoder_norms_folded=True,
        **fields,
    )


def training_record(trainer: Trainer, started_from: dict[str, Any] | None) -> dict[str, Any]:
    """What the manifest says of the training: recipe, data by source, and the run it went on from, if any."""
    record = {
        "recipe": asdict(trainer.settings),
        "tokens_seen": trainer.num_tokens_done,
        "data": trainer.buffers.record(),
    }
    return record if started_from is None else record | {"started_from": started_from}
