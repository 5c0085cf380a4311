"""What stands in an alert journal, and the line of canonical JSON that it stands there as.

    {"body":{...},"format":1,"journal":"...","kind":"alert","previous":"...","seq":7}

A line names the sha256 of the line before it, and its own hash is the sha256 of the line: the chain can be checked
with `sha256sum` alone. Nothing in a journal is ever changed. What is said of an alert later, and what retention
deletes, are entries of their own.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from monitors.alert_record import AlertRecord, Level, Record, Sha256, Text, Timed, TimeId, plain
from monitors.canonical_json import canonical, sha256_of
from monitors.errors import JournalError, Problem, shown

FORMAT = 1
GENESIS = "0" * 64
"""What a journal's first line names as the one before it."""

Verdict = Literal["true", "false", "unsure"]
Kind = Literal["alert", "acknowledgement", "review", "retention"]


class Acknowledgement(Timed):
    """Somebody has taken notice of an alert."""

    alert_id: TimeId
    by: Annotated[Text, Field(min_length=1)]
    note: Text = ""


class Review(Timed):
    """Somebody has judged an alert. Of several reviews of one alert the last one counts."""

    alert_id: TimeId
    monitor: str
    pack_sha256: Sha256 | None = None
    level: Level
    """These three are the alert's own, so that its verdict still counts when retention has deleted it."""
    verdict: Verdict
    """Whether what the monitor's name claims was there."""
    reviewer: Annotated[Text, Field(min_length=1)]
    note: Text = ""


class Retention(Timed):
    """The first entries of a journal were deleted. Without this entry, that they are missing would be a fault."""

    journal: str
    """Whose entries; in a database of several journals it may be another than the one this stands in."""
    through_seq: Annotated[int, Field(ge=1)]
    """The last one deleted: all up to it are."""
    through_hash: Sha256
    num_deleted: Annotated[int, Field(ge=0)]
    """By this run; earlier ones have deleted others. 0: it says again what an entry said that this run deleted."""
    reason: str


_R = TypeVar("_R", bound=Record)

Entry = AlertRecord | Acknowledgement | Review | Retention

KINDS: dict[Kind, type[Timed]] = {
    "alert": AlertRecord,
    "acknowledgement": Acknowledgement,
    "review": Review,
    "retention": Retention,
}
_NAMES = {kind_class: kind for kind, kind_class in KINDS.items()}


class _Envelope(Record):
    body: dict[str, Any]
    format: int
    journal: str
    kind: Kind
    previous: Sha256
    seq: Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True)
class Line:
    """An entry at its place in a journal."""

    journal: str
    seq: int
    """From 1."""
    previous: str
    """Hash of the line before."""
    entry: Entry
    text: str
    """The line itself."""
    hash: str
    """sha256 of the text."""

    @property
    def kind(self) -> Kind:
        """What it is."""
        return _NAMES[type(self.entry)]


def written(entry: Entry, *, journal: str, seq: int, previous: str) -> Line:
    """`entry` as the line after the one with the hash `previous`."""
    envelope = {"format": FORMAT, "journal": journal, "kind": _NAMES[type(entry)], "previous": previous, "seq": seq}
    text = canonical(envelope | {"body": plain(entry)})
    return Line(journal, seq, previous, entry, text, sha256_of(text))


def parsed(text: str) -> Line:
    """The line that `text` is. JournalError lists every fault of one that is none."""
    envelope = _checked(_Envelope, text)
    if envelope.format != FORMAT:
        raise JournalError(Problem("format", f"{FORMAT}, the one that this version reads", shown(envelope.format)))
    # Once more as text: only so does pydantic take JSON's lists for tuples and its texts for times.
    entry = _checked(KINDS[envelope.kind], canonical(envelope.body), within="body")
    return Line(envelope.journal, envelope.seq, envelope.previous, entry, text, sha256_of(text))  # type: ignore[arg-type]


def _checked(record_class: type[_R], text: str, within: str = "") -> _R:
    try:
        return record_class.model_validate_json(text)
    except ValidationError as error:
        problems = [_problem(detail) for detail in error.errors(include_url=False)]
    raise JournalError(*(problem.within(within) for problem in problems))


def _problem(detail: ErrorDetails) -> Problem:
    """pydantic's account of one fault, in our terms."""
    field = ".".join(map(str, detail["loc"])) or "line"
    match detail["type"]:
        case "missing":
            return Problem(field, "a value", "nothing")
        case "extra_forbidden":
            return Problem(field, "no such key", shown(detail["input"]))
        case _:
            return Problem(field, detail["msg"].removeprefix("Input should be "), shown(detail["input"]))
