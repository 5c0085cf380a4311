"""What a contrast search reads: texts or conversations with a label, a group, and the tokens that count.

Items are JSON lines: `text` or `messages` (the last one is scored, between the characters `score_from_char` and
`score_to_char`: `scored_tokens` has the rule), `label` (1 or 0, others are skipped), `group`: what belongs together
(the two answers to one question) is in one group. Or they are plain prompts, each a group of its own.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from discovery.conversations import PLAIN_TEXT, Conversation
from discovery.corpus import read_json_lines
from discovery.errors import SearchError
from discovery.scored_tokens import encode


class Item(NamedTuple):
    """A text as the model reads it, and which of its tokens count."""

    tokens: list[int]
    scored: list[int]
    """Positions, never 0."""
    label: int
    group: str
    name: str
    """For pages and messages."""


def read_items(paths: Iterable[Path], tokenizer: Any, max_tokens: int = 512) -> Iterator[Item]:
    """The labelled items of the files that have a scored token within the first `max_tokens`.

    SearchError, CorpusError or LabelledDataError names the record that is no item.
    """
    for path in paths:
        for number, record in enumerate(read_json_lines(path)):
            if record.get("label") not in (0, 1):
                continue
            where = f"{path}, record {number + 1}"
            if not _has_content(record):
                raise SearchError(f"{where}, must have text or messages, got {sorted(record)}")
            for key in ("score_from_char", "score_to_char"):
                if not _is_count(count := record.get(key)):
                    raise SearchError(f"{where}: {key} must be a whole number of characters, 0 or more, got {count!r}")
            name = str(record.get("id", f"{path.stem}-{number}"))
            item = make_item(record, tokenizer, max_tokens, name, where)
            if item.scored:
                yield item


def _has_content(record: dict[str, Any]) -> bool:
    if "text" in record:
        return isinstance(record["text"], str)
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        return False
    return all(
        isinstance(turn, dict) and {type(turn.get(key)) for key in ("role", "content")} == {str} for turn in messages
    )


def _is_count(value: Any) -> bool:
    """Of characters, or none is given."""
    return value is None or (type(value) is int and value >= 0)


def make_item(record: dict[str, Any], tokenizer: Any, max_tokens: int, name: str, where: str = "items") -> Item:
    """One record as tokens, the same that are scored of a labelled conversation; only the last message is scored.

    `where` is for messages. LabelledDataError if the template refuses a conversation, or rewrites what is scored.
    """
    messages = record["messages"] if "messages" in record else [{"role": PLAIN_TEXT, "content": record["text"]}]
    length, last = len(messages[-1]["content"]), record.get("score_to_char")
    conversation = Conversation(
        id=name,
        dataset=where,
        messages=tuple({"role": turn["role"], "content": turn["content"]} for turn in messages),
        first_char=record.get("score_from_char") or 0,
        end_char=length if last is None else min(last, length),
        label=int(record["label"]),
        group=str(record.get("group", name)),
        meta={},
    )
    reply = encode(tokenizer, conversation)
    scored = [position for position in reply.scored if position < max_tokens]
    return Item(list(reply.tokens[:max_tokens]), scored, conversation.label, conversation.group, name)


def prompt_items(positive: Iterable[str], negative: Iterable[str], tokenizer: Any, max_tokens: int = 512) -> list[Item]:
    """Plain prompts as items. SearchError if one label has none, or a prompt has no token behind position 0."""
    items = []
    for label, prompts in ((1, positive), (0, negative)):
        name = "positive" if label else "negative"
        for number, text in enumerate(prompts):
            item = make_item({"text": text, "label": label}, tokenizer, max_tokens, f"{name}-{number}")
            if not item.scored:
                raise SearchError(f"{name} prompts must have a token behind position 0, got {text!r}")
            items.append(item)
        if not any(item.label == label for item in items):
            raise SearchError(f"there must be at least one {name} prompt, got none")
    return items


def read_prompts(path: Path) -> list[str]:
    """One prompt per line; of JSON lines, the `text` of each. SearchError names the record that has none."""
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        records = list(read_json_lines(path))
        for number, record in enumerate(records, start=1):
            if not isinstance(record.get("text"), str):
                raise SearchError(f"{path}, record {number}, must have a text, got {sorted(record)}")
        return [record["text"] for record in records]
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
