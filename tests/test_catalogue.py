"""`telltale lab catalogue`: what is shipped is what the example file has, of the sources that may be quoted alone."""

import json
import shutil

import numpy as np
import pytest
import tiny_examples
from test_example_store import EXPLANATION

from discovery import lab
from discovery.catalogue_entry import _half, octaves
from discovery.example_store import ExampleStore
from discovery.token_rule import TOKEN_RULE, rule_explanation
from monitors.latent_catalogue import CATALOGUE_FILE, LatentCatalogue
from monitors.latent_entry import Score
from sae_runtime.checkpoint import load_manifest

LICENCES = ("--licence", "novels=public domain", "--licence", "chat=the model's own")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("catalogue")
    path = tiny_examples.write_example_file(model, folder)
    with ExampleStore.open(path, writable=True) as store:
        store.save(EXPLANATION)
        store.save(rule_explanation(11, ("sea", "ship"), "now")._replace(detection=0.9, detection_n=40))
    return folder


def make(folder, *options, output="made.sqlite"):
    words = [str(folder / "dictionary"), "--store", str(folder / "examples.sqlite"), "--output", str(folder / output)]
    return lab.run("catalogue", [*words, *options])


@pytest.fixture(scope="module")
def made(folder):
    assert make(folder, "--quote-sources", "novels,chat", *LICENCES, "--examples", "3", "--effects", "4") == 0
    opened = LatentCatalogue.open(folder / "made.sqlite")
    yield opened
    opened.close()


def half(values):
    return tuple(np.array(values, np.float16).astype(float).tolist())


def test_everything_is_the_stores(folder, made):
    with ExampleStore.open(folder / "examples.sqlite") as store:
        records = [store.latent(latent) for latent in store.latents()]
    assert sum(record.num_active > 0 for record in records) > 20 and any(not record.num_active for record in records)
    for record in records:
        entry, figures = made.entry(record.latent), made.figures[record.latent]
        assert (figures.num_active, figures.max) == (record.num_active, record.max)
        if not record.num_active:
            continue
        assert entry.mean_active == np.float32(record.mean_active)
        assert [source for source, _ in entry.sources] == list(record.sources)
        assert tuple(share for _, share in entry.sources) == half(list(record.sources.values()))
        assert sum(entry.histogram) == sum(record.histogram) == record.num_active
        assert len(entry.examples) == min(len(record.top), 3)
        for got, wanted in zip(entry.examples, record.top, strict=False):
            assert (got.text, got.pieces, got.token_ids) == (wanted.text, wanted.pieces, wanted.token_ids)
            assert (got.reading, got.source, got.focus) == (np.float32(wanted.value), wanted.source, wanted.focus)
            assert got.readings == half(wanted.readings)
        for got, wanted in ((entry.promoted, record.promoted[:4]), (entry.suppressed, record.suppressed[:4])):
            assert [(e.token_id, e.text) for e in got] == [(e.token_id, e.text) for e in wanted]
            assert tuple(e.logit for e in got) == half([e.logit for e in wanted])


def test_explanations_come_with_their_scores(made):
    said = made.entry(9).said
    assert (said.title, said.dominant_tokens, said.explainer) == ("ships", ("ship", "sea"), "somebody")
    assert (said.detection.balanced_accuracy, said.detection.num_windows) == (np.float32(0.8), 40)
    assert (said.fuzzing.balanced_accuracy, said.fuzzing.num_windows) == (np.float32(0.7), 20)
    rule = made.entry(11).said
    assert (rule.title, rule.summary, rule.explainer) == ("“sea”, “ship”", "", TOKEN_RULE)
    assert rule.fuzzing is None and made.figures[11].detection == Score(float(np.float32(0.9)), 40)
    assert 11 in made.latents_with("ship") and not made.latents_with("fire"), "what every rule says finds nothing"


def test_the_manifest_says_where_it_comes_from(folder, made):
    dictionary = load_manifest(folder / "dictionary")
    made.check_binding(dictionary.sae_sha256, dictionary.num_latents)
    with ExampleStore.open(folder / "examples.sqlite") as store:
        assert made.num_tokens == store.num_tokens
        for name in ("model_sha256", "hook_point", "contexts_sha256"):
            assert made.manifest[name] == store.manifest[name] is not None
    assert made.manifest["quoted_sources"] == {"chat": "the model's own", "novels": "public domain"}
    assert set(made.manifest["sources"]) == {"novels", "manuals", "chat"}
    assert made.manifest["date"] is None


def test_the_same_words_give_the_same_bytes(folder, made):
    assert (
        make(folder, "--quote-sources", "chat,novels", *LICENCES, "--examples", "3", "--effects", "4", output="2") == 0
    )
    assert (folder / "2").read_bytes() == made.path.read_bytes()


