"""What a database says of a fault, as an error of ours that names the journal, what it needs and what is there."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from monitors.errors import JournalError, JournalLocked, JournalUnreachable, JournalWriteFailed, Problem

_PRIMARY = 0xFF
"""SQLite's extended codes have the primary one in their lowest byte."""


@contextmanager
def named_faults(where: str) -> Iterator[None]:
    """Raises the block's database errors as `JournalError`s about the journal at `where`."""
    try:
        yield
    except JournalError as error:
        error.where = error.where or where
        raise
    except DBAPIError as error:
        raise _named(error, where) from error
    except sqlite3.Error as error:  # while a connection was being made
        raise _of_sqlite(error, where) from error


def _named(error: DBAPIError, where: str) -> JournalError:
    if isinstance(error.orig, sqlite3.Error):
        return _of_sqlite(error.orig, where)
    said = str(error.orig).strip().partition("\n")[0]
    if error.connection_invalidated or isinstance(error, OperationalError | InterfaceError):
        return JournalUnreachable(Problem("database", "an answer", said), where=where)
    return JournalError(Problem("database", "no error", said), where=where)


def _of_sqlite(error: sqlite3.Error, where: str) -> JournalError:
    said = str(error)
    match getattr(error, "sqlite_errorcode", 0) & _PRIMARY:
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
            return JournalWriteFailed(Problem("disk", "room to write, and no fault", said), where=where)
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return JournalError(Problem("file", "an alert journal, undamaged", said), where=where)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return JournalError(Problem("file", "a file that this user may use, and its folder too", said), where=where)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return JournalLocked(Problem("file", "no other process that holds it", said), where=where)
        case sqlite3.SQLITE_CONSTRAINT:
            return JournalError(Problem("entry", "one that is not there yet", said), where=where)
        case _:
            return JournalError(Problem("file", "no error", said), where=where)
