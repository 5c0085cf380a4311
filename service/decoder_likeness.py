"""Which decoder rows point the same way: the likeness of latents.

Shape suffixes: F latents, R rows of a piece, D model width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_MOST_ENTRIES = 2**15
"""Of a piece: from there on torch takes several threads for elementwise work, too (`at::internal::GRAIN_SIZE`)."""
_SMALLEST = 1e-30


class DecoderLikeness:
    """Cosines between the rows of a decoder, worked out when they are asked for."""

    def __init__(self, w_dec_FD: Tensor) -> None:
        self._w_dec_FD = w_dec_FD.detach()
        self._norms_F = torch.cat([rows_RD.norm(dim=1) for rows_RD in self._pieces()])

    def cosines(self, latent: int) -> list[float]:
        """cos(W_dec[latent], W_dec[i]) for every latent i; 0 where a row is 0. Any thread may ask."""
        row_D = self._w_dec_FD[latent].float()
        # Elementwise and in small pieces, which the asking thread works out alone: all at once, or as a matrix product,
        # it would start a team of threads beside the model's own, and take memory.
        products_F = torch.cat([(rows_RD * row_D).sum(1) for rows_RD in self._pieces()])
        scales_F = (self._norms_F * self._norms_F[latent]).clamp_min(_SMALLEST)
        return [float(value) for value in (products_F / scales_F).tolist()]

    def _pieces(self) -> Iterator[Tensor]:
        """The rows, some at a time, in fp32."""
        rows = max(1, _MOST_ENTRIES // self._w_dec_FD.shape[1])
        for first in range(0, len(self._w_dec_FD), rows):
            yield self._w_dec_FD[first : first + rows].float()