def test_sources_can_be_left_out_again(folder, capsys):
    options = ("--quote-sources", "chat", "--licence", "chat=own", "--json")
    assert make(folder, *options, output="chat.sqlite") == 0
    figures = json.loads(capsys.readouterr().out)
    opened = LatentCatalogue.open(folder / "chat.sqlite")
    with ExampleStore.open(folder / "examples.sqlite") as store:
        wanted = [[e.text for e in store.latent(i).top if e.source == "chat"][:5] for i in store.latents()]
    entries = [opened.entry(latent) for latent in range(len(opened.figures))]
    assert [[example.text for example in entry.examples] for entry in entries] == wanted
    assert figures["examples"] == sum(map(len, wanted)) and figures["with_examples"] == sum(map(bool, wanted))
    assert figures["file_bytes"] == (folder / "chat.sqlite").stat().st_size
    opened.close()


def test_explanations_of_another_file_lose_their_summaries(folder, model, tmp_path):
    # A file of the same dictionary that quotes everything.
    this = tiny_examples.example_pass(
        tiny_examples.dictionary(tmp_path / "dictionary"), tiny_examples.harvested(model, folder / "harvest"), None
    )
    other = tmp_path / "all.sqlite"
    tiny_examples.finish(this, tiny_examples.collect(this, other), other)
    with ExampleStore.open(other, writable=True) as store:
        store.save(EXPLANATION._replace(title="from all"))
    options = ("--explanations", str(other), "--quote-sources")
    assert make(folder, *options, "novels,chat", *LICENCES, output="3") == 0
    opened = LatentCatalogue.open(folder / "3")
    assert (opened.entry(9).said.title, opened.entry(9).said.summary) == ("from all", "")
    assert opened.entry(11).said is None, "explanations are those of the other file alone"
    opened.close()


def test_a_summary_is_shipped_if_all_that_was_shown_may_be_quoted(folder, made):
    with ExampleStore.open(folder / "examples.sqlite") as store:
        assert sorted(store.manifest["quote_sources"]) == ["chat", "novels"]
    assert made.entry(9).said.summary == EXPLANATION.summary


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("--quote-sources", "novels,poems", *LICENCES), "quote sources must be among chat, novels; got poems"),
        (("--quote-sources", "manuals", *LICENCES), "quote sources must be among chat, novels; got manuals"),
        (("--quote-sources", "novels,chat", *LICENCES[:2]), "must have a --licence, got none for chat"),
        (("--quote-sources", "novels", *LICENCES), 'got "chat=the model\'s own"'),
        (("--quote-sources", "novels", "--licence", "novels"), "licence must be NAME=WORDS"),
        (("--quote-sources", "novels", "--licence", "novels= "), "licence must be NAME=WORDS"),
    ],
)
def test_what_may_not_be_quoted_is_refused_by_name(folder, capsys, options, wanted):
    assert make(folder, *options, output="refused") == lab.EXIT_FAILED
    assert wanted in capsys.readouterr().err and not (folder / "refused").exists()


def test_examples_of_another_dictionary_are_refused(folder, tmp_path, capsys):
    from serving import manifest
    from tiny import sae

    from sae_runtime.checkpoint import save_sae

    save_sae(sae("jumprelu", seed=4), manifest(activation="jumprelu"), tmp_path)
    words = [str(tmp_path), "--store", str(folder / "examples.sqlite"), "--quote-sources", "novels"]
    assert lab.run("catalogue", words) == lab.EXIT_FAILED
    assert "sae_sha256 must be" in capsys.readouterr().err


def test_octaves_keep_every_count():
    counts = [0] * 72
    counts[3], counts[4], counts[71] = 5, 7, 1
    assert octaves(counts) == (5, 7, *[0] * 15, 1)
    assert octaves([0] * 72) == ()


def test_the_catalogue_that_is_there_is_not_replaced_unasked(folder, tmp_path, capsys):
    copy = tmp_path / "dictionary"
    shutil.copytree(folder / "dictionary", copy)
    words = [str(copy), "--store", str(folder / "examples.sqlite"), "--quote-sources", "novels", *LICENCES[:2]]
    assert lab.run("catalogue", words) == 0
    before = (copy / CATALOGUE_FILE).read_bytes()
    assert lab.run("catalogue", [*words, "--examples", "1"]) == lab.EXIT_FAILED
    assert "is there already: give it as --output" in capsys.readouterr().err
    assert (copy / CATALOGUE_FILE).read_bytes() == before
    assert lab.run("catalogue", [*words, "--examples", "1", "--output", str(copy / CATALOGUE_FILE)]) == 0
    assert (copy / CATALOGUE_FILE).read_bytes() != before


@pytest.mark.parametrize("option", ["--examples", "--effects"])
def test_negative_counts_are_refused(folder, capsys, option):
    assert make(folder, "--quote-sources", "novels", *LICENCES[:2], option, "-1") == lab.EXIT_FAILED
    assert f"{option} must be 0 or more, got -1" in capsys.readouterr().err


def test_readings_beyond_half_precision_are_cut_to_its_end():
    assert [_half(value) for value in (1e6, -1e6, 0.1)] == [65504.0, -65504.0, float(np.float16(0.1))]
