"""The latent catalogue: what is known of every latent of a dictionary, in one small read-only SQLite file beside it.

Per latent: how often and how strongly it fires, what it promotes, an explanation with its scores, and a few examples of
text that may be quoted. Beside that, each word with the latents that it finds, so that a search reads a row per word.
`telltale lab catalogue` writes it. Like the feature file it is bound to its dictionary by the weights' hash.

    catalogue = LatentCatalogue.open(folder / "catalogue.sqlite")
    catalogue.check_binding(sae_sha256, num_latents)
    catalogue.figures[66].num_active, catalogue.entry(66).examples[0].text

Several threads may use one at the same time. What is read from disk is a row or two.
"""

import hashlib
import json
import sqlite3
import struct
import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from monitors.byte_stream import inflate, unpack_postings
from monitors.entry_codec import EntryCodec, TokenTable
from monitors.errors import MAX_SHOWN_CHARS, CatalogueError, Problem, shown
from monitors.latent_entry import SILENT, LatentEntry, LatentFigures, Score

FORMAT_VERSION = 1
CATALOGUE_FILE = "catalogue.sqlite"
"""Its name in a dictionary's folder."""

Order = Literal["index", "density", "max_reading", "detection"]

TABLES = """
CREATE TABLE manifest (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;  -- values are JSON
CREATE TABLE tokens (packed BLOB NOT NULL);  -- one row; see entry_codec.TokenTable
CREATE TABLE latents (
    latent INTEGER PRIMARY KEY,
    num_active INTEGER NOT NULL,
    max REAL NOT NULL,
    detection REAL, detection_windows INTEGER NOT NULL,
    entry BLOB NOT NULL                      -- see entry_codec.EntryCodec; empty for a latent that never fires
);
CREATE TABLE words (
    word TEXT PRIMARY KEY,                   -- see latent_words
    num_latents INTEGER NOT NULL,
    is_deflated INTEGER NOT NULL,            -- 1 where that makes the postings smaller
    postings BLOB NOT NULL                   -- see byte_stream.pack_postings
) WITHOUT ROWID;
"""

_UNREADABLE = (ValueError, LookupError, TypeError, struct.error, zlib.error, sqlite3.Error)


