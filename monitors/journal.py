"""The alert journal: every alert, kept before anybody is told of it, in a chain that shows what is done to it.

    with Journal.open("alerts.sqlite") as journal:
        journal.append([record])        # on disk when this returns
        journal.review(record.id, verdict="false", reviewer="ann")
        journal.verify()

One process writes to a file at a time; any number read it, and never hold the writer up. A journal's entries are only
ever added to. `retain` alone deletes, whole beginnings, and says so in an entry of its own.
"""

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from sqlalchemy import ColumnElement, Connection, insert, select, update

from monitors.alert_record import AlertRecord
from monitors.canonical_json import sha256_of
from monitors.errors import JournalError, Problem, shown
from monitors.journal_chain import EMPTY, Head, row_of
from monitors.journal_database import Database, place_of
from monitors.journal_entry import Acknowledgement, Entry, Retention, Review, Verdict, written
from monitors.journal_lock import WriterLock
from monitors.journal_reader import JournalReader
from monitors.journal_retention import Keep, delete_through, due, renewed
from monitors.journal_schema import upgrade
from monitors.journal_tables import OWN, chains, entries, values
from monitors.synced_folder import sync_folder
from monitors.text_key import TextKey
from monitors.time_ids import new_id


class Receipt(NamedTuple):
    """Proof that an entry is kept."""

    id: str
    seq: int
    hash: str


class Journal:
    """A journal to write to. May be used by several threads; they take turns."""

    def __init__(self, database: Database, lock: WriterLock | None, text_key: TextKey | None) -> None:
        """Use `open`."""
        self.place = database.place
        self._database, self._lock, self._text_key = database, lock, text_key
        self._turn = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        with self._database.begin() as connection:
            upgrade(connection)
            self.id = _own_chain(connection)
            _check_end(connection, self.id)
        self.reader = JournalReader.open_place(self.place)
        """For reading: does not wait for writers, nor they for it."""

    @classmethod
    def open(cls, where: str | Path, *, text_key: TextKey | None = None, must_exist: bool = False) -> Self:
        """The journal at a path, made if there is none, or what is written at a PostgreSQL URL.

        With `must_exist` a path that nothing is at is refused. With `text_key` no alert's text is kept, only hashes
        made with that key. Raises JournalLocked if another process writes there, JournalError if what is there is
        damaged, of a newer version, or no journal.
        """
        place = place_of(where)
        if must_exist and place.path is not None and not place.path.is_file():
            raise JournalError(Problem("file", "an alert journal", "no such file"), where=str(place))
        lock = None if place.path is None else WriterLock.take(place.path)
        database = None
        try:
            database = Database.writable(place)
            journal = cls(database, lock, text_key)
            if place.path is not None:
                sync_folder(place.path)
            return journal
        except BaseException:
            if database is not None:
                database.close()
            if lock is not None:
                lock.release()
            raise

    def close(self) -> None:
        """Let go of the journal; once more does nothing."""
        with self._turn:
            self.reader.close()
            self._database.close()
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def append(self, alerts: Sequence[AlertRecord]) -> list[Receipt]:
        """Keeps alerts, all or none. They are on disk when this returns, so give it all that there are at once.

        Raises JournalWriteFailed if they can't be kept; the journal is then as it was, and may be tried again.
        """
        if not alerts:
            return []
        key = self._text_key
        return self._add(alerts if key is None else [key.hide(alert) for alert in alerts])

    def acknowledge(self, alert_id: str, *, by: str, note: str = "") -> Receipt:
        """Keeps that somebody took notice of an alert. JournalError if there is no such alert."""
        self._alert(alert_id)
        said = Acknowledgement(id=new_id(), time=datetime.now(UTC), alert_id=alert_id, by=by, note=note)
        return self._add([said])[0]

    def review(self, alert_id: str, *, verdict: Verdict, reviewer: str, note: str = "") -> Receipt:
        """Keeps a verdict on a firing alert. JournalError if there is no such alert, or it is one that cleared."""
        alert = self._alert(alert_id)
        if alert.state != "firing":
            wanted = "an alert that fired; a cleared one names the one it ends as cleared_id"
            raise JournalError(Problem("alert_id", wanted, f"one with the state {alert.state}"), where=str(self.place))
        said = Review(
            id=new_id(),
            time=datetime.now(UTC),
            alert_id=alert_id,
            monitor=alert.monitor,
            pack_sha256=None if alert.pack is None else alert.pack.sha256,
            level=alert.level,
            verdict=verdict,
            reviewer=reviewer,
            note=note,
        )
        return self._add([said])[0]

    def retain(self, keep: Keep, *, dry_run: bool = False) -> list[Retention]:
        """Deletes what is not to be kept, here and in the copies that lie beside it, and keeps an entry that says so.

        Returns the entries about what this run deletes; with `dry_run` nothing is done.
        """
        with self._turn:
            with self._database.begin() as connection:
                now = datetime.now(UTC)
                found = due(connection, keep, now)
                if dry_run or not found:
                    return found
                earlier = renewed(connection, self.id, found, now)
                for retention in found:
                    delete_through(connection, retention)
                add(connection, self.id, found + earlier)
            self._database.forget_deleted()
        self._tell()
        return found

    def mark_forwarded(self) -> None:
        """From now on another database is to have every entry: none is deleted before it is there."""
        self._set_shipped(0, chains.c.shipped_seq.is_(None))

    def note_shipped(self, seq: int) -> None:
        """Another database has all entries up to `seq`."""
        self._set_shipped(seq, chains.c.shipped_seq < seq)

    def _set_shipped(self, seq: int, condition: ColumnElement[bool]) -> None:
        own = update(chains).where(chains.c.journal == self.id, condition)
        with self._turn, self._database.begin() as connection:
            connection.execute(own.values(shipped_seq=seq))

    def on_append(self, listener: Callable[[], None]) -> None:
        """Calls `listener` after every entry that was kept, on the thread that kept it. It must not take long."""
        self._listeners.append(listener)

    def _alert(self, alert_id: str) -> AlertRecord:
        found = self.reader.find(alert_id)
        if found is None:
            wanted = "the id of an alert in this journal"
            raise JournalError(Problem("alert_id", wanted, shown(alert_id)), where=str(self.place))
        return found.record

    def _add(self, added: Sequence[Entry]) -> list[Receipt]:
        with self._turn, self._database.begin() as connection:
            receipts = add(connection, self.id, added)
        self._tell()
        return receipts

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()


