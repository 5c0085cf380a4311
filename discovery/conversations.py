"""Labelled conversations: what monitors are fitted, calibrated and evaluated on.

JSON lines (`.jsonl`, `.jsonl.gz`), one conversation each:

    id               unique in its data set; default: file and line
    dataset          the set that figures are given for; default: the file's name
    messages         [{role, content}, ...]; the last one is scored. Roles: system, user, assistant, tool; or one
                     message of role text alone, which is plain text without a template
    score_from_char  first scored character of the last message's content, from 0; default 0
    score_to_char    the one behind the last; default: the content's end
    label            1 (what the monitor is to find), 0 (what it is to leave alone), null (left out)
    group            what belongs together (the two answers to one question): never on both sides of a split.
                     Default: conversations with the same messages before the last one are a group
    source_model, on_policy, meta    where it comes from; meta.class and meta.arm name on-policy classes and prompts

Other keys are passed over. Whatever is wrong is a LabelledDataError with file and line.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from discovery.contents import problem_of, problem_of_text
from discovery.corpus import read_numbered_lines
from discovery.errors import CorpusError, LabelledDataError
from monitors.errors import shown

PLAIN_TEXT = "text"
"""Role of plain text."""
ROLES = ("system", "user", "assistant", "tool", PLAIN_TEXT)
CUT_OFF = ("length", "context_length")
SCORED_ROLES = ("assistant", PLAIN_TEXT)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation whose last message is scored between two characters."""

    id: str
    dataset: str
    messages: tuple[dict[str, str], ...]
    first_char: int
    end_char: int
    """The one behind the last; of the last message's content."""
    label: int
    group: str
    meta: dict[str, Any]

    @property
    def scored_text(self) -> str:
        """What is scored."""
        return self.messages[-1]["content"][self.first_char : self.end_char]

    @property
    def full_group(self) -> str:
        """The group, apart from those of other data sets that have the same name."""
        return f"{self.dataset}/{self.group}"

    @property
    def class_name(self) -> str:
        """`meta.class`: of on-policy data, what the reply was against what the model knows; else empty."""
        return str(self.meta.get("class", ""))

    @property
    def arm(self) -> str:
        """`meta.arm`: of on-policy data, the name of the prompt it was asked under; else empty."""
        return str(self.meta.get("arm", ""))

    @property
    def is_cut_off(self) -> bool:
        """Whether `meta.finish` says that the reply ended for want of room."""
        return self.meta.get("finish") in CUT_OFF


def read_conversations(paths: Iterable[Path]) -> list[Conversation]:
    """All conversations of the files that have a label, in order.

    LabelledDataError names file and line of what is no such record, and of an id that was there before; and a file
    without any labelled conversation.
    """
    conversations: list[Conversation] = []
    seen: dict[tuple[str, str], str] = {}
    for path in paths:
        before = len(conversations)
        for where, conversation in _read(path):
            key = conversation.dataset, conversation.id
            if key in seen:
                raise LabelledDataError(f"{where}: id must be unique in its data set, got {key[1]!r} as in {seen[key]}")
            seen[key] = where
            conversations.append(conversation)
        if len(conversations) == before:
            raise LabelledDataError(f"{path} must have conversations with label 1 or 0, got none")
    return conversations


def by_dataset(conversations: Sequence[Conversation]) -> dict[str, list[int]]:
    """Indices of each data set's conversations, sets in the order of their first one."""
    sets: dict[str, list[int]] = {}
    for index, conversation in enumerate(conversations):
        sets.setdefault(conversation.dataset, []).append(index)
    return sets


def require_both_labels(conversations: Iterable[Conversation], what: str) -> None:
    """LabelledDataError if one label is missing."""
    counts = Counter(conversation.label for conversation in conversations)
    if missing := {0, 1} - counts.keys():
        raise LabelledDataError(
            f"{what} must have conversations with label 1 and with label 0, got none with label {min(missing)} "
            f"({counts[1]} with 1, {counts[0]} with 0)"
        )


# --- one record -----------------------------------------------------------------------------------------------------


