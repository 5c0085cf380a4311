"""`telltale lab steer`: its figures, its verdicts, killed and continued, refused by name, and as a page."""

import errno
import json
import math
import os
import re
from dataclasses import asdict, replace

import pytest
import tiny
import tiny_examples
from browser import needs_browser, open_page

from discovery import input_arguments, lab, steering_study
from discovery.continuation_figures import repetition
from discovery.example_store import ExampleStore
from discovery.page_site import MARKER
from discovery.steering_summary import Criterion, summarize
from monitors.watchlist import NamedFeature, Watchlist
from sae_runtime.checkpoint import load_sae

NAMED, SCALE, MAXIMUM = 3, 0.5, 2.0
EVIL = "<script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dictionary and its feature file."""
    folder = tmp_path_factory.mktemp("steer") / "dictionary"
    tiny_examples.dictionary(folder)
    feature = NamedFeature(
        index=NAMED,
        name="calm",
        description="d",
        reference_scale=SCALE,
        validated=False,
        default_watched=False,
        evidence={"max_held_out": MAXIMUM},
    )
    Watchlist(load_sae(folder).manifest.sae_sha256, (feature,)).save(folder / "features.json")
    return folder


@pytest.fixture
def command(folder, model, monkeypatch, capsys):
    hooks = model.model.model.layers[tiny.HOOK_POINT.layer]._forward_hooks
    before = list(hooks)
    monkeypatch.setattr(input_arguments, "load_language_model", lambda *_args, **_settings: model)

    def run(*argv, feature="calm", wanted=0):
        words = [str(folder), feature, "--tokens", "8", "--seeds", "1", *map(str, argv)]
        assert lab.run("steer", words) == wanted
        captured = capsys.readouterr()
        return captured.out if wanted == 0 else captured.err

    yield run
    assert list(hooks) == before


def studied(command, *argv, **settings):
    return json.loads(command("--json", *argv, **settings))


# --- what is measured -----------------------------------------------------------------------------------------------


def test_every_strength_prompt_and_seed_is_there_beside_the_unsteered_one(command, model):
    found = studied(command, "--strengths", "1,4", "--prompt", "I am a", "--chat", "Hello", "--seeds", "2")
    keys = [(r["prompt"], r["strength"], r["seed"]) for r in found["continuations"]]
    assert keys == [(p, s, seed) for p in (0, 1) for s in (None, 1.0, 4.0) for seed in (None, 0, 1)]
    assert found["target"] == {"name": "calm", "direction": NAMED, "reference_scale": SCALE, "maximum": MAXIMUM}
    for record in found["continuations"]:
        assert record["text"] == model.tokenizer.decode(record["ids"]) == "".join(record["pieces"])
        assert len(record["reread"]) == len(record["readings"]) == len(record["ids"]) == len(record["pieces"])
        assert record["repetition"] == repetition(record["ids"])
        # The blocks before the steering see tokens alone.
        assert record["readings"] == pytest.approx(record["reread"], abs=1e-3)
        if record["strength"] is None:
            assert record["readings"] == record["steered_readings"]
            assert record["perplexity"] == pytest.approx(record["steered_perplexity"], rel=1e-3)
            assert record["steering"]["positions_changed"] == 0
        else:
            # All but position 0.
            assert record["steering"]["positions_changed"] == record["steering"]["positions"] - 1
            assert 0 < record["steering"]["mean_relative_norm"] <= record["steering"]["max_relative_norm"]


def test_a_latent_without_a_name_takes_its_scale_from_an_example_file(command, model, tmp_path):
    store_path = tiny_examples.write_example_file(model, tmp_path)
    flags = ["--strengths", "0.5", "--prompt", "I am a", "--no-greedy"]
    error = command(*flags, feature="9", wanted=1)
    assert "--reference-scale must say how large a reading of latent 9 is (above 0), or --store have it" in error
    found = studied(command, *flags, "--store", store_path, feature="9")["target"]
    with ExampleStore.open(store_path) as store:
        scale = store.scale(9)
    assert (found["reference_scale"], found["maximum"]) == scale
    assert 0 < scale.reference <= scale.maximum
    stated = studied(command, *flags, "--store", store_path, "--reference-scale", "0.25", feature="9")["target"]
    assert (stated["reference_scale"], stated["maximum"]) == (0.25, scale.maximum)