def add(connection: Connection, journal: str, added: Sequence[Entry]) -> list[Receipt]:
    """Adds entries to the end of a journal, within the connection's transaction."""
    head = _head(connection, journal)
    receipts, rows = [], []
    for entry in added:
        line = written(entry, journal=journal, seq=head.seq + 1, previous=head.hash)
        head = Head(line.seq, line.hash)
        rows.append(values(row_of(line)))
        receipts.append(Receipt(entry.id, *head))
    connection.execute(insert(entries), rows)
    connection.execute(update(chains).where(chains.c.journal == journal).values(head_seq=head.seq, head_hash=head.hash))
    return receipts


def _head(connection: Connection, journal: str) -> Head:
    """Of a journal, locked until the transaction's end: in PostgreSQL several processes may write to one."""
    query = select(chains.c.head_seq, chains.c.head_hash).where(chains.c.journal == journal).with_for_update()
    return Head(*connection.execute(query).one())


def _own_chain(connection: Connection) -> str:
    """The journal that is written at this place; it is begun if there is none.

    In PostgreSQL `upgrade` has just taken a lock that no two processes have: they can't both begin one.
    """
    found = connection.execute(select(chains.c.journal).where(chains.c.role == OWN)).scalar()
    if found is not None:
        return str(found)
    journal = new_id()
    new = {"journal": journal, "role": OWN, "head_seq": EMPTY.seq, "head_hash": EMPTY.hash}
    connection.execute(insert(chains).values(new))
    return journal


def _check_end(connection: Connection, journal: str) -> None:
    """Raises JournalError if the last entry is not the one that the head names: to add to it would hide that."""
    head = _head(connection, journal)
    if head == EMPTY:
        return
    place = entries.c.journal == journal, entries.c.seq == head.seq
    text = connection.execute(select(entries.c.text).where(*place)).scalar()
    if text is None:
        raise JournalError(Problem("entries", f"entry {head.seq}, which the head names", "nothing"))
    if sha256_of(text) != head.hash:
        raise JournalError(Problem("head", f"the hash of entry {head.seq}, {sha256_of(text)}", head.hash))
