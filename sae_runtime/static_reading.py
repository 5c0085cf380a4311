"""A dictionary's readings computed in shapes that do not depend on the data, as a recorded pass needs them.

What `SAE.read_tokens` gives, but for the order of sums. Reconstructions are taken from the k chosen latents of a topk
dictionary, and for others from all: which are active is known on the device alone.

Shape suffixes: T tokens, D model width, F latents, K chosen latents, W watched latents, N top latents.
"""

import torch
from torch import Tensor, nn

from sae_runtime.latent_reader import LatentReader
from sae_runtime.sae import SAE, TokenReadings


class StaticReading:
    """Reads tokens of one dictionary, or of none."""

    def __init__(self, reader: LatentReader) -> None:
        self._reader = reader
        self._weight_DF: Tensor | None = None
        if isinstance(reader, SAE) and reader.device.type == "cuda":
            narrow_DF = reader.W_enc.to(torch.bfloat16)
            # Of weights that are stored in bf16 nothing is lost, and half as much has to be read.
            if torch.equal(narrow_DF.to(torch.float32), reader.W_enc):
                self._weight_DF = narrow_DF

    @property
    def has_latents(self) -> bool:
        return self._reader.num_latents > 0

    @property
    def num_bytes(self) -> int:
        """Of what it keeps besides the dictionary."""
        return 0 if self._weight_DF is None else self._weight_DF.numel() * self._weight_DF.element_size()

    def top_limit(self, num_top: int) -> int:
        """How many of the largest latents are worth ranking where `num_top` are asked for: no more are active."""
        reader = self._reader
        return min(num_top, reader.k) if isinstance(reader, SAE) and reader.k else min(num_top, reader.num_latents)

    def read_tokens(self, x_TD: Tensor, watched_W: Tensor, num_top: int) -> TokenReadings:
        """As `LatentReader.read_tokens`, with `top_limit(num_top)` largest latents."""
        sae, num_top = self._reader, self.top_limit(num_top)
        if not isinstance(sae, SAE):
            return sae.read_tokens(x_TD, watched_W, num_top)
        pre_TF = self._preactivate(sae, x_TD)
        if sae.activation == "topk":
            assert sae.k is not None
            values_TK, indices_TK = pre_TF.topk(sae.k, dim=-1)
            values_TK = values_TK.relu()
            f_TF = torch.zeros_like(pre_TF).scatter_(-1, indices_TK, values_TK)
            top_values_TN, top_indices_TN = values_TK[:, :num_top], indices_TK[:, :num_top]
            l0_T = (values_TK > 0).sum(-1)
            decoded_TD = nn.functional.embedding_bag(indices_TK, sae.W_dec, mode="sum", per_sample_weights=values_TK)
        else:
            f_TF = sae.activate(pre_TF, slice(None))
            top_values_TN, top_indices_TN = f_TF.topk(num_top, dim=-1)
            l0_T = (f_TF > 0).sum(-1)
            decoded_TD = f_TF @ sae.W_dec
        normed = sae.normalize(x_TD)
        rebuilt_TD = (decoded_TD + sae.b_dec) / normed.scale_T1 + normed.shift_T1
        x_TD = x_TD.to(torch.float32)
        return TokenReadings(
            readings_TW=f_TF[:, watched_W],
            top_values_TN=top_values_TN,
            top_indices_TN=top_indices_TN,
            l0_T=l0_T,
            fvu_T=(x_TD - rebuilt_TD).square().sum(-1) / (x_TD - sae.resid_mean).square().sum(-1),
        )

    def _preactivate(self, sae: SAE, x_TD: Tensor) -> Tensor:
        if self._weight_DF is None:
            return sae.preactivate(x_TD)
        from sae_runtime.kernels import encode

        # A gated dictionary adds its biases later, one for the gate and one for the magnitude.
        bias_F = torch.zeros_like(sae.b_gate) if sae.activation == "gated" else sae.b_enc
        return encode.preactivate(sae.centre(sae.normalize(x_TD)), self._weight_DF, bias_F)
