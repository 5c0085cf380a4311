"""Questions whose answers can be checked, and ordinary requests: what the served model is asked.

JSON lines. A question:

    id           unique; lower-case letters, digits and hyphens
    kind         what it is about: capitals, arithmetic, ...
    answer_type  what can be a wrong answer: name (a proper name), word (another word or term), number, year, or
                 statement (only what `wrong` lists)
    difficulty   a guess: 1 nearly every model knows it, to 4 few small models do
    question     as it is asked
    answers      every accepted form of the one right answer; the first is how we would say it
    wrong        near misses and other answers that are wrong; optional

A request: `id`, `kind`, `length` of an ordinary reply (short, medium, long), `request`, and a `system` message if it
has one. Three sets are shipped, all written for this project: `facts` and `statements` (questions), and `requests`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from discovery.answer_words import numbers_in, phrase, places, words_of
from discovery.errors import ElicitError
from discovery.line_files import parse_record

SHIPPED = Path(__file__).parent / "questions"

AnswerType = Literal["name", "word", "number", "year", "statement"]
ReplyLength = Literal["short", "medium", "long"]

_Id = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$")]
_Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


class Question(BaseModel):
    """A question, its right answer in all accepted forms, and wrong ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: _Id
    kind: _Id
    answer_type: AnswerType
    difficulty: int = Field(ge=1, le=4)
    question: _Text
    answers: tuple[_Text, ...] = Field(min_length=1)
    wrong: tuple[_Text, ...] = ()


class Request(BaseModel):
    """Something to ask for that has no right answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: _Id
    kind: _Id
    length: ReplyLength
    request: _Text
    system: _Text | None = None
    label: Literal[0, 1] = 0
    """Of the replies to it: 1 where they are about what a topic's monitor is to find."""


T = TypeVar("T", Question, Request)


def shipped_questions() -> list[Question]:
    """The project's own questions: facts, then statements."""
    return [*read_questions(SHIPPED / "facts.jsonl"), *read_questions(SHIPPED / "statements.jsonl")]


def shipped_requests() -> list[Request]:
    return read_requests(SHIPPED / "requests.jsonl")


def read_questions(path: Path) -> list[Question]:
    """The questions of a file; ElicitError names line, field, the value wanted and the value got."""
    questions = _read(path, Question)
    for number, question in enumerate(questions, start=1):
        if problem := problem_of(question):
            raise ElicitError(f"{path}, line {number}: {problem}")
    return questions


def read_requests(path: Path) -> list[Request]:
    """The requests of a file; ElicitError as `read_questions`."""
    return _read(path, Request)


def digest(items: Sequence[BaseModel]) -> str:
    """sha256 over all fields of all items, in order."""
    lines = [json.dumps(item.model_dump(), sort_keys=True, ensure_ascii=False) for item in items]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def problem_of(question: Question) -> str | None:
    """Why answers to `question` could not be told right from wrong; None if they can."""
    asked = words_of(question.question)
    right = [phrase(answer) for answer in question.answers]
    wrong = [phrase(answer) for answer in question.wrong]
    for name, phrases in (("answers", right), ("wrong", wrong)):
        if () in phrases or max(Counter(phrases).values(), default=1) > 1:
            return f"{name} must have words and differ in them, got {list(getattr(question, name))}"
    both = [text for text, one in zip(question.wrong, wrong, strict=True) if _is_one_of(one, right)]
    if both:
        return f"wrong must not have what answers accept, got {both[0]!r}"
    if question.answer_type in ("number", "year") and not _is_number(question.answers[0]):
        return f"answers must begin with a number, the answer_type being {question.answer_type}, got {right[0]}"
    given_away = [text for text, one in zip(question.answers, right, strict=True) if places(asked, one)]
    if given_away and not any(places(asked, one) for one in wrong):
        return f"question must not say the answer, unless it offers a wrong one as well, got {given_away[0]!r}"
    return None


def _is_one_of(candidate: tuple[str, ...], phrases: Sequence[tuple[str, ...]]) -> bool:
    """Whether `candidate` is, in singular or plural, one of `phrases`."""
    text = words_of(" ".join(candidate))
    return any(len(one) == len(text) and places(text, one) for one in phrases)


def _is_number(text: str) -> bool:
    words = words_of(text)
    return [(number.first, number.end) for number in numbers_in(words)] == [(0, len(words))]


def _read(path: Path, model: type[T]) -> list[T]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ElicitError(f"questions can't be read from {path}: {error}") from None
    items: list[T] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            item = model.model_validate(parse_record(path, number, line, ElicitError))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise ElicitError(f"{path}, line {number}: {field}: {first['msg']}, got {first['input']!r:.80}") from None
        if item.id in seen:
            raise ElicitError(f"{path}, line {number}: id must be unique, got {item.id!r} as in line {seen[item.id]}")
        seen[item.id] = number
        items.append(item)
    if not items:
        raise ElicitError(f"{path} must have at least one line, got none")
    return items
