"""Many contexts in little memory: four bytes a token, where a list of Python numbers takes about forty."""

from array import array
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from discovery.corpus import Context, shuffle_key
from discovery.errors import CorpusError


class ContextStore(Sequence[Context]):
    """Contexts in the order they came, as many as have at most `max_tokens` together."""

    def __init__(self, contexts: Iterable[Context], max_tokens: int | None = None) -> None:
        self.tokens, self.ends = array("i"), array("q")
        self.documents, self.starts = array("q"), array("q")
        self.sources: list[str] = []
        for context in contexts:
            if max_tokens is not None and len(self.tokens) + len(context.tokens) > max_tokens:
                break
            self.tokens.extend(context.tokens)
            self.ends.append(len(self.tokens))
            self.documents.append(context.document)
            self.starts.append(context.start)
            self.sources.append(context.source)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = self.ends[index - 1] if index else 0
        tokens = self.tokens[first : self.ends[index]].tolist()
        return Context(tokens, self.documents[index], self.starts[index], self.sources[index])

    def shuffled(self, seed: int, max_tokens: int | None = None) -> "ContextStore":
        """In an order of `seed` and each context alone, not of files; of that order what is `taken`."""
        places = zip(self.documents, self.starts, strict=True)
        keys = [shuffle_key(seed, document, start) for document, start in places]
        order = sorted(range(len(self)), key=keys.__getitem__)
        return taken((self[index] for index in order), max_tokens, "--max-tokens")


def taken(contexts: Iterable[Context], max_tokens: int | None, name: str) -> ContextStore:
    """As many of them, in their order, as have at most `max_tokens` together, which the flag `name` gave.

    CorpusError if that is too few for the first. Without any context the store is empty.
    """
    source = iter(contexts)
    first = next(source, None)
    if first is None:
        return ContextStore(())
    if max_tokens is not None and len(first.tokens) > max_tokens:
        raise CorpusError(
            f"{name} must have room for a whole context, the first of which has {len(first.tokens)} tokens, got "
            f"{max_tokens}; --context-tokens makes them shorter"
        )
    return ContextStore(chain((first,), source), max_tokens)
