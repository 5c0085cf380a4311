"""Ships a journal's entries to a database, in order and each exactly once, without ever being in anybody's way.

Entries lie in the local file first; the forwarder's thread copies them from there. Where it stands, the database itself
says: the head of this journal's copy is moved in the transaction that adds the entries. So it does not matter when the
process is killed, or whether the database's last answer was lost. While the database does not answer, entries wait in
the file, and the thread tries again, less and less often.

    forwarder = Forwarder(journal, "postgresql://telltale@db/alerts")
    forwarder.start()
    forwarder.status()
"""

import threading
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Connection, Select, Update, insert, select, update

from monitors.errors import JournalError, Problem
from monitors.journal import Journal
from monitors.journal_chain import EMPTY, Head, Row
from monitors.journal_database import Database, place_of
from monitors.journal_entry import parsed
from monitors.journal_schema import upgrade
from monitors.journal_tables import COPY, chains, entries, values

_Statement = TypeVar("_Statement", Select[tuple[int, str]], Update)

FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 30.0
BATCH_ROWS = 200


@dataclass(frozen=True, slots=True)
class ForwardStatus:
    """How far the database is behind."""

    num_waiting: int
    """Entries that are in the local file alone, as far as is known."""
    waiting_since: datetime | None
    """When the oldest of them happened; None if none waits."""
    last_error: str
    """Why the last try failed; empty if it did not."""


class Forwarder:
    """Copies one journal to one database, on a thread of its own."""

    def __init__(
        self,
        journal: Journal,
        url: str,
        *,
        retry_seconds: tuple[float, float] = (FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS),
        batch_rows: int = BATCH_ROWS,
    ) -> None:
        """`retry_seconds` are the first and the longest pause. JournalError if `url` makes no sense."""
        self.place = place_of(url)
        if self.place.path is not None:
            raise JournalError(Problem("journal", "postgresql://USER@HOST/DATABASE to forward to", "a path"))
        self._journal, self._retry_seconds, self._batch_rows = journal, retry_seconds, batch_rows
        self._target = Database.writable(self.place)
        self._is_prepared = False
        self._last_error = ""
        self._woken, self._closing = threading.Event(), threading.Event()
        self._sent = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="journal-forwarder", daemon=True)
        journal.mark_forwarded()

    def start(self) -> None:
        """Begin, with what has been waiting since before."""
        self._journal.on_append(self._woken.set)
        self._woken.set()
        self._thread.start()

    def status(self) -> ForwardStatus:
        """How things stand. Reads the local file only: it answers whatever the database does."""
        unsent = self._journal.reader.unsent(self._journal.id)
        return ForwardStatus(unsent.num, unsent.since, self._last_error)

    def wait_sent(self, timeout_seconds: float) -> bool:
        """Waits until nothing waits; False if that takes too long."""
        with self._sent:
            return self._sent.wait_for(lambda: self.status().num_waiting == 0, timeout_seconds)

    def close(self, drain_seconds: float = 5.0) -> None:
        """Ships what it can in that time, and ends. What still waits is shipped after the next start."""
        if self._thread.is_alive():
            if not self._last_error:
                self.wait_sent(drain_seconds)
            self._closing.set()
            self._woken.set()
            self._thread.join(drain_seconds)
        self._target.close()

    def _run(self) -> None:
        pause = self._retry_seconds[0]
        while not self._closing.is_set():
            self._woken.wait()
            self._woken.clear()
            try:
                while not self._closing.is_set() and self._ship():
                    pause = self._retry_seconds[0]
            except Exception as error:  # whatever it is, alerts are not to stop being sent for it, nor unnoticed
                self._last_error = str(error) or type(error).__name__
                self._is_prepared = False  # the database may have been made anew
                self._closing.wait(pause)
                pause = min(2 * pause, self._retry_seconds[1])
                self._woken.set()

    def _ship(self) -> int:
        """Copies the next entries; how many."""
        self._prepare()
        local = self._journal.reader.heads()[self._journal.id]
        with self._target.begin() as connection:
            head = self._copied(connection)
            rows = self._journal.reader.rows_after(self._journal.id, head.seq, self._batch_rows)
            _check_follows(head, rows, local)
            if rows:
                head = Head(rows[-1].seq, rows[-1].hash)
                connection.execute(insert(entries), [values(row) for row in rows])
                connection.execute(self._own(update(chains)).values(head_seq=head.seq, head_hash=head.hash))
        self._journal.note_shipped(head.seq)
        self._last_error = ""
        with self._sent:
            self._sent.notify_all()
        return len(rows)

    def _prepare(self) -> None:
        """Makes the tables, once, and again after a failure."""
        if not self._is_prepared:
            with self._target.begin() as connection:
                upgrade(connection)
            self._is_prepared = True

    def _copied(self, connection: Connection) -> Head:
        """The head of the copy, which is begun if there is none; locked until the transaction's end."""
        found = connection.execute(self._own(select(chains.c.head_seq, chains.c.head_hash)).with_for_update()).all()
        if found:
            return Head(found[0].head_seq, found[0].head_hash)
        new = {"journal": self._journal.id, "role": COPY, "head_seq": EMPTY.seq, "head_hash": EMPTY.hash}
        connection.execute(insert(chains).values(new))
        return EMPTY

    def _own(self, statement: _Statement) -> _Statement:
        return statement.where(chains.c.journal == self._journal.id)


def _check_follows(copied: Head, rows: list[Row], local: Head) -> None:
    """Raises JournalError unless the next entries continue the copy: adding others would break it for good.

    `local` is the file's head as it was before `rows` were read.
    """
    if not rows and local.seq < copied.seq:
        got = f"{local.seq}, an older state of the file"
        raise JournalError(Problem("head", f"at least {copied.seq}, as in the database", got))
    follows = parsed(rows[0].text).previous if rows else local.hash
    if rows and rows[0].seq != copied.seq + 1:
        got = f"{rows[0].seq}: those between were deleted before they were sent"
        raise JournalError(Problem("next entry", str(copied.seq + 1), got))
    if follows != copied.hash:
        got = f"{follows}: file and database hold two chains of one journal"
        raise JournalError(Problem(f"hash of entry {copied.seq}", f"{copied.hash}, as in the database", got))
