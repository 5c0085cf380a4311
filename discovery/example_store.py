"""What each latent of a dictionary fires on, in one SQLite file: `telltale lab examples` writes it, others read it.

Per latent: how often and how strongly it fires, a histogram, the tokens it promotes and suppresses, the contexts of its
largest readings, and random examples from each quantile of its readings. Explanations are added later, by `save`.
Needs neither torch nor a model: the file holds the tokens' own bytes.

    with ExampleStore.open(path) as store:
        record = store.latent(2242)
        record.top[0].pieces, record.top[0].readings
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from discovery.errors import ExampleError
from discovery.example_schema import SCHEMA_VERSION, TEXT_COLUMNS, connect, has_text_index, read_rows, recover
from discovery.latent_record import Background, Example, Explanation, Glance, LatentRecord, Match, TokenEffect
from discovery.reading_scale import ReadingScale, reading_scale
from discovery.token_text import pieces_of

TOP = 0
"""`kind` of the largest readings; 1 and up are quantile bins, weakest first."""


class ExampleStore:
    """One example file, open. Not for use by several threads at once; open one each."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        try:
            pairs = [(key, json.loads(value)) for key, value in self._query("SELECT key, value FROM manifest")]
        except (ExampleError, ValueError) as error:
            raise ExampleError(f"{path} must be an example file, got: {error}") from None
        self.manifest: dict[str, Any] = dict(pairs)
        """Dictionary, model, corpus, settings and totals; docs/lab.md says which."""
        version = self.manifest.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ExampleError(f"{path}: schema_version must be {SCHEMA_VERSION}, got {version}")
        self._sources: dict[int, str] = {id_: name for id_, name in self._query("SELECT id, name FROM sources")}

    @classmethod
    def open(cls, path: Path | str, *, writable: bool = False, sae_sha256: str | None = None) -> Self:
        """Open a finished file; ExampleError if it is none, or not of the dictionary asked for.

        `writable` is for explanations.
        """
        path = Path(path)
        if not path.is_file():
            raise ExampleError(f"example file {path} does not exist")
        try:
            recover(path)
            connection = connect(path, "rw" if writable else "ro")
        except sqlite3.DatabaseError as error:
            raise ExampleError(f"{path} must be an example file, got: {error}") from None
        try:
            store = cls(path, connection)
            store._check_binding(sae_sha256)
        except BaseException:
            connection.close()
            raise
        return store

    def _check_binding(self, sae_sha256: str | None) -> None:
        got = self.manifest.get("sae_sha256")
        if sae_sha256 is not None and got != sae_sha256:
            raise ExampleError(f"{self.path}: sae_sha256 must be {sae_sha256}, the dictionary's, got {got}")

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _query(self, query: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """All rows; ExampleError if they can't be read."""
        return read_rows(self._connection, self.path, query, parameters)

    @property
    def num_latents(self) -> int:
        """Latents of the dictionary, silent ones included."""
        return int(self.manifest["num_latents"])

    @property
    def num_tokens(self) -> int:
        """Tokens read, position 0 and massive activations left out."""
        return int(self.manifest["num_tokens"])

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of all sources that were read."""
        return tuple(self._sources.values())

    @property
    def num_live(self) -> int:
        """Latents that are active at any token."""
        return int(self._query("SELECT count(*) FROM latents WHERE num_active > 0")[0][0])

    @property
    def num_examples(self) -> int:
        """Examples of all latents together."""
        return int(self._query("SELECT count(*) FROM examples")[0][0])

    @property
    def histogram_edges(self) -> tuple[float, ...]:
        """One more than there are bins; readings beyond them are in the outermost bins."""
        return tuple(self.manifest["histogram_edges"])

    def latents(self, order: str = "latent") -> list[int]:
        """All latents, by `latent`, `num_active` or `max`, the latter two falling."""
        column = {"latent": "latent", "num_active": "num_active DESC, latent", "max": "max DESC, latent"}[order]
        return [latent for (latent,) in self._query(f"SELECT latent FROM latents ORDER BY {column}")]

    def maxima(self) -> list[float]:
        """Largest reading of each latent, by latent."""
        return [largest for (largest,) in self._query("SELECT max FROM latents ORDER BY latent")]

    def scale(self, latent: int) -> ReadingScale | None:
        """How large its readings are; None if it never fires."""
        record = self.latent(latent)
        return reading_scale(record.histogram, self.histogram_edges, num_tokens=record.num_tokens, maximum=record.max)

    def best_example(self, latent: int) -> Example | None:
        """The example with the largest reading, if there is any."""
        query = "SELECT * FROM examples WHERE latent = ? AND kind = ? AND rank = 0"
        rows = self._query(query, (latent, TOP))
        return self._example(rows[0]) if rows else None

    def latent(self, index: int) -> LatentRecord:
        """Everything about one latent; ExampleError if the dictionary has none of that index."""
        rows = self._query("SELECT * FROM latents WHERE latent = ?", (index,))
        if not rows:
            raise ExampleError(f"latent must lie in 0..{self.num_latents - 1}, got {index}")
        row = rows[0]
        by_kind: dict[int, list[Example]] = {}
        for kind, example in self.examples(index):
            by_kind.setdefault(kind, []).append(example)
        num_bins = max(by_kind, default=0)
        return LatentRecord(
            latent=index,
            num_tokens=self.num_tokens,
            num_active=row["num_active"],
            max=row["max"],
            mean_active=row["sum"] / max(row["num_active"], 1),
            histogram=tuple(np.frombuffer(row["histogram"], np.int32).tolist()),
            sources=json.loads(row["sources"]),
            top=tuple(by_kind.get(TOP, ())),
            quantiles=tuple(tuple(by_kind.get(kind, ())) for kind in range(1, num_bins + 1)),
            promoted=self._effects(row["promoted_ids"], row["promoted_logits"]),
            suppressed=self._effects(row["suppressed_ids"], row["suppressed_logits"]),
            explanation=self.explanation(index),
        )

    def examples(self, latent: int) -> Iterator[tuple[int, Example]]:
        """(kind, example) of one latent, in order of kind and rank."""
        for row in self._query("SELECT * FROM examples WHERE latent = ? ORDER BY kind, rank", (latent,)):
            yield row["kind"], self._example(row)

    def _example(self, row: sqlite3.Row) -> Example:
        ids = np.frombuffer(row["token_ids"], np.int32).tolist()
        readings = np.frombuffer(row["readings"], np.float16).astype(np.float64).round(4).tolist()
        place = self._sources[row["source"]], row["document"], row["position"], row["focus"]
        return Example(row["value"], *place, tuple(ids), tuple(readings), self.pieces(ids))

    def glances(self) -> list[Glance]:
        """A glance at every live latent, by latent: one query for all."""
        rows = self._query(
            "SELECT l.latent, l.num_active, e.token_ids FROM latents l "
            "LEFT JOIN examples e ON e.latent = l.latent AND e.kind = 0 AND e.rank = 0 "
            "WHERE l.num_active > 0 ORDER BY l.latent"
        )
        return [
            Glance(latent, num_active, "".join(self.pieces(np.frombuffer(ids or b"", np.int32).tolist())))
            for latent, num_active, ids in rows
        ]

    def backgrounds(self, *, without: int | None = None) -> Iterator[Background]:
        """The random windows, in an order that means nothing; only those in which latent `without` is silent."""
        for row in self._query("SELECT * FROM backgrounds ORDER BY rank"):
            active = frozenset(np.frombuffer(row["active"], np.int32).tolist())
            if without in active:
                continue
            ids = np.frombuffer(row["token_ids"], np.int32).tolist()
            place = row["document"], row["position"], row["focus"]
            yield Background(self._sources[row["source"]], *place, tuple(ids), self.pieces(ids), active)

    def pieces(self, token_ids: Iterable[int]) -> tuple[str, ...]:
        """Texts of the tokens; together they are the text."""
        return pieces_of([self._token_bytes(token_id) for token_id in token_ids])

    def token_bytes(self, token_ids: Iterable[int]) -> dict[int, bytes]:
        """Bytes of each token, in the order given."""
        return {token_id: self._token_bytes(token_id) for token_id in token_ids}

    @cached_property
    def _tokens(self) -> dict[int, bytes]:
        """All at once: one by one they would take most of the time of a lookup."""
        return {id_: token for id_, token in self._query("SELECT id, bytes FROM tokens")}

    def _token_bytes(self, token_id: int) -> bytes:
        return self._tokens.get(token_id) or f"<{token_id}>".encode()

    def _effects(self, ids: bytes, logits: bytes) -> tuple[TokenEffect, ...]:
        pairs = zip(np.frombuffer(ids, np.int32).tolist(), np.frombuffer(logits, np.float32).tolist(), strict=True)
        return tuple(
            TokenEffect(token_id, self._token_bytes(token_id).decode("utf-8", "replace"), round(logit, 4))
            for token_id, logit in pairs
        )

    # --- explanations and search ------------------------------------------------------------------------------------

    def explanation(self, latent: int) -> Explanation | None:
        """What is said of a latent, if anything."""
        rows = self._query("SELECT * FROM explanations WHERE latent = ?", (latent,))
        return _explanation(rows[0]) if rows else None

    def explanations(self) -> list[Explanation]:
        """All there are, by latent."""
        return [_explanation(row) for row in self._query("SELECT * FROM explanations ORDER BY latent")]

    def titles(self) -> dict[int, str]:
        """Titles of the explained latents."""
        return {latent: title for latent, title in self._query("SELECT latent, title FROM explanations")}

    def save(self, explanation: Explanation) -> None:
        """Add an explanation or replace the one there is. It is on disk when this returns."""
        fields = explanation._replace(dominant_tokens=json.dumps(explanation.dominant_tokens))._asdict()  # type: ignore[arg-type]
        names, marks = ", ".join(fields), ", ".join(f":{name}" for name in fields)
        with self._connection:
            self._connection.execute(f"INSERT OR REPLACE INTO explanations ({names}) VALUES ({marks})", fields)

    def search(self, query: str, limit: int = 20) -> list[Match]:
        """Latents whose explanation, or else whose examples, have all words of `query`; best first."""
        words = query.split()
        if not words:
            raise ExampleError("the text to search for must have a word, got none")
        explained = self._search_explanations(words, limit)
        found = {match.latent for match in explained}
        others = [latent for latent in self._search_examples(words, limit + len(found)) if latent not in found]
        return [*explained, *(self._example_match(latent, words) for latent in others)][:limit]

    def _search_explanations(self, words: list[str], limit: int) -> list[Match]:
        if has_text_index(self._connection):
            rows = self._query(
                "SELECT e.* FROM explanation_texts t JOIN explanations e ON e.latent = t.rowid "
                "WHERE explanation_texts MATCH ? ORDER BY bm25(explanation_texts, 4.0), t.rowid LIMIT ?",
                (_all_of(words), limit),
            )
        else:
            body = " || ' ' || ".join(TEXT_COLUMNS)
            conditions = " AND ".join([f"{body} LIKE ?"] * len(words))
            rows = self._query(
                f"SELECT * FROM explanations WHERE {conditions} LIMIT ?", (*(f"%{word}%" for word in words), limit)
            )
        return [Match(row["latent"], row["title"], "explanation", row["summary"]) for row in rows]

    def _search_examples(self, words: list[str], limit: int) -> list[int]:
        if has_text_index(self._connection):
            rows = self._query(
                "SELECT rowid FROM example_texts WHERE example_texts MATCH ? ORDER BY rank, rowid LIMIT ?",
                (_all_of(words), limit),
            )
            return [latent for (latent,) in rows]
        return [latent for latent in self.latents() if self._texts_with(latent, words)][:limit]

    def _texts_with(self, latent: int, words: list[str]) -> list[str]:
        texts = [example.text for kind, example in self.examples(latent) if kind == TOP]
        return [text for text in texts if any(word.casefold() in text.casefold() for word in words)]

    def _example_match(self, latent: int, words: list[str]) -> Match:
        explanation = self.explanation(latent)
        text = next(iter(self._texts_with(latent, words)), "")
        return Match(latent, explanation.title if explanation else None, "examples", text)


def _all_of(words: list[str]) -> str:
    """FTS5's syntax for texts with all the words; quoted, so that nothing in them is taken for an operator."""
    return " ".join('"' + word.replace('"', '""') + '"' for word in words)


def _explanation(row: sqlite3.Row) -> Explanation:
    """Columns that are NULL have the field's default."""
    fields = {name: row[name] for name in Explanation._fields if row[name] is not None}
    dominant_tokens = tuple(json.loads(row["dominant_tokens"] or "[]"))
    return Explanation(**({"title": ""} | fields | {"dominant_tokens": dominant_tokens}))