class _Record(BaseModel):
    """A line as it is written. Null is the default everywhere."""

    model_config = ConfigDict(strict=True, extra="ignore")

    id: str | None = None
    dataset: str | None = None
    messages: Any
    score_from_char: int | None = None
    score_to_char: int | None = None
    label: int | None = Field(ge=0, le=1)
    group: str | int | None = None
    source_model: str | None = None
    on_policy: bool | None = None
    meta: dict[str, Any] | None = None


def _read(path: Path) -> Iterator[tuple[str, Conversation]]:
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
    try:
        for number, fields in read_numbered_lines(path):
            where = f"{path}, line {number}"
            record = _checked(fields, where)
            if record.label is not None:
                yield where, _conversation(record, stem, number, where)
    except CorpusError as error:
        raise LabelledDataError(str(error)) from None


def _checked(fields: dict[str, Any], where: str) -> _Record:
    try:
        record = _Record.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        got = "nothing" if first["type"] == "missing" else shown(first["input"])
        raise LabelledDataError(f"{where}: {name} must be {_WANTED.get(name, 'of its type')}, got {got}") from None
    if record.label is not None:
        _check_messages(record.messages, where)
    return record


_WANTED = {
    "id": "a string",
    "dataset": "a string",
    "messages": "a list of messages with role and content",
    "score_from_char": "a whole number of characters",
    "score_to_char": "a whole number of characters",
    "label": "1, 0 or null",
    "group": "a string",
    "source_model": "a string",
    "on_policy": "true or false",
    "meta": "an object",
}


def _check_messages(messages: Any, where: str) -> None:
    problem = problem_of(messages) if isinstance(messages, list) and messages else f"messages, got {shown(messages)}"
    if problem is None and not isinstance(messages[0], dict):
        problem = "messages with a role and a content, got token ids"
    if problem is not None:
        raise LabelledDataError(f"{where}: messages must be {problem}")
    roles = [message["role"] for message in messages]
    for index, role in enumerate(roles):
        if role not in ROLES:
            raise LabelledDataError(f"{where}: messages.{index}.role must be one of {', '.join(ROLES)}, got {role!r}")
    if PLAIN_TEXT in roles and len(roles) > 1:
        raise LabelledDataError(f"{where}: a message of role text must stand alone, got {len(roles)} messages")
    if roles[-1] not in SCORED_ROLES:
        raise LabelledDataError(
            f"{where}: messages.{len(roles) - 1}.role must be assistant or text, since the last message is scored, "
            f"got {roles[-1]!r}"
        )


def _conversation(record: _Record, stem: str, number: int, where: str) -> Conversation:
    assert record.label is not None
    length = len(record.messages[-1]["content"])
    first = record.score_from_char or 0
    end = length if record.score_to_char is None else record.score_to_char
    if not 0 <= first < end <= length:
        raise LabelledDataError(
            f"{where}: 0 <= score_from_char < score_to_char <= {length}, the last message's characters, must hold, "
            f"got {first} and {end}"
        )
    messages = tuple({"role": m["role"], "content": m["content"]} for m in record.messages)
    identity = f"{stem}-{number}" if record.id is None else record.id
    made = Conversation(
        id=identity,
        dataset=record.dataset or stem,
        messages=messages,
        first_char=first,
        end_char=end,
        label=record.label,
        group=_prompt_group(messages, identity) if record.group in (None, "") else str(record.group),
        meta={**(record.meta or {}), "source_model": record.source_model, "on_policy": bool(record.on_policy)},
    )
    # Packs name sets and arms, in UTF-8: one that it can't hold would be found out after the fit.
    for name, text in (("dataset", made.dataset), ("meta.arm", made.arm)):
        if problem := problem_of_text(text):
            raise LabelledDataError(f"{where}: {name} must be {problem}")
    return made


def _prompt_group(messages: tuple[dict[str, str], ...], identity: str) -> str:
    """Conversations that share a prompt hang together; one without a prompt is alone."""
    if len(messages) == 1:
        return identity
    prompt = json.dumps(messages[:-1], sort_keys=True).encode("utf-8", "surrogatepass")
    return f"prompt-{hashlib.sha256(prompt).hexdigest()[:16]}"
