"""The words by which a latent is found, and how much each of them weighs.

Words are compared whole: without case, accents and English plural. The writer of a catalogue stores `word_weights` of
every entry, turned round; `rank` answers a query from them. So what a search finds is what a scan of all entries would.

A latent's score is the sum over the query's words of weight * ln(1 + latents / latents with the word): a rare word says
more. A word weighs most in a title; in examples it weighs more at tokens that the latent fires on than beside them.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set
from enum import StrEnum

from monitors.latent_entry import LatentEntry, QuotedExample

_WORD = re.compile(r"[^\W_]+")
STRONG_SHARE = 0.5
"""A latent counts as firing on a token of an example if it reads this share of the focus's reading or more."""


class Field(StrEnum):
    """Where a word can stand, weightiest first."""

    NAME = "name"
    DESCRIPTION = "description"
    TITLE = "title"
    DOMINANT_TOKENS = "dominant_tokens"
    ACTIVE_TOKENS = "active_tokens"
    SUMMARY = "summary"
    CONTEXT = "context"


WEIGHTS = {
    Field.NAME: 96,
    Field.DESCRIPTION: 48,
    Field.TITLE: 48,
    Field.DOMINANT_TOKENS: 32,
    Field.ACTIVE_TOKENS: 32,
    Field.SUMMARY: 16,
    Field.CONTEXT: 8,
}
"""The whole weight of a field. An example's fields count by the share of the examples that have the word."""


def words_of(text: str) -> list[str]:
    """The words of a text, in order, as they are compared."""
    return [_folded(match.group()) for match in _WORD.finditer(unicodedata.normalize("NFC", text))]


def _folded(word: str) -> str:
    if not word.isascii():
        decomposed = unicodedata.normalize("NFKD", word.casefold())
        word = "".join(char for char in decomposed if not unicodedata.combining(char)) or word
    return _singular(word.casefold())


def _singular(word: str) -> str:
    """Harman's S stemmer ("How effective is suffixing?", 1991), for words of four letters and more."""
    if len(word) < 4 or not word.endswith("s"):
        return word
    if word.endswith("ies") and not word.endswith(("eies", "aies")) and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    return word if word.endswith(("us", "ss")) else word[:-1]


def example_words(example: QuotedExample) -> tuple[set[str], set[str]]:
    """Words at tokens that the latent fires on, and the other words of the window."""
    ends, length = [], 0
    for piece in example.pieces:
        length += len(piece)
        ends.append(length)
    strong = [reading > 0 and reading >= STRONG_SHARE * example.reading for reading in example.readings]
    active: set[str] = set()
    beside: set[str] = set()
    token = 0
    for match in _WORD.finditer(example.text):
        while ends[token] <= match.start():
            token += 1
        last = token
        while ends[last] < match.end():
            last += 1
        (active if any(strong[token : last + 1]) else beside).add(_folded(match.group()))
    return active, beside - active


def entry_words(entry: LatentEntry) -> dict[Field, list[set[str]]]:
    """Words by field, of each text in it: one title, but several examples."""
    found: dict[Field, list[set[str]]] = {}
    if entry.said is not None:
        found[Field.TITLE] = [set(words_of(entry.said.title))]
        found[Field.DOMINANT_TOKENS] = [{word for token in entry.said.dominant_tokens for word in words_of(token)}]
        found[Field.SUMMARY] = [set(words_of(entry.said.summary))]
    pairs = [example_words(example) for example in entry.examples]
    found[Field.ACTIVE_TOKENS] = [active for active, _ in pairs]
    found[Field.CONTEXT] = [beside for _, beside in pairs]
    return found


def best_example(examples: Sequence[QuotedExample], wanted: Set[str]) -> QuotedExample | None:
    """The first of those with most of `wanted`, words at active tokens counting twice; None if there is none."""

    def num_words(example: QuotedExample) -> int:
        active, beside = example_words(example)
        return 2 * len(active & wanted) + len(beside & wanted)

    counts = [num_words(example) for example in examples]
    return examples[counts.index(max(counts))] if any(counts) else None


def word_weights(found: Mapping[Field, Sequence[set[str]]]) -> dict[str, int]:
    """Weight of each word; 1 to 255, so that it fits in a byte."""
    weights: dict[str, float] = {}
    for field, texts in found.items():
        for text in texts:
            for word in text:
                weights[word] = weights.get(word, 0.0) + WEIGHTS[field] / len(texts)
    return {word: min(max(round(weight), 1), 255) for word, weight in weights.items()}


def rank(weights: Iterable[Mapping[int, int]], num_latents: int) -> list[tuple[int, float]]:
    """(latent, score) of the latents that have every word, best first, equals by index.

    `weights` has, for each word of the query, its weight by latent.
    """
    by_word = sorted(weights, key=len)
    found = dict.fromkeys(by_word[0], 0.0) if by_word else {}
    for of_latent in by_word:
        rarity = math.log(1 + num_latents / max(len(of_latent), 1))
        found = {latent: score + of_latent[latent] * rarity for latent, score in found.items() if latent in of_latent}
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))