def test_tokens_are_looked_up_once_for_each_continuation(command, monkeypatch):
    looked_up, once = [], steering_study.token_bytes
    monkeypatch.setattr(steering_study, "token_bytes", lambda *args: (looked_up.append(args[1]), once(*args))[1])
    found = studied(command, "--strengths", "1,4", "--prompt", "I am a")
    assert looked_up == [set(record["ids"]) for record in found["continuations"]]


def test_added_strength_shows_in_what_the_following_blocks_read(command):
    found = studied(command, "--strengths", "8", "--unit", "maximum", "--prompt", "I am a")
    plain, pushed = found["points"]
    assert (plain["strength"], pushed["strength"]) == (None, 8.0)
    assert plain["verdict"] == "unsteered" and plain["perplexity_ratio"] == pytest.approx(1, rel=1e-6)
    assert pushed["steered_reading"] != pytest.approx(pushed["reading"], abs=0.1)
    assert pushed["relative_norm"] > 0 and 0 < pushed["changed_ratio"] < 1


def test_a_factor_of_one_changes_nothing_and_zero_is_a_strength_of_set(command):
    found = studied(command, "--op", "set", "--strengths", "0,6", "--unit", "raw", "--prompt", "The sea was calm")
    assert [point["strength"] for point in found["points"]] == [None, 0.0, 6.0]
    same = studied(command, "--op", "scale", "--strengths", "1", "--prompt", "The sea was calm")
    plain, factored = ([r["ids"] for r in same["continuations"] if r["strength"] == s] for s in (None, 1.0))
    assert plain == factored and same["points"][1]["changed_ratio"] == 0


def test_zero_added_is_not_written_twice(command):
    found = studied(command, "--strengths", "0,2", "--prompt", "I am a")
    assert [point["strength"] for point in found["points"]] == [None, 2.0]


def test_the_table_says_what_it_means(command):
    shown = command("--strengths", "2,30", "--prompt", "I am a")
    assert "calm: add, strengths in units of its reference scale (0.5)" in shown
    assert "broken: perplexity above 5 times" in shown and "works: not broken" in shown
    assert "2 continuations at each strength." in shown
    assert "1 continuation at each strength." in command("--strengths", "2", "--prompt", "I am a", "--no-greedy")
    assert re.search(r"^prompt: I am a$", shown, re.M)


# --- verdicts -------------------------------------------------------------------------------------------------------


def record(strength, *, seed=0, perplexity=10.0, repeats=0.0, reread=(0.0,), prompt=0):
    return {
        "prompt": prompt,
        "strength": strength,
        "seed": seed,
        "perplexity": perplexity,
        "steered_perplexity": perplexity,
        "repetition": repeats,
        "distinct_1": 1.0,
        "readings": [0.0],
        "steered_readings": [0.0],
        "reread": list(reread),
        "promoted_ratio": 0.0,
        "steering": {"positions": 4, "positions_changed": 2, "mean_relative_norm": 0.1, "max_relative_norm": 0.2},
    }


def verdict(*steered, plain=None, **criterion):
    seeds = {r["seed"] for r in steered}
    records = [*(plain or [record(None, seed=seed) for seed in seeds]), *steered]
    return summarize(records, 1.0, Criterion(**criterion))[-1].verdict


def test_a_text_that_reads_as_the_feature_works():
    assert verdict(record(1.0, reread=(0.1, 0.5))) == "works"
    assert verdict(record(1.0, reread=(0.1, 0.49))) == "no effect"
    assert verdict(record(1.0, reread=(0.1, 0.5)), plain=[record(None, reread=(0.9,))]) == "no effect"
    half = [record(1.0, seed=0, reread=(0.5,)), record(1.0, seed=1)]
    assert verdict(*half) == "works"
    assert verdict(*half, min_share=0.6) == "no effect"


