"""What a dictionary reads on two forms of a model: sums over the same tokens, figures, and the answer they give.

`fidelity` has the formulas. Shape suffixes: N tokens, F latents, D model width.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from discovery.errors import LabError
from discovery.reconstruction import ReconstructionSums
from sae_runtime.sae import SAE

MIN_FIRINGS = 10
"""A correlation over fewer active tokens says nothing."""

_BINS = 40
_QUANTILES = {"1%": 0.01, "5%": 0.05, "25%": 0.25, "50%": 0.5, "75%": 0.75}


class Limit(NamedTuple):
    """What one figure may be at most for a yes."""

    words: str
    most: float


LIMITS = {
    "median_correlation_loss": Limit("1 - median correlation of a latent's readings", 0.05),
    "correlation_below_0.9_ratio": Limit("share of latents whose readings correlate below 0.9", 0.10),
    "flip_ratio": Limit("share of active readings that are active on one model only", 0.25),
    "l0_change": Limit("relative change of L0", 0.10),
    "variance_explained_loss": Limit("variance explained that is lost", 0.02),
}


MIN_CORRELATION = 0.9
"""Of a single named feature's readings; of its flips LIMITS has the most."""


class FeatureFidelity(NamedTuple):
    """How a named feature reads on the two."""

    name: str
    latent: int
    firings: tuple[int, int]
    """Tokens at which it is active on each."""
    correlation: float | None
    flip_ratio: float | None
    may_be_served: bool | None
    """None if it fires at fewer than MIN_FIRINGS tokens of the first: there is nothing to go by."""


class Answer(NamedTuple):
    """May the dictionary be served on the second model?"""

    may_be_served: bool
    reasons: list[str]
    """One for each limit, with the figure beside it."""


def answer(figures: dict[str, Any]) -> Answer:
    """The answer that `FidelitySums.figures` give."""
    (l0, other_l0), (explained, other_explained) = figures["l0"], figures["variance_explained"]
    got = {
        "median_correlation_loss": 1 - figures["correlation"]["50%"],
        "correlation_below_0.9_ratio": figures["correlation_below_0.9_ratio"],
        "flip_ratio": figures["flip_ratio"],
        "l0_change": abs(other_l0 - l0) / l0,
        "variance_explained_loss": explained - other_explained,
    }
    holds = {name: got[name] <= limit.most for name, limit in LIMITS.items()}
    reasons = [
        f"{limit.words}: {got[name]:.3f}, {'within' if holds[name] else 'above'} {limit.most:g}"
        for name, limit in LIMITS.items()
    ]
    return Answer(all(holds.values()), reasons)


@dataclass(slots=True)
class FidelitySums:
    """What the comparison is made of."""

    num_latents: int
    d_model: int
    first: ReconstructionSums = field(init=False)
    second: ReconstructionSums = field(init=False)
    moments_5F: Tensor = field(init=False)
    """fp64 sums over tokens of a, b, a^2, b^2, ab."""
    both_F: Tensor = field(init=False)
    """Tokens at which a latent is active in both."""
    square_difference: float = 0.0
    """Sum of ||x_b - x_a||^2."""

    def __post_init__(self) -> None:
        shape = self.num_latents, self.d_model
        self.first, self.second = ReconstructionSums(*shape), ReconstructionSums(*shape)
        self.moments_5F = torch.zeros(5, self.num_latents, dtype=torch.float64)
        self.both_F = torch.zeros(self.num_latents, dtype=torch.long)

    @torch.inference_mode()
    def add(self, sae: SAE, a_ND: Tensor, b_ND: Tensor) -> None:
        """Count the residuals of the same tokens in."""
        device = sae.W_dec.device
        a_ND, b_ND = a_ND.to(device).float(), b_ND.to(device).float()
        a_NF, b_NF = sae.encode(a_ND), sae.encode(b_ND)
        self.first.add(sae, a_ND, f_NF=a_NF)
        self.second.add(sae, b_ND, f_NF=b_NF)
        for row, product_NF in enumerate((a_NF, b_NF, a_NF.square(), b_NF.square(), a_NF * b_NF)):
            self.moments_5F[row] += product_NF.sum(0, dtype=torch.float64).cpu()
        self.both_F += ((a_NF > 0) & (b_NF > 0)).sum(0).cpu()
        self.square_difference += float((b_ND - a_ND).double().square().sum())

    def correlation(self) -> Tensor:
        """[F] Pearson correlations; NaN for latents that fire at fewer than MIN_FIRINGS tokens of the first."""
        n = self.first.num_tokens
        a, b, aa, bb, ab = self.moments_5F
        covariance, variance = ab - a * b / n, (aa - a * a / n) * (bb - b * b / n)
        # A latent that never fires in the second has no variance there, and agrees in nothing.
        correlation_F = torch.where(variance > 0, covariance / variance.clamp_min(1e-300).sqrt(), 0.0)
        return correlation_F.masked_fill(self.first.firing_F < MIN_FIRINGS, torch.nan).float()

    @property
    def either_F(self) -> Tensor:
        """Tokens at which a latent is active in one or both."""
        return self.first.firing_F + self.second.firing_F - self.both_F

    def flips(self) -> Tensor:
        """[F] of the tokens at which a latent is active in either, the share in only one; NaN if there are none."""
        return 1 - self.both_F / self.either_F

    def features(self, named: dict[str, int]) -> list[FeatureFidelity]:
        """How each named feature's latent reads on the two, and whether the one alone may be served."""
        columns = self.correlation(), self.flips()
        made = []
        for name, latent in named.items():
            correlation, flips = (_or_none(float(column_F[latent])) for column_F in columns)
            firings = int(self.first.firing_F[latent]), int(self.second.firing_F[latent])
            may = None
            if correlation is not None and flips is not None:
                may = correlation >= MIN_CORRELATION and flips <= LIMITS["flip_ratio"].most
            made.append(FeatureFidelity(name, latent, firings, correlation, flips, may))
        return made

    def by_latent(self) -> dict[str, list[Any]]:
        """Figures of each latent, in order; None where there is nothing to go by."""
        return {
            "correlation": [_or_none(round(value, 6)) for value in self.correlation().tolist()],
            "flip_ratio": [_or_none(round(value, 6)) for value in self.flips().tolist()],
            "firings": [
                list(pair) for pair in zip(self.first.firing_F.tolist(), self.second.firing_F.tolist(), strict=True)
            ],
        }

    def figures(self) -> dict[str, Any]:
        """The comparison in numbers."""
        correlation = self.correlation()
        correlation = correlation[~correlation.isnan()]
        if not len(correlation):
            raise LabError(f"no latent fires at {MIN_FIRINGS} tokens or more of {self.first.num_tokens}: use more text")
        a, b = self.first.figures(), self.second.figures()
        counts = torch.histc(correlation.clamp(-1, 1), bins=_BINS, min=-1, max=1)
        return {
            "tokens": self.first.num_tokens,
            "latents_compared": len(correlation),
            "correlation": {name: float(correlation.quantile(q)) for name, q in _QUANTILES.items()},
            "correlation_below_0.9_ratio": float((correlation < 0.9).float().mean()),
            "flip_ratio": 1 - int(self.both_F.sum()) / int(self.either_F.sum()),
            "residual_relative_error": math.sqrt(self.square_difference / self.first.spread),
            "l0": [a["l0"], b["l0"]],
            "variance_explained": [a["variance_explained"], b["variance_explained"]],
            "correlation_histogram": {
                "edges": torch.linspace(-1, 1, _BINS + 1).tolist(),
                "counts": [int(count) for count in counts],
            },
        }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
