"""How much of a journal is kept: deletes whole beginnings, and leaves an entry that accounts for it.

What is deleted is always a beginning, up to some entry: so the rest is still a chain, whose first line names the hash
of the last one deleted. The entry that accounts for it (`Retention`) names the same hash, and stands in the chain
itself. A beginning that somebody else deletes has no such entry.

The entries for copies stand in the database's own journal, which ages too: one that is deleted there is written anew.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, func, select

from monitors.alert_record import microseconds
from monitors.errors import JournalError, Problem
from monitors.journal_entry import Retention, parsed
from monitors.journal_tables import chains, entries
from monitors.time_ids import new_id

MAX_DAYS = 36_500
"""Longest age that can be given: a hundred years ago is a date still, and a million days ago is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """What is to be kept; of two limits the one that deletes more holds."""

    max_age: timedelta | None = None
    """Entries up to the last one before the first that is younger are deleted."""
    max_alerts: int | None = None
    """So many of the newest alerts, and everything since the oldest of them, are kept."""

    unsent_too: bool = False
    """Whether to delete what is to be forwarded and was not yet. Its copy then ends there for good."""

    def __post_init__(self) -> None:
        if self.max_age is None and self.max_alerts is None:
            raise JournalError(Problem("retention", "an age, a number of alerts, or both", "neither"))
        if self.max_age is not None and self.max_age <= timedelta(0):
            raise JournalError(Problem("max_age", "more than no time", str(self.max_age)))
        if self.max_age is not None and self.max_age > timedelta(days=MAX_DAYS):
            raise JournalError(Problem("max_age", f"at most {MAX_DAYS} days", str(self.max_age)))
        if self.max_alerts is not None and self.max_alerts < 0:
            raise JournalError(Problem("max_alerts", "0 or more", str(self.max_alerts)))

    def __str__(self) -> str:
        parts = []
        if self.max_age is not None:
            parts.append(f"older than {self.max_age.total_seconds() / 86400:g} days")
        if self.max_alerts is not None:
            parts.append(f"beyond the newest {self.max_alerts} alerts")
        return " or ".join(parts)


def due(connection: Connection, keep: Keep, now: datetime) -> list[Retention]:
    """What there is to delete, in each journal that has anything."""
    journals = connection.execute(select(chains.c.journal).order_by(chains.c.journal)).scalars().all()
    found = [_due(connection, journal, keep, now) for journal in journals]
    return [each for each in found if each is not None]


def delete_through(connection: Connection, retention: Retention) -> None:
    """Deletes what `due` found."""
    connection.execute(
        delete(entries).where(entries.c.journal == retention.journal, entries.c.seq <= retention.through_seq)
    )


def renewed(connection: Connection, own: str, deleted: Sequence[Retention], now: datetime) -> list[Retention]:
    """The entries of `own` that account for other journals and are among `deleted`, to be written anew.

    A copy that gets nothing more has nothing to delete in later runs, so that none of them would write of it.
    """
    through = {each.journal: each.through_seq for each in deleted}
    if own not in through:
        return []
    query = select(entries.c.seq, entries.c.text).where(entries.c.journal == own, entries.c.kind == "retention")
    furthest: dict[str, tuple[int, Retention]] = {}
    for seq, text in connection.execute(query.order_by(entries.c.seq)):
        with suppress(JournalError):  # a line that was tampered with accounts for nothing
            entry = parsed(text).entry
            if isinstance(entry, Retention):
                best = furthest.get(entry.journal)
                if best is None or best[1].through_seq <= entry.through_seq:
                    furthest[entry.journal] = seq, entry
    return [
        entry.model_copy(update={"id": new_id(), "time": now, "num_deleted": 0})
        for journal, (seq, entry) in furthest.items()
        if journal not in through and seq <= through[own]
    ]


def _due(connection: Connection, journal: str, keep: Keep, now: datetime) -> Retention | None:
    through = max(_too_old(connection, journal, keep, now), _too_many(connection, journal, keep))
    shipped = connection.execute(select(chains.c.shipped_seq).where(chains.c.journal == journal)).scalar()
    if shipped is not None and not keep.unsent_too:
        through = min(through, shipped)
    there = entries.c.journal == journal, entries.c.seq <= through
    num = connection.execute(select(func.count()).select_from(entries).where(*there)).scalar_one()
    if not num:
        return None
    digest = connection.execute(
        select(entries.c.hash).where(entries.c.journal == journal, entries.c.seq == through)
    ).scalar_one()
    return Retention(
        id=new_id(),
        time=now,
        journal=journal,
        through_seq=through,
        through_hash=digest,
        num_deleted=num,
        reason=str(keep),
    )


def _too_old(connection: Connection, journal: str, keep: Keep, now: datetime) -> int:
    """The last entry before the first that is young enough; 0 if that is the first."""
    if keep.max_age is None:
        return 0
    young = entries.c.journal == journal, entries.c.time_us >= microseconds(now - keep.max_age)
    first = connection.execute(select(func.min(entries.c.seq)).where(*young)).scalar()
    if first is not None:
        return int(first) - 1
    return int(connection.execute(select(chains.c.head_seq).where(chains.c.journal == journal)).scalar_one())


def _too_many(connection: Connection, journal: str, keep: Keep) -> int:
    """The newest alert that is one too many; 0 if none is."""
    if keep.max_alerts is None:
        return 0
    alerts = select(entries.c.seq).where(entries.c.journal == journal, entries.c.kind == "alert")
    # More than a database can count is all of them.
    newest_first = alerts.order_by(entries.c.seq.desc()).offset(min(keep.max_alerts, sys.maxsize)).limit(1)
    return int(connection.execute(newest_first).scalar() or 0)
