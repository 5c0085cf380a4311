"""Replies worth reading: highest negatives and lowest positives, and what a monitor was surest of, token by token."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from discovery.benign_replies import has_level, reached
from discovery.evaluation_rows import Rows
from discovery.monitor_scores import scored_positions
from discovery.token_text import pieces_of, token_bytes
from monitors.pack import MonitorPack

NUM_SHOWN = 5
_MOST_TOKENS = 160
_LEVELS = 5
"""Shades of a token."""


class ShownToken(NamedTuple):
    """A scored token."""

    text: str
    score: float
    shade: int
    """-5 (far below the middle of the set's replies) to 5 (far above)."""


class ShownReply(NamedTuple):
    """A reply with its scores."""

    why: str
    """highest negative, lowest positive, or the surest of a label."""
    warned: bool | None
    """Whether it reached the warning level; None if the pack has none."""
    id: str
    dataset: str
    label: int
    class_name: str
    statistic: float | None
    """None if it is too short to fire."""
    prompt: str
    """The message before, cut short."""
    tokens: list[ShownToken]
    is_cut: bool
    """Whether there is more of it."""


def gallery(rows: Rows, pack: MonitorPack, tokenizer: Any, *, num: int = NUM_SHOWN) -> list[ShownReply]:
    """Of one set: negatives that score highest, positives that score lowest, and the surest of both labels."""
    statistics_I, labels_I = rows.own["monitor"], rows.labels_I
    center, spread = _scale(rows)
    order = np.argsort(statistics_I, kind="stable")
    negatives = [int(i) for i in order if labels_I[i] == 0]
    positives = [int(i) for i in order if labels_I[i] == 1]
    chosen = [("highest negative", index) for index in negatives[::-1][:num]]
    chosen += [("lowest positive", index) for index in positives[:num]]
    taken = {index for _, index in chosen}
    chosen += [("surest positive", i) for i in positives[::-1][:2] if i not in taken]
    chosen += [("surest negative", i) for i in negatives[:2] if i not in taken]
    return [_shown(rows, index, why, pack, tokenizer, center, spread) for why, index in chosen]


def _scale(rows: Rows) -> tuple[float, float]:
    """Middle and spread of all token scores, which shades go by; of none it does not matter."""
    values = np.concatenate([reply.scores for reply in rows.scored])
    if not len(values):
        return 0.0, 1.0
    return float(np.median(values)), float(np.std(values)) or 1.0


def _shown(
    rows: Rows, index: int, why: str, pack: MonitorPack, tokenizer: Any, center: float, spread: float
) -> ShownReply:
    conversation, reply, scored = rows.conversations[index], rows.replies[index], rows.scored[index]
    off_scale = rows.readings.off_scale_N[rows.readings.rows(index)]
    ids = [reply.tokens[position] for position in scored_positions(pack, reply, off_scale)]
    pieces = pieces_of([token_bytes(tokenizer, ids)[token] for token in ids])
    tokens = [
        ShownToken(piece, score, shade_of((score - center) / spread))
        for piece, score in zip(pieces, scored.scores, strict=True)
    ]
    statistic = scored.statistic
    return ShownReply(
        why=why,
        warned=reached(scored, "warning") if has_level(pack, "warning") else None,
        id=conversation.id,
        dataset=conversation.dataset,
        label=conversation.label,
        class_name=conversation.class_name,
        statistic=statistic if math.isfinite(statistic) else None,
        prompt=_before(conversation.messages),
        tokens=tokens[:_MOST_TOKENS],
        is_cut=len(tokens) > _MOST_TOKENS,
    )


def shade_of(standard: float) -> int:
    """A standardised score as a shade: half a deviation each, at most 5."""
    return max(-_LEVELS, min(_LEVELS, round(2 * standard)))


def _before(messages: Sequence[dict[str, str]], longest: int = 240) -> str:
    text = messages[-2]["content"] if len(messages) > 1 else ""
    return text if len(text) <= longest else f"{text[:longest]}..."


def as_json(shown: ShownReply) -> dict[str, Any]:
    """For records: the text without each token's score."""
    facts = shown._asdict()
    del facts["tokens"]
    return facts | {"text": "".join(token.text for token in shown.tokens)}
