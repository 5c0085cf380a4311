"""Loss and gradients of a TopK or BatchTopK dictionary, computed only where latents are active.

Of 8192 latents 64 are active at a token, so four of the five large products of a training step are 99 % zeros. Only
the pre-activations of all latents need a dense product, and bf16 is enough to rank them, where the processor has it;
the rest are gathered rows in fp32. On two CPU cores a step takes about a quarter of the time of dense bf16 products
through autograd. The tests hold these gradients to autograd's.

Latents are ranked by what they contribute, pre * ||W_dec||. Folding the norms into the encoder (`finished_dictionary`)
then gives a dictionary that ranks by its pre-activations alone.

With c = x - b_dec and the active set fixed (its choice has no gradient):
    pre = c @ W_enc + b_enc,   f = pre where kept, else 0,   x_hat = f @ W_dec + b_dec,   e = x - x_hat
    loss = D sum ||e||^2 / spread,        g = d loss / d x_hat = -2 D e / spread,    spread = sum ||x - mean||^2
    d f = g @ W_dec^T where kept,         d W_dec = f^T @ g
    d b_enc = sum_B d f,                  d W_enc = c^T @ d f,        d b_dec = sum_B g - W_enc @ d b_enc

D is the unit of the penalised recipes' losses, where mean ||x||^2 is about D. In it every gradient is longer than
`max_grad_norm`, so that clipping makes them all equally long: Adam's second moments, which remember a thousand steps,
are then not those of the first few, when errors are large (docs/training.md has what it is worth).

Shape suffixes: B tokens, D model width, F latents, C candidates per token, N active latents of the whole batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from discovery.step_result import StepResult
from sae_runtime.sae import SAE

_GROUPS = 8


class ActiveLatents(NamedTuple):
    """The active latents of a batch, token by token."""

    values_N: Tensor
    """fp32, above 0."""
    latents_N: Tensor
    tokens_N: Tensor
    offsets_B: Tensor
    """Where each token's begin."""
    threshold: float
    """Smallest value kept."""


def strongest(pre_BF: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Values and indices [B, C] of each row's `num` largest, in no order. Exact.

    The largest `num` values lie within the `num` groups of largest maximum, so that most of a row is only passed over
    by a vectorised `amax` instead of being ranked.
    """
    num_tokens, num_latents = pre_BF.shape
    if num_latents % _GROUPS or num_latents // _GROUPS < num:
        values_BC, indices_BC = pre_BF.topk(num, dim=-1, sorted=False)
        return values_BC, indices_BC
    # A group is one column of this view: entries `width` apart.
    width = num_latents // _GROUPS
    grouped = pre_BF.view(num_tokens, _GROUPS, width)
    columns_BC = grouped.amax(1).topk(num, dim=-1, sorted=False).indices
    candidates = grouped.gather(2, columns_BC[:, None].expand(num_tokens, _GROUPS, num)).flatten(1)
    values_BC, picked_BC = candidates.topk(num, dim=-1, sorted=False)
    return values_BC, columns_BC.gather(1, picked_BC % num) + (picked_BC // num) * width


def select_active(pre_BF: Tensor, k: int, *, over_batch: bool) -> ActiveLatents:
    """The active set: the k largest of each token, or the k * B largest of the batch, as far as they are positive.

    Over the batch no token gets more than 2k: ranking more candidates costs time and hardly ever changes anything.
    """
    num_tokens, num_latents = pre_BF.shape
    values_BC, latents_BC = strongest(pre_BF, min(2 * k, num_latents) if over_batch else k)
    values_BC = values_BC.float()
    kept_BC = values_BC > 0
    if over_batch:
        rank = values_BC.numel() - k * num_tokens + 1
        kept_BC &= values_BC >= values_BC.flatten().kthvalue(max(rank, 1)).values
    tokens_N, columns_N = kept_BC.nonzero(as_tuple=True)
    values_N = values_BC[tokens_N, columns_N]
    counts_B = kept_BC.sum(-1)
    return ActiveLatents(
        values_N=values_N,
        latents_N=latents_BC[tokens_N, columns_N],
        tokens_N=tokens_N,
        offsets_B=counts_B.cumsum(0) - counts_B,
        threshold=float(values_N.min()) if values_N.numel() else 0.0,
    )


@torch.no_grad()
def backpropagate(
    sae: SAE,
    x_BD: Tensor,
    mean_D: Tensor,
    k: int,
    *,
    over_batch: bool,
    products: torch.dtype = torch.float32,
) -> StepResult:
    """Set the gradients of the loss on `x_BD`: residuals in the dictionary's scale (s * x), fp32, as is `mean_D`."""
    centred_BD = x_BD - sae.b_dec
    norm_F = sae.W_dec.norm(dim=-1).clamp_min(1e-8)
    bias_F, W_enc_DF = (sae.b_enc * norm_F).to(products), (sae.W_enc * norm_F).to(products)
    contribution_BF = torch.addmm(bias_F, centred_BD.to(products), W_enc_DF)
    active = select_active(contribution_BF, k, over_batch=over_batch)
    values_N = active.values_N / norm_F[active.latents_N]
    error_BD, pulled_N = _decode(sae, centred_BD, active, values_N)

    spread = (x_BD - mean_D).square().sum()
    unit = x_BD.shape[1]
    gradient_BD = -2 * unit / spread * error_BD
    # `pulled_N` is (e @ W_dec^T) at the active latents.
    d_values_N = -2 * unit / spread * pulled_N
    d_b_enc = torch.zeros_like(sae.b_enc).index_add_(0, active.latents_N, d_values_N)
    sae.W_dec.grad = scatter_rows(active, values_N, gradient_BD, sae.num_latents)
    sae.W_enc.grad = scatter_rows(active, d_values_N, centred_BD, sae.num_latents).T.contiguous()
    sae.b_enc.grad = d_b_enc
    sae.b_dec.grad = gradient_BD.sum(0) - sae.W_enc @ d_b_enc
    fvu = float(error_BD.square().sum() / spread)
    return StepResult(
        loss=unit * fvu,
        fvu=fvu,
        l0=active.values_N.numel() / len(x_BD),
        error_BD=error_BD,
        fired_A=active.latents_N,
        threshold=active.threshold,
        loss_unit=unit,
    )


def _decode(sae: SAE, centred_BD: Tensor, active: ActiveLatents, values_N: Tensor) -> tuple[Tensor, Tensor]:
    """The error x - x_hat [B, D], and its product with the decoder row of each active latent [N]."""
    with torch.enable_grad():
        # torch has a kernel for these dot products only as the backward pass of embedding_bag.
        values_N.requires_grad_()
        weights = sae.W_dec.detach()
        explained_BD = embedding_bag(
            active.latents_N, weights, active.offsets_B, mode="sum", per_sample_weights=values_N
        )
        error_BD = centred_BD - explained_BD.detach()
        (pulled_N,) = torch.autograd.grad(explained_BD, values_N, error_BD)
    values_N.requires_grad_(False)
    return error_BD, pulled_N


def scatter_rows(active: ActiveLatents, weights_N: Tensor, rows_BD: Tensor, num_latents: int) -> Tensor:
    """[F, D]: for each latent the sum of its tokens' rows, weighted."""
    order_N = active.latents_N.argsort(stable=True)
    counts_F = torch.bincount(active.latents_N, minlength=num_latents)
    return embedding_bag(
        active.tokens_N[order_N],
        rows_BD,
        counts_F.cumsum(0) - counts_F,
        mode="sum",
        per_sample_weights=weights_N[order_N],
    )
