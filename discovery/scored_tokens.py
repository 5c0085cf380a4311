"""Conversations as the model reads them: token ids, and which of them are scored.

A scored token lies wholly between the scored characters: one that straddles a border is left out, and position 0 always
is. Conversations go through the model's chat template as in the server, plain text through the tokenizer alone.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from discovery.conversations import PLAIN_TEXT, Conversation
from discovery.errors import LabelledDataError
from discovery.statement_ends import statement_ends
from sae_runtime.chat_template import Span, content_spans, num_trimmed, render
from sae_runtime.errors import ConversationError
from sae_runtime.reasoning import Delimiters, delimiters_of, reasoning_flags


class Reply(NamedTuple):
    """A conversation as tokens."""

    tokens: tuple[int, ...]
    scored: tuple[int, ...]
    """Positions, rising, never 0."""
    reasoning: frozenset[int] = frozenset()
    """Those of them that are reasoning."""
    ends: frozenset[int] = frozenset()
    """Those of them with which a statement ends."""

    def cut(self, num_scored: int) -> "Reply":
        """The beginning, up to the `num_scored`-th scored token."""
        cut = self.only(self.scored[:num_scored])
        return cut._replace(tokens=self.tokens[: cut.scored[-1] + 1])

    def only(self, scored: Sequence[int]) -> "Reply":
        """The same with fewer scored tokens."""
        kept = frozenset(scored)
        return Reply(self.tokens, tuple(scored), self.reasoning & kept, self.ends & kept)


class Encoded(NamedTuple):
    """The conversations that can be read, and why others can't."""

    conversations: list[Conversation]
    replies: list[Reply]
    """Of each of `conversations`."""
    left_out: dict[str, dict[str, int]]
    """Data set -> reason -> conversations: `too_long`, `no_scored_token`."""


def encode_all(
    tokenizer: Any, conversations: Iterable[Conversation], *, max_tokens: int, reasoning: str = "auto"
) -> Encoded:
    """Every conversation of at most `max_tokens` tokens that has a scored one; the others are counted. `reasoning` says
    what encloses reasoning, for `sae_runtime.reasoning.parse_delimiters`.

    LabelledDataError names a conversation that the template refuses.
    """
    kept, replies, left_out = [], [], Counter[tuple[str, str]]()
    delimiters = delimiters_of(tokenizer, reasoning)
    for conversation in conversations:
        reply = encode(tokenizer, conversation, delimiters)
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


def encode(tokenizer: Any, conversation: Conversation, delimiters: Sequence[Delimiters] = ()) -> Reply:
    """One conversation as tokens. LabelledDataError if the template refuses it, or rewrites what is scored."""
    if conversation.messages[-1]["role"] == PLAIN_TEXT:
        text = conversation.messages[-1]["content"]
        content, (first, end) = (0, len(text)), (conversation.first_char, conversation.end_char)
        encoded = tokenizer(text, return_offsets_mapping=True)
    else:
        text, content, (first, end) = _rendered(tokenizer, conversation)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = token_spans(text, encoded["offset_mapping"])
    scored = tuple(i for i, (start, stop) in enumerate(spans) if i and first <= start < stop <= end)
    ids = tuple(encoded["input_ids"])
    # As in the server: the message's own tokens are those that begin in it.
    offsets = encoded["offset_mapping"]
    start = next((i for i, (begin, stop) in enumerate(offsets) if content[0] <= begin < stop), len(ids))
    flags = reasoning_flags(tokenizer, ids, start, len(ids), delimiters) if delimiters else []
    inside = frozenset(i for i, is_reasoning in enumerate(flags, start) if is_reasoning)
    ends = statement_ends(text, spans, scored, content[1], is_cut_off=conversation.is_cut_off)
    return Reply(ids, scored, inside & frozenset(scored), ends)


def _rendered(tokenizer: Any, conversation: Conversation) -> tuple[str, Span, Span]:
    """The conversation as text, where its last message stands in it, and where its scored characters do, as far as the
    template left them."""
    last = len(conversation.messages) - 1
    content = conversation.messages[-1]["content"]
    try:
        text = render(tokenizer, conversation.messages, add_reply=False)
        span = content_spans(tokenizer, conversation.messages, [last], text).get(last, (0, 0))  # none if it is blank
    except ConversationError as error:
        raise LabelledDataError(f"{conversation.dataset}, id {conversation.id!r}: {error}") from None
    begin = span[0] - num_trimmed(content, text[slice(*span)])
    return text, span, (max(span[0], begin + conversation.first_char), min(span[1], begin + conversation.end_char))


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
