"""The dictionary before the first step, and the scale of the residuals it is to read.

    all but relu             s = sqrt(D) / mean ||x - mean||, b_dec the scaled mean, taken off the input
    relu                     s = sqrt(D) / mean ||x||, b_dec not taken off the input (a = 0)
    decoder_norm free        random decoder rows of norm 0.1 (Conerly et al., Circuits Updates, April 2024)
    decoder_norm unit        random decoder rows of norm 1

encoder = decoder^T, all other biases 0. relu's b_dec begins as the mean too (there: 0): at the few thousand steps of a
small run it would not get there.

Small rows are turned by much in the first steps, before any latent is large enough to outdo the others: of 8192 latents
of topk after 96 steps of 2048 tokens, 7 % were silent at the best rate, and 52 % with unit rows.

Shape suffixes: N tokens, D model width, F latents.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from discovery.buffers import Buffers
from discovery.train_settings import TrainSettings
from sae_runtime.sae import SAE

FREE_DECODER_NORM = 0.1
"""Of decoder rows whose norm is free, at the start."""

_SCALE_TOKENS = 200_000


class DataScale(NamedTuple):
    """What the residuals look like, measured once before training."""

    mean_D: Tensor
    scale: float
    """sqrt(D) / mean ||x - mean||."""
    resid_norm_mean: float
    """mean ||x||."""


def measure_scale(buffers: Buffers, seed: int = 0) -> DataScale:
    """Mean and scale over the first buffer, which is mixed as all of training is."""
    resid_ND = buffers.load(0, seed)[:_SCALE_TOKENS].float()
    mean_D = resid_ND.double().mean(0).float()
    centred_norm = float((resid_ND - mean_D).norm(dim=-1).mean())
    return DataScale(mean_D, resid_ND.shape[1] ** 0.5 / centred_norm, float(resid_ND.norm(dim=-1).mean()))


def new_sae(settings: TrainSettings, scale: DataScale, buffers: Buffers) -> SAE:
    """An untrained dictionary."""
    d_model = scale.mean_D.shape[0]
    is_relu = settings.activation == "relu"
    sae = SAE(
        d_model=d_model,
        num_latents=settings.num_latents,
        activation=settings.activation,
        k=settings.k if settings.activation == "topk" else None,
        scale=d_model**0.5 / scale.resid_norm_mean if is_relu else scale.scale,
        apply_b_dec=not is_relu,
    )
    with torch.no_grad():
        sae.W_dec.copy_(_first_rows(settings, scale, buffers))
        normalize_decoder(sae)
        if not settings.has_unit_decoder:
            sae.W_dec.mul_(FREE_DECODER_NORM)
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_dec.copy_(scale.mean_D * sae.scale)
        sae.resid_mean.copy_(scale.mean_D)
        if settings.activation == "jumprelu":
            sae.threshold.fill_(settings.threshold_init)
    return sae


def _first_rows(settings: TrainSettings, scale: DataScale, buffers: Buffers) -> Tensor:
    """[F, D] decoder rows: random directions, or residuals of the first buffer with some noise."""
    generator = torch.Generator().manual_seed(settings.seed)
    rows_FD = torch.randn(settings.num_latents, scale.mean_D.shape[0], generator=generator)
    if settings.decoder_init == "data":
        resid_ND = buffers.load(0, settings.seed)
        rows_FD = resid_ND[: settings.num_latents].float() - scale.mean_D + 0.5 / scale.scale * rows_FD
    return rows_FD


@torch.no_grad()
def normalize_decoder(sae: SAE) -> None:
    """Scale decoder rows to norm 1."""
    sae.W_dec.div_(sae.W_dec.norm(dim=-1, keepdim=True).clamp_min(1e-8))


@torch.no_grad()
def project_decoder_gradient(sae: SAE) -> None:
    """Take out the gradient along each decoder row: it would only change the norm, which is then undone."""
    assert sae.W_dec.grad is not None
    along_F1 = (sae.W_dec.grad * sae.W_dec).sum(-1, keepdim=True)
    sae.W_dec.grad -= along_F1 * sae.W_dec
