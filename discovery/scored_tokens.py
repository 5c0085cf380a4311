"""Conversations as the model reads them: token ids, and which of them are scored.

A scored token lies wholly between the scored characters: one that straddles a border is left out, and position 0 always
is. Conversations go through the model's chat template as in the server, plain text through the tokenizer alone.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from discovery.conversations import PLAIN_TEXT, Conversation
from discovery.errors import LabelledDataError
from sae_runtime.chat_template import Span, content_spans, render
from sae_runtime.errors import ConversationError


class Reply(NamedTuple):
    """A conversation as tokens."""

    tokens: tuple[int, ...]
    scored: tuple[int, ...]
    """Positions, rising, never 0."""


class Encoded(NamedTuple):
    """The conversations that can be read, and why others can't."""

    conversations: list[Conversation]
    replies: list[Reply]
    """Of each of `conversations`."""
    left_out: dict[str, dict[str, int]]
    """Data set -> reason -> conversations: `too_long`, `no_scored_token`."""


def encode_all(tokenizer: Any, conversations: Iterable[Conversation], *, max_tokens: int) -> Encoded:
    """Every conversation of at most `max_tokens` tokens that has a scored one; the others are counted.

    LabelledDataError names a conversation that the template refuses.
    """
    kept, replies, left_out = [], [], Counter[tuple[str, str]]()
    for conversation in conversations:
        reply = encode(tokenizer, conversation)
        if len(reply.tokens) > max_tokens:
            left_out[conversation.dataset, "too_long"] += 1
        elif not reply.scored:
            left_out[conversation.dataset, "no_scored_token"] += 1
        else:
            kept.append(conversation)
            replies.append(reply)
    nested: dict[str, dict[str, int]] = {}
    for (dataset, reason), count in left_out.items():
        nested.setdefault(dataset, {})[reason] = count
    return Encoded(kept, replies, nested)


def encode(tokenizer: Any, conversation: Conversation) -> Reply:
    """One conversation as tokens. LabelledDataError if the template refuses it, or rewrites what is scored."""
    if conversation.messages[-1]["role"] == PLAIN_TEXT:
        text, (first, end) = conversation.messages[-1]["content"], (conversation.first_char, conversation.end_char)
        encoded = tokenizer(text, return_offsets_mapping=True)
    else:
        text, (first, end) = _rendered(tokenizer, conversation)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = token_spans(text, encoded["offset_mapping"])
    scored = tuple(i for i, (start, stop) in enumerate(spans) if i and first <= start < stop <= end)
    return Reply(tuple(encoded["input_ids"]), scored)


def _rendered(tokenizer: Any, conversation: Conversation) -> tuple[str, Span]:
    """The conversation as text, and where its scored characters stand in it, as far as the template left them."""
    last = len(conversation.messages) - 1
    content = conversation.messages[-1]["content"]
    try:
        text = render(tokenizer, conversation.messages, add_reply=False)
        span = content_spans(tokenizer, conversation.messages, [last], text).get(last, (0, 0))  # none if it is blank
    except ConversationError as error:
        raise LabelledDataError(f"{conversation.dataset}, id {conversation.id!r}: {error}") from None
    num_trimmed = len(content) - len(content.lstrip()) if span[1] - span[0] < len(content) else 0
    begin = span[0] - num_trimmed
    return text, (max(span[0], begin + conversation.first_char), min(span[1], begin + conversation.end_char))


def token_spans(text: str, offsets: Sequence[tuple[int, int]]) -> list[Span]:
    """[start, end) in `text` of each token, with the blanks that belong to it; (0, 0) of one that stands for no text.

    Some tokenizers leave a token's leading blanks out of its offsets, so that nothing is left of a blank one. They are
    its own, though: tokens tile the text.
    """
    spans, before = [], 0
    for start, end in offsets:
        if before < start and text[before:start].isspace():
            start = before
        before = max(before, end)
        spans.append((start, end))
    return spans
