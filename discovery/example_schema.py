"""The tables of an example file, and how it is opened.

Blobs are little-endian arrays: token ids and counts int32, readings fp16, logits fp32. `examples` is stored in the
order of its key, so that everything about one latent lies together and is found by one descent of a B-tree.
"""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from discovery.errors import ExampleError

SCHEMA_VERSION = 1

TEXT_COLUMNS = ("title", "summary", "pattern", "context")
"""Of `explanations`, what is searched."""

TABLES = """
CREATE TABLE manifest (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;  -- values are JSON
CREATE TABLE sources (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE tokens (id INTEGER PRIMARY KEY, bytes BLOB NOT NULL);  -- those that occur in this file
CREATE TABLE latents (
    latent INTEGER PRIMARY KEY,
    num_active INTEGER NOT NULL,
    max REAL NOT NULL,
    sum REAL NOT NULL,             -- of all readings
    histogram BLOB NOT NULL,
    sources TEXT NOT NULL,         -- JSON: share of active tokens by source
    promoted_ids BLOB NOT NULL, promoted_logits BLOB NOT NULL,
    suppressed_ids BLOB NOT NULL, suppressed_logits BLOB NOT NULL
);
CREATE TABLE examples (
    latent INTEGER NOT NULL,
    kind INTEGER NOT NULL,         -- 0: largest readings; 1 and up: quantile bins, weakest first
    rank INTEGER NOT NULL,         -- from 0, largest reading first
    value REAL NOT NULL,
    source INTEGER NOT NULL,
    document INTEGER NOT NULL,
    position INTEGER NOT NULL,
    focus INTEGER NOT NULL,
    token_ids BLOB NOT NULL,
    readings BLOB NOT NULL,
    PRIMARY KEY (latent, kind, rank)
) WITHOUT ROWID;
CREATE TABLE backgrounds (
    rank INTEGER PRIMARY KEY,
    source INTEGER NOT NULL,
    document INTEGER NOT NULL,
    position INTEGER NOT NULL,
    focus INTEGER NOT NULL,
    token_ids BLOB NOT NULL,
    active BLOB NOT NULL           -- int32: latents active at any token of the window
);
CREATE TABLE explanations (
    latent INTEGER PRIMARY KEY,
    title TEXT, summary TEXT, pattern TEXT,
    dominant_tokens TEXT,          -- JSON list
    context TEXT, model TEXT,
    detection REAL, detection_n INTEGER, fuzzing REAL, fuzzing_n INTEGER,
    created TEXT
);
"""

# A row that is replaced fires no delete trigger; but `OR REPLACE` holds for what its insert trigger inserts, too.
TEXT_INDEX = """
CREATE VIRTUAL TABLE example_texts USING fts5(body, content='', tokenize='porter unicode61');
CREATE VIRTUAL TABLE explanation_texts USING fts5(title, summary, pattern, context, tokenize='porter unicode61');
CREATE TRIGGER explanation_written AFTER INSERT ON explanations BEGIN
    INSERT INTO explanation_texts (rowid, title, summary, pattern, context)
        VALUES (new.latent, new.title, new.summary, new.pattern, new.context);
END;
CREATE TRIGGER explanation_changed AFTER UPDATE ON explanations BEGIN
    DELETE FROM explanation_texts WHERE rowid = old.latent;
    INSERT INTO explanation_texts (rowid, title, summary, pattern, context)
        VALUES (new.latent, new.title, new.summary, new.pattern, new.context);
END;
CREATE TRIGGER explanation_removed AFTER DELETE ON explanations BEGIN
    DELETE FROM explanation_texts WHERE rowid = old.latent;
END;
"""


def connect(path: Path, mode: Literal["ro", "rw", "rwc"]) -> sqlite3.Connection:
    """Open `path`; rows can be read by column name."""
    # As a URI: only so can a file be opened that must not be written to. `?` and `#` would end its path.
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True)
    connection.row_factory = sqlite3.Row
    return connection


def read_rows(
    connection: sqlite3.Connection, path: Path, query: str, parameters: Sequence[Any] = ()
) -> list[sqlite3.Row]:
    """All rows that `query` finds in the file at `path`; ExampleError names the file if it is damaged or locked."""
    try:
        return connection.execute(query, parameters).fetchall()
    except sqlite3.DatabaseError as error:
        raise ExampleError(f"example file {path} can't be read: {error}") from None


def create(path: Path) -> sqlite3.Connection:
    """A new file with empty tables, to be filled and then renamed.

    Without a journal: a file that is not finished is thrown away, and a journal left by a killed process would be
    played back into the next file of that name.
    """
    connection = connect(path, "rwc")
    connection.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + TABLES)
    if fts5_available(connection):
        connection.executescript(TEXT_INDEX)
    return connection


def recover(path: Path) -> None:
    """Undo what a killed process had half written into `path`. Opened for reading alone, such a file is refused."""
    if path.with_name(path.name + "-journal").exists():
        connection = connect(path, "rw")
        try:
            connection.execute("SELECT count(*) FROM manifest")
        finally:
            connection.close()


def fts5_available(connection: sqlite3.Connection) -> bool:
    """Whether this SQLite has full-text search."""
    return bool(connection.execute("SELECT sqlite_compileoption_used('ENABLE_FTS5')").fetchone()[0])


def has_text_index(connection: sqlite3.Connection) -> bool:
    """Whether the file has one and this SQLite can read it."""
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'example_texts'").fetchone()
    return found is not None and fts5_available(connection)
