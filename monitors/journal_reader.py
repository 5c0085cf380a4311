"""Reading a journal: alerts with what is said of them, by filters and pages, and whether the chain holds.

    with JournalReader.open("alerts.sqlite") as reader:
        page = reader.alerts(Filters(monitors=("deception",), reviewed=False))
        reader.verify()

Opens for reading alone: it needs no lock, and changes nothing.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from sqlalchemy import Connection, func, select

from monitors.alert_record import AlertRecord, time_of
from monitors.errors import JournalError, Problem, shown
from monitors.journal_chain import Head, NotedHead, Row, Verification, storable, verified
from monitors.journal_database import Database, Place, place_of
from monitors.journal_entry import Acknowledgement, Line, Retention, Review, parsed
from monitors.journal_query import EVERYTHING, Filters, alerts, page_token, read_page_token
from monitors.journal_query import Place as PagePlace
from monitors.journal_schema import check
from monitors.journal_tables import ROW_COLUMNS, chains, entries, row

DEFAULT_PAGE = 50
MAX_PAGE = 1000
_FETCH_ROWS = 500


@dataclass(frozen=True, slots=True)
class KeptAlert:
    """An alert in a journal, and what was said of it."""

    record: AlertRecord
    journal: str
    seq: int
    hash: str
    acknowledgements: tuple[Acknowledgement, ...]
    """Oldest first."""
    reviews: tuple[Review, ...]
    """Oldest first: the last one counts."""
    line: str
    """The entry's line, whose sha256 is `hash`."""

    @property
    def review(self) -> Review | None:
        """The one that counts."""
        return self.reviews[-1] if self.reviews else None


class Extent(NamedTuple):
    """How much is in a journal."""

    num_entries: int
    head_seq: int
    """Number of the last entry ever written; 0 if none was."""


class Unsent(NamedTuple):
    """Entries that another database is to have and has not yet."""

    num: int
    since: datetime | None
    """When the oldest of them happened."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the alerts that were asked for."""

    alerts: tuple[KeptAlert, ...]
    """Newest first."""
    next_token: str
    """Asks for the next page; empty if there is none."""


class JournalReader:
    """A journal, or a database of several, to read. May be used by several threads."""

    def __init__(self, database: Database) -> None:
        """Use `open`."""
        self.place = database.place
        self._database = database

    @classmethod
    def open(cls, where: str | Path) -> Self:
        """The journal at a path or URL. JournalError if there is none, or it can't be read by this version."""
        return cls.open_place(place_of(where))

    @classmethod
    def open_place(cls, place: Place) -> Self:
        """The journal at a place."""
        database = Database.readable(place)
        try:
            with database.begin() as connection:
                check(connection)
        except BaseException:
            database.close()
            raise
        return cls(database)

    def close(self) -> None:
        """Let go of the journal."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def alerts(self, filters: Filters = EVERYTHING, *, page_size: int = DEFAULT_PAGE, token: str = "") -> Page:
        """The alerts that fit, newest first. JournalError for a size or token that makes no sense."""
        if not 1 <= page_size <= MAX_PAGE:
            raise JournalError(Problem("page_size", f"1 to {MAX_PAGE}", str(page_size)))
        after = read_page_token(filters, token) if token else None
        with self._database.begin() as connection:
            found = connection.execute(alerts(filters, after=after, limit=page_size + 1)).all()
            rows = [row(each) for each in found[:page_size]]
            kept = _kept(connection, rows)
        has_more = len(found) > page_size
        last = rows[-1].columns if rows else None
        return Page(kept, page_token(filters, PagePlace(last.time_us, last.id)) if last and has_more else "")

    def all_alerts(self, filters: Filters = EVERYTHING) -> Iterator[KeptAlert]:
        """All that fit, newest first, a page at a time."""
        token = ""
        while True:
            page = self.alerts(filters, page_size=_FETCH_ROWS, token=token)
            yield from page.alerts
            if not (token := page.next_token):
                return

    def find(self, alert_id: str) -> KeptAlert | None:
        """One alert; None if there is none of that id."""
        with self._database.begin() as connection:
            query = select(*ROW_COLUMNS).where(entries.c.id == storable(alert_id), entries.c.kind == "alert")
            return next(iter(_kept(connection, [row(each) for each in connection.execute(query)])), None)

    def lines(self, journal: str) -> Iterator[str]:
        """A journal's lines as they are kept, oldest first: an export of these can be checked like the journal."""
        with self._database.begin() as connection:
            for each in _rows(connection, journal):
                yield each.text

    def reviews(self) -> list[Review]:
        """All reviews, oldest first."""
        query = select(entries.c.text).where(entries.c.kind == "review").order_by(entries.c.time_us, entries.c.id)
        with self._database.begin() as connection:
            found = [parsed(text).entry for text in connection.execute(query).scalars()]
        return [review for review in found if isinstance(review, Review)]

    def heads(self) -> dict[str, Head]:
        """The head of each journal here."""
        with self._database.begin() as connection:
            return _heads(connection)

    def rows_after(self, journal: str, seq: int, limit: int) -> list[Row]:
        """Up to `limit` rows behind entry `seq` of a journal, in order."""
        query = select(*ROW_COLUMNS).where(entries.c.journal == journal, entries.c.seq > seq)
        with self._database.begin() as connection:
            return [row(each) for each in connection.execute(query.order_by(entries.c.seq).limit(limit))]

    def extent(self, journal: str) -> Extent:
        """How much is there; without counting, since entries are numbered and only beginnings are deleted."""
        with self._database.begin() as connection:
            own = select(func.min(entries.c.seq)).where(entries.c.journal == journal)
            first, head = connection.execute(own).scalar(), _heads(connection)[journal]
        return Extent(0 if first is None else head.seq - first + 1, head.seq)

    def unsent(self, journal: str) -> Unsent:
        """What another database is to have and has not yet, as far as is known here."""
        with self._database.begin() as connection:
            own = select(chains.c.head_seq, chains.c.shipped_seq).where(chains.c.journal == journal)
            head_seq, shipped_seq = connection.execute(own).one()
            if shipped_seq is None or shipped_seq >= head_seq:
                return Unsent(0, None)
            first = select(entries.c.time_us).where(entries.c.journal == journal, entries.c.seq > shipped_seq)
            time_us = connection.execute(first.order_by(entries.c.seq).limit(1)).scalar()
        return Unsent(head_seq - shipped_seq, None if time_us is None else time_of(time_us))

    def verify(self, noted: NotedHead | None = None) -> list[Verification]:
        """Checks every journal here, reading all of it.

        `noted` is a head of one of them that was noted elsewhere. It is held against the one that has it, or, if none
        has, against all.
        """
        with self._database.begin() as connection:
            heads, retentions = _heads(connection), _retentions(connection)
            holders = _holders(connection, noted)
            return [
                verified(
                    journal,
                    _rows(connection, journal),
                    heads.get(journal),
                    noted=noted if not holders or journal in holders else None,
                    retentions=retentions,
                )
                for journal in _journals(connection)
            ]


