"""Loss and gradients of the penalised recipes (relu, jumprelu, gated), densely or only where latents are active.

    loss = mean_B ||x - x_hat||^2 + lambda mean_B sum_i penalty_i        [+ mean_B ||x - x_hat_gate||^2 if gated]

in the dictionary's units (x scaled by s). `x_hat_gate` is decoded from max(g, 0) with the decoder held fixed
(Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders", eq. 8).

`dense` is autograd through the served module's own preactivate, activate and decode, with products in bf16 if asked.
`sparse` ranks by one dense product and does all else for the pairs (token, latent) that can have a value, a penalty or
a gradient, as `sparse_gradients` does: on a CPU several times faster once few latents are active. Both give the same
gradients (a test compares), of pre-activations rounded to bf16 where products are bf16.

Shape suffixes: B tokens, D model width, F latents, N pairs.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from discovery.activations import Activated, activate, within_reach
from discovery.sparse_gradients import ActiveLatents, scatter_rows
from discovery.step_result import StepResult
from sae_runtime.sae import SAE

_CHUNK_ENTRIES = {"cpu": 2**22, "cuda": 2**28}
"""Entries of [B, F] held at once: about what fits a cache, or a tenth of a GPU's memory."""


class Penalty(NamedTuple):
    """How sparsity is asked for."""

    weight: float
    """lambda at this step."""
    bandwidth: float
    """Of the straight-through kernel (jumprelu)."""


# --- dense ----------------------------------------------------------------------------------------------------------


