"""`telltale lab import` and `telltale lab export`, as they are called."""

import json
import shutil

import pytest
import tiny
import torch
from format_files import FIXTURES, oracle
from serving import manifest
from tiny_files import write_model

from discovery import import_sae as import_command
from discovery.corpus import Context
from discovery.fit_check import check_fit
from discovery.harvest import harvest
from discovery.import_sae import record_fit
from sae_runtime import usual_fvu
from sae_runtime.checkpoint import load_manifest, load_sae, save_sae
from sae_runtime.exports import export_sae
from sae_runtime.formats import import_sae
from sae_runtime.hook_point import HookPoint
from sae_runtime.sae import SAE
from sae_runtime.usual_fvu import UsualFVU
from service import cli

STANDARD = FIXTURES / "saelens" / "standard"
OLDEST = FIXTURES / "saelens_old" / "oldest"
TRAINING = FIXTURES / "saelens" / "training_standard"


def lab(capsys, *words: object) -> str:
    """What a command prints, its line breaks taken as spaces."""
    assert cli.main(["lab", *map(str, words)]) == 0
    return " ".join(capsys.readouterr().out.split())


def failure(capsys, *words: object) -> str:
    assert cli.main(["lab", *map(str, words)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    *progress, last, end = captured.err.split("\n")
    assert end == ""
    assert not any("telltale" in line for line in progress)
    return last


# --- what it says -----------------------------------------------------------------------------------------------------


def test_says_what_it_found(capsys):
    out = lab(capsys, "import", STANDARD)
    for words in (
        "format SAELens, standard",
        "dictionary 40 latents of width 12, relu, float32",
        "input the residual as it is, b_dec subtracted",
        "hook point layers.3.output (blocks.3.hook_resid_post in the file)",
        "texts began with BOS",
        "model tiny-llama; which weights is unknown: served as unverified, unless bound with --model",
    ):
        assert words in out
    assert "assumed" not in out


def test_says_what_it_assumes(capsys):
    out = lab(capsys, "import", OLDEST)
    assert "assumed - defaults of SAELens before 6 for what cfg.json leaves out: architecture standard" in out
    assert "layers.3.input = layers.2.output (blocks.3.hook_resid_pre in the file)" in out


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("saelens/topk", "topk with k = 5"),
        ("saelens/jumprelu", "jumprelu with thresholds 0."),
        ("saelens/training_batchtopk", "batchtopk with threshold 2.0"),
        ("saelens/training_standard", "the residual times 0.37, b_dec subtracted"),
        ("saelens/standard_layer_norm", "the residual layer_norm per token, b_dec subtracted"),
        ("published/goodfire", "the residual as it is, b_dec not subtracted"),
        ("published/goodfire", "with or without BOS is unknown"),
        ("saelens/topk_rescaled", "decoder rows of norm 1 hook"),
        ("saelens/standard", "decoder rows of norm 0."),
    ],
)
def test_words_for_each_kind(capsys, case, words):
    assert words in lab(capsys, "import", FIXTURES / case)


def test_an_unknown_hook_point_is_said(capsys, tmp_path):
    path = tmp_path / "weights.pth"
    shutil.copy(FIXTURES / "published/goodfire/Llama-3.1-8B-Instruct-SAE-l19.pth", path)
    out = lab(capsys, "import", path)
    assert "hook point unknown: state it with --hook-point" in out
    assert "no model is named; which weights is unknown" in out
    message = failure(capsys, "import", path, "--output", tmp_path / "out")
    assert "state it with --hook-point" in message
    assert not (tmp_path / "out").exists()


def test_json(capsys):
    report = json.loads(lab(capsys, "import", OLDEST, "--json"))
    assert report["found"]["format"] == "SAELens before 6, standard"
    assert report["assumed"] == report["manifest"]["training"]["import"]["assumed"]
    assert report["fit"] is None
    assert len(report["manifest"]["sae_sha256"]) == 64


def test_our_own(capsys, tmp_path):
    save_sae(tiny.sae(), manifest(), tmp_path)
    out = lab(capsys, "import", tmp_path)
    assert "format our own" in out
    assert "model tiny, weights 000000000000, none" in out


