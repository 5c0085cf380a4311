"""search, the command: by prompts, text, direction and sentence, on a real tiny model and its example file."""

import dataclasses
import json
import shutil
from contextlib import closing

import numpy as np
import pytest
import tiny
import tiny_examples
import torch
from safetensors.torch import save_file

from discovery import catalogue, input_arguments, lab, name_features, search
from discovery.catalogued_latents import CataloguedLatents
from discovery.errors import ExampleError, FitError, LabError, SearchError
from discovery.example_store import ExampleStore
from discovery.latent_names import load_names, open_known
from discovery.latent_record import Explanation
from discovery.latent_search import neighbours, read_direction, read_sentence, similar
from discovery.search_items import prompt_items, read_prompts
from monitors.latent_catalogue import CATALOGUE_FILE, LatentCatalogue
from monitors.latent_words import words_of
from monitors.watchlist import NamedFeature, Watchlist
from sae_runtime.checkpoint import load_sae, save_sae

NAMED = 3


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    with ExampleStore.open(tiny_examples.write_example_file(model, folder), writable=True) as store:
        store.save(Explanation(9, "sea voyages", "It fires on ships and captains.", model="a person"))
        store.save(Explanation(11, "honesty", "Men who do not lie <b>at sea</b>.", model="a person"))
    sha = load_sae(folder / "dictionary").manifest.sae_sha256
    feature = NamedFeature(
        index=NAMED,
        name="lying",
        description="d",
        reference_scale=1.0,
        validated=False,
        default_watched=False,
        evidence={},
    )
    Watchlist(sha, (feature,)).save(folder / "dictionary" / "features.json")
    return folder


@pytest.fixture(scope="module")
def sae(folder):
    return load_sae(folder / "dictionary")


@pytest.fixture
def command(folder, model, monkeypatch, capsys):
    monkeypatch.setattr(input_arguments, "load_language_model", lambda *_args, **_settings: model)

    def run(*argv, json_line=True):
        code = lab.run("search", [str(folder / "dictionary"), *argv, *(["--json"] if json_line else [])])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out) if json_line else captured.out

    return run


def store_flag(folder):
    return "--store", str(folder / "examples.sqlite")


# --- prompts --------------------------------------------------------------------------------------------------------


def test_prompts_are_told_apart(command, tmp_path):
    lines = tmp_path / "negative.txt"
    lines.write_text("\n".join(f"{n} stars {n}" for n in range(10)) + "\n\n")
    positive = [part for n in range(10) for part in ("--positive", f"honest men {n} honest")]
    found = command(*positive, "--negative-file", str(lines), "--permutations", "20", "--top", "5")
    assert (found["num_positive"], found["num_negative"]) == (10, 10)
    assert 0 < found["num_held_out"] < 20
    best = found["candidates"][0]
    assert best["auroc_selection"] == 1.0 and best["auroc_held_out"] > 0.9 and best["p_value"] <= 0.2
    assert len(found["candidates"]) == 5 and "name" in best


def test_a_few_prompts_are_ranked_without_holding_any_out(command):
    found = command("--positive", "honest men", "--negative", "the stars", "--permutations", "5")
    assert found["num_held_out"] == 0 and found["candidates"][0]["auroc_held_out"] is None


def test_what_is_massive_is_left_out_and_said(command, monkeypatch):
    """Prompts of which one has no other token count as if it were not there."""
    read = search.read_item_latents
    prompts = ["--positive", "honest men", "--negative", "the stars", "--negative", "the sea", "--permutations", "0"]
    without = command(*prompts[:4], *prompts[6:])

    def without_the_last(*args, **settings):
        readings = read(*args, **settings)
        is_read_I = torch.tensor([*readings.is_read_I[:-1].tolist(), False])
        return readings._replace(is_read_I=is_read_I, num_massive=6)

    monkeypatch.setattr(search, "read_item_latents", without_the_last)
    assert command(*prompts) == without | {"massive_left_out": 6, "items_left_out": 1}
    assert "massive activations 6, items that have nothing else 1" in " ".join(
        command(*prompts, json_line=False).split()
    )


