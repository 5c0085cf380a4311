"""The example file: what is in it comes back, other files are refused, and one latent can be shown."""

import json
import sqlite3

import example_file
import pytest
import serving
import tiny
import tiny_examples

from discovery import example_schema, example_store, explanation_book, lab
from discovery.errors import ExampleError, ExplainError
from discovery.example_store import ExampleStore
from discovery.explanation_book import ExplanationBook
from discovery.latent_names import open_store
from discovery.latent_record import Explanation
from discovery.token_text import pieces_of, printable, token_bytes

EXPLANATION = Explanation(
    latent=9,
    title="ships",
    summary="Ships and the sea.",
    pattern="nouns",
    dominant_tokens=("ship", "sea"),
    context="novels",
    model="somebody",
    detection=0.8,
    detection_n=40,
    fuzzing=0.7,
    fuzzing_n=20,
    created="2026-01-02T03:04:05Z",
)


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    return tiny_examples.write_example_file(model, tmp_path_factory.mktemp("store"))


def test_explanations_come_back_as_they_were_saved(path):
    with ExampleStore.open(path, writable=True) as store:
        assert store.explanation(9) is None and store.latent(9).explanation is None
        store.save(EXPLANATION._replace(title="boats"))
        store.save(EXPLANATION)
    with ExampleStore.open(path) as store:
        assert store.explanation(9) == store.latent(9).explanation == EXPLANATION
        assert store.explanations() == [EXPLANATION]


def test_explanations_written_without_this_module_are_read(path):
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("INSERT OR REPLACE INTO explanations (latent, title) VALUES (12, 'bare')")
    connection.close()
    with ExampleStore.open(path) as store:
        bare = store.explanation(12)
        assert bare.title == "bare" and bare.dominant_tokens == () and bare.summary is not None
        assert [match.latent for match in store.search("bare")] == [12]


def test_a_file_opened_for_reading_is_not_written(path):
    with ExampleStore.open(path) as store, pytest.raises(sqlite3.OperationalError, match="readonly"):
        store.save(EXPLANATION)
    assert sorted(file.name for file in path.parent.glob("examples.sqlite*")) == ["examples.sqlite"]


def test_what_a_killed_process_had_half_written_is_undone(path, tmp_path):
    connection = sqlite3.connect(path)
    # With next to no cache, changed pages go into the file before the end of the transaction.
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("UPDATE latents SET num_active = -1")
    connection.execute("UPDATE examples SET value = -1")
    copy = tmp_path / path.name
    for suffix in ("", "-journal"):
        copy.with_name(copy.name + suffix).write_bytes(path.with_name(path.name + suffix).read_bytes())
    connection.rollback()
    connection.close()
    assert copy.read_bytes() != path.read_bytes()
    with ExampleStore.open(copy) as killed, ExampleStore.open(path) as whole:
        assert [killed.latent(n) for n in whole.latents()] == [whole.latent(n) for n in whole.latents()]


def test_other_files_are_refused(tmp_path, path):
    with pytest.raises(ExampleError, match=r"none\.sqlite does not exist"):
        ExampleStore.open(tmp_path / "none.sqlite")
    (tmp_path / "text").write_text("no database, but long enough to be taken for one" * 100)
    with pytest.raises(ExampleError, match="text must be an example file"):
        ExampleStore.open(tmp_path / "text")
    sqlite3.connect(tmp_path / "empty").close()
    with pytest.raises(ExampleError, match="empty must be an example file"):
        ExampleStore.open(tmp_path / "empty")
    copy = tmp_path / "later.sqlite"
    copy.write_bytes(path.read_bytes())
    connection = sqlite3.connect(copy)
    with connection:
        connection.execute("UPDATE manifest SET value = '99' WHERE key = 'schema_version'")
    connection.close()
    with pytest.raises(ExampleError, match="schema_version must be 1, got 99"):
        ExampleStore.open(copy)


