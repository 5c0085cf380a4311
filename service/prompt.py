"""Prompts to token ids, and which of them an assistant wrote.

Runs beside the engine, in a worker thread: a long text takes a while to tokenise.
"""

import secrets
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

from service.errors import InvalidRequest


class Prompt(NamedTuple):
    """A prompt as the model reads it."""

    ids: tuple[int, ...]
    assistant_positions: frozenset[int]
    """Positions whose token belongs to the content of an assistant message, if that was asked for."""


Message = dict[str, str]


def from_text(tokenizer: Any, text: str) -> Prompt:
    """Plain text, with the special tokens that the tokenizer adds by itself."""
    return Prompt(tuple(tokenizer(text).input_ids), frozenset())


def from_chat(tokenizer: Any, messages: Sequence[Message], *, add_reply: bool) -> Prompt:
    """A conversation through the model's template; with `add_reply` it ends where the assistant's reply begins.

    Assistant positions are for reading what was said: with `add_reply` they are left empty.

    InvalidRequest if the model has no template, or the template refuses the conversation.
    """
    rendered = _render(tokenizer, messages, add_reply=add_reply)
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    spans = [] if add_reply else _assistant_spans(tokenizer, messages, rendered)
    # A token that straddles the border counts if it begins inside.
    positions = (i for i, (start, end) in enumerate(encoded.offset_mapping) if start < end and _is_inside(start, spans))
    return Prompt(tuple(encoded.input_ids), frozenset(positions))


def _render(tokenizer: Any, messages: Sequence[Message], *, add_reply: bool) -> str:
    if tokenizer.chat_template is None:
        raise InvalidRequest.field("chat", "must be text or token_ids: this model has no chat template.")
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_reply))
    except Exception as error:
        # Templates raise what they like, with a message meant for the author of the conversation.
        raise InvalidRequest.field("chat.messages", f"must suit the model's chat template. It says: {error}") from None


def _assistant_spans(tokenizer: Any, messages: Sequence[Message], rendered: str) -> list[tuple[int, int]]:
    """Where the contents of assistant messages stand in the rendered conversation, [start, end) in characters.

    Others may say the same words, and so may the template; so the contents are not looked for. The template renders
    the conversation once more with marks in their places, and what stands between the marks tells where they are.
    """
    spoken = [i for i, m in enumerate(messages) if m["role"] == "assistant" and m["content"].strip()]
    if not spoken:
        return []
    mark = secrets.token_hex(16)
    marked = [{**m, "content": mark} if i in spoken else m for i, m in enumerate(messages)]
    between = _render(tokenizer, marked, add_reply=False).split(mark)
    spans, end = [], len(between[0])
    for i, following in zip(spoken, between[1:], strict=False):
        content, start = messages[i]["content"], end
        # Many templates trim.
        found = next((c for c in (content, content.strip()) if rendered.startswith(c + following, start)), None)
        if found is None:
            raise _lost(i)
        spans.append((start, start + len(found)))
        end = start + len(found) + len(following)
    if len(between) != len(spoken) + 1 or end != len(rendered) or not rendered.startswith(between[0]):
        raise _lost(spoken[0])
    return spans


def _is_inside(character: int, spans: Sequence[tuple[int, int]]) -> bool:
    """Whether one of `spans`, which rise, holds it."""
    before = bisect_right(spans, character, key=lambda span: span[0])
    return before > 0 and character < spans[before - 1][1]


def _lost(index: int) -> InvalidRequest:
    return InvalidRequest.field(
        f"chat.messages[{index}].content", "must survive the model's chat template as it is, and once."
    )
