"""A finished pass as an example file: it appears whole or not at all."""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from discovery import example_schema
from discovery.errors import ExampleError
from discovery.example_collector import HISTOGRAM_EDGES, Collector
from discovery.example_store import TOP
from discovery.logit_effects import LogitEffects
from discovery.token_text import pieces_of, token_bytes
from discovery.window_keeper import PADDING, WindowKeeper
from sae_runtime.errors import plain_reason
from sae_runtime.whole_files import whole_file

_SOURCES_SHOWN = 6


def write_store(
    path: Path,
    collector: Collector,
    effects: LogitEffects,
    *,
    sources: Sequence[str],
    tokenizer: Any,
    manifest: Mapping[str, Any],
    progress: bool = False,
) -> None:
    """Write everything to `path`; what was there before is replaced at the end. ExampleError if the disk is full."""
    try:
        with whole_file(path) as partial, closing(example_schema.create(partial)) as connection, connection:
            _StoreWriter(connection, collector, effects, sources, tokenizer).write(manifest, progress)
    except (OSError, sqlite3.OperationalError) as error:
        raise ExampleError(
            f"example file {path} can't be written: {plain_reason(error)}; all of the text has been read, and the same "
            "command goes on"
        ) from error


class _StoreWriter:
    """Fills the tables of one file."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        collector: Collector,
        effects: LogitEffects,
        sources: Sequence[str],
        tokenizer: Any,
    ) -> None:
        self._connection, self._collector, self._effects, self._sources = connection, collector, effects, sources
        self._bytes = token_bytes(tokenizer, self._tokens_used().tolist())
        self._has_text_index = example_schema.has_text_index(connection)

    def write(self, manifest: Mapping[str, Any], progress: bool) -> None:
        """All tables."""
        collector, execute = self._collector, self._connection.executemany
        totals = {
            "schema_version": example_schema.SCHEMA_VERSION,
            "num_latents": len(collector.num_active_F),
            "num_tokens": collector.num_tokens,
            "num_massive": collector.num_massive,
            "histogram_edges": HISTOGRAM_EDGES.tolist(),
        }
        rows = sorted((totals | dict(manifest)).items())
        execute("INSERT INTO manifest VALUES (?, ?)", [(key, json.dumps(value)) for key, value in rows])
        execute("INSERT INTO sources VALUES (?, ?)", list(enumerate(self._sources)))
        execute("INSERT INTO tokens VALUES (?, ?)", sorted(self._bytes.items()))
        execute("INSERT INTO backgrounds VALUES (?, ?, ?, ?, ?, ?, ?)", list(self._backgrounds()))
        latents = range(len(collector.num_active_F))
        for latent in tqdm(latents, desc="writing", unit="latent", mininterval=5, disable=not progress):
            self._write_latent(latent)
        if self._has_text_index:
            self._connection.execute("INSERT INTO example_texts (example_texts) VALUES ('optimize')")

    def _tokens_used(self) -> NDArray[np.int64]:
        collector, effects = self._collector, self._effects
        arrays = [collector.top.arrays["token_ids"], collector.sample.arrays["token_ids"]]
        arrays += [window.token_ids_W for window in collector.background.windows]
        arrays += [effects.promoted_ids_FE, effects.suppressed_ids_FE]
        used = np.unique(np.concatenate([array.ravel() for array in arrays]))
        return used[used != PADDING].astype(np.int64)

    def _backgrounds(self) -> Iterator[tuple[Any, ...]]:
        before = self._collector.settings.before
        for rank, window in enumerate(self._collector.background.windows):
            ids, focus = _trim(window.token_ids_W, before)
            place = window.source, window.document, window.position, focus
            yield rank, *place, ids.tobytes(), window.active.tobytes()

    def _write_latent(self, latent: int) -> None:
        collector, effects = self._collector, self._effects
        pairs = (effects.promoted_ids_FE, effects.promoted_FE, effects.suppressed_ids_FE, effects.suppressed_FE)
        self._connection.execute(
            "INSERT INTO latents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                latent,
                int(collector.num_active_F[latent]),
                float(collector.max_F[latent]),
                float(collector.sum_F[latent]),
                collector.histogram_FH[latent].tobytes(),
                json.dumps(self._shares(latent)),
                *(array[latent].tobytes() for array in pairs),
            ),
        )
        texts = []
        for kind, rank, slot in ranked(collector, latent):
            keeper = collector.top if kind == TOP else collector.sample
            row, ids = self._example(keeper, latent, slot)
            self._connection.execute(
                "INSERT INTO examples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (latent, kind, rank, *row)
            )
            if kind == TOP:
                texts.append("".join(pieces_of([self._bytes[token_id] for token_id in ids.tolist()])))
        if self._has_text_index and texts:
            self._connection.execute(
                "INSERT INTO example_texts (rowid, body) VALUES (?, ?)", (latent, "\n".join(texts))
            )

    def _example(self, keeper: WindowKeeper, latent: int, slot: int) -> tuple[tuple[Any, ...], NDArray[np.int32]]:
        arrays, before = keeper.arrays, self._collector.settings.before
        ids, focus = _trim(arrays["token_ids"][latent, slot], before)
        readings = arrays["readings"][latent, slot][before - focus : before - focus + len(ids)]
        place = (int(arrays[name][latent, slot]) for name in ("source", "document", "position"))
        value = float(arrays["value"][latent, slot])
        return (value, *place, focus, ids.tobytes(), readings.tobytes()), ids

    def _shares(self, latent: int) -> dict[str, float]:
        counts_S = self._collector.by_source_FS[latent]
        largest = np.argsort(-counts_S, kind="stable")[:_SOURCES_SHOWN]
        total = max(int(counts_S.sum()), 1)
        return {self._sources[s]: round(int(counts_S[s]) / total, 4) for s in largest if counts_S[s]}


def ranked(collector: Collector, latent: int) -> Iterator[tuple[int, int, int]]:
    """(kind, rank, slot) of a latent's examples in the order of the file."""
    for rank, slot in enumerate(_by_value(collector.top, latent)):
        yield TOP, rank, slot
    # n sampled tokens in order of their readings; number i, from the weakest, lies in bin i * bins // n.
    slots = _by_value(collector.sample, latent)
    num_bins, ranks = collector.settings.num_bins, [0] * collector.settings.num_bins
    placed = []
    for index, slot in enumerate(slots):
        bin_ = (len(slots) - 1 - index) * num_bins // len(slots)
        placed.append((bin_ + 1, ranks[bin_], slot))
        ranks[bin_] += 1
    yield from sorted(placed)


def _by_value(keeper: WindowKeeper, latent: int) -> list[int]:
    """Slots in use, largest reading first, then earliest place."""
    arrays = keeper.arrays
    slots = np.flatnonzero(arrays["score"][latent] > -np.inf)
    order = np.lexsort((arrays["place"][latent][slots], -arrays["value"][latent][slots].astype(np.float64)))
    return [int(slot) for slot in slots[order]]


def _trim(token_ids_W: NDArray[np.int32], before: int) -> tuple[NDArray[np.int32], int]:
    """A window without its padding, and the index of the focus in it."""
    inside = np.flatnonzero(token_ids_W != PADDING)
    return token_ids_W[inside], before - int(inside[0])
