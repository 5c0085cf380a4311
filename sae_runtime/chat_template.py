"""Conversations through a model's chat template, and where each message's words stand in what comes out.

Online and offline both read conversations through here, so that a monitor scores the same tokens in a file as in a
request. Needs a tokenizer alone, no model.
"""

import hashlib
import json
import secrets
from collections.abc import Sequence
from typing import Any

from sae_runtime.errors import ConversationError

Message = dict[str, str]
Span = tuple[int, int]
"""[start, end) in characters."""


def template_sha256(tokenizer: Any) -> str | None:
    """Of the template's text in UTF-8; None without one. What monitors are bound to: in another one they were not
    calibrated."""
    template = tokenizer.chat_template
    if template is None:
        return None
    # Some tokenizers have several, by name.
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def render(tokenizer: Any, messages: Sequence[Message], *, add_reply: bool) -> str:
    """The conversation as text; with `add_reply` it ends where the assistant's reply begins.

    ConversationError if the model has no template, or the template refuses the conversation.
    """
    if tokenizer.chat_template is None:
        raise ConversationError("chat", "must be text or token_ids: this model has no chat template.")
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_reply))
    except Exception as error:
        # Templates raise what they like, with a message meant for the author of the conversation.
        raise ConversationError("chat.messages", f"must suit the model's chat template. It says: {error}") from None


def content_spans(
    tokenizer: Any, messages: Sequence[Message], which: Sequence[int], rendered: str, *, add_reply: bool = False
) -> dict[int, Span]:
    """Where the contents of the messages `which` stand in the rendered conversation, as far as they aren't blank.

    Others may say the same words, and so may the template; so the contents are not looked for. The template renders
    the conversation once more with marks in their places, and what stands between the marks tells where they are. Of
    a content that the template trims, the span holds what is left.

    ConversationError if the template leaves one of them out, says it twice or rewrites it.
    """
    spoken = [i for i in which if messages[i]["content"].strip()]
    if not spoken:
        return {}
    mark = secrets.token_hex(16)
    marked = [{**m, "content": mark} if i in spoken else m for i, m in enumerate(messages)]
    between = render(tokenizer, marked, add_reply=add_reply).split(mark)
    spans, end = {}, len(between[0])
    for i, following in zip(spoken, between[1:], strict=False):
        content, start = messages[i]["content"], end
        found = next((left for left in _trimmed(content) if rendered.startswith(left + following, start)), None)
        if found is None:
            raise _lost(i)
        spans[i] = (start, start + len(found))
        end = start + len(found) + len(following)
    if len(between) != len(spoken) + 1 or end != len(rendered) or not rendered.startswith(between[0]):
        raise _lost(spoken[0])
    return spans


def _trimmed(content: str) -> tuple[str, ...]:
    """What a template may leave of a content: many trim, some at one end alone, some line breaks alone."""
    return (
        content,
        content.strip(),
        content.rstrip(),
        content.lstrip(),
        content.strip("\n"),
        content.rstrip("\n"),
        content.lstrip("\n"),
    )


def num_trimmed(content: str, left: str) -> int:
    """Characters of `content` before `left`, which is what a template left of it."""
    return content.index(left)  # all but blanks is in it, and so it can't stand in two places


def _lost(index: int) -> ConversationError:
    return ConversationError(
        f"chat.messages[{index}].content", "must survive the model's chat template as it is, and once."
    )
