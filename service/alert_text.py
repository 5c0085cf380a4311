"""An alert's text: the conversation up to the token that raised it, with the span marked.

Prompts that were messages are told as messages. A text, or token ids, and what the model wrote on from there, are one
message with the role `text`. Decoded on the engine's thread: a few milliseconds for the longest prompts.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from monitors.alert_record import Enclosure, KeptText, Message, Spoken
from service.alert_evidence import Raised
from service.request import Place, Request

_INCOMPLETE = "\ufffd"


def kept_text(tokenizer: Any, raised: Raised) -> KeptText:
    """The text of an alert, and the token ids that make it again."""
    request, alert = raised.request, raised.event.alert
    num_prompt = len(request.prompt_ids)
    if not request.conversation:
        messages, span = _of_text(tokenizer, raised)
    elif alert.position < num_prompt:
        messages, span = _of_prompt(request, alert.span_start, alert.position)
    else:
        reply, span = _decoded(tokenizer, raised.ids[num_prompt:], max(alert.span_start - num_prompt, 0))
        messages = (*_messages(request), Message(role="assistant", content=reply))
    return KeptText(
        messages=messages,
        span_from_char=span[0],
        span_to_char=span[1],
        prompt_ids=request.prompt_ids,
        reply_ids=raised.ids[num_prompt:],
        stop=request.sampling.stop,
        spoken=spoken(request),
        reasoning=_enclosures(request) if raised.ids[num_prompt:] else None,
    )


def spoken(request: Request) -> tuple[Spoken, ...]:
    """Which prompt tokens monitors score, in runs of one role."""
    roles = [request.prompt_role(position) for position in range(len(request.prompt_ids))]
    runs, start = [], 0
    for role, group in groupby(roles):
        end = start + len(list(group))
        if role is not None:
            runs.append(Spoken(role=role, start=start, end=end))
        start = end
    return tuple(runs)


def _enclosures(request: Request) -> tuple[Enclosure, ...]:
    return tuple(Enclosure(opening=each.opening, closing=each.closing) for each in request.reasoning)


def _messages(request: Request) -> tuple[Message, ...]:
    return tuple(Message(role=role, content=content) for role, content in request.conversation)


def _of_text(tokenizer: Any, raised: Raised) -> tuple[tuple[Message, ...], tuple[int, int]]:
    content, span = _decoded(tokenizer, raised.ids, raised.event.alert.span_start)
    return (Message(role="text", content=content),), span


def _of_prompt(request: Request, span_start: int, position: int) -> tuple[tuple[Message, ...], tuple[int, int]]:
    """Of an alert in a message that the client gave."""
    last = request.places[position]
    assert last is not None, "a token that nobody said was scored"
    messages = _messages(request)
    cut = Message(role=messages[last.message].role, content=messages[last.message].content[: last.end])
    return (*messages[: last.message], cut), (_first_char(request.places[span_start : position + 1], last), last.end)


def _first_char(places: Sequence[Place | None], last: Place) -> int:
    """Where the span begins in the last message; a span may have begun in an earlier one of that role."""
    return next(place.start for place in places if place is not None and place.message == last.message)


def _decoded(tokenizer: Any, ids: Sequence[int], first: int) -> tuple[str, tuple[int, int]]:
    """The text of `ids`, and where in it the tokens from number `first` on stand.

    A character of several tokens belongs to the first of them.
    """
    whole = _decode(tokenizer, ids)
    before = _decode(tokenizer, ids[:first]).rstrip(_INCOMPLETE)
    return whole, (min(len(before), len(whole)), len(whole))


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
