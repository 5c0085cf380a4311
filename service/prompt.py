"""Prompts to token ids, and whose words they are.

Runs beside the engine, in a worker thread: a long text takes a while to tokenise.
"""

import secrets
from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, cast

from monitors.monitor_spec import Role
from service.errors import InvalidRequest


class Prompt(NamedTuple):
    """A prompt as the model reads it."""

    ids: tuple[int, ...]
    roles: tuple[Role | None, ...]
    """Whose words each token is; None for a template's own, and for roles that were not asked for."""

    def positions_of(self, role: Role) -> frozenset[int]:
        """Positions of that role's words."""
        return frozenset(position for position, other in enumerate(self.roles) if other == role)


Message = dict[str, str]


def from_text(tokenizer: Any, text: str) -> Prompt:
    """Plain text, with the special tokens that the tokenizer adds by itself."""
    return from_ids(tokenizer(text).input_ids)


def from_ids(ids: Sequence[int]) -> Prompt:
    """Token ids as they are."""
    everywhere: tuple[Role, ...] = ("text",)
    return Prompt(tuple(ids), everywhere * len(ids))


def from_chat(tokenizer: Any, messages: Sequence[Message], *, add_reply: bool, roles: Collection[Role] = ()) -> Prompt:
    """A conversation through the model's template; with `add_reply` it ends where the assistant's reply begins.

    `roles` are those whose tokens are to be found. InvalidRequest if the model has no template, the template refuses
    the conversation, or it changes the words of one of `roles`.
    """
    rendered = _render(tokenizer, messages, add_reply=add_reply)
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    spans = _spans(tokenizer, messages, rendered, add_reply=add_reply, roles=roles)
    # A token that straddles the border counts if it begins inside.
    found = (_role_at(start, spans) if start < end else None for start, end in encoded.offset_mapping)
    return Prompt(tuple(encoded.input_ids), tuple(found))


def _render(tokenizer: Any, messages: Sequence[Message], *, add_reply: bool) -> str:
    if tokenizer.chat_template is None:
        raise InvalidRequest.field("chat", "must be text or token_ids: this model has no chat template.")
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_reply))
    except Exception as error:
        # Templates raise what they like, with a message meant for the author of the conversation.
        raise InvalidRequest.field("chat.messages", f"must suit the model's chat template. It says: {error}") from None


class _Span(NamedTuple):
    """Where a message's content stands in the rendered conversation, [start, end) in characters."""

    start: int
    end: int
    role: Role


def _spans(
    tokenizer: Any, messages: Sequence[Message], rendered: str, *, add_reply: bool, roles: Collection[Role]
) -> list[_Span]:
    """Where the contents of messages of these roles stand, in order.

    Others may say the same words, and so may the template; so the contents are not looked for. The template renders
    the conversation once more with marks in their places, and what stands between the marks tells where they are.
    """
    spoken = [i for i, m in enumerate(messages) if m["role"] in roles and m["content"].strip()]
    if not spoken:
        return []
    mark = secrets.token_hex(16)
    marked = [{**m, "content": mark} if i in spoken else m for i, m in enumerate(messages)]
    between = _render(tokenizer, marked, add_reply=add_reply).split(mark)
    spans, end = [], len(between[0])
    for i, following in zip(spoken, between[1:], strict=False):
        content, start = messages[i]["content"], end
        # Many templates trim.
        found = next((c for c in (content, content.strip()) if rendered.startswith(c + following, start)), None)
        if found is None:
            raise _lost(i)
        spans.append(_Span(start, start + len(found), cast(Role, messages[i]["role"])))
        end = start + len(found) + len(following)
    if len(between) != len(spoken) + 1 or end != len(rendered) or not rendered.startswith(between[0]):
        raise _lost(spoken[0])
    return spans


def _role_at(character: int, spans: Sequence[_Span]) -> Role | None:
    """Whose of `spans`, which rise, holds it."""
    before = bisect_right(spans, character, key=lambda span: span.start)
    return spans[before - 1].role if before > 0 and character < spans[before - 1].end else None


def _lost(index: int) -> InvalidRequest:
    return InvalidRequest.field(
        f"chat.messages[{index}].content", "must survive the model's chat template as it is, and once."
    )