class LatentCatalogue:
    """One catalogue, open until the process ends or `close`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """`open` is what turns a file that can't be used into a CatalogueError."""
        self.path = path
        self._connection, self._lock = connection, threading.Lock()
        self.manifest: Mapping[str, Any] = {
            key: json.loads(value) for key, value in connection.execute("SELECT key, value FROM manifest")
        }
        """Dictionary, model, corpus, whose text is quoted under what licence; docs/catalogue.md lists the keys."""
        self._check_contents()
        self._check_latents()
        columns = "num_active, max, detection, detection_windows"
        rows = connection.execute(f"SELECT {columns} FROM latents ORDER BY latent").fetchall()
        self.figures: Sequence[LatentFigures] = [
            LatentFigures(num_active, largest, Score(detection, num_windows) if num_windows else None)
            for num_active, largest, detection, num_windows in rows
        ]
        """Of every latent, by index."""
        (packed,) = connection.execute("SELECT packed FROM tokens").fetchone()
        sources, edges = self.manifest["sources"], self.manifest["histogram_edges"]
        self.num_tokens = int(self.manifest["num_tokens"])
        """Tokens of the corpus, position 0 and massive activations left out."""
        self.histogram_edges: tuple[float, ...] = tuple(map(float, edges))
        self._codec = EntryCodec(TokenTable.unpack(packed), sources, len(edges) - 1)
        self._orders: dict[str, Sequence[int]] = {"index": range(len(self.figures))}

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a catalogue and check that it is whole.

        Raises CatalogueError saying what is wrong with it, OSError if the file can't be read.
        """
        with path.open("rb"):  # SQLite would say no more than that it can't
            pass
        connection: sqlite3.Connection | None = None
        try:
            # Immutable: no lock is taken and nothing is written beside the file, whose folder may be read-only.
            uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
            connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
            return cls(path, connection)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, CatalogueError):
                raise CatalogueError(*error.problems, path=path) from error
            if isinstance(error, _UNREADABLE):
                got = f"{type(error).__name__}: {error}"[:MAX_SHOWN_CHARS]
                raise CatalogueError(Problem("file", "a latent catalogue", got), path=path) from error
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def check_binding(self, sae_sha256: str, num_latents: int) -> None:
        """Raises CatalogueError unless it was made with that dictionary."""
        wanted = {"sae_sha256": sae_sha256, "num_latents": num_latents}
        problems = [
            Problem(key, f"{value!r}, the dictionary's", shown(self.manifest.get(key)))
            for key, value in wanted.items()
            if self.manifest.get(key) != value
        ]
        if problems:
            raise CatalogueError(*problems, path=self.path)

    def entry(self, latent: int) -> LatentEntry:
        """All there is about a latent. IndexError if the dictionary has none of that index."""
        packed = self._packed(latent)
        return self._codec.unpack(packed) if packed else SILENT

    def head(self, latent: int) -> LatentEntry:
        """Mean and explanation alone, for long lists: the rest of the entry is empty."""
        packed = self._packed(latent)
        return self._codec.unpack_head(packed) if packed else SILENT

    def _packed(self, latent: int) -> bytes:
        if not 0 <= latent < len(self.figures):
            raise IndexError(f"latent must lie in 0..{len(self.figures) - 1}, got {latent}")
        with self._lock:
            (packed,) = self._connection.execute("SELECT entry FROM latents WHERE latent = ?", (latent,)).fetchone()
        return bytes(packed)

    def latents_with(self, word: str) -> dict[int, int]:
        """Latents that are found by a word of `latent_words.words_of`, with its weight."""
        with self._lock:
            query = "SELECT num_latents, is_deflated, postings FROM words WHERE word = ?"
            row = self._connection.execute(query, (word,)).fetchone()
        if row is None:
            return {}
        num_latents, is_deflated, postings = row
        return dict(unpack_postings(inflate(postings) if is_deflated else postings, num_latents))

    def ordered(self, order: Order) -> Sequence[int]:
        """All latents in that order; those that lack the figure come last, equals by index."""
        if order not in self._orders:
            keys = {
                "density": lambda latent: -self.figures[latent].num_active,
                "max_reading": lambda latent: -self.figures[latent].max,
                "detection": lambda latent: -_lower_bound(self.figures[latent].detection),
            }
            self._orders[order] = sorted(range(len(self.figures)), key=keys[order])
        return self._orders[order]

    def _check_contents(self) -> None:
        version = self.manifest.get("format_version")
        if version != FORMAT_VERSION:
            raise CatalogueError(Problem("format_version", str(FORMAT_VERSION), shown(version)))
        wanted, got = self.manifest.get("content_sha256"), content_sha256(self._connection)
        if wanted != got:
            raise CatalogueError(Problem("content_sha256", f"{got!r}, that of the contents", shown(wanted)))

    def _check_latents(self) -> None:
        num, wanted = self.manifest.get("num_latents"), "a row for each of num_latents, from 0 on"
        query = "SELECT count(*), min(latent), max(latent) FROM latents"
        rows, first, last = self._connection.execute(query).fetchone()
        if not isinstance(num, int) or (rows, first, last) != (num, 0, num - 1):
            raise CatalogueError(Problem("latents", wanted, f"{rows} of {shown(num)}, {first} to {last}"))


def _lower_bound(score: Score | None) -> float:
    return -1.0 if score is None else score.lower_bound


def content_sha256(connection: sqlite3.Connection) -> str:
    """Hash of everything in the file but this hash."""
    digest = hashlib.sha256()
    for query in (
        "SELECT key, value FROM manifest WHERE key <> 'content_sha256' ORDER BY key",
        "SELECT packed FROM tokens",
        "SELECT latent, num_active, max, detection, detection_windows, entry FROM latents ORDER BY latent",
        "SELECT word, num_latents, is_deflated, postings FROM words ORDER BY word",
    ):
        for row in connection.execute(query):
            for value in row:
                data = value if isinstance(value, bytes) else repr(value).encode()
                digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()
