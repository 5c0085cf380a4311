"""hf_corpus: the same documents, however a dataset lies on disk; what can't be read is named."""

import json

import pytest

from discovery.corpus import CorpusSettings, read_contexts, read_documents
from discovery.errors import HarvestError
from discovery.hf_corpus import HfSpec, parse_spec, read_hf

datasets = pytest.importorskip("datasets")

TEXTS = ["Call me Ishmael.", "Some years ago", "never mind how long precisely"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def dataset(**columns):
    return datasets.Dataset.from_dict(columns or {"id": [1, 2, 3], "text": TEXTS})


def write(folder, form):
    made = dataset()
    folder.mkdir()
    if form == "saved":
        made.save_to_disk(folder)
    elif form == "saved splits":
        datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(folder)
    elif form == "parquet":
        made.to_parquet(folder / "part.parquet")
    elif form == "json":
        made.to_json(folder / "part.jsonl")
    return folder


@pytest.mark.parametrize("form", ["saved", "saved splits", "parquet", "json"])
def test_a_folder_is_read_in_order(tmp_path, form):
    folder = write(tmp_path / "novel", form)
    assert list(read_hf(f"hf:{folder}")) == [(text, "novel") for text in TEXTS]
    assert list(read_hf(f"hf:{folder}:train:text")) == [(text, "novel") for text in TEXTS]


def test_a_file_a_split_and_a_slice(tmp_path):
    write(tmp_path / "novel", "parquet")
    assert [text for text, _ in read_hf(f"hf:{tmp_path / 'novel' / 'part.parquet'}")] == TEXTS
    assert [text for text, _ in read_hf(f"hf:{tmp_path / 'novel'}:train[:2]")] == TEXTS[:2]
    splits = write(tmp_path / "splits", "saved splits")
    assert [text for text, _ in read_hf(f"hf:{splits}:test")] == TEXTS[:1]


def test_token_ids_are_taken_as_they_are(tmp_path):
    dataset(tokens=[[1, 2, 3], [4, 5]], length=[3, 2]).save_to_disk(tmp_path / "tokens")
    assert [content for content, _ in read_hf(f"hf:{tmp_path / 'tokens'}")] == [[1, 2, 3], [4, 5]]


def test_it_is_a_corpus_like_any_other(tmp_path, model):
    write(tmp_path / "novel", "parquet")
    path = tmp_path / "novel.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    settings = CorpusSettings()
    from_hf = list(read_contexts([f"hf:{tmp_path / 'novel'}"], model.tokenizer, settings))
    assert from_hf == list(read_contexts([path], model.tokenizer, settings)) and len(from_hf) == 3
    assert [document.source for document in read_documents([f"hf:{tmp_path / 'novel'}", path])] == ["novel"] * 6


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("hf:a/b", HfSpec("a/b", None, "train", None, False)),
        ("hf:/data/x:test:content", HfSpec("/data/x", None, "test", "content", False)),
        ("hf:a/b@config-1:train[:1%]:text", HfSpec("a/b", "config-1", "train[:1%]", "text", False)),
        ("hf-stream:a/b", HfSpec("a/b", None, "train", None, True)),
    ],
)
def test_specs(text, spec):
    assert parse_spec(text) == spec


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf:", "must be given as hf:"),
        ("hf:{folder}:train:nothing", "^column of .* must be one of id, text, got 'nothing'"),
        ("hf:{folder}:train:id", "^hf:.*train:id, row 1: column id must be text, messages or token ids, got int"),
        ("hf:{folder}:wrong", "can't be read"),
        ("hf:{splits}:wrong", "must be one of test, train, got 'wrong'"),
        ("hf:{folder}/part.bin", "must be one of .parquet"),
        ("hf:no-such/dataset", "hf:no-such/dataset can't be read"),
    ],
)
def test_what_can_not_be_read_is_named(tmp_path, spec, message):
    folder = write(tmp_path / "novel", "parquet")
    (folder / "part.bin").write_bytes(b"")
    splits = write(tmp_path / "splits", "saved splits")
    with pytest.raises(HarvestError, match=message):
        list(read_hf(spec.format(folder=folder, splits=splits)))


def test_a_column_that_can_not_be_guessed_must_be_named(tmp_path):
    dataset(question=["a"], answer=["b"]).save_to_disk(tmp_path / "qa")
    with pytest.raises(HarvestError, match="must name its column: it has answer, question"):
        list(read_hf(f"hf:{tmp_path / 'qa'}"))


def test_conversations_are_a_column_like_any_other(tmp_path):
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ishmael."}]
    dataset(messages=[chat, chat[:1]], id=[1, 2]).save_to_disk(tmp_path / "chats")
    dataset(messages=[chat, chat[:1]], id=[1, 2]).to_parquet(tmp_path / "chats.parquet")
    for spec in (f"hf:{tmp_path / 'chats'}", f"hf:{tmp_path / 'chats.parquet'}"):
        assert [content for content, _ in read_hf(spec)] == [chat, chat[:1]]
