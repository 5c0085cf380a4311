"""Text and chat to contexts: what a dictionary is trained and measured on.

Reads `.jsonl` / `.jsonl.gz`, plain text (`.gz` too), and Hugging Face datasets (`hf:PATH_OR_NAME[:SPLIT[:COLUMN]]`, see
`hf_corpus`). A JSON line has one of

    {"text": "Call me Ishmael."}
    {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ishmael."}]}
    {"tokens": [1, 523, 77]}                                              already tokenised

and may have a "source". Text is tokenised as the server does (the tokenizer's own default), chat goes through the
model's chat template, as in the server too. Documents are cut into contexts and split into training and held-out ones
by a hash of their content, so that the split depends on nothing else. Nothing is filtered.

    contexts = list(read_contexts(paths, tokenizer, CorpusSettings(), split="train"))
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast, get_args

from discovery.contents import Content, is_chat, problem_of
from discovery.errors import CorpusError
from discovery.hf_corpus import is_hf_spec, read_hf
from discovery.line_files import parse_record
from sae_runtime.errors import one_line

Split = Literal["train", "held_out", "all"]
BosPolicy = Literal["tokenizer", "always", "never"]

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
    bos: BosPolicy = "tokenizer"
    """Whether a context begins with the BOS token. `tokenizer`: a document's first one does if the tokenizer (or the
    chat template) puts it there, the others don't. With `always` it counts as one of `context_tokens`."""

    def __post_init__(self) -> None:
        if self.bos not in get_args(BosPolicy):
            raise ValueError(f"bos must be one of {', '.join(get_args(BosPolicy))}, got {self.bos!r}")
        if not 2 <= self.min_context_tokens <= self.context_tokens:
            raise ValueError(f"2 <= min_context_tokens <= context_tokens must hold, got {self}")
        if not 0 <= self.held_out_share < 1:
            raise ValueError(f"held_out_share must lie in [0, 1), got {self.held_out_share}")


DEFAULTS = CorpusSettings()


class Document(NamedTuple):
    """One line of a corpus: text, a conversation, or tokens if it was written as tokens."""

    content: Content
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
    """Index of the context's first token in its document (of the one behind BOS, if that is put before each)."""
    source: str


def read_documents(paths: Iterable[Path | str]) -> Iterator[Document]:
    """All documents of the files, in order. CorpusError names the file and record that is no document."""
    for given in paths:
        path = Path(given)
        if is_hf_spec(str(given)):
            yield from (Document(*content) for content in read_hf(str(given)))
        elif path.name.removesuffix(".gz").endswith(".jsonl"):
            yield from _documents_of(path)
        else:
            yield Document("".join(_lines(path)), path.name.removesuffix(".gz").rsplit(".", 1)[0])


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a `.jsonl` or `.jsonl.gz` file. CorpusError names the line that is none."""
    for _number, record in read_numbered_lines(path):
        yield record


def read_numbered_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, its record) of a `.jsonl` or `.jsonl.gz` file, blank lines left out. CorpusError as above."""
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            yield number, parse_record(path, number, line, CorpusError)


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file, packed or not."""
    try:
        with _open(path) as file:
            yield from file
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} must be text in UTF-8: {error}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorpusError(f"{path} is no whole gzip file: {one_line(error)}") from None
    except OSError as error:
        raise CorpusError(f"{path} can't be read: {error.strerror}") from None


def _open(path: Path) -> IO[str]:
    return (
        cast(IO[str], gzip.open(path, "rt", encoding="utf-8")) if path.suffix == ".gz" else path.open(encoding="utf-8")
    )


def _documents_of(path: Path) -> Iterator[Document]:
    stem = path.name.split(".")[0]
    for number, record in enumerate(read_json_lines(path), start=1):
        name = next((name for name in ("tokens", "text", "messages") if name in record), None)
        if name is None:
            wanted = "'text', 'messages' or 'tokens'"
            raise CorpusError(f"{path}, record {number}, must have a key {wanted}, got {sorted(record)}")
        if problem := problem_of(record[name]):
            raise CorpusError(f"{path}, record {number}: {name} must be {problem}")
        yield Document(record[name], str(record.get("source", stem)))


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
        for document, tokens in zip(batch, _tokenize(batch, tokenizer, settings.bos), strict=True):
            yield from _cut(document, tokens, settings, first=_first_token(tokenizer, settings.bos))


def _tokenize(documents: tuple[Document, ...], tokenizer: Any, bos: BosPolicy) -> list[list[int]]:
    contents = {index: document.content for index, document in enumerate(documents)}
    texts = {index: content for index, content in contents.items() if isinstance(content, str)}
    chats = {index: _rendered(documents[index], tokenizer) for index, content in contents.items() if is_chat(content)}
    tokens = cast(dict[int, list[int]], contents)
    if texts:
        encoded = tokenizer(list(texts.values()), add_special_tokens=bos == "tokenizer")
        tokens |= dict(zip(texts, encoded["input_ids"], strict=True))
    if chats:  # templates write their special tokens out
        encoded = tokenizer(list(chats.values()), add_special_tokens=False)
        tokens |= dict(zip(chats, encoded["input_ids"], strict=True))
    return [_without_bos(tokens[index], tokenizer, bos) for index in range(len(documents))]


def _without_bos(tokens: list[int], tokenizer: Any, bos: BosPolicy) -> list[int]:
    """The document without its own BOS, unless that is where it belongs."""
    if bos == "tokenizer" or tokenizer is None or tokens[:1] != [tokenizer.bos_token_id]:
        return tokens
    return tokens[1:]


def _rendered(document: Document, tokenizer: Any) -> str:
    """A conversation through the model's chat template. CorpusError if there is none, or it refuses."""
    if tokenizer is None or tokenizer.chat_template is None:
        raise CorpusError(f"{document.source} holds conversations, and the model's tokenizer has no chat template")
    try:
        return str(tokenizer.apply_chat_template(document.content, tokenize=False))
    except Exception as error:  # templates raise what they like
        raise CorpusError(
            f"a conversation of {document.source} must suit the model's chat template, which says: {one_line(error)}"
        ) from None


def _first_token(tokenizer: Any, bos: BosPolicy) -> list[int]:
    """What every context is to begin with."""
    if bos != "always":
        return []
    if tokenizer is None or tokenizer.bos_token_id is None:
        raise CorpusError("bos can't be always: the model's tokenizer has no BOS token")
    return [int(tokenizer.bos_token_id)]


def _cut(document: Document, tokens: list[int], settings: CorpusSettings, *, first: list[int]) -> Iterator[Context]:
    identity = int.from_bytes(document.digest[:8], "little") >> 1
    length = settings.context_tokens - len(first)
    for start in range(0, len(tokens), length):
        piece = first + tokens[start : start + length]
        if len(piece) >= settings.min_context_tokens:
            yield Context(piece, identity, start, document.source)


def shuffle_key(seed: int, document: int, start: int) -> bytes:
    """What contexts are sorted by to shuffle them."""
    return hashlib.sha256(f"{seed}/{document}/{start}".encode()).digest()


def contexts_digest(contexts: Sequence[Context]) -> str:
    """sha256 over all token ids in order: says whether a harvest that goes on is the one that was begun."""
    digest = hashlib.sha256()
    for context in contexts:
        digest.update(f"{context.document}/{context.start}:{context.tokens}\n".encode())
    return digest.hexdigest()
