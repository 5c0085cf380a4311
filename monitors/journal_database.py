"""Where a journal lies, and connections to it.

SQLite is opened in WAL mode: its one writer is never in the way of readers. With `synchronous = FULL` a commit returns
when the write-ahead log is on disk, so that what was appended outlasts a kill and a power cut. What retention deletes
is overwritten with zeros (`secure_delete`), and not left lying in free pages.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import URL, Connection, Engine, NullPool, StaticPool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from monitors.errors import JournalError, Problem
from monitors.journal_faults import named_faults

_BUSY_SECONDS = 10.0
_PRAGMAS = (
    "PRAGMA synchronous = FULL",
    "PRAGMA secure_delete = ON",
    # Where fsync does not reach the disk itself (macOS), this does; elsewhere it changes nothing.
    "PRAGMA fullfsync = ON",
    "PRAGMA checkpoint_fullfsync = ON",
)
# A server that is gone without a word is noticed within half a minute, and no statement waits for ever.
_POSTGRES_OPTIONS = {
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "application_name": "telltale",
    "options": "-c statement_timeout=60000 -c lock_timeout=30000",
}
_SECRETS = frozenset({"password", "sslpassword"})
"""What libpq also takes behind the `?` of a URL."""


class Place(NamedTuple):
    """A file, or a database by URL."""

    path: Path | None
    url: URL | None

    def __str__(self) -> str:
        """Without the password, wherever in the URL it stands."""
        if self.url is None:
            return str(self.path)
        return self.url.difference_update_query({*_POSTGRES_OPTIONS, *_SECRETS}).render_as_string(hide_password=True)


def place_of(where: str | Path) -> Place:
    """What a path or a URL means. JournalError for the URL of another database than PostgreSQL."""
    if isinstance(where, Path) or "://" not in where:
        return Place(Path(where).expanduser(), None)
    try:
        url = make_url(where)
    except (ArgumentError, ValueError):  # the second for a port that is no number; either may quote a password
        raise JournalError(Problem("journal", "a path or postgresql://USER@HOST/DATABASE", "another URL")) from None
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise JournalError(Problem("journal", "a path or postgresql://USER@HOST/DATABASE", f"{url.drivername}://"))
    query = _POSTGRES_OPTIONS | dict(url.query)
    return Place(None, url.set(drivername="postgresql+psycopg", query=query))


class Database:
    """Connections to one place."""

    def __init__(self, place: Place, engine: Engine) -> None:
        self.place, self._engine = place, engine

    @classmethod
    def writable(cls, place: Place) -> "Database":
        """One connection, for one thread at a time. Makes the file if there is none, for its owner alone."""
        if place.path is None:
            return cls(place, _postgres(place))
        path = place.path
        _make_private(path)
        with named_faults(str(place)):
            connection = _sqlite(path, "rwc")
            try:
                _check_wal(connection, place)
                for pragma in _PRAGMAS:
                    connection.execute(pragma)
            except BaseException:
                connection.close()
                raise
        engine = create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)
        event.listen(engine, "begin", _begin("BEGIN IMMEDIATE"))
        return cls(place, engine)

    @classmethod
    def readable(cls, place: Place) -> "Database":
        """For reading alone, by any number of threads. JournalError if there is no such file."""
        if place.path is None:
            engine = _postgres(place)
            return cls(place, engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True))
        path = place.path
        if not path.is_file():
            raise JournalError(Problem("file", "an alert journal", "no such file"), where=str(place))
        engine = create_engine("sqlite://", creator=_reading(path), poolclass=NullPool)
        event.listen(engine, "begin", _begin("BEGIN"))
        return cls(place, engine)

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a file."""
        return self.place.path is not None

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction, kept if the block ends well. Reading in it sees one state of the database."""
        with named_faults(str(self.place)), self._engine.begin() as connection:
            yield connection

    def forget_deleted(self) -> None:
        """Empties a SQLite file's log, in which deleted entries would lie until they are overwritten.

        Where somebody is reading an earlier state, the log stays until the next time: nobody waits for readers.
        """
        if self.is_sqlite:
            with named_faults(str(self.place)), self._engine.connect() as connection:
                raw: Any = connection.connection.dbapi_connection
                raw.execute("PRAGMA busy_timeout = 0").fetchall()
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                raw.execute(f"PRAGMA busy_timeout = {1000 * _BUSY_SECONDS:.0f}").fetchall()

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()


def _postgres(place: Place) -> Engine:
    assert place.url is not None
    try:
        return create_engine(place.url, pool_pre_ping=True, pool_size=1, max_overflow=4)
    except ModuleNotFoundError as error:
        wanted = "the library psycopg: `pip install 'telltale-llm[postgres]'`"
        raise JournalError(Problem("journal", wanted, str(error)), where=str(place)) from None


def _make_private(path: Path) -> None:
    """Makes the file if there is none. SQLite itself would let all users of the machine read what people wrote; its log
    gets the rights of the file."""
    if not path.exists():
        with suppress(OSError):  # SQLite meets it too, and what it says is named
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _sqlite(path: Path, mode: str, *, immutable: bool = False) -> sqlite3.Connection:
    # As a URI: only so can a file be opened that must not be written to. `?` and `#` would end its path.
    uri = f"{path.resolve().as_uri()}?mode={mode}{'&immutable=1' if immutable else ''}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_BUSY_SECONDS)


def _reading(path: Path) -> Callable[[], sqlite3.Connection]:
    def connect() -> sqlite3.Connection:
        # Readers of a log tell the writer what they read, in a file beside it. Where nobody can write that file (a
        # copy on a read-only disk) there is no writer either, and if no log is left the file can be read as it is.
        is_fixed = not os.access(path.parent, os.W_OK) and not Path(f"{path}-wal").exists()
        return _sqlite(path, "ro", immutable=is_fixed)

    return connect


def _check_wal(connection: sqlite3.Connection, place: Place) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        wanted = "a disk on which SQLite can keep a write-ahead log"
        raise JournalError(Problem("file", wanted, f"journal_mode {mode}"), where=str(place))


def _begin(statement: str) -> Callable[[Connection], None]:
    """Python's own driver begins transactions late, and not for every statement: so we do it."""

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(statement)

    return begin