def read_all(path):
    """Everything that pages, catalogues and explanations read."""
    with ExampleStore.open(path) as store:
        latents = [store.latent(latent) for latent in store.latents("max")]
        figures = store.num_live, store.num_examples, store.maxima(), store.glances()
        texts = store.explanations(), store.search("sea"), store.best_example(9)
        return latents, figures, texts, list(store.backgrounds())


def test_damage_anywhere_inside_a_file_is_named_with_its_path(path, tmp_path):
    whole, wanted, refused = path.read_bytes(), read_all(path), []
    (page_size,) = sqlite3.connect(path).execute("PRAGMA page_size").fetchone()
    copy = tmp_path / "damaged.sqlite"
    for begin in range(0, len(whole), page_size):
        copy.write_bytes(whole[:begin] + b"\xff" * page_size + whole[begin + page_size :])
        try:
            assert read_all(copy) == wanted  # a page that none of it needs
        except ExampleError as error:
            refused.append(str(error))
    assert len(refused) > len(whole) // page_size // 2
    assert all(str(copy) in message for message in refused)


def damage(path, table):
    """Overwrite the first page of a table."""
    connection = sqlite3.connect(path)
    (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    connection.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: (root - 1) * page_size] + b"\xff" * page_size + whole[root * page_size :])


def test_the_commands_name_a_damaged_file(model, tmp_path, capsys):
    path = tiny_examples.write_example_file(model, tmp_path)
    damage(path, "examples")
    words = [str(tmp_path / "dictionary"), "--store", str(path)]
    for command, more in (
        ("pages", ["--map", "none", "--output", str(tmp_path / "pages")]),
        ("catalogue", ["--quote-sources", "chat", "--licence", "chat=own"]),
        ("explain", ["--endpoint", "tokens"]),
    ):
        assert lab.run(command, [*words, *more]) == 1
        assert f"example file {path} can't be read: database disk image is malformed" in capsys.readouterr().err


@pytest.fixture
def connections(monkeypatch):
    """All that are opened, to be looked at afterwards."""
    opened, connect = [], example_schema.connect

    def kept(*args):
        opened.append(connect(*args))
        return opened[-1]

    for module in (example_schema, example_store, explanation_book):
        monkeypatch.setattr(module, "connect", kept)
    return opened


def all_closed(connections):
    for connection in connections:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")
    return len(connections)


def test_a_file_that_is_refused_is_let_go_of(path, tmp_path, connections):
    copy = tmp_path / "later.sqlite"
    copy.write_bytes(path.read_bytes())
    connection = sqlite3.connect(copy)
    with connection:
        connection.execute("UPDATE manifest SET value = '99' WHERE key = 'schema_version'")
    connection.close()
    for refused in (ExampleStore.open, ExplanationBook):
        with pytest.raises(ExampleError, match="schema_version must be 1, got 99"):
            refused(copy)
    assert all_closed(connections) == 2


def test_a_file_of_another_dictionary_is_refused_and_let_go_of(path, tmp_path, connections):
    other = serving.manifest()
    message = f"{path}: sae_sha256 must be {other.sae_sha256}, the dictionary's, got [0-9a-f]{{64}}"
    for refused in (
        lambda: ExampleStore.open(path, sae_sha256=other.sae_sha256),
        lambda: ExplanationBook(path, sae_sha256=other.sae_sha256),
        lambda: open_store(path, tmp_path, other),
    ):
        with pytest.raises(ExampleError, match=message):
            refused()
    assert all_closed(connections) == 3


def test_a_book_that_can_not_be_written_is_let_go_of(path, tmp_path, connections, monkeypatch):
    copy = tmp_path / "book.sqlite"
    copy.write_bytes(path.read_bytes())
    monkeypatch.setattr(explanation_book, "_SPLITS", "CREATE TABLE latents (x)")
    with pytest.raises(ExplainError, match=r"example file .*book\.sqlite must be writable, got: table latents"):
        ExplanationBook(copy)
    assert all_closed(connections) == 2


