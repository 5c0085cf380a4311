"""The recipe of a training run: what is trained, how sparse, at which rates.

One dataclass for all recipes; `defaults_for(activation)` gives each its own values. Sources, by activation:

    relu       "Scaling Monosemanticity" (Templeton et al. 2024), as in Circuits Updates, April 2024 (Conerly et al.)
    topk       Gao et al. 2024, "Scaling and evaluating sparse autoencoders"
    batchtopk  Bussmann et al. 2024, "BatchTopK sparse autoencoders"
    jumprelu   Rajamanoharan et al. 2024, "Jumping ahead: improving reconstruction fidelity with JumpReLU SAEs"
    gated      Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders"

The papers train on billions of tokens at small rates; the rates here are for millions. docs/training.md has the table.
TopK and BatchTopK keep unit decoder rows in their papers (here: `decoder_norm` unit); free ones learn faster.
"""

from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal, get_args

from sae_runtime.sae import Activation

DecoderInit = Literal["random", "data"]
DecoderNorm = Literal["free", "unit"]
Revival = Literal["auxk", "resample", "none"]
Precision = Literal["bf16", "fp32"]

_DECODER_NORMS: dict[Activation, tuple[DecoderNorm, ...]] = {
    "relu": ("free",),
    "topk": ("free", "unit"),
    "batchtopk": ("free", "unit"),
    "jumprelu": ("unit",),
    "gated": ("unit",),
}
"""What each recipe's loss allows: with free norms, jumprelu's thresholds and gated's penalty would mean nothing."""

FIXED_L0: tuple[Activation, ...] = ("topk", "batchtopk")
"""Recipes whose L0 is k; the others have a penalty with a weight."""


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """The recipe."""

    activation: Activation = "batchtopk"
    num_latents: int = 8192
    k: int = 64
    """Active latents per token: of each one (topk) or on average (batchtopk)."""
    num_steps: int = 2000
    batch_size: int = 2048
    """Tokens per step."""
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_share: float = 0.5
    """Last part of the steps, over which the rate falls linearly to 0."""
    aux_k: int = 256
    """Dead latents that explain the error of each token."""
    aux_weight: float = 1 / 32
    dead_after_tokens: int = 200_000
    """A latent that has been silent for so long counts as dead."""
    max_grad_norm: float = 1.0
    decoder_init: DecoderInit = "random"
    decoder_norm: DecoderNorm = "free"
    """unit: decoder rows keep norm 1. free: they begin at 0.1; relu's penalty weighs by the norm, and topk and
    batchtopk rank latents by pre * norm."""
    seed: int = 0
    sparsity_weight: float = 0.0
    """lambda of the penalty, in units where mean ||x||^2 is about D (relu, jumprelu, gated)."""
    sparsity_warmup_share: float = 0.05
    """First part of the steps, over which lambda rises linearly from 0."""
    l0_target: float = 0.0
    """If above 0, lambda is steered so that this many latents are active at a token (relu, jumprelu, gated)."""
    bandwidth: float = 1.0
    """Width of the straight-through kernel, in units where ||x|| is about sqrt(D) (jumprelu)."""
    threshold_init: float = 0.5
    """Threshold at the start, in the same units (jumprelu)."""
    adam_beta1: float = 0.9
    revival: Revival = "auxk"
    """What is done for dead latents."""
    resample_every: int = 500
    """Steps between resamplings; none falls into the last decay."""
    precision: Precision = "bf16"
    """Of the large products. Weights, sums, losses and the optimiser are fp32 in any case."""

    def __post_init__(self) -> None:
        _check_choice("activation", self.activation, get_args(Activation))
        _check_choice("decoder_init", self.decoder_init, get_args(DecoderInit))
        _check_choice("decoder_norm", self.decoder_norm, _DECODER_NORMS[self.activation])
        _check_choice("revival", self.revival, get_args(Revival))
        _check_choice("precision", self.precision, get_args(Precision))
        counts = ("num_latents", "num_steps", "batch_size", "aux_k", "dead_after_tokens", "resample_every")
        for name in (*counts, "learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.has_fixed_l0 and not 0 < self.k <= self.num_latents:
            raise ValueError(f"k must lie in 1..num_latents={self.num_latents}, got {self.k}")
        for name in ("sparsity_weight", "l0_target", "aux_weight", "warmup_steps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("learning_rate", "sparsity_weight", "l0_target", "aux_weight", "bandwidth", "threshold_init"):
            if not isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
        for name in ("decay_share", "sparsity_warmup_share", "adam_beta1"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.activation == "jumprelu" and not (self.bandwidth > 0 and self.threshold_init > 0):
            raise ValueError(
                f"bandwidth and threshold_init must be positive, got {self.bandwidth}, {self.threshold_init}"
            )
        if self.has_fixed_l0 and (self.sparsity_weight or self.l0_target):
            raise ValueError(
                f"{self.activation} has no penalty: its L0 is k, so sparsity_weight and l0_target must be 0"
            )
        if self.l0_target > self.num_latents:
            raise ValueError(f"l0_target must be at most num_latents={self.num_latents}, got {self.l0_target}")
        if self.l0_target and not self.sparsity_weight:
            # Steering multiplies: 0 would stay 0.
            raise ValueError(
                f"sparsity_weight must be above 0 to be steered to l0_target {self.l0_target}, "
                f"got {self.sparsity_weight}"
            )

    @property
    def has_fixed_l0(self) -> bool:
        return self.activation in FIXED_L0

    @property
    def has_unit_decoder(self) -> bool:
        """Whether decoder rows keep norm 1."""
        return self.decoder_norm == "unit"

    def rate_at(self, step: int) -> float:
        """Learning rate of `step`, counted from 0."""
        warmup = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        decay = min(1.0, (self.num_steps - step) / max(self.decay_share * self.num_steps, 1))
        return self.learning_rate * min(warmup, decay)

    def sparsity_ramp_at(self, step: int) -> float:
        """Factor on lambda at `step`: from 0 to 1 over the warm-up."""
        return min(1.0, step / max(self.sparsity_warmup_share * self.num_steps, 1))

    def is_resampling_step(self, step: int) -> bool:
        """Whether latents are resampled after `step` steps. Not during the decay: nothing would come of them."""
        before_decay = step <= (1 - self.decay_share) * self.num_steps
        return self.revival == "resample" and step > 0 and step % self.resample_every == 0 and before_decay


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


_PENALISED = TrainSettings(activation="relu", learning_rate=3e-3, decay_share=0.2, sparsity_weight=2.0)

_DEFAULTS: dict[str, TrainSettings] = {
    "topk": TrainSettings(activation="topk"),
    "batchtopk": TrainSettings(activation="batchtopk"),
    "relu": replace(_PENALISED, learning_rate=1e-3, warmup_steps=0),
    "jumprelu": replace(_PENALISED, activation="jumprelu", decoder_norm="unit", sparsity_weight=0.5, adam_beta1=0.0),
    "gated": replace(_PENALISED, activation="gated", decoder_norm="unit", adam_beta1=0.0),
}


def defaults_for(activation: str) -> TrainSettings:
    """The values a recipe has where nothing else is asked for."""
    _check_choice("activation", activation, tuple(_DEFAULTS))
    return _DEFAULTS[activation]