def _journals(connection: Connection) -> list[str]:
    """Of chains and of rows: neither can be removed without the other saying so."""
    named = set(connection.execute(select(chains.c.journal)).scalars())
    return sorted(named | set(connection.execute(select(entries.c.journal).distinct()).scalars()))


def _heads(connection: Connection) -> dict[str, Head]:
    query = select(chains.c.journal, chains.c.head_seq, chains.c.head_hash).order_by(chains.c.journal)
    return {journal: Head(seq, digest) for journal, seq, digest in connection.execute(query)}


def _holders(connection: Connection, noted: NotedHead | None) -> set[str]:
    """Journals in which a noted head is a row."""
    if noted is None:
        return set()
    return set(connection.execute(select(entries.c.journal).where(entries.c.hash == noted.hash)).scalars())


def _retentions(connection: Connection) -> list[Retention]:
    """All that can be read; those that can't are found when their own journal is checked."""
    found = []
    for text in connection.execute(select(entries.c.text).where(entries.c.kind == "retention")).scalars():
        with suppress(JournalError):
            found.append(parsed(text).entry)
    return [entry for entry in found if isinstance(entry, Retention)]


def _rows(connection: Connection, journal: str) -> Iterator[Row]:
    query = select(*ROW_COLUMNS).where(entries.c.journal == journal).order_by(entries.c.seq)
    return map(row, connection.execute(query.execution_options(yield_per=_FETCH_ROWS)))


def _kept(connection: Connection, rows: Iterable[Row]) -> tuple[KeptAlert, ...]:
    rows = list(rows)
    said = _said_of(connection, [each.columns.id for each in rows])
    return tuple(_kept_alert(parsed(each.text), said.get(each.columns.id, [])) for each in rows)


def _kept_alert(line: Line, said: list[Acknowledgement | Review]) -> KeptAlert:
    if not isinstance(line.entry, AlertRecord):  # somebody has changed the column that says what it is
        wanted = "an alert, as its column kind says; `telltale alerts verify` names what was changed"
        raise JournalError(Problem(f"entry {line.seq}", wanted, shown(line.kind)))
    return KeptAlert(
        record=line.entry,
        journal=line.journal,
        seq=line.seq,
        hash=line.hash,
        acknowledgements=tuple(each for each in said if isinstance(each, Acknowledgement)),
        reviews=tuple(each for each in said if isinstance(each, Review)),
        line=line.text,
    )


def _said_of(connection: Connection, alert_ids: list[str]) -> dict[str, list[Acknowledgement | Review]]:
    kinds = ("acknowledgement", "review")
    query = select(entries.c.text).where(entries.c.alert_id.in_(alert_ids), entries.c.kind.in_(kinds))
    found: dict[str, list[Acknowledgement | Review]] = {}
    for text in connection.execute(query.order_by(entries.c.time_us, entries.c.id)).scalars():
        entry = parsed(text).entry
        if isinstance(entry, Acknowledgement | Review):
            found.setdefault(entry.alert_id, []).append(entry)
    return found