def test_labelled_items_are_searched_as_ever(command, tmp_path):
    path = tmp_path / "items.jsonl"
    records = [{"text": f"{'honest' if n % 2 else 'stars'} {n}", "label": n % 2, "group": n // 2} for n in range(40)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = command(str(path), "--statistic", "max", "--permutations", "10")
    assert found["num_held_out"] == 20 and len(found["permuted_best_held_out"]) == 10
    assert "honest" not in (table := command(str(path), json_line=False)) and "AUROC" in table


def test_prompts_without_a_scored_token_or_of_one_kind_are_refused(model):
    with pytest.raises(SearchError, match="at least one negative prompt"):
        prompt_items(["one"], [], model.tokenizer)
    with pytest.raises(SearchError, match="positive prompts must have a token behind position 0, got 'x'"):
        prompt_items(["x"], ["yy"], model.tokenizer)


def test_prompt_files_are_lines_or_json_lines(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo two\n")
    (tmp_path / "a.jsonl").write_text('{"text": "one\\nstill one"}\n{"text": "two"}\n')
    assert read_prompts(tmp_path / "a.txt") == ["one", "two two"]
    assert read_prompts(tmp_path / "a.jsonl") == ["one\nstill one", "two"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"label": 1}', r"record 1, must have text or messages, got \['label'\]"),
        ('{"label": 1, "messages": []}', "record 1, must have text or messages"),
        ('{"label": 0, "text": "a b"}\n{"label": 1, "messages": [{"role": "user"}]}', "record 2, must have text or"),
        ('{"label": 1, "text": "a', "line 1, must be JSON"),
        (
            '{"label": 1, "text": "ab", "score_from_char": "2"}',
            "record 1: score_from_char must be a whole number of characters, 0 or more, got '2'",
        ),
        ('{"label": 1, "text": "ab", "score_to_char": -1}', "record 1: score_to_char must be .*, got -1"),
        ('{"label": 1, "text": "ab", "score_to_char": true}', "record 1: score_to_char must be .*, got True"),
        ("[1]", "line 1, must be a JSON object, got list"),
        ('{"label": 2, "text": "a b"}', "must have items with label 1 or 0, got none"),
        ("", "must have items with label 1 or 0, got none"),
    ],
)
def test_files_that_hold_no_items_are_refused_by_name(folder, model, monkeypatch, tmp_path, text, match):
    monkeypatch.setattr(input_arguments, "load_language_model", lambda *_args, **_settings: model)
    path = tmp_path / "items.jsonl"
    path.write_text(text)
    with pytest.raises(LabError, match=rf"items\.jsonl.*{match}"):
        search.main([str(folder / "dictionary"), str(path)])


def test_an_item_that_the_template_rewrites_is_named_with_its_file(folder, model, monkeypatch, tmp_path):
    monkeypatch.setattr(model.tokenizer, "chat_template", "{{ messages[-1].content | upper }}")
    monkeypatch.setattr(input_arguments, "load_language_model", lambda *_args, **_settings: model)
    (tmp_path / "items.jsonl").write_text(
        '{"label": 1, "text": "ab"}\n{"label": 1, "messages": [{"role": "user", "content": "ab"}], "id": "x"}\n'
    )
    with pytest.raises(LabError, match=r"items\.jsonl, record 2, id 'x': chat\.messages\[0\]\.content must survive"):
        search.main([str(folder / "dictionary"), str(tmp_path / "items.jsonl")])


def test_prompt_records_without_a_text_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"txt": "two"}\n')
    with pytest.raises(SearchError, match=r"a\.jsonl, record 2, must have a text, got \['txt'\]"):
        read_prompts(tmp_path / "a.jsonl")


@pytest.mark.parametrize("asked", [["--sentence", "the sea"], ["--positive", "the sea", "--negative", "a man"]])
def test_another_model_than_the_dictionarys_is_refused(folder, model, monkeypatch, capsys, asked):
    identity = dataclasses.replace(model.identity, weights_sha256="1" * 64)
    other = dataclasses.replace(model, identity=identity)
    monkeypatch.setattr(input_arguments, "load_language_model", lambda *_args, **_settings: other)
    argv = [str(folder / "dictionary"), *asked, "--json"]
    with pytest.raises(FitError, match="model_sha256 of model tiny must be the dictionary's 0000"):
        search.main(argv)
    assert search.main([*argv, "--unverified"]) == 0
    assert json.loads(capsys.readouterr().out)


# --- text -----------------------------------------------------------------------------------------------------------


def test_text_finds_explanations_before_examples(command, folder):
    found = command("--text", "captain", *store_flag(folder))["latents"]
    # Words match by their stem.
    assert (found[0]["latent"], found[0]["where"], found[0]["title"]) == (9, "explanation", "sea voyages")
    examples = [match for match in found if match["where"] == "examples"]
    assert examples and all("captain" in match["text"] for match in examples)


