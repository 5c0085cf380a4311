"""The server's alert journal: what it is opened with, who keeps it short and sends it on, and how it stands.

Alerts are appended on the engine's thread, which waits for the disk. Everything else, retention and the look at how
many entries wait to be forwarded, happens on a thread of its own. `status` never touches the disk.
"""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from monitors.alert_record import AlertRecord
from monitors.errors import JournalError, JournalLocked
from monitors.forwarder import Forwarder
from monitors.journal import Journal
from monitors.journal_precision import Precision, precisions
from monitors.journal_retention import Keep
from monitors.text_key import TextKey
from service.config import Settings
from service.journal_place import key_path, places

logger = logging.getLogger(__name__)

STATUS_SECONDS = 1.0
RETENTION_SECONDS = 600.0
"""Often, so that little is deleted at a time: while that happens an alert waits."""


@dataclass(frozen=True, slots=True)
class JournalStatus:
    """How the journal stands."""

    place: str
    num_entries: int
    head_seq: int
    """Number of the last entry."""
    is_writable: bool
    """Whether the last entry could be written; True if none was yet."""
    num_write_failures: int
    """Since the server started."""
    write_error: str
    """Why the last write failed; empty if it did not."""
    is_forwarded: bool
    """Whether a database is to have a copy."""
    num_waiting: int
    """Entries that the database has not got yet."""
    lag_seconds: float
    """Age of the oldest of them; 0 if none waits."""
    forward_error: str
    """Why the last try to send failed; empty if it did not."""


class JournalKeeper:
    """A journal that is open. May be used by several threads."""

    def __init__(self, journal: Journal, *, forward: str | None = None, keep: Keep | None = None) -> None:
        """`forward` is a database's URL, `keep` what retention leaves. JournalError for a URL that makes no sense."""
        self.journal = journal
        self._keep = keep
        self._forwarder = None if forward is None else Forwarder(journal, forward)
        self._write_error = ""
        self._num_write_failures = 0
        self._append_seconds: list[float] = []
        self._precisions = precisions(journal.reader.reviews())
        self._precisions_lock = threading.Lock()
        self._ending = threading.Event()
        self._status = self._look()
        self._thread = threading.Thread(target=self._run, name="journal-keeper", daemon=True)

    @classmethod
    def open(cls, settings: Settings) -> "JournalKeeper | None":
        """The journal that a server with these settings keeps; None if it keeps none.

        JournalError if it can't be used: JournalLocked if another server has it.
        """
        candidates = places(settings)
        for i, path in enumerate(candidates):
            try:
                return cls._open_at(path, settings)
            except JournalLocked:
                if i + 1 == len(candidates):
                    raise
        return None

    @classmethod
    def _open_at(cls, path: Path, settings: Settings) -> "JournalKeeper":
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        text_key = None if settings.journal_text else TextKey.load_or_make(key_path(path))
        journal = Journal.open(path, text_key=text_key)
        forward = settings.journal_forward
        try:
            return cls(
                journal, forward=None if forward is None else forward.get_secret_value(), keep=_keep_of(settings)
            )
        except BaseException:
            journal.close()
            raise

    def start(self) -> None:
        """Begin to forward, to look, and to delete what is not to be kept."""
        if self._forwarder is not None:
            self._forwarder.start()
        else:
            self._warn_of_unsent()
        self._thread.start()

    def _warn_of_unsent(self) -> None:
        """Retention spares what waits for a database, and without one nothing ends the waiting."""
        num = self.journal.reader.unsent(self.journal.id).num
        if num:
            logger.warning(
                "%d entries of the alert journal were to be forwarded and were not. They and all that comes are kept: "
                "forward them (--journal-forward), or delete with `telltale alerts retain --unsent-too`",
                num,
            )

    def close(self) -> None:
        """Send what can be sent at once, and let go of the journal."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._forwarder is not None:
            self._forwarder.close()
        self.journal.close()

    def append(self, records: Sequence[AlertRecord]) -> None:
        """Keep alerts, all or none. JournalError if they can't be kept; that is part of the status then."""
        started = time.perf_counter()
        try:
            self.journal.append(records)
        except JournalError as error:
            self._num_write_failures += 1
            self._write_error = str(error)
            logger.error("%d alerts could not be kept: %s", len(records), error)
            raise
        self._write_error = ""
        self._append_seconds.append(time.perf_counter() - started)

    def take_append_seconds(self) -> list[float]:
        """How long each write took since the last call."""
        taken, self._append_seconds = self._append_seconds, []
        return taken

    def note_reviewed(self) -> None:
        """There is another verdict."""
        self._count_reviews()

    def _count_reviews(self) -> None:
        # Reviews come on several threads: what was read first must not take the place of what was read last.
        with self._precisions_lock:
            self._precisions = precisions(self.journal.reader.reviews())

    @property
    def precisions(self) -> list[Precision]:
        """What reviews say of each monitor and pack."""
        return self._precisions

    @property
    def status(self) -> JournalStatus:
        """How things stand, not older than a second or two; failures to write are there at once."""
        last = self._status
        return JournalStatus(
            place=last.place,
            num_entries=last.num_entries,
            head_seq=last.head_seq,
            is_writable=not self._write_error,
            num_write_failures=self._num_write_failures,
            write_error=self._write_error,
            is_forwarded=last.is_forwarded,
            num_waiting=last.num_waiting,
            lag_seconds=last.lag_seconds,
            forward_error=last.forward_error,
        )

    def _run(self) -> None:
        next_retention, last_fault = 0.0, ""
        while not self._ending.is_set():
            try:
                if self._keep is not None and time.monotonic() >= next_retention:
                    next_retention = time.monotonic() + RETENTION_SECONDS
                    self._retain(self._keep)
                self._status, last_fault = self._look(), ""
            except Exception as error:  # whatever it is, the next look is not to fail to come for it
                fault = str(error) or type(error).__name__
                if fault != last_fault:
                    logger.error("the alert journal can't be looked after: %s", fault)
                last_fault = fault
            self._ending.wait(STATUS_SECONDS)

    def _retain(self, keep: Keep) -> None:
        deleted = self.journal.retain(keep)
        for each in deleted:
            logger.info("%d entries of the journal were deleted: %s", each.num_deleted, each.reason)
        if deleted:  # reviews may be among them
            self._count_reviews()

    def _look(self) -> JournalStatus:
        forward = None if self._forwarder is None else self._forwarder.status()
        since = None if forward is None else forward.waiting_since
        extent = self.journal.reader.extent(self.journal.id)
        return JournalStatus(
            place=str(self.journal.place),
            num_entries=extent.num_entries,
            head_seq=extent.head_seq,
            is_writable=True,
            num_write_failures=0,
            write_error="",
            is_forwarded=forward is not None,
            num_waiting=0 if forward is None else forward.num_waiting,
            lag_seconds=0.0 if since is None else max(time.time() - since.timestamp(), 0.0),
            forward_error="" if forward is None else forward.last_error,
        )


def _keep_of(settings: Settings) -> Keep | None:
    days, alerts = settings.journal_max_days, settings.journal_max_alerts
    if not days and not alerts:
        return None
    return Keep(max_age=timedelta(days=days) if days else None, max_alerts=alerts or None)
