"""Who explained what, and how well: beside the example file's `explanations`, all scores by all methods.

`explanations` has one row per latent, the explanation in force. This module's own table `explanation_scores` has one
per latent and method, a method being a model's name or "token rule", so that titles by models can be compared with each
other and with the rule; with the counts behind each score. `explanation_splits` says which windows the author of an
explanation was shown, so that it is never scored on those. Every write is a transaction of its own: a kill loses at
most what is in flight.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from discovery.errors import ExplainError
from discovery.example_schema import connect, read_rows
from discovery.example_store import ExampleStore
from discovery.explanation_score import Score
from discovery.latent_record import Explanation
from discovery.token_rule import TOKEN_RULE

_SCORES = """
CREATE TABLE IF NOT EXISTS explanation_scores (
    latent INTEGER NOT NULL,
    method TEXT NOT NULL,
    title TEXT NOT NULL,
    detection TEXT,                -- JSON: figures and counts, null if there were too few examples
    fuzzing TEXT,
    settings TEXT NOT NULL,        -- JSON: seed, examples, batch size
    created TEXT NOT NULL,
    PRIMARY KEY (latent, method)
) WITHOUT ROWID
"""
_SPLITS = """
CREATE TABLE IF NOT EXISTS explanation_splits (
    latent INTEGER NOT NULL,
    method TEXT NOT NULL,
    created TEXT NOT NULL,         -- as the explanation has it
    settings TEXT NOT NULL,        -- JSON: seed, num_shown
    PRIMARY KEY (latent, method, created)
) WITHOUT ROWID
"""


class MethodScores(NamedTuple):
    """One method's scores on one latent."""

    latent: int
    method: str
    title: str
    detection: dict[str, Any] | None
    fuzzing: dict[str, Any] | None
    settings: dict[str, Any]
    """Of the division of the windows, and of the questions."""
    created: str
    """When the explanation was made."""


class ExplanationBook:
    """The explanations of one example file, open for writing."""

    def __init__(self, path: Path, *, sae_sha256: str | None = None) -> None:
        """ExampleError if the file is no example file, or not of the dictionary asked for; ExplainError if it can't be
        written to."""
        with ExitStack() as opened:
            store = ExampleStore.open(path, writable=True, sae_sha256=sae_sha256)
            self.path, self.store = path, opened.enter_context(store)
            self._connection = opened.enter_context(closing(connect(path, "rw")))
            with self._writing():
                self._connection.execute(_SCORES)
                self._connection.execute(_SPLITS)
            opened.pop_all()  # `close` does it from here on

    def close(self) -> None:
        self._connection.close()
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction; ExplainError if the disk is full, the file locked, damaged or not to be written to."""
        try:
            with self._connection:
                yield
        except sqlite3.DatabaseError as error:
            raise ExplainError(f"example file {self.path} must be writable, got: {error}") from None

    def save_explanation(self, explanation: Explanation, split: dict[str, Any] | None = None) -> None:
        """Put an explanation in force. `split` says, of a new one, which windows its author was shown."""
        if split is not None:
            row = explanation.latent, explanation.model, explanation.created, json.dumps(split)
            with self._writing():
                self._connection.execute("INSERT OR REPLACE INTO explanation_splits VALUES (?, ?, ?, ?)", row)
        with self._writing():
            self.store.save(explanation)

    def split_of(self, explanation: Explanation) -> dict[str, Any] | None:
        """Which windows the author of an explanation was shown, if that is known."""
        query = "SELECT settings FROM explanation_splits WHERE latent = ? AND method = ? AND created = ?"
        found = explanation.latent, explanation.model, explanation.created
        rows = read_rows(self._connection, self.path, query, found)
        return dict(json.loads(rows[0]["settings"])) if rows else None

    def save_scores(
        self, explanation: Explanation, detection: Score | None, fuzzing: Score | None, settings: dict[str, Any]
    ) -> None:
        """Keep the scores of an explanation, with the method that made it."""
        row = (
            explanation.latent,
            explanation.model,
            explanation.title,
            json.dumps(detection.as_dict()) if detection else None,
            json.dumps(fuzzing.as_dict()) if fuzzing else None,
            json.dumps(settings),
            explanation.created,
        )
        with self._writing():
            self._connection.execute("INSERT OR REPLACE INTO explanation_scores VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def scores(self, latent: int, method: str = TOKEN_RULE) -> MethodScores | None:
        """What a method scored on a latent. ExampleError if it can't be read."""
        query = "SELECT * FROM explanation_scores WHERE latent = ? AND method = ?"
        rows = read_rows(self._connection, self.path, query, (latent, method))
        if not rows:
            return None
        row = rows[0]
        detection, fuzzing = (json.loads(row[name]) if row[name] else None for name in ("detection", "fuzzing"))
        settings = json.loads(row["settings"])
        return MethodScores(latent, method, row["title"], detection, fuzzing, settings, row["created"])


def with_scores(explanation: Explanation, detection: Score | None, fuzzing: Score | None) -> Explanation:
    """The explanation with its numbers. Without a score n is 0."""
    return explanation._replace(
        detection=round(detection.balanced_accuracy, 4) if detection else None,
        detection_n=detection.n if detection else 0,
        fuzzing=round(fuzzing.balanced_accuracy, 4) if fuzzing else None,
        fuzzing_n=fuzzing.n if fuzzing else 0,
    )