def test_text_search_without_an_index_finds_the_same_examples(folder, monkeypatch):
    with ExampleStore.open(folder / "examples.sqlite") as store:
        indexed = {match.latent for match in store.search("captain", 100)}
        monkeypatch.setattr("discovery.example_store.has_text_index", lambda _connection: False)
        scanned = store.search("captain", 100)
    assert {match.latent for match in scanned} == indexed
    assert scanned[0].latent == 9


@pytest.mark.parametrize("query", ['"', "AND", "captain*", "NEAR(", "title:sea", "'; DROP TABLE latents", "ü"])
def test_text_is_never_taken_for_an_operator(folder, query):
    with ExampleStore.open(folder / "examples.sqlite") as store:
        store.search(query)
        assert store.num_live == tiny.NUM_LATENTS - 1


def test_a_changed_explanation_is_found_by_its_new_words_alone(model, tmp_path):
    path = tiny_examples.write_example_file(model, tmp_path)
    with ExampleStore.open(path, writable=True) as store:
        store.save(Explanation(4, "zebras", "stripes"))
        store.save(Explanation(4, "lighthouses", "towers"))
        assert store.search("zebras") == []
        assert [match.latent for match in store.search("tower")] == [4]
        store._connection.execute("UPDATE explanations SET title = 'bridges'")
        assert store.search("lighthouses") == [] and store.search("bridge")
        store._connection.execute("DELETE FROM explanations")
        assert store.search("bridge") == []


# --- without an example file ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def catalogued(folder, tmp_path_factory):
    """The dictionary alone, with a catalogue made of the example file."""
    alone = tmp_path_factory.mktemp("catalogued") / "dictionary"
    shutil.copytree(folder / "dictionary", alone)
    argv = [str(alone), "--store", str(folder / "examples.sqlite"), "--quote-sources", "novels,chat"]
    assert catalogue.main([*argv, "--licence", "novels,chat=made up"]) == 0
    return alone


def test_the_catalogue_stands_in_for_an_example_file(folder, catalogued, sae):
    with open_known(None, catalogued, sae.manifest) as known, ExampleStore.open(folder / "examples.sqlite") as store:
        assert isinstance(known, CataloguedLatents)
        assert known.titles() == store.titles() == {9: "sea voyages", 11: "honesty"}
        assert known.maxima() == pytest.approx(store.maxima(), rel=1e-6)
        for latent in range(64):
            scale, finer = known.scale(latent), store.scale(latent)
            assert (scale is None) == (finer is None) == (latent == 5)
            assert scale is None or (0.5 < scale.reference / finer.reference < 2 and scale.maximum > 0)
        ours, theirs = load_names(catalogued, sae.manifest, known), load_names(catalogued, sae.manifest, store)
        assert list(map(ours.of, range(64))) == list(map(theirs.of, range(64)))
        examples = list(map(ours.example, range(64)))
        assert examples == list(map(theirs.example, range(64))) and any(examples)


def test_text_is_found_in_the_catalogue(catalogued, sae):
    with open_known(None, catalogued, sae.manifest) as known:
        (first, *others) = known.search("Captains", 100)
        assert (first.latent, first.where, first.title) == (9, "explanation", "sea voyages")
        assert first.text == "It fires on ships and captains."
        assert others and all(match.where == "examples" and "captain" in words_of(match.text) for match in others)
        assert known.search("captain", 2) == [first, others[0]] and known.search("zebra") == []
        with pytest.raises(ExampleError, match=r"must have a word, got '\.\.\.'"):
            known.search("...")
    with closing(LatentCatalogue.open(catalogued / CATALOGUE_FILE)) as scanned:
        texts = {latent: [example.text for example in scanned.entry(latent).examples] for latent in range(64)}
    wanted = {latent for latent in texts if any("captain" in words_of(text) for text in texts[latent])}
    assert {match.latent for match in others} == wanted - {9}


def test_a_search_goes_by_the_catalogue_unless_there_is_an_example_file(folder, catalogued, model, monkeypatch, capsys):
    monkeypatch.setattr(input_arguments, "load_language_model", lambda *_args, **_settings: model)

    def found(*argv):
        assert lab.run("search", [str(catalogued), *argv, "--json"]) == 0
        return json.loads(capsys.readouterr().out)["latents"]

    match = {"latent": 9, "title": "sea voyages", "where": "explanation", "text": "It fires on ships and captains."}
    assert found("--text", "voyage")[0] == match
    by_share = found("--sentence", "the old captain", "--by-share", "--top", "64")
    assert by_share == sorted(by_share, key=lambda one: -one["share"]) and by_share[0]["example"]
    assert {one["latent"]: one["name"] for one in found("--like", "7", "--top", "63")}[9] == "sea voyages"
    # An example file goes first. It compares stems, a catalogue whole words but for the plural.
    assert found("--text", "voyaging") == []
    assert [one["latent"] for one in found("--text", "voyaging", *store_flag(folder))] == [9]


