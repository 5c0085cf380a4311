"""Orders and finds latents: by name, by what the latent catalogue says of them, by the likeness of their decoder rows.

Plain lookups over things that do not change while the server runs; any thread may ask. No tensors, no wire messages.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from monitors.latent_catalogue import LatentCatalogue, Order
from monitors.latent_entry import LatentEntry, QuotedExample
from monitors.latent_words import Field, best_example, entry_words, rank, word_weights, words_of
from monitors.watchlist import NamedFeature, Watchlist

Cosines = Callable[[int], Sequence[float]]
"""Cosines of a latent's decoder row with every latent's."""


class Match(NamedTuple):
    """Where the words of a query stand in what is known of a latent."""

    fields: tuple[Field, ...]
    example: QuotedExample | None
    """Of the examples the one with most words of the query, at tokens that the latent fires on if there is a choice."""


class FeatureSearch:
    """Lists and searches of one server."""

    def __init__(
        self, watchlist: Watchlist, catalogue: LatentCatalogue | None, cosines: Cosines, num_latents: int
    ) -> None:
        self._watchlist, self._catalogue, self._cosines = watchlist, catalogue, cosines
        self._num_latents = num_latents
        self._named = _by_word(watchlist.features)

    def listed(self, order: Order, *, include_unnamed: bool) -> Sequence[int]:
        """Latents in that order. Any but by index needs a catalogue."""
        named = self._watchlist.by_index
        if self._catalogue is not None:
            latents = self._catalogue.ordered(order)
        else:
            assert order == "index"
            latents = range(self._num_latents)
        return latents if include_unnamed else [latent for latent in latents if latent in named]

    def with_words(self, words: Sequence[str]) -> list[tuple[int, float]]:
        """(latent, score) of those that have all `words` of `words_of`, best first."""
        return rank([self._weights(word) for word in dict.fromkeys(words)], self._num_latents)

    def like(self, latent: int) -> list[tuple[int, float]]:
        """(latent, cosine) of all others, largest first."""
        cosines = self._cosines(latent)
        others = [other for other in range(self._num_latents) if other != latent]
        return [(other, cosines[other]) for other in sorted(others, key=lambda other: -cosines[other])]

    def match(self, latent: int, entry: LatentEntry | None, words: Sequence[str]) -> Match:
        """Where `words` stand in a latent that has them."""
        wanted, named = set(words), self._watchlist.by_index.get(latent)
        found = _named_words(named) if named else {}
        found |= entry_words(entry) if entry else {}
        fields = tuple(field for field in Field if any(wanted & text for text in found.get(field, ())))
        return Match(fields, best_example(entry.examples if entry else (), wanted))

    def _weights(self, word: str) -> Mapping[int, int]:
        of_latents = self._catalogue.latents_with(word) if self._catalogue is not None else {}
        for latent, weight in self._named.get(word, {}).items():
            of_latents[latent] = of_latents.get(latent, 0) + weight
        return of_latents


def _by_word(features: Sequence[NamedFeature]) -> dict[str, dict[int, int]]:
    by_word: dict[str, dict[int, int]] = {}
    for feature in features:
        for word, weight in word_weights(_named_words(feature)).items():
            by_word.setdefault(word, {})[feature.index] = weight
    return by_word


def _named_words(feature: NamedFeature) -> dict[Field, list[set[str]]]:
    return {
        Field.NAME: [set(words_of(feature.name))],
        Field.DESCRIPTION: [set(words_of(feature.description))],
    }
