"""Whole contexts with the readings of every latent at every token, and the windows around tokens.

Shape suffixes: N tokens (position 0 of each context left out), C contexts, M chosen tokens, W tokens of a window,
F latents, P pairs of a token and a latent active there.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]

_PRIME = np.uint64(0x9E3779B97F4A7C15)


class Windows(NamedTuple):
    """What stands around M tokens. Beyond the context's ends ids are -1 and readings 0."""

    token_ids_MW: NDArray[np.int32]
    readings_MW: NDArray[np.float16]


class ActivePairs(NamedTuple):
    """Where latents are active, token by token: `rows_P` rises."""

    rows_P: Ints
    latents_P: Ints
    values_P: NDArray[np.float32]

    def take(self, chosen: NDArray[Any]) -> "ActivePairs":
        """Those of a mask, or of indices."""
        return ActivePairs(self.rows_P[chosen], self.latents_P[chosen], self.values_P[chosen])


class ReadingBatch:
    """Some whole contexts as a dictionary reads them."""

    def __init__(
        self,
        f_NF: Tensor,
        *,
        token_ids_N: Ints,
        positions_N: Ints,
        documents_N: Ints,
        sources_N: Ints,
        first_ids_C: Ints,
        first_place: int,
    ) -> None:
        """`f_NF` is 0 at tokens that are not to be read; `first_place` counts the tokens before this batch."""
        self.f_NF = f_NF
        self.token_ids_N, self.positions_N = token_ids_N, positions_N
        self.documents_N, self.sources_N = documents_N, sources_N
        self.places_N: Ints = first_place + np.arange(len(token_ids_N))
        begins = np.flatnonzero(positions_N == 1)
        self.contexts_N: Ints = np.cumsum(positions_N == 1) - 1
        """From 0 in each batch."""
        self._begin_N, self._end_N = begins[self.contexts_N], np.append(begins[1:], len(token_ids_N))[self.contexts_N]
        self._first_ids_C = first_ids_C

    def active(self) -> ActivePairs:
        """All pairs of a token and a latent that is active there."""
        rows_P, latents_P = (index.cpu() for index in self.f_NF.nonzero(as_tuple=True))
        return ActivePairs(rows_P.numpy(), latents_P.numpy(), self.values(rows_P.numpy(), latents_P.numpy()))

    def values(self, rows_M: Ints, latents_M: Ints) -> NDArray[np.float32]:
        """[M] readings."""
        device = self.f_NF.device
        at = torch.from_numpy(rows_M).to(device), torch.from_numpy(latents_M).to(device)
        return self.f_NF[at].cpu().numpy()

    def windows(self, rows_M: Ints, latents_M: Ints, before: int, after: int) -> Windows:
        """The tokens around each of `rows_M`, within its context, and what its latent reads there."""
        rows_MW, inside_MW, ids_MW = self._around(rows_M, before, after)
        latents_MW = np.broadcast_to(latents_M[:, None], rows_MW.shape)
        readings_MW = np.zeros(rows_MW.shape, np.float32)
        readings_MW[inside_MW] = self.values(rows_MW[inside_MW], latents_MW[inside_MW])
        # Larger ones would be infinite in fp16.
        return Windows(ids_MW.astype(np.int32), readings_MW.clip(max=65504).astype(np.float16))

    def _around(self, rows_M: Ints, before: int, after: int) -> tuple[Ints, NDArray[np.bool_], Ints]:
        """Rows around each row, which of them are in its context, and token ids with position 0's among them."""
        rows_MW = rows_M[:, None] + np.arange(-before, after + 1)
        begin_M1, end_M1 = self._begin_N[rows_M][:, None], self._end_N[rows_M][:, None]
        inside_MW = (rows_MW >= begin_M1) & (rows_MW < end_M1)
        ids_MW = np.where(inside_MW, self.token_ids_N[rows_MW.clip(0, len(self.token_ids_N) - 1)], -1)
        first_M1 = self._first_ids_C[self.contexts_N[rows_M]][:, None]
        return rows_MW, inside_MW, np.where(rows_MW == begin_M1 - 1, first_M1, ids_MW)

    def window_ids(self, row: int, before: int, after: int) -> Ints:
        """[W] token ids around one token."""
        return self._around(np.array([row]), before, after)[2][0]

    def rows_around(self, row: int, before: int, after: int) -> tuple[int, int]:
        """(first row, row behind the last) of the tokens around one token, position 0 left out."""
        return max(row - before, int(self._begin_N[row])), min(row + after + 1, int(self._end_N[row]))

    def text_keys(self, num_tokens: int) -> Ints:
        """[N] hash of the last `num_tokens` tokens, the token's own included: equal where the text before is equal."""
        ids_NW = self._around(np.arange(len(self.token_ids_N)), num_tokens - 1, 0)[2].astype(np.uint64)
        keys_N = np.zeros(len(ids_NW), np.uint64)
        for column in ids_NW.T:
            keys_N = mix(keys_N + column)
        return keys_N.view(np.int64)


def mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A well-mixed 64-bit number for each (splitmix64's finaliser; Steele, Lea and Flood 2014)."""
    numbers = numbers + _PRIME
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