def test_another_dictionarys_catalogue_is_refused(catalogued, tmp_path, capsys):
    other = tiny_examples.dictionary(tmp_path / "other")
    other.W_dec[0] += 1
    save_sae(other, other.manifest, tmp_path / "other")
    shutil.copy(catalogued / CATALOGUE_FILE, tmp_path / "other")
    assert lab.run("search", [str(tmp_path / "other"), "--like", "7"]) == 1
    assert "cannot use latent catalogue" in (error := capsys.readouterr().err) and "sae_sha256: wanted" in error


# --- directions -----------------------------------------------------------------------------------------------------


def test_like_a_latent_gives_the_largest_cosines(command, sae):
    found = command("--like", "7", "--top", "4")["latents"]
    rows_FD = torch.nn.functional.normalize(sae.W_dec, dim=-1)
    cosine_F = rows_FD @ rows_FD[7]
    cosine_F[7] = -2
    assert [latent["latent"] for latent in found] == cosine_F.topk(4).indices.tolist()
    assert [latent["cosine"] for latent in found] == pytest.approx(cosine_F.topk(4).values.tolist(), abs=1e-4)


def test_like_a_feature_is_like_its_latent(command):
    assert command("--like", "lying") == command("--like", str(NAMED))


@pytest.mark.parametrize("suffix", ["npy", "safetensors", "json"])
def test_like_a_vector_file(command, sae, tmp_path, suffix):
    path = tmp_path / f"vector.{suffix}"
    vector_D = 5 * sae.W_dec[NAMED]
    if suffix == "npy":
        np.save(path, vector_D.numpy())
    elif suffix == "json":
        path.write_text(json.dumps(vector_D.tolist()))
    else:
        save_file({"vector": vector_D.contiguous()}, path)
    (best, *_) = command("--like", str(path))["latents"]
    assert best == {"latent": NAMED, "cosine": 1.0, "name": "lying", "example": ""}


def test_a_name_that_nobody_gave_is_refused_with_those_that_there_are(folder, capsys):
    assert lab.run("search", [str(folder / "dictionary"), "--like", "lyying"]) == 1
    wanted = "--like must be a feature (lying), a latent in 0..63 or a vector file, got 'lyying'"
    assert wanted in capsys.readouterr().err


def test_bad_directions_are_refused(sae, tmp_path):
    with pytest.raises(SearchError, match=r"0\.\.63, got 64"):
        read_direction("64", sae)
    for name, content in (("v.json", "[1, 2]"), ("n.json", json.dumps([0.0] * tiny.D_MODEL))):
        (tmp_path / name).write_text(content)
        with pytest.raises(SearchError, match="must hold 32 finite numbers, not all 0"):
            read_direction(str(tmp_path / name), sae)
    (tmp_path / "v.npy").write_bytes(b"no array")
    for name in ("v.npy", "missing.json", "v.txt"):
        with pytest.raises(SearchError, match=f"{name} can't be read"):
            read_direction(str(tmp_path / name), sae)


def test_neighbours_leave_the_latent_itself_out_even_beside_twins():
    twins = load_twins()
    found = neighbours(twins, [7, 8, 30], 3)
    assert found.latents_NN.shape == (3, 3)
    assert int(found.latents_NN[0, 0]) == 8 and int(found.latents_NN[1, 0]) == 7
    for row, latent in enumerate((7, 8, 30)):
        assert latent not in found.latents_NN[row].tolist()
        cosines = similar(twins, twins.W_dec[[latent]], 64)
        assert found.cosines_NN[row].tolist() == pytest.approx(cosines.cosines_NN[0, 1:4].tolist(), abs=1e-5)


def load_twins():
    twins = tiny.sae("relu")
    twins.W_dec[8] = 2 * twins.W_dec[7]
    return twins


# --- sentences ------------------------------------------------------------------------------------------------------


