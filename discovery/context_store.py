"""Many contexts in little memory: four bytes a token, where a list of Python numbers takes about forty."""

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from discovery.corpus import Context, shuffle_key


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
        """As `corpus.shuffle_contexts` has it, and of that order as many as have at most `max_tokens` together."""
        places = zip(self.documents, self.starts, strict=True)
        keys = [shuffle_key(seed, document, start) for document, start in places]
        order = sorted(range(len(self)), key=keys.__getitem__)
        return ContextStore((self[index] for index in order), max_tokens)