@torch.enable_grad()
def dense(sae: SAE, resid_BD: Tensor, penalty: Penalty, *, products: torch.dtype = torch.float32) -> StepResult:
    """Set the gradients of the loss on residuals in their own units. Tokens are taken in chunks: the loss is a sum."""
    sae.zero_grad(set_to_none=True)
    num_tokens = len(resid_BD)
    chunk = max(64, _CHUNK_ENTRIES[resid_BD.device.type] // sae.num_latents)
    losses, errors, num_active = 0.0, [], 0
    fired_F = torch.zeros(sae.num_latents, dtype=torch.bool, device=resid_BD.device)
    for part_BD in torch.split(resid_BD.float(), chunk):
        loss, error_BD, f_BF = _dense_loss(sae, part_BD, penalty, num_tokens, products)
        loss.backward()  # type: ignore[no-untyped-call]
        losses += float(loss.detach())
        errors.append(error_BD)
        num_active += int((f_BF > 0).sum())
        fired_F |= (f_BF > 0).any(0)
    error_BD = torch.cat(errors)
    return _result(sae, resid_BD, losses, error_BD, num_active, fired_F.nonzero()[:, 0])


def _dense_loss(
    sae: SAE, resid_BD: Tensor, penalty: Penalty, num_tokens: int, products: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """A chunk's part of the loss, its errors x - x_hat [B, D] and its latents [B, F]."""
    with torch.autocast(resid_BD.device.type, products, enabled=products != torch.float32):
        z_BF = sae.preactivate(resid_BD)
    z_BF = z_BF.float()
    act = activate(sae, z_BF, slice(None), norm_F=sae.W_dec.norm(dim=-1), bandwidth=penalty.bandwidth)
    with torch.autocast(resid_BD.device.type, products, enabled=products != torch.float32):
        error_BD = (resid_BD - sae.decode(act.f)) * sae.scale
        loss = error_BD.square().sum()
        if act.gate is not None:
            x_hat_BD = (act.gate @ sae.W_dec.detach() + sae.b_dec.detach()) / sae.scale
            loss = loss + ((resid_BD - x_hat_BD) * sae.scale).square().sum()
    loss = (loss + penalty.weight * act.penalty.sum()) / num_tokens
    return loss, error_BD.detach(), act.f.detach()


# --- sparse ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sparse(sae: SAE, resid_BD: Tensor, penalty: Penalty, *, products: torch.dtype = torch.float32) -> StepResult:
    """Set the gradients of the same loss, computed for the pairs within reach."""
    sae.zero_grad(set_to_none=True)
    x_BD = resid_BD.float() * sae.scale
    seen_BD = x_BD - sae.b_dec if sae.apply_b_dec else x_BD
    pairs = _pairs(sae, seen_BD, penalty.bandwidth, products)
    norm_F = sae.W_dec.norm(dim=-1).requires_grad_()
    with torch.enable_grad():
        z_N = pairs.values_N.requires_grad_()
        act = activate(sae, z_N, pairs.latents_N, norm_F=norm_F, bandwidth=penalty.bandwidth)
        error_BD, loss = _sparse_loss(sae, x_BD, pairs, act, penalty.weight)
        loss.backward()  # type: ignore[no-untyped-call]
    f_N = act.f.detach()
    _spread(sae, seen_BD, error_BD, pairs._replace(values_N=f_N), z_N.grad)
    if norm_F.grad is not None:
        assert sae.W_dec.grad is not None
        sae.W_dec.grad += (norm_F.grad / norm_F.detach().clamp_min(1e-12))[:, None] * sae.W_dec
    active_N = f_N > 0
    return _result(sae, resid_BD, float(loss.detach()), error_BD, int(active_N.sum()), pairs.latents_N[active_N])


def _pairs(sae: SAE, seen_BD: Tensor, bandwidth: float, products: torch.dtype) -> ActiveLatents:
    """The pairs within reach, token by token; their values are pre-activations."""
    product = seen_BD.to(products) @ sae.W_enc.to(products)
    z_BF = product if sae.activation == "gated" else product.add_(sae.b_enc.to(products))
    kept_BF = within_reach(sae, z_BF, bandwidth)
    tokens_N, latents_N = kept_BF.nonzero(as_tuple=True)
    counts_B = kept_BF.sum(-1)
    return ActiveLatents(
        values_N=z_BF[tokens_N, latents_N].float(),
        latents_N=latents_N,
        tokens_N=tokens_N,
        offsets_B=counts_B.cumsum(0) - counts_B,
        threshold=0.0,
    )


def _sparse_loss(sae: SAE, x_BD: Tensor, pairs: ActiveLatents, act: Activated, weight: float) -> tuple[Tensor, Tensor]:
    """Errors [B, D] without gradient, and the loss as a function of pre-activations and thresholds alone."""
    centred_BD, decoder = (x_BD - sae.b_dec).detach(), sae.W_dec.detach()

    def error_of(f_N: Tensor) -> Tensor:
        return centred_BD - embedding_bag(pairs.latents_N, decoder, pairs.offsets_B, mode="sum", per_sample_weights=f_N)

    error_BD = error_of(act.f)
    loss = error_BD.square().sum() + weight * act.penalty.sum()
    if act.gate is not None:
        loss = loss + error_of(act.gate).square().sum()
    return error_BD.detach(), loss / len(x_BD)


def _spread(sae: SAE, seen_BD: Tensor, error_BD: Tensor, active: ActiveLatents, d_z_N: Tensor | None) -> None:
    """Gradients of the matrices and biases from those of pre-activations and reconstruction."""
    assert d_z_N is not None
    d_x_hat_BD = -2 / len(error_BD) * error_BD
    d_bias_F = torch.zeros(sae.num_latents, device=d_z_N.device).index_add_(0, active.latents_N, d_z_N)
    sae.W_dec.grad = scatter_rows(active, active.values_N, d_x_hat_BD, sae.num_latents)
    sae.W_enc.grad = scatter_rows(active, d_z_N, seen_BD, sae.num_latents).T.contiguous()
    sae.b_dec.grad = d_x_hat_BD.sum(0)
    if sae.apply_b_dec:
        sae.b_dec.grad -= sae.W_enc @ d_bias_F
    if sae.activation != "gated":
        sae.b_enc.grad = d_bias_F


def _result(sae: SAE, resid_BD: Tensor, loss: float, error_BD: Tensor, num_active: int, fired_A: Tensor) -> StepResult:
    spread = float(((resid_BD.float() - sae.resid_mean) * sae.scale).square().sum())
    return StepResult(
        loss=loss,
        fvu=float(error_BD.square().sum()) / spread,
        l0=num_active / len(resid_BD),
        error_BD=error_BD,
        fired_A=fired_A,
        loss_unit=spread / len(resid_BD),
    )
