"""The texts of a causal test: for and against each contrast, as the model reads them, and what is typical of the topic.

Texts are taken in an order that depends on their own words alone, so that contrasts share what they have in common and
a longer run reads the same texts and more.

Shape suffixes: none; tokens are lists.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from discovery.contrasts import CONTRASTS, Passage
from discovery.errors import SteerError
from discovery.search_items import Item, make_item, read_items

LEAST_GROUPS = 3
"""Documents below which there is no interval worth the name."""
_LEAST_Z, _LEAST_TEXTS = 1.0, 2


class Text(NamedTuple):
    """One text."""

    tokens: tuple[int, ...]
    scored: tuple[int, ...]
    """Positions that belong to it, never 0: of a conversation, the last message."""
    group: str
    """Texts of one document or conversation are no independent evidence."""

    @property
    def words(self) -> tuple[int, ...]:
        """The scored tokens."""
        return tuple(self.tokens[position] for position in self.scored)

    def prefix(self, position: int) -> tuple[int, ...]:
        """All that the model has read at `position`, its token included."""
        return self.tokens[: position + 1]


class Contrast(NamedTuple):
    """Texts for and against a topic."""

    positive: list[Text]
    negative: list[Text]


def pool_contrasts(
    pool: Iterable[Passage], names: Iterable[str], tokenizer: Any, max_tokens: int
) -> dict[str, Contrast]:
    """Contrasts of `discovery.contrasts` over a pool of passages."""
    passages = list(pool)
    made = [
        (passage, make_item({"text": passage.text, "label": 0, "group": passage.group}, tokenizer, max_tokens, ""))
        for passage in passages
    ]
    wanted = set(names)
    return {
        contrast.name: _sorted([(item, contrast.label(passage)) for passage, item in made])
        for contrast in CONTRASTS
        if contrast.name in wanted
    }


def file_contrast(paths: list[Path], tokenizer: Any, max_tokens: int) -> Contrast:
    """A contrast of labelled items (`discovery.search_items`)."""
    return _sorted([(item, item.label) for item in read_items(paths, tokenizer, max_tokens)])


def _sorted(labelled: list[tuple[Item, int | None]]) -> Contrast:
    sides: dict[int, list[Text]] = {0: [], 1: []}
    for item, label in labelled:
        if label is not None and item.scored:
            sides[label].append(Text(tuple(item.tokens), tuple(item.scored), item.group))
    return Contrast(sorted(sides[1], key=_order), sorted(sides[0], key=_order))


def _order(text: Text) -> bytes:
    return hashlib.sha256(repr((text.group, text.tokens)).encode()).digest()


def choose(contrast: Contrast, num: int, name: str) -> Contrast:
    """At most `num` texts of each side, from as many groups as there are. SteerError if they are of too few."""
    chosen = Contrast(_spread(contrast.positive, num), _spread(contrast.negative, num))
    for side, texts in chosen._asdict().items():
        num_groups = len({text.group for text in texts})
        if num_groups < LEAST_GROUPS:
            raise SteerError(
                f"contrast {name} must have {side} texts of at least {LEAST_GROUPS} groups, "
                f"got {len(texts)} texts of {num_groups}"
            )
    return chosen


def _spread(texts: list[Text], num: int) -> list[Text]:
    seen: Counter[str] = Counter()
    rank = []
    for text in texts:
        rank.append(seen[text.group])
        seen[text.group] += 1
    # The first of every group before the second of any.
    order = sorted(range(len(texts)), key=lambda i: rank[i])
    return [texts[i] for i in order[:num]]


def typical_tokens(contrast: Contrast, num: int) -> list[int]:
    """The `num` tokens most typical of the positive texts: those in more of them than of the negative ones.

    By the z-score of the log odds ratio of occurring in a text, each count plus a half. It must be above 1, and the
    token in two positive texts: with a few dozen short texts hardly any token reaches more.
    """
    positive, negative = _document_counts(contrast.positive), _document_counts(contrast.negative)
    sizes = len(contrast.positive), len(contrast.negative)
    shared = {token: count for token, count in positive.items() if count >= _LEAST_TEXTS}
    scores = {token: _log_odds_z(count, negative[token], *sizes) for token, count in shared.items()}
    best = sorted(scores, key=lambda token: (-scores[token], token))[:num]
    return [token for token in best if scores[token] > _LEAST_Z]


def _document_counts(texts: Sequence[Text]) -> Counter[int]:
    return Counter(token for text in texts for token in set(text.words))


def _log_odds_z(a: int, b: int, num_a: int, num_b: int) -> float:
    cells = (a + 0.5, num_a - a + 0.5, b + 0.5, num_b - b + 0.5)
    log_ratio = math.log(cells[0] / cells[1]) - math.log(cells[2] / cells[3])
    return log_ratio / math.sqrt(sum(1 / cell for cell in cells))
