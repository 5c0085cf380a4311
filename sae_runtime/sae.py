"""The sparse autoencoder: residual -> latents -> residual. Used as is for training and for serving.

Shape suffixes: T tokens, D model width, F latents, W watched latents, N top latents.
Knows nothing of language models, files or requests.
"""

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

Activation = Literal["relu", "jumprelu", "topk", "batchtopk", "gated"]
Normalization = Literal["scalar", "constant_norm_rescale", "layer_norm"]

ACTIVATIONS: tuple[str, ...] = get_args(Activation)
NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)

ALWAYS_FLOAT32 = ("threshold", "resid_mean")
"""Small, and a rounded threshold moves the firing point; the mean is what figures are measured against."""


class Normed(NamedTuple):
    """A residual in the dictionary's units: `x = (normed / scale) + shift`."""

    x_TD: Tensor
    scale_T1: Tensor
    shift_T1: Tensor


class TokenReadings(NamedTuple):
    """What the dictionary says of each token. All fp32 but the indices and counts."""

    readings_TW: Tensor
    """Watched latents, in the order asked for."""
    top_values_TN: Tensor
    """Largest latents, falling; 0 where fewer than N are active."""
    top_indices_TN: Tensor
    l0_T: Tensor
    """Active latents."""
    fvu_T: Tensor
    """Fraction of variance unexplained: ||x - x_hat||^2 / ||x - mean||^2."""