def test_an_unlikely_or_repeating_or_empty_text_is_broken():
    reads = {"reread": (1.0,)}
    assert verdict(record(1.0, perplexity=50.0, **reads)) == "works"
    assert verdict(record(1.0, perplexity=50.1, **reads)) == "broken"
    assert verdict(record(1.0, repeats=0.31, **reads)) == "broken"
    assert verdict(record(1.0, repeats=0.31, **reads), plain=[record(None, repeats=0.2)]) == "works"
    assert verdict(record(1.0, perplexity=None, reread=())) == "broken"
    assert verdict(record(1.0, perplexity=None, reread=()), plain=[record(None, perplexity=None)]) == "no effect"
    # Half of them are enough; fewer are not.
    others = [record(1.0, seed=seed, **reads) for seed in (1, 2)]
    assert verdict(record(1.0, perplexity=99.0, **reads), others[0]) == "broken"
    assert verdict(record(1.0, perplexity=99.0, **reads), *others) == "works"


def test_without_a_scale_nobody_knows():
    points = summarize([record(None), record(1.0)], None, Criterion())
    assert [point.verdict for point in points] == ["unsteered", "unknown"] and points[1].expressed_ratio is None


def test_means_are_over_the_same_prompts_and_seeds():
    plain = [record(None, seed=seed, perplexity=p) for seed, p in enumerate((2.0, 8.0))]
    steered = [record(3.0, seed=seed, perplexity=p) for seed, p in enumerate((4.0, 4.0))]
    first, second = summarize([*steered, *plain, record(3.0, seed=7)], 1.0, Criterion())
    assert first.perplexity == pytest.approx(4.0) and second.num == 2
    assert second.perplexity_ratio == pytest.approx(math.sqrt(2.0 * 0.5))
    assert second.changed_ratio == 0.5


# --- killed, continued, refused -------------------------------------------------------------------------------------


