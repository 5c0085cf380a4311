"""The penalised recipes: each latent's value, and what lambda weighs, from its pre-activation.

    relu       f = max(z, 0)                            penalty  f_i ||W_dec,i||
    jumprelu   f = z where z > theta, else 0            penalty  H(z_i - theta_i), the L0
    gated      f = max(z e^r + b_mag, 0) where g > 0    penalty  max(g_i, 0),  g = z + b_gate

They are the element-wise activations of `sae_runtime.sae.SAE`: relu and gated are its own code, jumprelu has the same
values (a test compares) and a gradient on theta besides, the straight-through estimate of Rajamanoharan et al. 2024
("Jumping ahead", eq. 11 and 12) with the rectangle kernel K of width eps:

    d f / d theta = -theta / eps K((z - theta) / eps)        d H / d theta = -1 / eps K((z - theta) / eps)

`z` is [B, F] with all latents, or [N] with the latent of each entry: the maths is per entry.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_runtime.sae import SAE

Latents = slice | Tensor


class Activated(NamedTuple):
    """Per entry of the pre-activations."""

    f: Tensor
    penalty: Tensor
    gate: Tensor | None = None
    """Gated: max(g, 0), of which a second reconstruction is made."""


def activate(sae: SAE, z: Tensor, latents: Latents, *, norm_F: Tensor, bandwidth: float) -> Activated:
    """Latents and penalty of pre-activations `z`. `norm_F` are the norms of the decoder rows."""
    match sae.activation:
        case "relu":
            f = sae.activate(z, latents)
            return Activated(f, f * norm_F[latents])
        case "jumprelu":
            threshold = sae.threshold[latents].expand_as(z)
            return Activated(_jumprelu(z, threshold, bandwidth), _step(z, threshold, bandwidth))
        case "gated":
            gate = (z + sae.b_gate[latents]).relu()
            return Activated(sae.activate(z, latents), gate, gate)
        case _:
            raise AssertionError(f"{sae.activation} has no penalty")


@torch.no_grad()
def within_reach(sae: SAE, z_BF: Tensor, bandwidth: float) -> Tensor:
    """[B, F] mask: entries with a value, a penalty or a gradient of their own. All others are 0 in every respect."""
    match sae.activation:
        case "relu":
            return z_BF > 0
        case "jumprelu":
            return z_BF > (sae.threshold - bandwidth / 2).to(z_BF.dtype)
        case "gated":
            return z_BF > -sae.b_gate.to(z_BF.dtype)
        case _:
            raise AssertionError(f"{sae.activation} has no penalty")


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return z.relu() * (z > threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        z, threshold = ctx.saved_tensors
        kernel = ((z - threshold).abs() < ctx.bandwidth / 2) / ctx.bandwidth
        return grad * ((z > threshold) & (z > 0)), -grad * threshold * kernel, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        # Positive as well: with z between threshold and 0 the latent has no value. (Thresholds are positive.)
        return ((z > threshold) & (z > 0)).to(z.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        z, threshold = ctx.saved_tensors
        kernel = ((z - threshold).abs() < ctx.bandwidth / 2) / ctx.bandwidth
        return None, -grad * kernel, None


def _jumprelu(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    return _JumpReLU.apply(z, threshold, bandwidth)  # type: ignore[no-untyped-call]


def _step(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    return _Step.apply(z, threshold, bandwidth)  # type: ignore[no-untyped-call]
