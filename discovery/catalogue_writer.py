"""Writes a latent catalogue (`monitors/latent_catalogue.py`) out of an example file. It appears whole or not at all.

The same input gives the same bytes, whenever and wherever, as long as zlib and SQLite are the same.
"""

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from monitors.byte_stream import deflate, pack_postings
from monitors.entry_codec import EntryCodec, TokenTable
from monitors.latent_catalogue import FORMAT_VERSION, TABLES, content_sha256
from monitors.latent_entry import SILENT, LatentEntry, Score
from monitors.latent_words import entry_words, word_weights
from sae_runtime.whole_files import whole_file

_PAGE_BYTES = 4096


class CatalogueRow(NamedTuple):
    """One latent of a catalogue."""

    num_active: int
    max: float
    entry: LatentEntry

    @property
    def detection(self) -> Score | None:
        """What latents can be ordered by."""
        return self.entry.said.detection if self.entry.said else None

    @property
    def figures(self) -> tuple[int, float, float | None, int]:
        """Columns of the latent that are not packed."""
        score = self.detection
        accuracy, num_windows = (score.balanced_accuracy, score.num_windows) if score else (None, 0)
        return self.num_active, self.max, accuracy, num_windows


def write_catalogue(
    path: Path, rows: Sequence[CatalogueRow], tokens: Mapping[int, bytes], manifest: Mapping[str, Any]
) -> None:
    """Write `rows`, by latent. `tokens` has the bytes of all tokens quoted, in the order of their ranks.

    `manifest` must name the `sources` and the `histogram_edges` of the entries. OSError if the disk is full.
    """
    try:
        with whole_file(path) as partial, closing(sqlite3.connect(partial)) as connection:
            connection.executescript(f"PRAGMA page_size = {_PAGE_BYTES}; PRAGMA journal_mode = OFF;" + TABLES)
            with connection:
                _fill(connection, rows, tokens, manifest)
            connection.execute("VACUUM")
    except sqlite3.OperationalError as error:
        raise OSError(f"catalogue {path} can't be written: {error}") from error


def _fill(
    connection: sqlite3.Connection,
    rows: Sequence[CatalogueRow],
    tokens: Mapping[int, bytes],
    manifest: Mapping[str, Any],
) -> None:
    table = TokenTable(tokens)
    codec = EntryCodec(table, manifest["sources"], len(manifest["histogram_edges"]) - 1)
    facts = {"format_version": FORMAT_VERSION, "num_latents": len(rows)} | dict(manifest)
    connection.executemany("INSERT INTO manifest VALUES (?, ?)", _as_json(facts))
    connection.execute("INSERT INTO tokens VALUES (?)", (table.pack(),))
    packed = ((i, *row.figures, b"" if row.entry == SILENT else codec.pack(row.entry)) for i, row in enumerate(rows))
    connection.executemany("INSERT INTO latents VALUES (?, ?, ?, ?, ?, ?)", packed)
    connection.executemany("INSERT INTO words VALUES (?, ?, ?, ?)", _postings([row.entry for row in rows]))
    content = {"content_sha256": content_sha256(connection)}
    connection.executemany("INSERT INTO manifest VALUES (?, ?)", _as_json(content))


def _as_json(facts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    return [(key, json.dumps(value, sort_keys=True)) for key, value in sorted(facts.items())]


def _postings(entries: Collection[LatentEntry]) -> Iterator[tuple[str, int, bool, bytes]]:
    """Each word with the latents that it finds, in order of the words' bytes."""
    latents: dict[str, list[tuple[int, int]]] = {}
    for latent, entry in enumerate(entries):
        for word, weight in word_weights(entry_words(entry)).items():
            latents.setdefault(word, []).append((latent, weight))
    for word in sorted(latents, key=str.encode):
        plain = pack_postings(latents[word])
        packed = deflate(plain)
        is_deflated = len(packed) < len(plain)
        yield word, len(latents[word]), is_deflated, packed if is_deflated else plain