def test_a_refusal_is_one_line(capsys, tmp_path):
    shutil.copytree(TRAINING, tmp_path / "run")
    (tmp_path / "run/activation_scaler.json").unlink()
    message = failure(capsys, "import", tmp_path / "run")
    assert message.startswith("telltale lab import: ")
    assert "scale (sqrt(d_in) / mean ||x|| of the training data) must be stated" in message
    out = lab(capsys, "import", tmp_path / "run", "--scale", 0.37)
    assert "assumed - scale 0.37, as stated" in out


# --- what it writes ---------------------------------------------------------------------------------------------------


def test_writes_our_own_format(capsys, tmp_path):
    lab(capsys, "import", TRAINING, "--output", tmp_path / "out", "--name", "mine")
    sae, wanted = load_sae(tmp_path / "out"), oracle(TRAINING)
    assert sae.manifest.name == "mine"
    torch.testing.assert_close(sae.encode(wanted.x_TD), wanted.f_TF, rtol=1e-5, atol=1e-5)
    assert load_manifest(tmp_path / "out").training["import"]["format"] == "SAELens, standard"


def test_folds_decoder_norms(capsys, tmp_path):
    lab(capsys, "import", STANDARD, "--output", tmp_path / "out", "--fold-decoder-norms")
    assert load_manifest(tmp_path / "out").decoder_norms_folded


def test_tied_weights_with_their_k(capsys, tmp_path):
    generator = torch.Generator().manual_seed(0)
    w = {"W": torch.randn(12, 40, generator=generator), "b_enc": torch.zeros(40), "b_dec": torch.zeros(12)}
    torch.save(w, tmp_path / "SAE-l7.pt")
    assert "topk with k = 6" in lab(capsys, "import", tmp_path / "SAE-l7.pt", "--k", 6)
    out = lab(capsys, "import", tmp_path / "SAE-l7.pt", "--threshold", 1.5, "--hook-point", "blocks.2.hook_resid_post")
    assert "batchtopk with threshold 1.5" in out
    assert "layers.2.output" in out


# --- a model and residuals to go with it ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return folder, write_model(folder)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def harvested(model, tmp_path_factory):
    contexts = [Context(list(range(3 + n, 40 + n)), n, 0, "made") for n in range(4)]
    folder = tmp_path_factory.mktemp("harvests") / "held-out"
    harvest(model, HookPoint(1), contexts, folder)
    return folder


@pytest.fixture
def exported(tmp_path):
    """A SAELens export of a dictionary that returns what it is given."""
    eye = torch.eye(tiny.D_MODEL)
    sae = SAE(d_model=tiny.D_MODEL, num_latents=tiny.NUM_LATENTS, activation="relu")
    sae.load_state_dict(sae.state_dict() | {"W_enc": torch.cat([eye, -eye], 1), "W_dec": torch.cat([eye, -eye])})
    save_sae(sae, manifest(activation="relu", k=None), tmp_path / "own")
    export_sae(load_sae(tmp_path / "own"), tmp_path / "export", "saelens")
    return tmp_path / "export"


def test_bound_to_a_model(capsys, exported, model_folder, tmp_path):
    folder, sha256 = model_folder
    out = lab(capsys, "import", exported, "--model", folder, "--quantization", "none", "--output", tmp_path / "out")
    assert f"model tiny, weights {sha256[:12]}, none" in out
    made = load_manifest(tmp_path / "out")
    assert (made.model_name, made.model_sha256, made.quantization) == ("tiny", sha256, "none")


def test_bound_to_a_model_it_can_not_be_of(capsys, model_folder):
    message = failure(capsys, "import", STANDARD, "--model", model_folder[0])
    assert "tiny must have width 12, as the dictionary, got 32" in message