def test_a_killed_study_goes_on_and_gives_the_same(command, tmp_path, monkeypatch):
    words = ("--strengths", "1,4", "--prompt", "I am a", "--prompt", "The sea", "--prompt", "Men", "--output")
    whole = studied(command, *words, tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 4
    (tmp_path / "part.jsonl").write_text("".join(lines[:2]) + lines[2][:50])
    written, once = [], steering_study.continue_one
    monkeypatch.setattr(steering_study, "continue_one", lambda *args: (written.append(args[2]), once(*args))[1])
    assert studied(command, *words, tmp_path / "part.jsonl") == whole
    assert written == [1, 2]
    assert (tmp_path / "part.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()


def test_a_study_that_ends_at_its_first_line_leaves_nothing_in_the_way(command, tmp_path, monkeypatch):
    def full(_handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    words = ("--strengths", "1", "--prompt", "I am a", "--output", tmp_path / "a.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "a.jsonl: No space left on device" in command(*words, wanted=1)
    assert list(tmp_path.iterdir()) == []
    assert studied(command, *words)["points"]


def test_a_file_of_another_study_is_refused(command, tmp_path):
    command("--strengths", "1", "--prompt", "I am a", "--output", tmp_path / "a.jsonl")
    words = ("--prompt", "I am a", "--output", tmp_path / "a.jsonl")
    assert "same settings, got others (grid)" in command("--strengths", "2", *words, wanted=1)
    other_cap = ("--strengths", "1", "--max-relative-norm", "5")
    assert "same settings, got others (max_relative_norm)" in command(*other_cap, *words, wanted=1)
    (tmp_path / "b.jsonl").write_text("no study\n")
    assert "b.jsonl, line 1, must be JSON" in command("--output", tmp_path / "b.jsonl", wanted=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strengths", "nan"], "strengths must be finite, got 'nan'"),
        (["--strengths", "1e5"], "strength must move the residual by at most 20 times its norm"),
        (["--strengths", "0"], "strengths must hold one besides 0"),
        (["--op", "scale", "--unit", "reference"], "unit must be raw for scale"),
        (["--seeds", "0", "--no-greedy"], "seeds must be at least 1"),
        (["--tokens", "0"], "tokens must lie in 1.."),
        (["--temperature", "0"], "temperature must be above 0"),
        (["--reference-scale", "-1"], "--reference-scale must say how large"),
        (["--max-relative-norm", "0"], "max_relative_norm must be above 0"),
        (["--max-relative-norm", "inf"], "max_relative_norm must be above 0 and finite, got inf"),
        (["--prompt", ""], "prompt must have at least one token"),
    ],
)
def test_bad_input_is_refused_by_name(command, words, message):
    assert message in command(*words, wanted=1)


def test_unknown_features_and_foreign_dictionaries_are_refused(command, model, monkeypatch):
    assert "feature must be a feature (calm), a latent in 0..63" in command(feature="lying", wanted=1)
    refused = [
        ({"weights_sha256": "f" * 64}, "model_sha256 of model tiny must be the dictionary's 0000"),
        ({"quantization": "int8"}, "quantization of model tiny must be the dictionary's none, got int8"),
    ]
    words = ("--strengths", "1", "--prompt", "I am a", "--json")
    for changes, message in refused:
        foreign = replace(model, identity=replace(model.identity, **changes))
        monkeypatch.setattr(input_arguments, "load_language_model", lambda *_args, _lm=foreign, **_settings: _lm)
        assert message in command(*words, wanted=1)
        assert json.loads(command(*words, "--unverified"))["model"] == asdict(foreign.identity)


def test_a_feature_file_that_is_asked_for_must_be_there_and_the_dictionarys(command, tmp_path):
    path = tmp_path / "none.json"
    assert f"{path}: No such file or directory" in command("--features", path, wanted=1)
    Watchlist("b" * 64, ()).save(path)
    assert "sae_sha256" in command("--features", path, wanted=1)


def test_the_model_is_loaded_as_asked_for(command, model, monkeypatch):
    asked = []
    monkeypatch.setattr(input_arguments, "load_language_model", lambda *a, **s: (asked.append((a, s)), model)[1])
    words = ("--model", "folder", "--quantization", "int8", "--device", "cpu", "--dtype", "float32")
    command("--strengths", "1", "--prompt", "I am a", *words)
    ((source,), settings) = asked[0]
    wanted = {"quantization": "int8", "device": "cpu", "dtype": "float32", "progress": True}
    assert (source, settings) == ("folder", wanted)


# --- the page -------------------------------------------------------------------------------------------------------


@pytest.fixture
def page(command, tmp_path):
    command("--strengths", "1,30", "--prompt", EVIL, "--chat", "Hello", "--page", tmp_path / "page")
    return tmp_path / "page"


def test_the_page_shows_every_text_at_every_strength(page, command):
    found = studied(command, "--strengths", "1,30", "--prompt", EVIL, "--chat", "Hello")
    text = (page / "index.html").read_text()
    assert (page / MARKER).is_file() and (page / "assets" / "plotly.min.js").stat().st_size > 10**6
    assert text.count('<p class="window"') == len(found["continuations"]) == 12
    assert text.count("<script") == 4 and "&lt;script&gt;" in text
    assert "http" not in re.sub(r"<footer>.*?</footer>", "", text, flags=re.S)
    assert "search latents" not in text
    assert text.count("at each strength") == text.count("4 continuations at each strength.") == 1
    data = json.loads((page / "assets" / "steering-data.js").read_text().removeprefix("window.STEERING=").rstrip(";\n"))
    assert data["strengths"] == ["unsteered", "1", "30"]
    lines = {line["name"]: line["values"] for plot in data["plots"] for line in plot["lines"]}
    assert lines["under the unsteered model"] == [point["perplexity"] for point in found["points"]]


@needs_browser
def test_the_page_in_a_browser(page, tmp_path):
    opened = open_page(page / "index.html", tmp_path / "profile")
    assert opened.console == opened.requests == []
    assert "<title>steering calm" in opened.dom
    assert opened.dom.count('class="js-line"') >= 8
    # A swatch is dashed where its line is, and no two lines of a picture share a colour.
    assert opened.dom.count('<i class="dashed" style="border-top-color:var(') == 4
    for legend in re.findall('<ul class="legend">(.*?)</ul>', opened.dom, re.DOTALL):
        colors = re.findall(r"var\((--\w+)\)", legend)
        assert len(colors) == len(set(colors)) > 1
