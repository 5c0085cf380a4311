"""fidelity: the comparison of two forms of a model against obvious computations."""

import json

import numpy as np
import pytest
import tiny
import tiny_files
import torch
from endless import endless_stream

from discovery.corpus import Context, CorpusSettings, is_held_out, read_documents
from discovery.errors import FitError, LabError
from discovery.fidelity import compare, main, paired_residuals
from discovery.fidelity_sums import LIMITS, MIN_FIRINGS, FidelitySums, answer
from sae_runtime.checkpoint import load_manifest, save_sae
from sae_runtime.errors import CheckpointError
from sae_runtime.fidelity_figures import FidelityFigures
from sae_runtime.tap import Tap

D = tiny.D_MODEL


def pair(noise: float, num: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a_ND = torch.randn(num, D, generator=generator)
    return a_ND, a_ND + noise * torch.randn(num, D, generator=generator)


def test_the_same_residuals_agree_in_everything(dictionary):
    a_ND, _ = pair(0)
    figures = compare(dictionary, [(a_ND, a_ND)]).figures()
    assert figures["correlation"]["1%"] == pytest.approx(1, abs=1e-6)
    assert figures["flip_ratio"] == figures["residual_relative_error"] == 0
    assert figures["l0"][0] == figures["l0"][1] > 0


def test_figures_equal_their_definitions(dictionary):
    a_ND, b_ND = pair(0.3)
    sums = compare(dictionary, [(a_ND[:150], b_ND[:150]), (a_ND[150:], b_ND[150:])])
    a_NF, b_NF = dictionary.encode(a_ND), dictionary.encode(b_ND)
    often = ((a_NF > 0).sum(0) >= MIN_FIRINGS).nonzero()[:, 0].tolist()
    wanted = [np.corrcoef(a_NF[:, f].double(), b_NF[:, f].double())[0, 1] for f in often]
    correlation_F = sums.correlation()
    np.testing.assert_allclose(correlation_F[often], wanted, atol=1e-5)
    assert int((~correlation_F.isnan()).sum()) == len(often) < tiny.NUM_LATENTS + 1
    figures = sums.figures()
    flips = ((a_NF > 0) != (b_NF > 0)).sum() / ((a_NF > 0) | (b_NF > 0)).sum()
    assert figures["flip_ratio"] == pytest.approx(float(flips), rel=1e-5)
    error = (b_ND - a_ND).norm() / (a_ND - a_ND.mean(0)).norm()
    assert figures["residual_relative_error"] == pytest.approx(float(error), rel=1e-4)
    assert sum(figures["correlation_histogram"]["counts"]) == len(often)
    assert figures["correlation"]["50%"] == pytest.approx(float(np.quantile(wanted, 0.5)), abs=1e-4)


def test_a_latent_that_is_silent_in_the_second_agrees_in_nothing():
    sae = tiny.sae("relu")
    with torch.no_grad():
        for tensor in sae.state_dict().values():
            tensor.zero_()
        sae.W_enc[:, :D] = torch.eye(D)
    a_ND = pair(0)[0].abs()
    sums = FidelitySums(tiny.NUM_LATENTS, D)
    sums.add(sae, a_ND, -a_ND)
    assert torch.equal(sums.correlation()[:D], torch.zeros(D))
    assert sums.correlation()[D:].isnan().all()


def test_every_latent_and_named_feature_has_figures_of_its_own(dictionary):
    a_ND, b_ND = pair(0.3)
    sums = compare(dictionary, [(a_ND[:150], b_ND[:150]), (a_ND[150:], b_ND[150:])])
    a_NF, b_NF = dictionary.encode(a_ND) > 0, dictionary.encode(b_ND) > 0
    flips_F = (a_NF ^ b_NF).sum(0) / (a_NF | b_NF).sum(0)
    by_latent = sums.by_latent()
    for latent in range(tiny.NUM_LATENTS):
        assert by_latent["firings"][latent] == [int(a_NF[:, latent].sum()), int(b_NF[:, latent].sum())]
        if (a_NF | b_NF)[:, latent].any():
            assert by_latent["flip_ratio"][latent] == pytest.approx(float(flips_F[latent]), abs=1e-5)
        else:
            assert by_latent["flip_ratio"][latent] is None
        known = by_latent["firings"][latent][0] >= MIN_FIRINGS
        assert (by_latent["correlation"][latent] is not None) == known
    (found,) = sums.features({"medical": 5})
    assert (found.name, found.latent) == ("medical", 5)
    assert found.correlation == pytest.approx(by_latent["correlation"][5], abs=1e-5)
    json.dumps(by_latent, allow_nan=False)


@pytest.mark.parametrize(("noise", "may"), [(0.001, True), (3.0, False)])
def test_a_named_feature_may_be_served_if_it_reads_the_same(dictionary, noise, may):
    a_ND, b_ND = pair(noise)
    sums = compare(dictionary, [(a_ND, b_ND)])
    often = int(sums.first.firing_F.argmax())
    (found,) = sums.features({"often": often})
    assert found.may_be_served is may
    few = compare(dictionary, [(a_ND[:4], b_ND[:4])])
    assert few.features({"often": often})[0].may_be_served is None


def test_too_little_text_is_said(dictionary):
    a_ND, b_ND = pair(0.1, num=2)
    with pytest.raises(LabError, match="of 2: use more text"):
        compare(dictionary, [(a_ND, b_ND)]).figures()


def test_pairs_are_the_same_tokens_in_both(model):
    other = tiny.language_model(seed=1)
    generator = torch.Generator().manual_seed(0)
    texts = [Context(torch.randint(3, 200, (n,), generator=generator).tolist(), n, 0, "made") for n in (9, 14, 9, 5)]
    taps = tuple(Tap(lm.model, tiny.HOOK_POINT, lm.d_model) for lm in (model, other))
    pairs = list(paired_residuals((model, other), taps, texts, batch_tokens=20))
    assert sum(len(a_ND) for a_ND, _ in pairs) == 8 + 13 + 8 + 4
    longest = torch.tensor([texts[1].tokens])
    for lm, resid_ND in zip((model, other), pairs[0], strict=True):
        hidden = lm.model(input_ids=longest, output_hidden_states=True).hidden_states[tiny.HOOK_POINT.layer + 1]
        torch.testing.assert_close(resid_ND, hidden[0, 1:])
    for tap in taps:
        tap.remove()


@pytest.fixture
def argv(tmp_path):
    sha256 = tiny_files.write_model(tmp_path / "model", made=tiny.language_model(d_model=tiny.WIDE))
    tiny_files.write_dictionary(tmp_path / "sae", sha256, d_model=tiny.WIDE)
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": f"{n} words " * 20}) + "\n" for n in range(300)))
    return [str(tmp_path / "sae"), "--corpus", str(tmp_path / "text.jsonl"), "--model", str(tmp_path / "model")]


def test_the_command_compares_two_forms_of_one_model(argv, capsys):
    assert main([*argv, "--quantization", "none", "--dtype", "float32", "--against-dtype", "bfloat16", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert [name.split()[-1] for name in figures["models"]] == ["float32", "bfloat16"]
    assert 0.9 < figures["correlation"]["50%"] < 1
    assert 0 < figures["residual_relative_error"] < 0.05
    assert figures["answer"]["may_be_served"] is True
    assert len(figures["by_latent"]["correlation"]) == tiny.NUM_LATENTS


def test_what_is_written_is_what_a_server_tells(argv, tmp_path, capsys):
    words = [*argv, "--quantization", "none", "--dtype", "float32", "--against-dtype", "bfloat16", "--json", "--write"]
    assert main(words) == 0
    figures = json.loads(capsys.readouterr().out)
    [told] = FidelityFigures.all_of(load_manifest(tmp_path / "sae"))
    assert [told.first, told.against] == figures["models"]
    assert (told.tokens, told.median_correlation) == (figures["tokens"], figures["correlation"]["50%"])
    assert (list(told.l0), told.may_be_served) == (figures["l0"], True)
    assert main([*words, "--max-tokens", "500"]) == 0  # the same two again
    [again] = FidelityFigures.all_of(load_manifest(tmp_path / "sae"))
    assert again.tokens < told.tokens


def test_figures_are_printed_before_they_are_written(argv, capsys, monkeypatch):
    def fail(*_args):
        raise OSError("the disk is full")

    monkeypatch.setattr("discovery.fidelity.write_fidelity", fail)
    words = [*argv, "--quantization", "none", "--dtype", "float32", "--against-dtype", "bfloat16", "--json", "--write"]
    with pytest.raises(OSError, match="the disk is full"):
        main(words)
    assert json.loads(capsys.readouterr().out)["answer"]["may_be_served"] is True


def test_the_place_to_write_to_is_looked_at_first(tmp_path):
    """There is no dictionary either."""
    (tmp_path / "text").write_text("")
    with pytest.raises(LabError, match=r"--write .*/text/sae/sae\.json can't be written: .*/text is no folder"):
        main([str(tmp_path / "text" / "sae"), "--corpus", "none.jsonl", "--write"])


@pytest.mark.parametrize(
    ("records", "wanted"),
    [
        ("yes", "metrics.fidelity must be a list of comparisons, got str"),
        ([{"first": "a"}], "metrics.fidelity: against: "),
    ],
)
def test_a_record_that_makes_no_sense_is_refused_by_name(records, wanted):
    with pytest.raises(CheckpointError, match=wanted):
        FidelityFigures.all_of(tiny_files.manifest(metrics={"fidelity": records}))
    assert FidelityFigures.all_of(tiny_files.manifest()) == ()


def test_named_features_are_in_the_table_and_the_answer(argv, tmp_path, capsys):
    tiny_files.write_features(tmp_path / "sae", load_manifest(tmp_path / "sae").sae_sha256)
    words = [*argv, "--quantization", "none", "--dtype", "float32", "--against-dtype", "float32"]
    assert main([*words, "--json"]) == 0
    answered = json.loads(capsys.readouterr().out)["answer"]
    assert [feature["name"] for feature in answered["features"]] == ["hedging", "lying", "calm"]
    untold = [feature["name"] for feature in answered["features"] if feature["may_be_served"] is None]
    assert all(feature["may_be_served"] for feature in answered["features"] if feature["name"] not in untold)
    assert main(words) == 0
    said = capsys.readouterr().out
    assert all(f"│ {name} " in said for name in ("hedging", "lying", "calm"))
    assert ("Named features with too few readings to tell: " + ", ".join(untold) in said) == bool(untold)


def test_a_stream_is_read_no_further_than_is_compared(argv, capsys, monkeypatch):
    """A stream from a hub may have no end."""
    seen = endless_stream(monkeypatch)
    words = [argv[0], "--corpus", "hf-stream:no/end", *argv[3:], "--split", "all", "--max-tokens", "1500", "--json"]
    assert main([*words, "--dtype", "float32", "--against-dtype", "float32"]) == 0
    assert 1300 < json.loads(capsys.readouterr().out)["tokens"] < 1500
    assert len(seen) < 200


def test_four_bits_are_told_from_sixteen(argv, capsys):
    pytest.importorskip("bitsandbytes")
    dtypes = ["--dtype", "bfloat16", "--against-dtype", "bfloat16"]
    assert main([*argv, *dtypes, "--against-quantization", "nf4"]) == 0
    said = capsys.readouterr().out
    assert "model none bfloat16" in said and "model nf4 bfloat16" in said
    # Random weights have no room to spare: a twelfth of their size is lost on each, and the residual with it.
    assert "\nNo: what was trained on model none bfloat16 should not be served on model nf4 bfloat16.\n" in said
    assert said.count("\n- ") == len(LIMITS)


def test_the_first_model_must_be_the_dictionarys(argv):
    with pytest.raises(FitError, match="quantization of model model must be the dictionary's none, got int8"):
        main([*argv, "--quantization", "int8"])


def figures(**changes):
    """All of them just within the limits."""
    made = {
        "correlation": {"50%": 0.96},
        "correlation_below_0.9_ratio": 0.09,
        "flip_ratio": 0.24,
        "l0": [50.0, 45.5],
        "variance_explained": [0.8, 0.785],
    }
    return made | changes


def test_the_answer_is_yes_only_if_every_limit_holds():
    assert answer(figures()).may_be_served
    worse = {
        "correlation": {"50%": 0.94},
        "correlation_below_0.9_ratio": 0.11,
        "flip_ratio": 0.26,
        "l0": [50.0, 55.5],
        "variance_explained": [0.8, 0.77],
    }
    for number, (name, value) in enumerate(worse.items()):
        answered = answer(figures(**{name: value}))
        assert not answered.may_be_served
        assert [", above " in reason for reason in answered.reasons].index(True) == number
    assert answer(figures(variance_explained=[0.8, 0.9])).may_be_served


def test_two_different_models_are_refused(dictionary, tmp_path):
    save_sae(dictionary, tiny_files.manifest(model_sha256=tiny_files.write_model(tmp_path / "model")), tmp_path / "sae")
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')
    argv = [str(tmp_path / "sae"), "--corpus", str(tmp_path / "text.jsonl"), "--model", str(tmp_path / "model")]
    with pytest.raises(LabError, match="another form of the same model"):
        main([*argv, "--against", "embedded"])


def test_a_corpus_without_text_in_the_split_is_named(argv, tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "one document alone", "source": "a"}\n')
    (document,) = read_documents([tmp_path / "text.jsonl"])
    empty = "train" if is_held_out(document, CorpusSettings().held_out_share) else "held_out"
    with pytest.raises(LabError, match=f"text in the split {empty}, got none; --split all"):
        main([*argv, "--split", empty])