def test_checked_on_a_harvest(capsys, exported, harvested, tmp_path):
    out = lab(capsys, "import", exported, "--check", harvested, "--output", tmp_path / "out")
    assert "check explains 100.0% of the variance of 144 tokens of held-out, with 32.0 active latents a token" in out
    made = load_manifest(tmp_path / "out")
    assert made.metrics["fit"]["fvu"] == pytest.approx(0, abs=1e-6)
    assert "token_fvu" not in made.metrics  # of so few tokens
    harvest_manifest = json.loads((harvested / "manifest.json").read_text())
    assert made.resid_norm_mean == harvest_manifest["mean_norm"]
    torch.testing.assert_close(load_sae(tmp_path / "out").resid_mean, torch.tensor(harvest_manifest["mean"]))


def test_a_long_enough_check_gives_the_servers_guard_its_limit(exported, harvested, monkeypatch):
    monkeypatch.setattr(import_command, "MIN_TOKENS", 100)
    monkeypatch.setattr(usual_fvu, "MIN_TOKENS", 100)
    sae = import_sae(exported)
    record_fit(sae, check_fit(sae, harvested))
    usual = UsualFVU.of(sae.manifest)
    assert usual.tokens == 144 and 0 <= usual.quantiles["50%"] <= usual.limit < 1e-6  # it is exact


def test_a_misfit_writes_nothing(capsys, exported, harvested, tmp_path):
    content = json.loads((exported / "cfg.json").read_text())
    content["metadata"]["hook_name"] = "blocks.0.hook_resid_post"
    (exported / "cfg.json").write_text(json.dumps(content))
    message = failure(capsys, "import", exported, "--check", harvested, "--output", tmp_path / "out")
    assert "must have residuals of layers.0.output, got layers.1.output" in message
    assert not (tmp_path / "out").exists()


# --- export -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", ["saelens", "sparsify", "dictionary_learning"])
def test_export_and_back(capsys, tmp_path, format_name):
    save_sae(tiny.sae(), manifest(), tmp_path / "own")
    out = lab(capsys, "export", tmp_path / "own", tmp_path / "export", "--format", format_name)
    assert out.startswith(f"tiny-sae for {format_name}: {tmp_path}")
    place = tmp_path / "export" / ("layers.1" if format_name == "sparsify" else "")
    lab(capsys, "import", place, "--output", tmp_path / "back")
    x_TD = torch.randn(5, tiny.D_MODEL, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(load_sae(tmp_path / "back").encode(x_TD), load_sae(tmp_path / "own").encode(x_TD))


def test_export_json(capsys, tmp_path):
    saved = save_sae(tiny.sae(), manifest(), tmp_path / "own")
    out = lab(capsys, "export", tmp_path / "own", tmp_path / "export", "--format", "saelens", "--json")
    report = json.loads(out)
    assert report["sae_sha256"] == saved.sae_sha256
    assert sorted(report["files"]) == [
        str(tmp_path / "export" / name) for name in ("cfg.json", "sae_weights.safetensors")
    ]


def test_an_export_overwrites_nothing(capsys, tmp_path):
    save_sae(tiny.sae(), manifest(), tmp_path / "own")
    lab(capsys, "export", tmp_path / "own", tmp_path / "export", "--format", "saelens")
    assert "is there already" in failure(capsys, "export", tmp_path / "own", tmp_path / "export", "--format", "saelens")


def test_an_import_overwrites_no_dictionary(capsys, tmp_path):
    for name in ("own", "other"):
        save_sae(tiny.sae(), manifest(), tmp_path / name)
    lab(capsys, "export", tmp_path / "own", tmp_path / "export", "--format", "saelens")
    before = (tmp_path / "other/sae.json").read_bytes()
    said = failure(capsys, "import", tmp_path / "export", "--output", tmp_path / "other")
    assert f"{tmp_path / 'other'} holds a dictionary already: an import overwrites nothing" in said
    assert (tmp_path / "other/sae.json").read_bytes() == before


def test_batchtopk_with_its_k(capsys, tmp_path):
    save_sae(tiny.sae("batchtopk"), manifest(activation="batchtopk"), tmp_path / "own")
    lab(capsys, "export", tmp_path / "own", tmp_path / "export", "--format", "dictionary_learning", "--k", 6)
    assert json.loads((tmp_path / "export/config.json").read_text())["trainer"]["dict_class"] == "BatchTopKSAE"
