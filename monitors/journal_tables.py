"""The tables of an alert journal, the same in SQLite and PostgreSQL.

`entries` holds the lines and, beside each, the columns that searches go by; `chains` holds the head of each journal.
A SQLite file holds one journal, written there (`OWN`). A PostgreSQL database holds the copies of many servers'
journals (`COPY`), and one of its own, for what is said of their alerts there.

The schema is made and changed by the migrations in `journal_migrations` alone; a test holds them to these tables.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import BigInteger, Column, Index, MetaData, String, Table, Text

from monitors.journal_chain import Columns, Row

REVISIONS: Final = ("0001", "0002")
"""Versions of the schema, oldest first. The last is this code's."""

OWN: Final = "own"
COPY: Final = "copy"

metadata = MetaData()

chains = Table(
    "chains",
    metadata,
    Column("journal", String(36), primary_key=True),
    Column("role", String(8), nullable=False),
    Column("head_seq", BigInteger, nullable=False),
    Column("head_hash", String(64), nullable=False),
    Column("shipped_seq", BigInteger),  # the last that another database has; NULL: none is to have them
)

entries = Table(
    "entries",
    metadata,
    Column("journal", String(36), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("hash", String(64), nullable=False),
    Column("text", Text, nullable=False),
    Column("id", String(36), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Column("alert_id", String(36)),
    Column("request_id", Text),
    Column("label", Text),
    Column("monitor", Text),
    Column("level", String(16)),
    Column("state", String(16)),
    Column("verdict", String(16)),
    Index("entries_by_time", "kind", "time_us", "id"),
    Index("entries_by_alert", "alert_id", "kind"),
    Index("entries_by_request", "request_id"),
)

ROW_COLUMNS = [entries.c[name] for name in (*Row._fields[:-1], *Columns._fields)]
"""What `row` takes."""


def row(found: Sequence[Any]) -> Row:
    """A row as it was read, from a selection of `ROW_COLUMNS`."""
    journal, seq, digest, text, *columns = found
    return Row(journal, seq, digest, text, Columns(*columns))


def values(kept: Row) -> dict[str, object]:
    """A row as it is inserted."""
    fields = kept._asdict()
    columns: Columns = fields.pop("columns")
    return fields | columns._asdict()
