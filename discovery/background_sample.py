"""Random windows of a text, and which latents are active in each: texts on which a latent is silent.

The windows are those around the tokens with the smallest hash of (seed, place), so that they depend on the text alone.

Shape suffixes: N tokens, B windows, W tokens of a window, A active latents of all windows together.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from discovery.reading_batch import ActivePairs, Ints, ReadingBatch, mix
from discovery.window_keeper import WindowSpan


class BackgroundWindow(NamedTuple):
    """One random window."""

    priority: int
    """The smallest are kept."""
    document: int
    position: int
    source: int
    token_ids_W: NDArray[np.int32]
    active: NDArray[np.int32]
    """Latents active at any of its tokens."""


class BackgroundSample:
    """At most `size` windows."""

    def __init__(self, size: int, span: WindowSpan) -> None:
        self.size, self.span = size, span
        self.windows: list[BackgroundWindow] = []
        """By priority."""

    def offer(self, batch: ReadingBatch, pairs: ActivePairs, wanted_N: NDArray[np.bool_], seed: int) -> None:
        """Keep those of the batch's wanted tokens that are among the sample. `pairs` are all of the batch."""
        # Bits turned over, so that these numbers have nothing to do with those of pairs.
        priorities_N = mix(mix(~np.array([seed], np.uint64)) + batch.places_N.astype(np.uint64)) >> np.uint64(1)
        limit = self.windows[-1].priority if len(self.windows) == self.size else 2**63
        rows = np.flatnonzero(wanted_N & (priorities_N < np.uint64(limit)))
        rows = rows[np.argsort(priorities_N[rows])][: self.size]
        found = [self._window(batch, pairs, int(row), int(priorities_N[row])) for row in rows]
        self.windows = sorted([*self.windows, *found], key=lambda window: window.priority)[: self.size]

    def _window(self, batch: ReadingBatch, pairs: ActivePairs, row: int, priority: int) -> BackgroundWindow:
        token_ids_W = batch.window_ids(row, self.span.before, self.span.after).astype(np.int32)
        first, behind = np.searchsorted(pairs.rows_P, batch.rows_around(row, self.span.before, self.span.after))
        active = np.unique(pairs.latents_P[first:behind]).astype(np.int32)
        place = int(batch.documents_N[row]), int(batch.positions_N[row]), int(batch.sources_N[row])
        return BackgroundWindow(priority, *place, token_ids_W, active)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All windows as arrays."""
        lengths: Ints = np.array([len(window.active) for window in self.windows], np.int64)
        names = ("priority", "document", "position", "source")
        columns = {name: np.array([getattr(window, name) for window in self.windows], np.int64) for name in names}
        token_ids = [window.token_ids_W for window in self.windows]
        return columns | {
            "token_ids_BW": np.array(token_ids, np.int32).reshape(len(self.windows), self.span.width),
            "active_A": np.concatenate([window.active for window in self.windows] or [np.empty(0, np.int32)]),
            "num_active_B": lengths,
        }

    def load(self, arrays: dict[str, NDArray[Any]]) -> None:
        """The windows back from `arrays()`."""
        columns = zip(*(arrays[name].tolist() for name in ("priority", "document", "position", "source")), strict=True)
        active = np.split(arrays["active_A"], np.cumsum(arrays["num_active_B"])[:-1])
        self.windows = [
            BackgroundWindow(priority, document, position, source, token_ids_W, latents)
            for (priority, document, position, source), token_ids_W, latents in zip(
                columns, arrays["token_ids_BW"], active, strict=False
            )
        ]
