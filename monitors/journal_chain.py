"""Whether a journal is as it was written: pure functions over its rows, in order.

Each line names the hash of the one before, and the head, kept beside, names the last. So whoever changes, removes or
moves a row without writing everything after it anew is found out. Whoever can write everything anew, head included, is
not - unless the head was noted down elsewhere (`NotedHead`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from monitors.alert_record import AlertRecord, in_utf8, microseconds
from monitors.canonical_json import sha256_of
from monitors.errors import JournalError, Problem
from monitors.journal_entry import GENESIS, Acknowledgement, Line, Retention, Review, parsed


class Columns(NamedTuple):
    """What a row says beside its line, so that entries can be searched. All of it follows from the line."""

    id: str
    kind: str
    time_us: int
    """Microseconds since 1970."""
    alert_id: str | None
    """The alert it is about; None if it is about none."""
    request_id: str | None
    label: str | None
    monitor: str | None
    level: str | None
    state: str | None
    verdict: str | None


class Row(NamedTuple):
    """A line as it lies in a table."""

    journal: str
    seq: int
    hash: str
    text: str
    columns: Columns


class Head(NamedTuple):
    """The last entry of a journal."""

    seq: int
    """0 if there is none yet."""
    hash: str


EMPTY = Head(0, GENESIS)


class NotedHead(NamedTuple):
    """A head that somebody noted down elsewhere, where whoever changes the journal can't."""

    hash: str
    seq: int | None = None
    """Makes it possible to say what is wrong more exactly."""

    @classmethod
    def read(cls, text: str) -> "NotedHead":
        """`HASH`, or `SEQ:HASH` as `telltale alerts verify` prints it. JournalError for anything else."""
        seq, _, digest = text.rpartition(":")
        is_hash = len(digest) == 64 and set(digest) <= set("0123456789abcdef")
        if not is_hash or (seq and not (seq.isascii() and seq.isdigit())):
            raise JournalError(Problem("head", "HASH or SEQ:HASH, the hash 64 lower-case hex digits", repr(text)))
        return cls(digest, int(seq) if seq else None)


class Fault(StrEnum):
    """What can be wrong with a chain."""

    CHANGED = "changed"
    """A row is not what was written there."""
    MISSING = "missing"
    """Rows were removed, and no retention accounts for it."""
    REORDERED = "reordered"
    """A row stands in another's place."""
    FORGED_HEAD = "forged head"
    """The head names something that the rows don't end in, or a noted head is not in the chain."""


class Finding(NamedTuple):
    """The first thing wrong."""

    fault: Fault
    seq: int
    """The first row that is wrong; for missing rows the first that is missing."""
    detail: str

    def __str__(self) -> str:
        return f"{self.fault} at {self.seq}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What checking one journal found."""

    journal: str
    num_rows: int
    """Rows read: all, or those before the first fault and that one."""
    first_seq: int | None
    """First row there; above 1 if retention has deleted others, None if there is none."""
    head: Head
    finding: Finding | None
    """None if the chain holds."""

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return self.finding is None


def columns_of(line: Line) -> Columns:
    """What is searched by."""
    entry = line.entry
    alert_id = request_id = label = monitor = level = state = verdict = None
    match entry:
        case AlertRecord():
            alert_id, request_id, label = entry.id, entry.request_id, entry.label
            monitor, level, state = entry.monitor, entry.level, entry.state
        case Acknowledgement():
            alert_id = entry.alert_id
        case Review():
            alert_id, monitor, level, verdict = entry.alert_id, entry.monitor, entry.level, entry.verdict
    columns = alert_id, request_id, label, monitor, level, state, verdict
    texts = [None if text is None else storable(text) for text in columns]
    return Columns(entry.id, line.kind, microseconds(entry.time), *texts)


def storable(text: str) -> str:
    """A text as a column has it. PostgreSQL has no U+0000 in texts; in a line it stands escaped."""
    return in_utf8(text).replace("\0", "\ufffd")


def row_of(line: Line) -> Row:
    """The row that keeps a line."""
    return Row(line.journal, line.seq, line.hash, line.text, columns_of(line))


def verified(
    journal: str,
    rows: Iterable[Row],
    head: Head | None,
    *,
    noted: NotedHead | None = None,
    retentions: Iterable[Retention] = (),
) -> Verification:
    """Checks the rows of one journal, given in order of `seq`.

    `head` is the one kept beside, None if it is gone. `retentions` are those that other journals of the same database
    keep; the rows' own are found on the way.
    """
    walk = _Walk(journal, [r for r in retentions if r.journal == journal])
    noted_hash, noted_seq = (None, None) if noted is None else noted
    for row in rows:
        finding = walk.step(row)
        if finding is not None:
            return Verification(journal, walk.num_rows, walk.first_seq, walk.last, finding)
        walk.saw_noted |= row.hash == noted_hash and noted_seq in (None, row.seq)
    finding = walk.prefix_fault() or walk.head_fault(head) or walk.noted_fault(noted)
    return Verification(journal, walk.num_rows, walk.first_seq, walk.last, finding)