def test_a_sentences_readings_are_an_offline_pass(command, model, sae):
    text = "the old captain"
    found = command("--sentence", text, "--top", "5")
    ids = model.tokenizer(text).input_ids
    with torch.inference_mode():
        states = model.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    f_TF = sae.encode(states[tiny.HOOK_POINT.hidden_state_index][0])
    f_TF[0] = 0
    assert [latent["latent"] for latent in found["latents"]] == f_TF.amax(0).topk(5).indices.tolist()
    assert [token["text"] for token in found["tokens"]] == list(text)
    assert not found["tokens"][0]["read"] and found["tokens"][0]["latents"] == []
    for position, token in enumerate(found["tokens"][1:], start=1):
        assert token["read"]
        top = f_TF[position].topk(5)
        values = [latent["value"] for latent in token["latents"]]
        assert values == pytest.approx([value for value in top.values.tolist() if value > 0], abs=1e-3)
    best = found["latents"][0]
    assert best["max"] == pytest.approx(float(f_TF.max()), abs=1e-3)
    assert best["position"] == int(f_TF[:, best["latent"]].argmax())
    assert "token by token" in command("--sentence", text, json_line=False)


def test_latents_of_a_sentence_by_their_share_of_their_maximum(command, folder):
    text = "the old captain"
    with ExampleStore.open(folder / "examples.sqlite") as store:
        maxima, best = store.maxima(), store.best_example(2)
    assert maxima[2] >= best.value
    by_reading = command("--sentence", text, "--top", "64", *store_flag(folder))["latents"]
    by_share = command("--sentence", text, "--top", "64", "--by-share", *store_flag(folder))["latents"]
    assert by_share != by_reading and by_share == sorted(by_reading, key=lambda found: -found["share"])
    for found in by_share:
        assert found["share"] == pytest.approx(found["max"] / maxima[found["latent"]], abs=1e-3)
    named = next(found for found in by_share if found["latent"] == NAMED)
    assert named["name"] == "lying" and "»" in named["example"]


def test_a_sentence_of_one_token_is_refused(model, sae):
    with pytest.raises(SearchError, match="behind position 0"):
        read_sentence(model, None, sae, "x")


# --- the command line -----------------------------------------------------------------------------------------------


def test_one_search_at_a_time(folder, capsys):
    for argv in ([], ["--text", "a", "--like", "3"], ["--top", "0", "--like", "3"]):
        with pytest.raises(SystemExit) as exit_info:
            lab.run("search", [str(folder / "dictionary"), *argv])
        assert exit_info.value.code == 2
    assert "ask for one thing" in capsys.readouterr().err


def test_text_needs_a_store_and_the_store_must_be_the_dictionarys(folder, tmp_path, capsys):
    assert lab.run("search", [str(folder / "dictionary"), "--text", "sea"]) == 1
    error = capsys.readouterr().err
    assert f"give --store, got neither examples.sqlite nor catalogue.sqlite in {folder / 'dictionary'}" in error
    other = tiny_examples.dictionary(tmp_path / "other")
    other.W_dec[0] += 1
    save_sae(other, other.manifest, tmp_path / "other")
    assert lab.run("search", [str(tmp_path / "other"), "--text", "sea", *store_flag(folder)]) == 1
    assert "sae_sha256 must be" in capsys.readouterr().err


def test_names_are_features_before_titles(folder, sae):
    with ExampleStore.open(folder / "examples.sqlite") as store:
        names = load_names(folder / "dictionary", sae.manifest, store)
    assert (names.of(NAMED), names.of(9), names.of(10)) == ("lying", "sea voyages", "")


def test_the_example_file_is_closed_again(folder, monkeypatch):
    opened, real = [], search.open_known
    monkeypatch.setattr(search, "open_known", lambda *args: opened.append(real(*args)) or opened[0])
    assert search.main([str(folder / "dictionary"), "--text", "sea", "--store", str(folder / "examples.sqlite")]) == 0
    with pytest.raises(ExampleError, match="closed database"):
        opened[0].maxima()


# --- naming ---------------------------------------------------------------------------------------------------------


def test_naming_refuses_a_harvest_and_a_model_that_are_not_the_dictionarys(folder, model, monkeypatch, tmp_path):
    harvest = tmp_path / "harvest"
    shutil.copytree(folder / "harvest", harvest)
    argv = [str(folder / "dictionary"), "--pool", "none", "--corpus", "none.jsonl", "--held-out", str(harvest)]
    other = dataclasses.replace(model, identity=dataclasses.replace(model.identity, quantization="nf4"))
    monkeypatch.setattr(input_arguments, "load_language_model", lambda *_args, **_settings: other)
    with pytest.raises(FitError, match="quantization of model tiny must be the dictionary's none, got nf4"):
        name_features.main(argv)

    manifest = json.loads((harvest / "manifest.json").read_text())
    manifest["settings"]["model_sha256"] = "1" * 64
    (harvest / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FitError, match=f"model_sha256 of harvest {harvest} must be the dictionary's 0000"):
        name_features.main(argv)
