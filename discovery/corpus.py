"""Text to contexts: what a dictionary is trained and measured on.

Reads `.jsonl` / `.jsonl.gz` (`{"text": ...}` or, already tokenised, `{"tokens": [...]}`), plain text, and Hugging Face
datasets (`hf:PATH_OR_NAME[:SPLIT[:COLUMN]]`, see `hf_corpus`); tokenises as the server does (the tokenizer's own
default); cuts documents into contexts; and splits documents into training and held-out ones by a hash of their content,
so that the split depends on nothing else. Nothing is filtered.

    contexts = list(read_contexts(paths, tokenizer, CorpusSettings(), split="train"))
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from discovery.hf_corpus import is_hf_spec, read_hf

Split = Literal["train", "held_out", "all"]

_TOKENIZER_BATCH = 64


@dataclass(frozen=True, slots=True)
class CorpusSettings:
    """How documents become contexts."""

    context_tokens: int = 512
    """Longest context; a longer document becomes several, the last one shorter."""
    min_context_tokens: int = 8
    """A shorter rest is dropped: its tokens have hardly any context."""
    held_out_share: float = 0.02
    """Share of documents held out."""

    def __post_init__(self) -> None:
        if not 2 <= self.min_context_tokens <= self.context_tokens:
            raise ValueError(f"2 <= min_context_tokens <= context_tokens must hold, got {self}")
        if not 0 <= self.held_out_share < 1:
            raise ValueError(f"held_out_share must lie in [0, 1), got {self.held_out_share}")


DEFAULTS = CorpusSettings()


class Document(NamedTuple):
    """One line of a corpus: text, or tokens if it was written as tokens."""

    content: str | list[int]
    source: str

    @property
    def digest(self) -> bytes:
        """sha256 of the content; the document's identity in splits and shards."""
        content = self.content if isinstance(self.content, str) else json.dumps(self.content)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()


class Context(NamedTuple):
    """What one forward pass reads. Position 0 is the first token of `tokens`."""

    tokens: list[int]
    document: int
    """First 63 bits of the document's sha256."""
    start: int
    """Index of the context's first token in its document."""
    source: str


def read_documents(paths: Iterable[Path | str]) -> Iterator[Document]:
    """All documents of the files, in order. ValueError names the file and record that is no document."""
    for given in paths:
        path = Path(given)
        if is_hf_spec(str(given)):
            yield from (Document(*content) for content in read_hf(str(given)))
        elif path.name.removesuffix(".gz").endswith(".jsonl"):
            yield from _documents_of(path)
        else:
            yield Document(path.read_text(encoding="utf-8"), path.stem)


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a `.jsonl` or `.jsonl.gz` file."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def _documents_of(path: Path) -> Iterator[Document]:
    stem = path.name.split(".")[0]
    for number, record in enumerate(read_json_lines(path), start=1):
        content = record.get("tokens", record.get("text"))
        if content is None:
            raise ValueError(f"{path}, record {number}, must have a key 'text' or 'tokens', got {sorted(record)}")
        yield Document(content, record.get("source", stem))


def is_held_out(document: Document, share: float) -> bool:
    """Whether `document` belongs to the held-out `share`. Depends on its content alone."""
    # Other bytes than the document id's, so that ids are not sorted by split.
    return int.from_bytes(document.digest[8:16], "little") < share * 2**64


def read_contexts(
    paths: Iterable[Path | str], tokenizer: Any, settings: CorpusSettings, split: Split = "all"
) -> Iterator[Context]:
    """Contexts of the documents in `split`, in file order."""
    documents = (
        document
        for document in read_documents(paths)
        if split == "all" or is_held_out(document, settings.held_out_share) == (split == "held_out")
    )
    while batch := tuple(islice(documents, _TOKENIZER_BATCH)):
        for document, tokens in zip(batch, _tokenize(batch, tokenizer), strict=True):
            yield from _cut(document, tokens, settings)


def _tokenize(documents: tuple[Document, ...], tokenizer: Any) -> list[list[int]]:
    texts = [document.content for document in documents if isinstance(document.content, str)]
    encoded = iter(tokenizer(texts)["input_ids"] if texts else [])
    return [next(encoded) if isinstance(document.content, str) else document.content for document in documents]


def _cut(document: Document, tokens: list[int], settings: CorpusSettings) -> Iterator[Context]:
    identity = int.from_bytes(document.digest[:8], "little") >> 1
    for start in range(0, len(tokens), settings.context_tokens):
        piece = tokens[start : start + settings.context_tokens]
        if len(piece) >= settings.min_context_tokens:
            yield Context(piece, identity, start, document.source)


def shuffle_contexts(contexts: list[Context], seed: int) -> list[Context]:
    """Contexts in an order that depends on `seed` and on each context alone, not on the order of files."""

    def key(context: Context) -> bytes:
        return hashlib.sha256(f"{seed}/{context.document}/{context.start}".encode()).digest()

    return sorted(contexts, key=key)


def take_tokens(contexts: list[Context], max_tokens: int | None) -> list[Context]:
    """The first contexts that together have at most `max_tokens` tokens."""
    if max_tokens is None:
        return contexts
    total = 0
    for index, context in enumerate(contexts):
        total += len(context.tokens)
        if total > max_tokens:
            return contexts[:index]
    return contexts


def contexts_digest(contexts: Sequence[Context]) -> str:
    """sha256 over all token ids in order: says whether a harvest that goes on is the one that was begun."""
    digest = hashlib.sha256()
    for context in contexts:
        digest.update(f"{context.document}/{context.start}:{context.tokens}\n".encode())
    return digest.hexdigest()
