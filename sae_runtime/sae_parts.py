"""A dictionary taken apart: its tensors and the choices of its maths, and what can be rewritten without changing it.

    fold_scale       s into the weights: W_enc * s, W_dec / s, b_dec / s; thresholds and other biases stay
    with_b_dec       a from 0 to 1 or back: b_enc +- b_dec @ W_enc
    scale_latents    latents c times as large: W_enc, biases and thresholds * c, W_dec / c

The first two leave latents and reconstructions as they are, the third the reconstructions. All are exact but for
rounding; sums are taken in fp64. Tensors have the names and shapes of `sae_runtime.sae.SAE`.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sae_runtime.errors import CheckpointError
from sae_runtime.sae import SAE, Activation, Normalization

ENCODER_SIDE = ("W_enc", "b_enc", "b_gate", "b_mag", "threshold")
"""What is in units of the latents. `r_mag` is not: it is a factor."""


@dataclass(frozen=True, slots=True)
class SAEParts:
    """What a dictionary computes with. Tensors are fp32, without `resid_mean`, which only figures need."""

    tensors: dict[str, Tensor]
    activation: Activation
    k: int | None = None
    scale: float = 1.0
    apply_b_dec: bool = True
    normalization: Normalization = "scalar"

    @classmethod
    def of(cls, sae: SAE) -> "SAEParts":
        tensors = {name: t.detach().to("cpu", torch.float32) for name, t in sae.state_dict().items()}
        del tensors["resid_mean"]
        k = sae.k if sae.activation == "topk" else None
        return cls(tensors, sae.activation, k, sae.scale, sae.apply_b_dec, sae.normalization)

    @property
    def d_model(self) -> int:
        return self.tensors["W_dec"].shape[1]

    @property
    def num_latents(self) -> int:
        return self.tensors["W_dec"].shape[0]

    def decoder_norms(self) -> Tensor:
        """[F] norms of the decoder's rows; 1e-8 at least, as SAELens has it."""
        return self.tensors["W_dec"].double().norm(dim=-1).clamp(min=1e-8)

    def changed(self, tensors: dict[str, Tensor], **settings: object) -> "SAEParts":
        """With some tensors replaced, and some settings."""
        rounded = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
        return replace(self, tensors=self.tensors | rounded, **settings)  # type: ignore[arg-type]

    def fold_scale(self) -> "SAEParts":
        """The same dictionary with s = 1."""
        doubles = {name: self.tensors[name].double() for name in ("W_enc", "W_dec", "b_dec")}
        folded = {
            "W_enc": doubles["W_enc"] * self.scale,
            "W_dec": doubles["W_dec"] / self.scale,
            "b_dec": doubles["b_dec"] / self.scale,
        }
        return self if self.scale == 1 else self.changed(folded, scale=1.0)

    def with_b_dec(self, apply_b_dec: bool) -> "SAEParts":
        """The same dictionary with `b_dec` subtracted from the input, or without."""
        if apply_b_dec == self.apply_b_dec:
            return self
        sign = 1 if apply_b_dec else -1
        shift_F = sign * (self.tensors["b_dec"].double() @ self.tensors["W_enc"].double())
        if self.activation != "gated":
            return self.changed({"b_enc": self.tensors["b_enc"].double() + shift_F}, apply_b_dec=apply_b_dec)
        shifted = {
            "b_gate": self.tensors["b_gate"].double() + shift_F,
            "b_mag": self.tensors["b_mag"].double() + shift_F * self.tensors["r_mag"].double().exp(),
        }
        return self.changed(shifted, apply_b_dec=apply_b_dec)

    def scale_latents(self, factor_F: Tensor) -> "SAEParts":
        """Latents times `factor_F` (> 0), reconstructions as before. A batchtopk dictionary becomes a jumprelu one.

        CheckpointError for topk: which latents are the largest would change.
        """
        if self.activation == "topk":
            raise CheckpointError("latents of a topk dictionary can't be rescaled: other ones would be the k largest")
        activation: Activation = "jumprelu" if self.activation == "batchtopk" else self.activation
        factor_F = factor_F.double()
        scaled = {name: self.tensors[name].double() * factor_F for name in ENCODER_SIDE if name in self.tensors}
        scaled["W_dec"] = self.tensors["W_dec"].double() / factor_F[:, None]
        return self.changed(scaled, activation=activation)

    def fold_decoder_norms(self) -> "SAEParts":
        """Decoder rows of norm 1, latents times the norms they had (SAELens's `fold_W_dec_norm`)."""
        return self.scale_latents(self.decoder_norms())