class _Walk:
    """A walk along one journal's rows, and what is known at its end."""

    def __init__(self, journal: str, retentions: list[Retention]) -> None:
        self.journal, self.retentions = journal, retentions
        self.num_rows = 0
        self.first_seq: int | None = None
        self.before_first = EMPTY
        """What the first row follows: `EMPTY`, or the last row that retention deleted."""
        self.last = EMPTY
        self.saw_noted = False

    def step(self, row: Row) -> Finding | None:
        """The first fault of the next row, or one of the row before that this one brings to light."""
        self.num_rows += 1
        if sha256_of(row.text) != row.hash:
            return Finding(Fault.CHANGED, row.seq, f"its line has the hash {sha256_of(row.text)}, not {row.hash}")
        try:
            line = parsed(row.text)
        except JournalError as error:
            return Finding(Fault.CHANGED, row.seq, f"it is no line of a journal: {'; '.join(map(str, error.problems))}")
        finding = self._place_fault(row, line) or _column_fault(row, line)
        if finding is None:
            self.last = Head(row.seq, row.hash)
            if isinstance(line.entry, Retention) and line.entry.journal == self.journal:
                self.retentions.append(line.entry)
        return finding

    def _place_fault(self, row: Row, line: Line) -> Finding | None:
        if (line.journal, line.seq) != (self.journal, row.seq):
            return Finding(Fault.REORDERED, row.seq, f"its line is number {line.seq} of journal {line.journal}")
        if self.first_seq is None:
            self.first_seq = row.seq
            self.before_first = self.last = Head(row.seq - 1, line.previous)
        if row.seq != self.last.seq + 1:
            return Finding(Fault.MISSING, self.last.seq + 1, f"the next row there is {row.seq}")
        if line.previous != (GENESIS if row.seq == 1 else self.last.hash):
            return Finding(Fault.CHANGED, max(self.last.seq, 1), f"row {row.seq} follows one with another hash")
        return None

    def prefix_fault(self) -> Finding | None:
        """Rows before the first that no retention accounts for."""
        if self.before_first.seq == 0 or self._is_accounted(self.before_first):
            return None
        return Finding(Fault.MISSING, 1, f"the first row there is {self.first_seq}, and no retention accounts for that")

    def head_fault(self, head: Head | None) -> Finding | None:
        """What the head that is kept beside says against the rows."""
        if head is None:
            return Finding(Fault.FORGED_HEAD, self.last.seq, "there is no head")
        if self.first_seq is None and self._is_accounted(head):  # all of them were deleted
            self.before_first = self.last = head
        if head.seq > self.last.seq:
            return Finding(Fault.MISSING, self.last.seq + 1, f"the head is at {head.seq}")
        if head != self.last:
            return Finding(Fault.FORGED_HEAD, head.seq, f"the rows end in {self.last.seq}:{self.last.hash}")
        return None

    def noted_fault(self, noted: NotedHead | None) -> Finding | None:
        """What a head noted elsewhere says against the rows."""
        if noted is None or self.saw_noted or noted.hash == self.before_first.hash:
            return None
        if noted.seq is None:
            return Finding(Fault.FORGED_HEAD, self.last.seq, "no row has the noted hash: cut, deleted or written anew")
        if noted.seq > self.last.seq:
            return Finding(Fault.MISSING, self.last.seq + 1, f"the noted head is at {noted.seq}: the end was cut off")
        if noted.seq < self.before_first.seq:
            wanted = "retention has deleted the row whose hash was noted: nothing can be said of what was before"
            return Finding(Fault.MISSING, noted.seq, wanted)
        return Finding(Fault.CHANGED, noted.seq, "it has not the noted hash: written anew from there or from before")

    def _is_accounted(self, deleted: Head) -> bool:
        return any((r.through_seq, r.through_hash) == deleted for r in self.retentions)


def _column_fault(row: Row, line: Line) -> Finding | None:
    for name, got, wanted in zip(Columns._fields, row.columns, columns_of(line), strict=True):
        if got != wanted:
            return Finding(Fault.CHANGED, row.seq, f"its column {name} says {got!r}, its line {wanted!r}")
    return None
