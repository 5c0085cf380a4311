"""The best few tokens of every latent, each with the window around it, out of a stream of candidates.

For each of F latents K slots hold the candidates of highest score seen so far: a heap per latent, kept for all latents
at once by sorting. What is held does not grow with the stream. The result depends on the candidates alone, not on how
they were divided into batches: highest score first, then the earliest place; where candidates must be distinct, only
the best of those with one key counts.

Shape suffixes: F latents, K slots, W tokens of a window, M candidates, E entries (candidates and what is held).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from discovery.reading_batch import ReadingBatch

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

PADDING = -1
"""Token id where a window reaches beyond its context."""


class WindowSpan(NamedTuple):
    """How many tokens of its context an example shows."""

    before: int = 16
    after: int = 8

    @property
    def width(self) -> int:
        """The focus included."""
        return self.before + 1 + self.after


class Candidates(NamedTuple):
    """Tokens of one batch that may be kept, in order of place."""

    latents_M: Ints
    rows_M: Ints
    """In the batch."""
    scores_M: Floats
    keys_M: Ints
    """Of several with one key only the best is kept."""

    def take(self, chosen: NDArray[Any]) -> "Candidates":
        """Those of a mask, or of indices."""
        return Candidates(self.latents_M[chosen], self.rows_M[chosen], self.scores_M[chosen], self.keys_M[chosen])


class WindowKeeper:
    """K slots for each of F latents. A slot with score -inf is free."""

    def __init__(self, num_latents: int, size: int, span: WindowSpan) -> None:
        self.size, self.span = size, span
        shape = (num_latents, size)
        self.arrays: dict[str, NDArray[Any]] = {
            "score": np.full(shape, -np.inf),
            "key": np.zeros(shape, np.int64),
            "place": np.zeros(shape, np.int64),
            "value": np.zeros(shape, np.float32),
            "document": np.zeros(shape, np.int64),
            "position": np.zeros(shape, np.int32),
            "source": np.zeros(shape, np.int32),
            "token_ids": np.full((*shape, span.width), PADDING, np.int32),
            "readings": np.zeros((*shape, span.width), np.float16),
        }
        self.worst_F: Floats = np.full(num_latents, -np.inf)
        """Score that a candidate must exceed."""

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return sum(array.nbytes for array in self.arrays.values())

    def load(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go on from the arrays of another keeper of this shape."""
        self.arrays = arrays
        self.worst_F = self._scores().min(1)

    def offer(self, candidates: Candidates, batch: ReadingBatch) -> None:
        """Keep those of `candidates` that are among the best. All must exceed `worst_F`, or nothing comes of them."""
        better = candidates.scores_M > self.worst_F[candidates.latents_M]
        candidates = candidates.take(better)
        if len(candidates.latents_M) == 0:
            return
        chosen_M, slots_M = self._merge(candidates, batch.places_N[candidates.rows_M])
        self._store(candidates.take(chosen_M), slots_M, batch)

    def _scores(self) -> Floats:
        return self.arrays["score"]

    def _merge(self, candidates: Candidates, places_M: Ints) -> tuple[Ints, Ints]:
        """(candidates to keep, the slot of each); what they drive out is written over."""
        touched = np.unique(candidates.latents_M)
        held_row, held_slot = np.nonzero(self._scores()[touched] > -np.inf)
        held = touched[held_row], held_slot
        num_held = len(held_row)
        latents_E = np.concatenate([held[0], candidates.latents_M])
        scores_E = np.concatenate([self._scores()[held], candidates.scores_M])
        places_E = np.concatenate([self.arrays["place"][held], places_M])
        keys_E = np.concatenate([self.arrays["key"][held], candidates.keys_M])
        kept_E = _best_entries(latents_E, scores_E, places_E, keys_E, self.size)

        free = np.ones((len(touched), self.size), bool)
        stays = kept_E[kept_E < num_held]
        free[held_row[stays], held_slot[stays]] = False
        free_row, free_slot = np.nonzero(free)
        # Newcomers of a latent take its free slots in order: first those of what was driven out, which they are at
        # least as many as, then those never used, which lie behind. `kept_E` is sorted by latent.
        chosen_M = kept_E[kept_E >= num_held] - num_held
        row_M = np.searchsorted(touched, candidates.latents_M[chosen_M])
        first_free_U = np.searchsorted(free_row, np.arange(len(touched)))
        return chosen_M, free_slot[first_free_U[row_M] + _index_in_run(row_M)]

    def _store(self, chosen: Candidates, slots_M: Ints, batch: ReadingBatch) -> None:
        at = chosen.latents_M, slots_M
        windows = batch.windows(chosen.rows_M, chosen.latents_M, self.span.before, self.span.after)
        columns: dict[str, NDArray[Any]] = {
            "score": chosen.scores_M,
            "key": chosen.keys_M,
            "place": batch.places_N[chosen.rows_M],
            "value": batch.values(chosen.rows_M, chosen.latents_M),
            "document": batch.documents_N[chosen.rows_M],
            "position": batch.positions_N[chosen.rows_M],
            "source": batch.sources_N[chosen.rows_M],
            "token_ids": windows.token_ids_MW,
            "readings": windows.readings_MW,
        }
        for name, column in columns.items():
            self.arrays[name][at] = column
        touched = np.unique(chosen.latents_M)
        self.worst_F[touched] = self._scores()[touched].min(1)


def _best_entries(latents_E: Ints, scores_E: Floats, places_E: Ints, keys_E: Ints, size: int) -> Ints:
    """Entries to keep, sorted by latent: the `size` best of each latent's, of those with one key only the best."""
    order = np.lexsort((places_E, -scores_E, keys_E, latents_E))
    repeated = (np.diff(latents_E[order]) == 0) & (np.diff(keys_E[order]) == 0)
    distinct = order[np.concatenate([[True], ~repeated])]
    order = distinct[np.lexsort((places_E[distinct], -scores_E[distinct], latents_E[distinct]))]
    return order[_index_in_run(latents_E[order]) < size]


def _index_in_run(sorted_M: Ints) -> Ints:
    """How many equal values stand before each of a sorted array's."""
    return np.arange(len(sorted_M)) - np.searchsorted(sorted_M, sorted_M)