def test_a_damaged_book_is_named(tmp_path):
    path = tmp_path / "book.sqlite"
    example_file.write_example_file(path)
    with ExplanationBook(path):
        pass
    damage(path, "explanation_scores")
    with ExplanationBook(path) as book:
        with pytest.raises(ExampleError, match=r"example file .*book\.sqlite can't be read"):
            book.scores(0)
        with pytest.raises(ExplainError, match=r"book\.sqlite must be writable"):
            book.save_scores(EXPLANATION, None, None, {})


def test_latents_that_are_not_there_are_refused(path):
    with ExampleStore.open(path) as store, pytest.raises(ExampleError, match=r"0\.\.63, got 64"):
        store.latent(tiny.NUM_LATENTS)


def test_one_latent_is_found_without_reading_the_others(path):
    with ExampleStore.open(path) as store:
        plan = store._connection.execute("EXPLAIN QUERY PLAN SELECT * FROM examples WHERE latent = 3").fetchall()
        assert all("SEARCH" in row["detail"] and "PRIMARY KEY" in row["detail"] for row in plan)


def test_orders(path):
    with ExampleStore.open(path) as store:
        by_count = [store.latent(latent).num_active for latent in store.latents("num_active")]
        by_max = [store.latent(latent).max for latent in store.latents("max")]
    assert by_count == sorted(by_count, reverse=True) and by_max == sorted(by_max, reverse=True)


def test_pieces_add_up_to_the_text(path):
    with ExampleStore.open(path) as store:
        texts = [example.text for latent in store.latents() for example in store.latent(latent).top]
    assert any("über" in text for text in texts)
    assert pieces_of([b"a\xc3", b"\xbc", b"\xff", b"\xe2\x82"]) == ("a", "ü", "�", "�")


def test_token_bytes_are_the_tokenizers(model):
    text = "Größe <|im_end|>\n\té 😀"
    ids = model.tokenizer(text).input_ids
    table = token_bytes(model.tokenizer, ids)
    assert "".join(pieces_of([table[token_id] for token_id in ids])) == text


def test_token_bytes_of_a_sentencepiece_vocabulary():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocab = {"<unk>": 0, "▁the": 1, "▁Meer": 2, "<0xC3>": 3, "<0xBC>": 4}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    table = token_bytes(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"), [1, 2, 3, 4, 0])
    assert b"".join(table[i] for i in (1, 2, 3, 4, 0)) == " the Meerü<unk>".encode()


def test_what_a_terminal_would_obey_is_spelt_out():
    assert printable("a\x1b[31m\n\tü\x00") == "a\\x1b[31m⏎⇥ü\\x00"


def test_the_command_shows_a_latent(path, capsys):
    assert lab.run("latent", [str(path), "2"]) == 0
    shown = capsys.readouterr().out
    with ExampleStore.open(path) as store:
        record = store.latent(2)
    assert "latent 2" in shown and f"max {record.max:.3f}" in shown and "random, bin 3 of 3" in shown
    # Without colours the token that was read is between marks, and no line is broken.
    best = record.top[0]
    before, read, after = (
        "".join(map(printable, part))
        for part in (best.pieces[: best.focus], [best.pieces[best.focus]], best.pieces[best.focus + 1 :])
    )
    assert f"{before}»{read}«{after}  {best.source}\n" in shown
    assert lab.run("latent", [str(path), "2", "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["density"] == record.density
    assert fields["top"][0]["text"] == record.top[0].text
    assert fields["promoted"][0]["token_id"] == record.promoted[0].token_id


def test_the_command_gives_a_title_with_its_scores(path, tmp_path, capsys):
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    said = Explanation(latent=2, title="Token “sea”", summary="Fires on “sea”.", dominant_tokens=("sea",), model="rule")
    for scores, shown in (
        ({}, "by rule; not scored"),
        ({"detection": 0.75, "detection_n": 40}, "by rule; detection 0.75 (n = 40); chance is 0.50"),
    ):
        with ExampleStore.open(copy, writable=True) as store:
            store.save(said._replace(**scores))
        assert lab.run("latent", [str(copy), "2"]) == 0
        assert capsys.readouterr().out.startswith(f"latent 2: Token “sea”\nFires on “sea”.\n{shown}\n")