class SAE(nn.Module):
    """A sparse autoencoder over D-wide residuals with F latents.

    Implements, with row vectors:
        pre   = (s * x - a * b_dec) @ W_enc + b_enc
        f     = act(pre)
        x_hat = (f @ W_dec + b_dec) / s
    `s` is a scalar, or per token: constant_norm_rescale s = sqrt(D) / ||x||; layer_norm subtracts the token's mean and
    takes s = 1 / (std + 1e-5), std with D-1 degrees of freedom, both undone on the way out (as SAELens does).
    `a` is 1 if the decoder bias is subtracted from the input, else 0. Activations:
        relu       max(pre, 0)
        jumprelu   pre where pre > max(threshold_F, 0), else 0 (strict)
        batchtopk  the same with one threshold for all latents: the inference form of BatchTopK
        topk       max(pre, 0) of the k largest pre of each token, else 0
        gated      z = (s x - a b_dec) @ W_enc: max(z * exp(r_mag) + b_mag, 0) where z + b_gate > 0 (there is no b_enc)
    """

    def __init__(
        self,
        *,
        d_model: int,
        num_latents: int,
        activation: Activation,
        k: int | None = None,
        scale: float = 1.0,
        apply_b_dec: bool = True,
        normalization: Normalization = "scalar",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, got {normalization!r}")
        if activation == "topk" and not (k is not None and 0 < k <= num_latents):
            raise ValueError(f"k must lie in 1..{num_latents} for activation topk, got {k}")
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {scale}")
        self.d_model, self.num_latents = d_model, num_latents
        self.activation, self.k = activation, k
        self.scale, self.apply_b_dec, self.normalization = scale, apply_b_dec, normalization
        self.W_enc = nn.Parameter(torch.zeros(d_model, num_latents))
        self.W_dec = nn.Parameter(torch.zeros(num_latents, d_model))
        self.b_dec = nn.Parameter(torch.zeros(d_model))
        if activation == "gated":
            self.b_gate = nn.Parameter(torch.zeros(num_latents))
            self.b_mag = nn.Parameter(torch.zeros(num_latents))
            self.r_mag = nn.Parameter(torch.zeros(num_latents))
        else:
            self.b_enc = nn.Parameter(torch.zeros(num_latents))
        # Always fp32, whatever the weights are: a threshold rounded to bf16 moves the firing point.
        self.threshold: Tensor
        if activation == "jumprelu":
            self.threshold = nn.Parameter(torch.zeros(num_latents))
        elif activation == "batchtopk":
            self.register_buffer("threshold", torch.zeros(()))
        # Mean residual of the training data; the centre that explained variance is measured against.
        self.resid_mean: Tensor
        self.register_buffer("resid_mean", torch.zeros(d_model))

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.W_dec.device

    @property
    def is_elementwise(self) -> bool:
        """True if a latent's value depends on its own pre-activation alone."""
        return self.activation != "topk"

    def normalize(self, x_TD: Tensor) -> Normed:
        """Residual to dictionary units, fp32."""
        x_TD = x_TD.to(torch.float32)
        zero_T1 = x_TD.new_zeros(x_TD.shape[0], 1)
        match self.normalization:
            case "scalar":
                return Normed(x_TD * self.scale, torch.full_like(zero_T1, self.scale), zero_T1)
            case "constant_norm_rescale":
                scale_T1 = self.d_model**0.5 / x_TD.norm(dim=-1, keepdim=True)
                return Normed(x_TD * scale_T1, scale_T1, zero_T1)
            case "layer_norm":
                mean_T1 = x_TD.mean(dim=-1, keepdim=True)
                std_T1 = (x_TD - mean_T1).std(dim=-1, keepdim=True)
                # SAELens divides by std + 1e-5 but multiplies back by std alone.
                return Normed((x_TD - mean_T1) / (std_T1 + 1e-5), 1 / std_T1, mean_T1)

    def centre(self, normed: Normed) -> Tensor:
        """What the encoder matrix sees."""
        return normed.x_TD - self.b_dec if self.apply_b_dec else normed.x_TD

    def preactivate(self, x_TD: Tensor) -> Tensor:
        """[T, D] residuals -> [T, F] fp32 pre-activations (without bias for gated)."""
        pre_TF = self.centre(self.normalize(x_TD)) @ self.W_enc
        return pre_TF if self.activation == "gated" else pre_TF + self.b_enc

    def encode(self, x_TD: Tensor) -> Tensor:
        """[T, D] residuals -> [T, F] fp32 latents, all of them, zeros included."""
        pre_TF = self.preactivate(x_TD)
        if self.activation == "topk":
            assert self.k is not None
            values_TK, indices_TK = pre_TF.topk(self.k, dim=-1, sorted=False)
            return torch.zeros_like(pre_TF).scatter_(-1, indices_TK, values_TK.relu())
        return self.activate(pre_TF, slice(None))

    def activate(self, pre_TX: Tensor, latents: slice | Tensor) -> Tensor:
        """Element-wise activation of the pre-activations of `latents`, in the last dimension of `pre_TX`."""
        match self.activation:
            case "relu":
                return pre_TX.relu()
            case "jumprelu":
                return pre_TX.relu() * (pre_TX > self.threshold[latents])
            case "batchtopk":
                return pre_TX.relu() * (pre_TX > self.threshold)
            case "gated":
                magnitude_TX = (pre_TX * self.r_mag[latents].exp() + self.b_mag[latents]).relu()
                return magnitude_TX * (pre_TX + self.b_gate[latents] > 0)
            case _:
                raise AssertionError(f"{self.activation} is not element-wise")

    def decode(self, f_TF: Tensor) -> Tensor:
        """[T, F] latents -> [T, D] residuals. With per-token normalisation use `reconstruct`."""
        if self.normalization != "scalar":
            raise ValueError(f"decode needs the token's own scale with {self.normalization}; use reconstruct(x)")
        return (f_TF @ self.W_dec + self.b_dec) / self.scale

    def _decode_sparse(self, f_TF: Tensor) -> Tensor:
        """`f @ W_dec`, reading only the rows of active latents."""
        tokens, latents = f_TF.nonzero(as_tuple=True)
        counts_T = torch.bincount(tokens, minlength=f_TF.shape[0])
        return nn.functional.embedding_bag(
            latents,
            self.W_dec,
            counts_T.cumsum(0) - counts_T,
            mode="sum",
            per_sample_weights=f_TF[tokens, latents],
        )

    def reconstruct(self, x_TD: Tensor, f_TF: Tensor | None = None) -> Tensor:
        """[T, D] residuals -> their [T, D] reconstructions, in the residual's units; `f_TF` if already encoded."""
        normed = self.normalize(x_TD)
        f_TF = self.encode(x_TD) if f_TF is None else f_TF
        return (self._decode_sparse(f_TF) + self.b_dec) / normed.scale_T1 + normed.shift_T1

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.reconstruct(x_TD)

    def read(self, x_TD: Tensor, watched: Tensor | list[int]) -> Tensor:
        """[T, D] residuals -> [T, W] fp32 latents: equal to `encode(x)[:, watched]`.

        Element-wise activations compute only the watched columns; topk has to rank all latents.
        """
        watched_W = torch.as_tensor(watched, dtype=torch.long, device=self.W_enc.device)
        if not self.is_elementwise:
            return self.encode(x_TD)[:, watched_W]
        pre_TW = self.centre(self.normalize(x_TD)) @ self.W_enc[:, watched_W]
        if self.activation != "gated":
            pre_TW = pre_TW + self.b_enc[watched_W]
        return self.activate(pre_TW, watched_W)

    def read_tokens(self, x_TD: Tensor, watched: Tensor, num_top: int) -> TokenReadings:
        """Encode every token in full and report on it. `watched` [W] long, `num_top` latents per token."""
        f_TF = self.encode(x_TD)
        top = f_TF.topk(num_top, dim=-1)
        error_T = (x_TD.to(torch.float32) - self.reconstruct(x_TD, f_TF)).square().sum(-1)
        spread_T = (x_TD.to(torch.float32) - self.resid_mean).square().sum(-1)
        return TokenReadings(
            readings_TW=f_TF[:, watched],
            top_values_TN=top.values,
            top_indices_TN=top.indices,
            l0_T=(f_TF > 0).sum(-1),
            fvu_T=error_T / spread_T,
        )

    def directions(self, latents_T: Tensor, x_TD: Tensor) -> Tensor:
        """What one unit of a latent adds to each residual of `x_TD`: [T, D].

        `latents_T` has one latent for each residual, or a single one for all: then [1, D], unless what it adds depends
        on the residual. W_dec's rows in residual units; the decoder bias is no part of them.
        """
        rows_TD = self.W_dec[latents_T].to(torch.float32)
        return rows_TD / (self.scale if self.normalization == "scalar" else self.normalize(x_TD).scale_T1)

    def to_weights_dtype(self, dtype: torch.dtype) -> "SAE":
        """Round the weights to `dtype` and keep them in fp32: what serving from such a file computes."""
        for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
            if name not in ALWAYS_FLOAT32:
                tensor.data = tensor.data.to(dtype).to(torch.float32)
        return self
