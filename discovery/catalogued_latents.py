"""A dictionary's latent catalogue where an example file would be asked: names, examples and words of its latents.

The catalogue holds less (a few examples of each latent, of text that may be quoted) but ships with the dictionary. Its
search is the server's (`monitors.latent_words`): whole words, all of which must be there, best score first.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from discovery.errors import ExampleError
from discovery.latent_record import Match
from discovery.reading_scale import ReadingScale, reading_scale
from monitors.latent_catalogue import LatentCatalogue
from monitors.latent_entry import QuotedExample
from monitors.latent_words import Field, best_example, entry_words, rank, words_of

_SAID = (Field.TITLE, Field.DOMINANT_TOKENS, Field.SUMMARY)


class CataloguedLatents:
    """One catalogue, open; what it is asked is what an `ExampleStore` is asked."""

    def __init__(self, catalogue: LatentCatalogue) -> None:
        self._catalogue = catalogue

    @classmethod
    def open(cls, path: Path, *, sae_sha256: str, num_latents: int) -> Self:
        """Open the catalogue of that dictionary; CatalogueError if it is damaged, or another one's."""
        catalogue = LatentCatalogue.open(path)
        try:
            catalogue.check_binding(sae_sha256, num_latents)
        except BaseException:
            catalogue.close()
            raise
        return cls(catalogue)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._catalogue.close()

    def titles(self) -> dict[int, str]:
        """Titles of the explained latents."""
        heads = ((latent, self._catalogue.head(latent).said) for latent in range(len(self._catalogue.figures)))
        return {latent: said.title for latent, said in heads if said is not None}

    def maxima(self) -> list[float]:
        """Largest reading of each latent, by latent."""
        return [figures.max for figures in self._catalogue.figures]

    def scale(self, latent: int) -> ReadingScale | None:
        """How large its readings are; None if it never fires."""
        catalogue, maximum = self._catalogue, self._catalogue.figures[latent].max
        return reading_scale(
            catalogue.entry(latent).histogram,
            catalogue.histogram_edges,
            num_tokens=catalogue.num_tokens,
            maximum=maximum,
        )

    def best_example(self, latent: int) -> QuotedExample | None:
        """The example with the largest reading, if any may be quoted."""
        return next(iter(self._catalogue.entry(latent).examples), None)

    def search(self, query: str, limit: int = 20) -> list[Match]:
        """Latents that have all words of `query`, in what is said of them or in their examples; best first."""
        words = list(dict.fromkeys(words_of(query)))
        if not words:
            raise ExampleError(f"the text to search for must have a word, got {query!r}")
        ranked = rank([self._catalogue.latents_with(word) for word in words], len(self._catalogue.figures))
        return [self._match(latent, words) for latent, _ in ranked[:limit]]

    def _match(self, latent: int, words: Sequence[str]) -> Match:
        entry, wanted = self._catalogue.entry(latent), set(words)
        found = entry_words(entry)
        is_said = wanted <= {word for field in _SAID for text in found.get(field, ()) for word in text}
        example = best_example(entry.examples, wanted)
        quoted = example.text if example else ""
        title, summary = (entry.said.title, entry.said.summary) if entry.said else (None, "")
        if is_said:
            return Match(latent, title, "explanation", summary or quoted)
        return Match(latent, title, "examples", quoted)
