"""Which alerts are wanted, and pages of them that stay the same while others arrive.

Newest first, by time and then id. A page begins behind the last alert of the one before, wherever that is by then
(keyset pagination), so that an alert that comes in, or is deleted, shifts nothing.
"""

import base64
import binascii
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, exists, or_, select

from monitors.alert_record import AlertState, Level, microseconds
from monitors.canonical_json import canonical
from monitors.errors import JournalError, Problem, shown
from monitors.journal_chain import storable
from monitors.journal_entry import Verdict
from monitors.journal_tables import ROW_COLUMNS, entries

_FINGERPRINT_DIGITS = 12
_LARGEST = 2**63 - 1
"""A larger number no column holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What alerts must be like. Nothing given is nothing asked."""

    monitors: tuple[str, ...] = ()
    """Any of these."""
    levels: tuple[Level, ...] = ()
    """Any of these."""
    states: tuple[AlertState, ...] = ()
    """Any of these."""
    since: datetime | None = None
    """At this time or later."""
    until: datetime | None = None
    """Before this time."""
    request_id: str | None = None
    label: str | None = None
    reviewed: bool | None = None
    acknowledged: bool | None = None
    verdict: Verdict | None = None
    """What the last review says."""
    journal: str | None = None
    """Of a database that holds several journals, only this one."""


EVERYTHING = Filters()


class Place(NamedTuple):
    """Where a page ends."""

    time_us: int
    id: str


def alerts(filters: Filters, *, after: Place | None, limit: int) -> Select[Any]:
    """The rows of up to `limit` alerts behind a place, newest first."""
    conditions = [entries.c.kind == "alert", *_conditions(filters)]
    if after is not None:
        later = and_(entries.c.time_us == after.time_us, entries.c.id < after.id)
        conditions.append(or_(entries.c.time_us < after.time_us, later))
    order = entries.c.time_us.desc(), entries.c.id.desc()
    return select(*ROW_COLUMNS).where(*conditions).order_by(*order).limit(limit)


def page_token(filters: Filters, last: Place) -> str:
    """What asks for the page behind `last`."""
    return base64.urlsafe_b64encode(canonical([*last, _fingerprint(filters)]).encode()).decode().rstrip("=")


def read_page_token(filters: Filters, token: str) -> Place:
    """Where the page begins. JournalError for a token that no page of the same filters gave."""
    try:
        padded = token + "=" * (-len(token) % 4)
        time_us, id_, fingerprint = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        is_place = isinstance(time_us, int) and abs(time_us) <= _LARGEST and isinstance(id_, str)
        if is_place and fingerprint == _fingerprint(filters):
            return Place(time_us, storable(id_))
    except (binascii.Error, ValueError, TypeError):
        pass
    raise JournalError(Problem("page_token", "the next_page_token of a list with the same filters", shown(token)))


def _fingerprint(filters: Filters) -> str:
    """Of all filters but the times: who asks for the last day's alerts asks for later ones at every page."""
    asked = repr(asdict(replace(filters, since=None, until=None)))
    return hashlib.sha256(asked.encode("utf-8", "replace")).hexdigest()[:_FINGERPRINT_DIGITS]


def _conditions(filters: Filters) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    for column, wanted in (("monitor", filters.monitors), ("level", filters.levels), ("state", filters.states)):
        if wanted:
            conditions.append(entries.c[column].in_([storable(each) for each in wanted]))
    for column, value in (("request_id", filters.request_id), ("label", filters.label), ("journal", filters.journal)):
        if value is not None:
            conditions.append(entries.c[column] == storable(value))
    if filters.since is not None:
        conditions.append(entries.c.time_us >= microseconds(filters.since))
    if filters.until is not None:
        conditions.append(entries.c.time_us < microseconds(filters.until))
    for kind, is_wanted in (("review", filters.reviewed), ("acknowledgement", filters.acknowledged)):
        if is_wanted is not None:
            conditions.append(_is_said_of(kind) if is_wanted else ~_is_said_of(kind))
    if filters.verdict is not None:
        conditions.append(_last_verdict() == filters.verdict)
    return conditions


def _is_said_of(kind: str) -> ColumnElement[bool]:
    said = entries.alias()
    return exists().where(said.c.alert_id == entries.c.id, said.c.kind == kind)


def _last_verdict() -> ColumnElement[Any]:
    said = entries.alias()
    return (
        select(said.c.verdict)
        .where(said.c.alert_id == entries.c.id, said.c.kind == "review")
        .order_by(said.c.time_us.desc(), said.c.id.desc())
        .limit(1)
        .scalar_subquery()
    )
