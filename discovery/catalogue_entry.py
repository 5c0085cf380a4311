"""A latent's record of an example file as the entry that a catalogue ships: what may be quoted of it, and no more.

Readings and effects are rounded to half precision, and four bins of the histogram become one octave.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from discovery.latent_record import Example, Explanation, LatentRecord, TokenEffect
from discovery.token_rule import TOKEN_RULE
from monitors.latent_entry import SILENT, Effect, LatentEntry, QuotedExample, Said, Score

BINS_PER_OCTAVE = 4
"""Of the example file."""

_LARGEST_HALF = float(np.finfo(np.float16).max)


class Choice(NamedTuple):
    """What is shipped of each latent."""

    sources: frozenset[str]
    """Whose text may be quoted."""
    examples: int
    """Most examples."""
    effects: int
    """Most promoted tokens, and most suppressed ones."""


def entry_of(record: LatentRecord, choice: Choice, said: Said | None) -> LatentEntry:
    """The entry of a latent; `SILENT` if it never fires."""
    if not record.num_active:
        return SILENT
    quotable = [example for example in record.top if example.source in choice.sources]
    return LatentEntry(
        mean_active=_single(record.mean_active),
        sources=tuple((source, _half(share)) for source, share in record.sources.items()),
        histogram=octaves(record.histogram),
        promoted=tuple(map(_effect, record.promoted[: choice.effects])),
        suppressed=tuple(map(_effect, record.suppressed[: choice.effects])),
        said=said,
        examples=tuple(map(_example, quotable[: choice.examples])),
    )


def octaves(counts: Sequence[int]) -> tuple[int, ...]:
    """The histogram in bins of an octave; none if all are empty."""
    merged = [sum(counts[i : i + BINS_PER_OCTAVE]) for i in range(0, len(counts), BINS_PER_OCTAVE)]
    return tuple(merged) if any(merged) else ()


def said_of(explanation: Explanation, *, with_summary: bool) -> Said:
    """An explanation as it is shipped. `with_summary` only if it can't quote what may not be quoted.

    What the token rule says beyond its tokens is the same of every latent, and would only be in the way of a search.
    """
    is_rule = explanation.model == TOKEN_RULE
    tokens = tuple(explanation.dominant_tokens)
    return Said(
        title=", ".join(f"“{token}”" for token in tokens) if is_rule and tokens else explanation.title,
        summary=explanation.summary if with_summary and not is_rule else "",
        dominant_tokens=tokens,
        explainer=explanation.model,
        detection=_score(explanation.detection, explanation.detection_n),
        fuzzing=_score(explanation.fuzzing, explanation.fuzzing_n),
    )


def used_tokens(entries: Collection[LatentEntry]) -> list[int]:
    """Ids of all tokens quoted, most frequent first, equals by id."""
    counts: dict[int, int] = {}
    for entry in entries:
        ids = [effect.token_id for effect in (*entry.promoted, *entry.suppressed)]
        for example in entry.examples:
            ids += example.token_ids
        for token_id in ids:
            counts[token_id] = counts.get(token_id, 0) + 1
    return sorted(counts, key=lambda token_id: (-counts[token_id], token_id))


def _score(value: float | None, num_windows: int) -> Score | None:
    return None if value is None or not num_windows else Score(_single(value), num_windows)


def _effect(effect: TokenEffect) -> Effect:
    return Effect(effect.token_id, effect.text, _half(effect.logit))


def _example(example: Example) -> QuotedExample:
    readings = tuple(map(_half, example.readings))
    return QuotedExample(
        _single(example.value), example.source, example.focus, example.token_ids, example.pieces, readings
    )


def _half(value: float) -> float:
    # Beyond the largest half it would ship as infinity: dictionaries of other libraries have units of their own.
    return float(np.float16(np.clip(value, -_LARGEST_HALF, _LARGEST_HALF)))


def _single(value: float) -> float:
    return float(np.float32(value))
