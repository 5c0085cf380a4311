"""corpus: the split depends on content alone, contexts put together give the document back."""

import gzip
import json
from pathlib import Path

import pytest
import tiny

from discovery.context_store import ContextStore
from discovery.corpus import (
    CorpusSettings,
    Document,
    contexts_digest,
    is_held_out,
    read_contexts,
    read_documents,
)
from discovery.errors import CorpusError
from service import prompt

TEXTS = [f"document number {n} says {'word ' * (n % 7 + 2)}" for n in range(200)]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    plain, packed = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    plain.write_text("".join(json.dumps({"text": text, "source": "plain"}) + "\n" for text in TEXTS[:100]))
    with gzip.open(packed, "wt") as file:
        file.write("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[100:]))
    return [plain, packed]


def test_reads_both_forms_and_names_the_source(files):
    documents = list(read_documents(files))
    assert [document.content for document in documents] == TEXTS
    assert {document.source for document in documents} == {"plain", "b"}


def test_text_file_is_one_document(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("once upon a time")
    assert list(read_documents([path])) == [Document("once upon a time", "book")]


def test_record_without_text_is_refused_by_number(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "x"}\n{"words": "y"}\n')
    with pytest.raises(ValueError, match=r"record 2.*'text', 'messages' or 'tokens'"):
        list(read_documents([path]))


def test_contexts_put_together_are_the_document(files):
    settings = CorpusSettings(context_tokens=10, min_context_tokens=2)
    tokenizer = tiny.byte_tokenizer()
    contexts = list(read_contexts(files[:1], tokenizer, settings))
    joined: dict[int, list[int]] = {}
    for context in contexts:
        assert context.start == len(joined.setdefault(context.document, []))
        joined[context.document] += context.tokens
    for text, tokens in zip(TEXTS, joined.values(), strict=False):
        # A rest of one token is dropped.
        assert tokens == tokenizer(text)["input_ids"][: len(tokens)]
        assert len(tokenizer(text)["input_ids"]) - len(tokens) < 2


def test_tokens_are_read_as_they_are(tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"tokens": list(range(20)), "source": "chat"}) + "\n")
    (context,) = read_contexts([path], None, CorpusSettings())
    assert context.tokens == list(range(20))


def test_splits_are_disjoint_complete_and_of_the_share_asked_for(files):
    settings = CorpusSettings(held_out_share=0.3, min_context_tokens=2)
    tokenizer = tiny.byte_tokenizer()
    ids = {
        split: {context.document for context in read_contexts(files, tokenizer, settings, split)}
        for split in ("train", "held_out", "all")
    }
    assert ids["train"] | ids["held_out"] == ids["all"]
    assert not ids["train"] & ids["held_out"]
    # 200 draws at 0.3: four standard deviations are 0.13.
    assert 0.17 < len(ids["held_out"]) / len(ids["all"]) < 0.43


def test_split_does_not_depend_on_source_or_file():
    assert is_held_out(Document("x", "a"), 0.5) == is_held_out(Document("x", "b"), 0.5)


def test_shuffling_does_not_depend_on_the_order_of_files(files):
    tokenizer, settings = tiny.byte_tokenizer(), CorpusSettings()
    one, other = (list(read_contexts(order, tokenizer, settings)) for order in (files, files[::-1]))
    assert one != other

    def digest(contexts, seed):
        return contexts_digest(ContextStore(contexts).shuffled(seed))

    assert digest(one, 0) == digest(other, 0)
    assert digest(one, 0) != digest(one, 1)


# --- chat -----------------------------------------------------------------------------------------------------------

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "Ishmael."},
]


def write_lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_chat_is_read_as_the_server_reads_it(tmp_path):
    tokenizer = tiny.byte_tokenizer()
    path = write_lines(tmp_path / "chat.jsonl", {"messages": CHAT, "source": "sea"}, {"text": "Call me Ishmael."})
    chat, text = read_contexts([path], tokenizer, CorpusSettings())
    assert chat.tokens == list(prompt.from_chat(tokenizer, CHAT, add_reply=False).ids)
    assert chat.source == "sea" and text.source == "chat"
    assert text.tokens == list(prompt.from_text(tokenizer, "Call me Ishmael.").ids)
    assert chat.document != text.document


def test_a_long_conversation_is_cut_like_a_text(tmp_path):
    tokenizer = tiny.byte_tokenizer()
    path = write_lines(tmp_path / "chat.jsonl", {"messages": CHAT * 5})
    contexts = list(read_contexts([path], tokenizer, CorpusSettings(context_tokens=50, min_context_tokens=2)))
    assert [context.start for context in contexts] == list(range(0, 50 * len(contexts), 50))
    joined = [token for context in contexts for token in context.tokens]
    assert joined == list(prompt.from_chat(tokenizer, CHAT * 5, add_reply=False).ids)


