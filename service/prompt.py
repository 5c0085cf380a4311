"""Prompts to token ids, and which of them an assistant wrote.

Runs beside the engine, in a worker thread: a long text takes a while to tokenise.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from service.errors import InvalidRequest


class Prompt(NamedTuple):
    """A prompt as the model reads it."""

    ids: tuple[int, ...]
    assistant_positions: frozenset[int]
    """Positions whose token belongs to the content of an assistant message."""


Message = dict[str, str]


def from_text(tokenizer: Any, text: str) -> Prompt:
    """Plain text, with the special tokens that the tokenizer adds by itself."""
    return Prompt(tuple(tokenizer(text).input_ids), frozenset())


def from_chat(tokenizer: Any, messages: Sequence[Message], *, add_reply: bool) -> Prompt:
    """A conversation through the model's template; with `add_reply` it ends where the assistant's reply begins.

    InvalidRequest if the model has no template, or the template refuses the conversation.
    """
    rendered = _render(tokenizer, messages, add_reply=add_reply)
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    spans = [
        _content_span(tokenizer, messages, i, rendered)
        for i, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    # A token that straddles the border counts if it begins inside.
    positions = (
        i
        for i, (start, end) in enumerate(encoded.offset_mapping)
        if start < end and any(first <= start < last for first, last in spans)
    )
    return Prompt(tuple(encoded.input_ids), frozenset(positions))


def _render(tokenizer: Any, messages: Sequence[Message], *, add_reply: bool) -> str:
    if tokenizer.chat_template is None:
        raise InvalidRequest.field("chat", "must be text or token_ids: this model has no chat template.")
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_reply))
    except Exception as error:
        # Templates raise what they like, with a message meant for the author of the conversation.
        raise InvalidRequest.field("chat.messages", f"must suit the model's chat template. It says: {error}") from None


def _content_span(tokenizer: Any, messages: Sequence[Message], index: int, rendered: str) -> tuple[int, int]:
    """Where the content of message `index` stands in the rendered conversation, [start, end) in characters."""
    header = _render(tokenizer, messages[:index], add_reply=True) if index else ""
    content = messages[index]["content"].strip()
    start = rendered.find(content, len(header) if rendered.startswith(header) else 0)
    if start < 0:
        raise InvalidRequest.field(
            f"chat.messages[{index}].content", "must survive the model's chat template as it is."
        )
    return start, start + len(content)
