"""What is done for latents that no longer fire.

AuxK (Gao et al. 2024): the `aux_k` strongest dead latents of each token are made to explain what the living ones leave,

    aux_weight * ||e - e_hat||^2 / ||e||^2 * (loss at FVU 1),    e = x - x_hat taken as given.

Resampling (Bricken et al. 2023, "Towards Monosemanticity"): a dead latent is started anew at an input drawn with
probability proportional to the square of its loss. Its decoder row is the normalised input, its encoder column the
same direction at 0.2 of the mean norm of the living ones' columns, its bias 0, and the optimiser forgets it. Inputs
are drawn from the batch at hand (there: from 819,200 inputs), so that nothing but seed and step decides. Where latents
compete to be among the k largest, a fifth of the norm never gets there: topk and batchtopk take the whole of it.

Shape suffixes: B tokens, D model width, F latents, A dead latents.
"""

import torch
from torch import Tensor, nn

from discovery.product_dtype import product_dtype
from discovery.train_settings import TrainSettings
from sae_runtime.sae import SAE

RESAMPLED_NORM = 0.2
"""Encoder norm of a resampled latent, relative to the living ones."""


def add_aux_gradients(
    sae: SAE, x_BD: Tensor, error_BD: Tensor, dead_F: Tensor, settings: TrainSettings, loss_unit: float = 1.0
) -> None:
    """Add the gradients of AuxK, for the dead latents' weights alone. `x_BD` is scaled, `error_BD` is x - x_hat."""
    dead_A = dead_F.nonzero()[:, 0]
    bias = _encoder_bias(sae)
    W_enc_DA, bias_A, W_dec_AD = (
        tensor.detach().clone().requires_grad_() for tensor in (sae.W_enc[:, dead_A], bias[dead_A], sae.W_dec[dead_A])
    )
    with torch.enable_grad():
        products = product_dtype(settings.precision)
        guess_BD = _guess(_seen(sae, x_BD), W_enc_DA, bias_A, W_dec_AD, settings.aux_k, products)
        unexplained = (error_BD - guess_BD).square().sum() / error_BD.square().sum()
    W_enc_grad, bias_grad, W_dec_grad = torch.autograd.grad(unexplained, (W_enc_DA, bias_A, W_dec_AD))
    weight = settings.aux_weight * loss_unit
    assert sae.W_enc.grad is not None and bias.grad is not None and sae.W_dec.grad is not None
    sae.W_enc.grad[:, dead_A] += weight * W_enc_grad
    bias.grad[dead_A] += weight * bias_grad
    sae.W_dec.grad[dead_A] += weight * W_dec_grad


def _guess(
    seen_BD: Tensor, W_enc_DA: Tensor, bias_A: Tensor, W_dec_AD: Tensor, aux_k: int, products: torch.dtype
) -> Tensor:
    """The error as the strongest dead latents of each token would have it."""
    pre_BA = seen_BD.to(products) @ W_enc_DA.to(products) + bias_A.to(products)
    if len(bias_A) > aux_k:
        # By what they contribute, as living latents are ranked.
        contribution_BA = pre_BA.detach() * W_dec_AD.detach().norm(dim=-1)
        indices = contribution_BA.topk(aux_k, dim=-1, sorted=False).indices
        pre_BA = pre_BA * torch.zeros_like(pre_BA).scatter_(-1, indices, 1.0)
    return (pre_BA.relu() @ W_dec_AD.to(products)).float()


@torch.no_grad()
def resample(
    sae: SAE, resid_BD: Tensor, error_BD: Tensor, dead_F: Tensor, settings: TrainSettings, generator: torch.Generator
) -> Tensor:
    """Start the dead latents anew, at most one for each token of the batch; returns those it was [A]."""
    loss_B = error_BD.square().sum(-1).double().cpu()
    dead_A = dead_F.nonzero()[: int((loss_B > 0).sum()), 0]
    if not len(dead_A) or bool(dead_F.all()):
        return dead_A[:0]
    drawn_A = torch.multinomial(loss_B.square() / loss_B.square().max(), len(dead_A), generator=generator)
    seen_AD = _seen(sae, resid_BD[drawn_A.to(resid_BD.device)].float() * sae.scale)
    row_AD = nn.functional.normalize(seen_AD, dim=-1)
    share = 1.0 if settings.has_fixed_l0 else RESAMPLED_NORM
    sae.W_enc[:, dead_A] = (row_AD * share * sae.W_enc[:, ~dead_F].norm(dim=0).mean()).T
    sae.W_dec[dead_A] = row_AD * sae.W_dec[~dead_F].norm(dim=-1).mean()
    for name in ("b_enc", "b_gate", "b_mag", "r_mag"):
        if hasattr(sae, name):
            getattr(sae, name)[dead_A] = 0
    return dead_A


@torch.no_grad()
def forget(optimizer: torch.optim.Optimizer, sae: SAE, latents_A: Tensor) -> None:
    """Set the optimiser's moments of these latents to 0."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for moment in optimizer.state.get(parameter, {}).values():
                if not isinstance(moment, Tensor) or moment.shape != parameter.shape or parameter is sae.b_dec:
                    continue
                if parameter is sae.W_enc:
                    moment[:, latents_A] = 0
                else:
                    moment[latents_A] = 0


def _encoder_bias(sae: SAE) -> nn.Parameter:
    return sae.b_gate if sae.activation == "gated" else sae.b_enc


def _seen(sae: SAE, x_BD: Tensor) -> Tensor:
    """What the encoder matrix sees of scaled residuals."""
    return (x_BD - sae.b_dec).detach() if sae.apply_b_dec else x_BD