def test_chat_for_a_model_without_a_template_is_refused(tmp_path):
    tokenizer = tiny.byte_tokenizer()
    path = write_lines(tmp_path / "chat.jsonl", {"messages": CHAT})
    tokenizer.chat_template = None
    with pytest.raises(CorpusError, match=r"chat holds conversations, and .* no chat template"):
        list(read_contexts([path], tokenizer, CorpusSettings()))
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(CorpusError, match=r"conversation of chat must suit .* says: roles must alternate"):
        list(read_contexts([path], tokenizer, CorpusSettings()))


# --- BOS ------------------------------------------------------------------------------------------------------------


class WithBos:
    """A tokenizer that begins every text with BOS, as Llama's does."""

    bos_token_id = 0
    chat_template = None

    def __call__(self, texts, add_special_tokens=True):
        return {"input_ids": [[0] * add_special_tokens + [3 + ord(letter) for letter in text] for text in texts]}


@pytest.mark.parametrize(
    ("bos", "wanted"),
    [
        ("tokenizer", [[0, 100, 101, 102], [103, 104, 105, 106]]),
        ("always", [[0, 100, 101, 102], [0, 103, 104, 105], [0, 106]]),
        ("never", [[100, 101, 102, 103], [104, 105, 106]]),
    ],
)
def test_bos_stands_where_it_is_asked_for(tmp_path, bos, wanted):
    path = tmp_path / "letters.txt"
    path.write_text("".join(map(chr, range(97, 104))))
    already = write_lines(tmp_path / "tokens.jsonl", {"tokens": [0, *range(100, 107)]})
    settings = CorpusSettings(context_tokens=4, min_context_tokens=2, bos=bos)
    for corpus in (path, already):
        contexts = list(read_contexts([corpus], WithBos(), settings))
        assert [context.tokens for context in contexts] == wanted
        in_document = [0, *range(100, 107)] if bos == "tokenizer" else list(range(100, 107))
        first = 1 if bos == "always" else 0
        assert all(in_document[context.start] == context.tokens[first] for context in contexts)


def test_bos_can_not_be_had_of_a_tokenizer_without_one(tmp_path):
    path = tmp_path / "letters.txt"
    path.write_text("abcdefgh")
    tokenizer = WithBos()
    tokenizer.bos_token_id = None
    with pytest.raises(CorpusError, match="has no BOS token"):
        list(read_contexts([path], tokenizer, CorpusSettings(bos="always")))
    with pytest.raises(ValueError, match="bos must be one of tokenizer, always, never, got 'sometimes'"):
        CorpusSettings(bos="sometimes")


# --- files that are none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": 5}, "record 1: text must be text, messages or token ids, got int"),
        ({"text": None}, "record 1: text must be .*, got NoneType"),
        ({"tokens": [1, "a"]}, "record 1: tokens must be messages or token ids, got 'a' at 1"),
        ({"tokens": [1, -2]}, "record 1: tokens must be messages or token ids, got -2 at 1"),
        ({"messages": [{"role": "user"}]}, "messages with a role and a content, got NoneType as content of number 0"),
        ({"text": "a\ud800"}, "text in Unicode, got a lone surrogate at character 1"),
        ([1, 2], "line 1, must be a JSON object, got list"),
    ],
)
def test_a_record_that_is_no_document_is_named(tmp_path, record, message):
    path = write_lines(tmp_path / "bad.jsonl", record)
    with pytest.raises(
        CorpusError, match=rf"bad.jsonl, {message}" if message.startswith(("record", "line")) else message
    ):
        list(read_contexts([path], tiny.byte_tokenizer(), CorpusSettings()))


def test_files_that_can_not_be_read_are_named(tmp_path):
    (tmp_path / "cut.jsonl").write_text('{"text": "whole"}\n{"text": "cut')
    packed = gzip.compress(b'{"text": "' + bytes(range(65, 90)) * 100 + b'"}\n')
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "none.jsonl.gz").write_bytes(b"plain")
    (tmp_path / "latin.txt").write_bytes("Käse".encode("latin-1"))
    for name, message in [
        ("cut.jsonl", "cut.jsonl, line 2, must be JSON"),
        ("cut.jsonl.gz", "cut.jsonl.gz is no whole gzip file"),
        ("none.jsonl.gz", "none.jsonl.gz is no whole gzip file"),
        ("latin.txt", "latin.txt must be text in UTF-8"),
        ("missing.txt", "missing.txt can't be read: No such file"),
    ]:
        with pytest.raises(CorpusError, match=message):
            list(read_documents([tmp_path / name]))


def test_text_may_be_packed(tmp_path):
    path = tmp_path / "book.txt.gz"
    path.write_bytes(gzip.compress(b"once upon\na time"))
    assert list(read_documents([path])) == [Document("once upon\na time", "book")]
