"""How well a dictionary reconstructs residuals, and how often its latents fire.

    variance_explained         1 - sum ||x - x_hat||^2 / sum ||x - mean||^2     (mean: of the tokens measured)
    median_token_variance_explained
                               median over tokens of 1 - ||x - x_hat||^2 / ||x - mean||^2    (mean: as it is given)
    l0                         mean number of active latents
    dead_ratio                 share of latents that are active at none of the tokens
    dense_ratio                share of latents that are active at more than a tenth of them
    token_fvu                  quantiles over tokens of ||x - x_hat||^2 / ||x - mean||^2     (mean: the dictionary's):
                               the very figure that the server streams with each token, for its guard to compare with

Tokens with massive activations (see `shards.ordinary`) are left out: the figures would be about them alone.

Shape suffixes: N tokens, F latents, D model width.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from discovery.errors import LabError
from discovery.shards import ordinary
from sae_runtime.sae import SAE
from sae_runtime.usual_fvu import QUANTILES, UsualFVU

DENSE = 0.1
"""Density above which a latent counts as dense."""

_ENCODE_TOKENS = 2048
_BINS_PER_DECADE = 4


class DensityHistogram(NamedTuple):
    """Latents by density, bins of equal width in its logarithm."""

    edges: list[float]
    """log10 of density, one more than counts."""
    counts: list[int]
    num_dead: int
    """Latents that never fire have no logarithm."""


@dataclass(slots=True)
class ReconstructionSums:
    """What reconstruction figures are made of; sums of several sets can be added up."""

    num_latents: int
    d_model: int
    num_tokens: int = 0
    """Ordinary ones; all figures are over them."""
    num_massive: int = 0
    """Tokens left out for their massive activation."""
    error: float = 0.0
    """Sum of ||x - x_hat||^2."""
    square: float = 0.0
    """Sum of ||x||^2."""
    num_active: int = 0
    token_variance_explained: list[Tensor] = field(default_factory=list)
    token_fvu: list[Tensor] = field(default_factory=list)
    """As the server has it: against the mean that the dictionary carries."""
    firing_F: Tensor = field(init=False)
    """Tokens at which each latent is active."""
    sum_D: Tensor = field(init=False)
    """fp64 sum of x."""

    def __post_init__(self) -> None:
        self.firing_F = torch.zeros(self.num_latents, dtype=torch.long)
        self.sum_D = torch.zeros(self.d_model, dtype=torch.float64)

    @classmethod
    def of(cls, sae: SAE) -> "ReconstructionSums":
        """Empty ones for a dictionary."""
        return cls(sae.num_latents, sae.d_model)

    @torch.inference_mode()
    def add(self, sae: SAE, resid_ND: Tensor, *, mean_D: Tensor | None = None, f_NF: Tensor | None = None) -> None:
        """Count ordinary residuals in, wherever they are; the dictionary computes where it is itself.

        `mean_D` is what single tokens are compared with, by default the dictionary's record of its training data's;
        `f_NF` are the residuals' latents, if they are known.
        """
        resid_ND = resid_ND.to(sae.W_dec.device).float()
        mean_D = sae.resid_mean if mean_D is None else mean_D.to(sae.W_dec.device)
        f_NF = sae.encode(resid_ND) if f_NF is None else f_NF
        error_N = (resid_ND - sae.reconstruct(resid_ND, f_NF)).square().sum(-1)
        spread_N = (resid_ND - mean_D).square().sum(-1)
        active_F = (f_NF > 0).sum(0)
        self.num_tokens += len(resid_ND)
        self.error += float(error_N.double().sum())
        self.square += float(resid_ND.double().square().sum())
        self.sum_D += resid_ND.sum(0, dtype=torch.float64).cpu()
        self.num_active += int(active_F.sum())
        self.firing_F += active_F.cpu()
        self.token_variance_explained.append((1 - error_N / spread_N).cpu())
        self.token_fvu.append((error_N / (resid_ND - sae.resid_mean).square().sum(-1)).cpu())

    def __add__(self, other: "ReconstructionSums") -> "ReconstructionSums":
        both = ReconstructionSums(self.num_latents, self.d_model)
        both.num_tokens = self.num_tokens + other.num_tokens
        both.num_massive = self.num_massive + other.num_massive
        both.error, both.square = self.error + other.error, self.square + other.square
        both.num_active = self.num_active + other.num_active
        both.token_variance_explained = self.token_variance_explained + other.token_variance_explained
        both.token_fvu = self.token_fvu + other.token_fvu
        both.firing_F = self.firing_F + other.firing_F
        both.sum_D = self.sum_D + other.sum_D
        return both

    @property
    def spread(self) -> float:
        """Sum of ||x - mean||^2, the mean being that of all tokens counted in."""
        return self.square - float(self.sum_D.square().sum()) / max(self.num_tokens, 1)

    def figures(self) -> dict[str, float]:
        """The figures, by the names they have in manifests. LabError if no two tokens differ."""
        if self.num_tokens < 2 or self.spread <= 0:
            raise LabError(f"figures need tokens that differ, got {self.num_tokens} ordinary ones")
        density_F = self.firing_F / self.num_tokens
        return {
            "tokens": self.num_tokens,
            "massive_tokens_left_out": self.num_massive,
            "variance_explained": 1 - self.error / self.spread,
            "median_token_variance_explained": float(torch.cat(self.token_variance_explained).median()),
            "l0": self.num_active / self.num_tokens,
            "dead_ratio": float((self.firing_F == 0).float().mean()),
            "dense_ratio": float((density_F > DENSE).float().mean()),
        }

    def usual_fvu(self) -> UsualFVU:
        """What a token's FVU usually is. LabError without a token."""
        if not self.num_tokens:
            raise LabError("what a token's FVU usually is needs ordinary tokens, got none")
        # numpy: torch.quantile takes 16 million values at most.
        found = np.quantile(torch.cat(self.token_fvu).double().numpy(), list(QUANTILES.values()))
        return UsualFVU(tokens=self.num_tokens, quantiles=dict(zip(QUANTILES, found.tolist(), strict=True)))

    def density_histogram(self) -> DensityHistogram:
        """Latents by log10 of density, from the rarest that this many tokens can show up to 1."""
        low = -math.ceil(math.log10(max(self.num_tokens, 10)))
        edges = torch.linspace(low, 0, -low * _BINS_PER_DECADE + 1)
        alive_A = self.firing_F[self.firing_F > 0]
        counts = torch.histc((alive_A / self.num_tokens).log10(), bins=len(edges) - 1, min=low, max=0)
        return DensityHistogram(edges.tolist(), [int(c) for c in counts], int((self.firing_F == 0).sum()))


def measure_reconstruction(
    sae: SAE, residuals: Iterable[Tensor], *, mean_D: Tensor | None = None
) -> ReconstructionSums:
    """Figures over [N, D] pieces of residuals, massive activations left out. `mean_D`: see `add`."""
    sums = ReconstructionSums.of(sae)
    for piece_ND in residuals:
        ordinary_N = ordinary(piece_ND)
        sums.num_massive += int((~ordinary_N).sum())
        for part_ND in torch.split(piece_ND[ordinary_N], _ENCODE_TOKENS):
            sums.add(sae, part_ND, mean_D=mean_D)
    return sums
