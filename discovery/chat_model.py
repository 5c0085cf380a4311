"""What explaining and scoring need of a model: an answer of a given shape to a conversation.

`ChatModel` is either an endpoint (`discovery.chat_endpoint`) or a model in this process (`discovery.local_chat`).
`ask` makes an answer of the shape out of what comes: it takes the JSON out of fences and talk around it, checks it with
pydantic, and if it is wrong tells the model what is wrong with it and asks again.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypedDict, TypeVar

from pydantic import BaseModel, ValidationError

from discovery.errors import ReplyError

Shape = TypeVar("Shape", bound=BaseModel)

_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_SHOWN_CHARACTERS = 200
_SHOWN_FIELDS = 8


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class ChatReply(NamedTuple):
    """What a model said."""

    text: str
    truncated: bool = False
    """Whether it ended because it had no tokens left."""


class ChatModel(Protocol):
    """Anything that answers."""

    @property
    def name(self) -> str:
        """What explanations are signed with."""

    async def reply(self, messages: list[Message], schema: dict[str, Any], max_tokens: int) -> ChatReply:
        """Answer with JSON of `schema`, as well as it can.

        Raises EndpointError and BudgetError, which end a run, and ReplyError for this one answer.
        """


@dataclass(frozen=True, slots=True)
class Asked(Generic[Shape]):
    """An answer of the right shape."""

    answer: Shape
    num_repairs: int
    """Times that it had to be asked again."""


async def ask(
    model: ChatModel,
    messages: list[Message],
    shape: type[Shape],
    *,
    max_tokens: int,
    num_repairs: int = 2,
    schema: dict[str, Any] | None = None,
) -> Asked[Shape]:
    """Ask until the answer is a `shape`, at most 1 + `num_repairs` times; ReplyError if it never is.

    An answer that was cut off is asked for again with twice as many tokens.
    `schema` is `shape`'s own by default; a narrower one may be given.
    """
    schema = shape.model_json_schema() if schema is None else schema
    conversation, first_limit = list(messages), max_tokens
    for attempt in range(num_repairs + 1):
        reply = await model.reply(conversation, schema, max_tokens)
        try:
            return Asked(parse(reply.text, shape), attempt)
        except ReplyError as error:
            if attempt == num_repairs:
                more = f", {first_limit} at first" if max_tokens > first_limit else ""
                cut = f" (cut off after {max_tokens} tokens{more})" if reply.truncated else ""
                raise ReplyError(f"{error}{cut}") from None
            if reply.truncated:
                max_tokens *= 2
                continue  # what was begun is lost on it; with more room it may come to an end
            conversation = [*messages, {"role": "assistant", "content": reply.text}, _complaint(error)]
    raise AssertionError("unreachable")


def _complaint(error: ReplyError) -> Message:
    return {"role": "user", "content": f"That is not the answer asked for: {error}. Answer with the JSON object alone."}


def parse(text: str, shape: type[Shape]) -> Shape:
    """The `shape` in `text`; ReplyError says what is wrong with it."""
    try:
        return shape.model_validate(first_object(text))
    except ValidationError as error:
        raise ReplyError(problems_of(error)) from None


def problems_of(error: ValidationError) -> str:
    """What is wrong with an answer, in a line: the fields that it lacks, those nobody asked for, then the others."""
    places: dict[str, list[str]] = {}
    for one in error.errors():
        place = ".".join(map(str, one["loc"])) or "answer"
        words = {"missing": "it lacks", "extra_forbidden": "nobody asked for"}.get(one["type"], one["msg"])
        places.setdefault(words, []).append(place)
    first = [f"{words} {_listed(places.pop(words))}" for words in ("it lacks", "nobody asked for") if words in places]
    return "; ".join([*first, *(f"{_listed(fields)}: {words}" for words, fields in places.items())])


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN_FIELDS} more" if len(names) > _SHOWN_FIELDS else ""
    return ", ".join(names[:_SHOWN_FIELDS]) + more


def first_object(text: str) -> dict[str, Any]:
    """The first JSON object in `text`, whatever stands around it. Thoughts in <think> tags are skipped."""
    text = _THOUGHTS.sub("", text)
    decoder, start = json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            found, _ = decoder.raw_decode(text, start)
        except (json.JSONDecodeError, RecursionError):
            start = text.find("{", start + 1)
        else:
            return dict(found)
    shown = " ".join(text.split())
    raise ReplyError(f"the answer must hold a JSON object, got {shown[:_SHOWN_CHARACTERS]!r}")
