"""Prompts to token ids, and whose words they are.

Runs beside the engine, in a worker thread: a long text takes a while to tokenise.
"""

from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, cast

from monitors.monitor_spec import Role
from sae_runtime.chat_template import Message, content_spans, num_trimmed, render
from sae_runtime.errors import ConversationError
from sae_runtime.reasoning import Delimiters, reasoning_flags
from service.errors import InvalidRequest
from service.request import Place


class Prompt(NamedTuple):
    """A prompt as the model reads it."""

    ids: tuple[int, ...]
    roles: tuple[Role | None, ...]
    """Whose words each token is; None for a template's own, and for roles that were not asked for."""
    replies: tuple[range, ...] = ()
    """Tokens of each of the assistant's messages, if they were asked for; all of a prompt without a template."""
    places: tuple[Place | None, ...] = ()
    """Where in the conversation that is; empty for a prompt that is none."""

    def positions_of(self, role: Role) -> frozenset[int]:
        """Positions of that role's words."""
        return frozenset(position for position, other in enumerate(self.roles) if other == role)


def from_text(tokenizer: Any, text: str) -> Prompt:
    """Plain text, with the special tokens that the tokenizer adds by itself."""
    return from_ids(tokenizer(text).input_ids)


def from_ids(ids: Sequence[int]) -> Prompt:
    """Token ids as they are."""
    everywhere: tuple[Role, ...] = ("text",)
    return Prompt(tuple(ids), everywhere * len(ids), (range(len(ids)),))


def with_reasoning(tokenizer: Any, prompt: Prompt, delimiters: Sequence[Delimiters]) -> Prompt:
    """The prompt with the role `reasoning` for those of its replies' tokens that are."""
    roles = list(prompt.roles)
    for reply in prompt.replies:
        flags = reasoning_flags(tokenizer, prompt.ids, reply.start, reply.stop, delimiters)
        for position, is_reasoning in zip(reply, flags, strict=True):
            if is_reasoning and roles[position] is not None:
                roles[position] = "reasoning"
    return prompt._replace(roles=tuple(roles))


def from_chat(tokenizer: Any, messages: Sequence[Message], *, add_reply: bool, roles: Collection[Role] = ()) -> Prompt:
    """A conversation through the model's template; with `add_reply` it ends where the assistant's reply begins.

    `roles` are those whose tokens are to be found. InvalidRequest if the model has no template, the template refuses
    the conversation, or it changes the words of one of `roles`.
    """
    try:
        rendered = render(tokenizer, messages, add_reply=add_reply)
        spans = _spans(tokenizer, messages, rendered, add_reply=add_reply, roles=roles)
    except ConversationError as error:
        raise InvalidRequest.field(error.field, error.description) from None
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    # A token that straddles the border counts if it begins inside.
    found = [_span_at(start, spans) if start < end else None for start, end in encoded.offset_mapping]
    replies: dict[_Span, range] = {}
    for position, span in enumerate(found):
        if span is not None and span.role == "assistant":
            replies[span] = range(replies.get(span, range(position, 0)).start, position + 1)
    whose = tuple(None if span is None else span.role for span in found)
    places = (_place(span, *ends) for span, ends in zip(found, encoded.offset_mapping, strict=True))
    return Prompt(tuple(encoded.input_ids), whose, tuple(replies.values()), tuple(places) if any(whose) else ())


class _Span(NamedTuple):
    """Where a message's content stands in the rendered conversation, [start, end) in characters."""

    start: int
    end: int
    role: Role
    message: int
    shift: int
    """Characters of the content before it, which the template trimmed."""


def _spans(
    tokenizer: Any, messages: Sequence[Message], rendered: str, *, add_reply: bool, roles: Collection[Role]
) -> list[_Span]:
    """Where the contents of messages of these roles stand, in order."""
    spoken = [i for i, message in enumerate(messages) if message["role"] in roles]
    spans = content_spans(tokenizer, messages, spoken, rendered, add_reply=add_reply)
    return [
        _Span(start, end, cast(Role, messages[i]["role"]), i, num_trimmed(messages[i]["content"], rendered[start:end]))
        for i, (start, end) in spans.items()
    ]


def _span_at(character: int, spans: Sequence[_Span]) -> _Span | None:
    """Which of `spans`, which rise, holds it."""
    before = bisect_right(spans, character, key=lambda span: span.start)
    return spans[before - 1] if before > 0 and character < spans[before - 1].end else None


def _place(span: _Span | None, start: int, end: int) -> Place | None:
    if span is None:
        return None
    shift = span.shift - span.start
    return Place(span.message, start + shift, min(end, span.end) + shift)
