"""What a document of a corpus may hold: text, a conversation, or token ids."""

from typing import Any, TypeGuard

Message = dict[str, str]
Content = str | list[int] | list[Message]


def is_chat(content: Content) -> TypeGuard[list[Message]]:
    """Whether it is a conversation."""
    return isinstance(content, list) and bool(content) and isinstance(content[0], dict)


def problem_of(value: Any) -> str | None:
    """What `value` must be instead, and what it is; None if it is a document's content."""
    if isinstance(value, str):
        return problem_of_text(value)
    if not isinstance(value, list):
        return f"text, messages or token ids, got {type(value).__name__}"
    problem = _problem_of_message if value and isinstance(value[0], dict) else _problem_of_token
    return next((found for index, item in enumerate(value) if (found := problem(item, index))), None)


def _problem_of_token(item: Any, index: int) -> str | None:
    if isinstance(item, int) and not isinstance(item, bool) and item >= 0:
        return None
    return f"messages or token ids, got {item!r:.40} at {index}"


def _problem_of_message(item: Any, index: int) -> str | None:
    if not isinstance(item, dict):
        return f"messages with a role and a content, got {item!r:.40} at {index}"
    for key in ("role", "content"):
        if not isinstance(item.get(key), str):
            return f"messages with a role and a content, got {type(item.get(key)).__name__} as {key} of number {index}"
    return problem_of_text(item["content"])


def problem_of_text(text: str) -> str | None:
    """JSON can escape what no tokenizer takes: half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"text in Unicode, got a lone surrogate at character {error.start}"
    return None
