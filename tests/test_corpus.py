"""corpus: the split depends on content alone, contexts put together give the document back."""

import gzip
import json
from pathlib import Path

import pytest
import tiny

from discovery.corpus import (
    CorpusSettings,
    Document,
    contexts_digest,
    is_held_out,
    read_contexts,
    read_documents,
    shuffle_contexts,
    take_tokens,
)

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
    with pytest.raises(ValueError, match=r"record 2.*'text' or 'tokens'"):
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
    assert contexts_digest(shuffle_contexts(one, 0)) == contexts_digest(shuffle_contexts(other, 0))
    assert contexts_digest(shuffle_contexts(one, 0)) != contexts_digest(shuffle_contexts(one, 1))


def test_take_tokens_stops_before_the_limit(files):
    contexts = list(read_contexts(files, tiny.byte_tokenizer(), CorpusSettings()))
    taken = take_tokens(contexts, 500)
    total = sum(len(context.tokens) for context in taken)
    assert total <= 500 < total + len(contexts[len(taken)].tokens)
    assert take_tokens(contexts, None) == contexts
