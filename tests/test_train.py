"""train: the command's flags, and both ways to feed it."""

import json

import pytest
import torch
from tiny import D_MODEL
from tiny_files import write_model
from training import F, write_harvest

from discovery.errors import FitError, LabError, TrainError
from discovery.file_lock import locked
from discovery.shards import load_manifest
from discovery.train import _parser, main, settings_of
from discovery.train_settings import TrainSettings, defaults_for
from sae_runtime.checkpoint import load_sae
from service import cli


@pytest.fixture(scope="module")
def harvest(tmp_path_factory):
    return write_harvest(tmp_path_factory.mktemp("harvest"))


def settings_from(*flags, first=None):
    return settings_of(_parser().parse_args(["--output", "x", *flags]), first)


SMALL = ["--num-latents", str(F), "--num-steps", "12", "--batch-size", "128", "--no-tensorboard"]


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16"), (False, "fp32")])
def test_large_products_are_bf16_where_the_processor_can(monkeypatch, has_bf16, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16})
    assert settings_from()[0].precision == precision
    assert settings_from("--precision", "bf16")[0].precision == "bf16"


def test_the_documented_flags_mean_what_they_did(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    flags = "--activation batchtopk --k 60 --target-l0 59.5 --learning-rate 1.5e-3 --warmup-steps 50 --decay-share 1"
    flags += " --num-steps 1600 --seed 1 --aux-weight 0.125 --dead-after-tokens 150000"
    settings, target_l0 = settings_from(*flags.split())
    assert target_l0 == 59.5
    assert settings == TrainSettings(
        activation="batchtopk",
        k=60,
        learning_rate=1.5e-3,
        warmup_steps=50,
        decay_share=1.0,
        num_steps=1600,
        seed=1,
        aux_weight=0.125,
        dead_after_tokens=150_000,
    )
    assert settings_from() == settings_from("--target-l0", "0") == (TrainSettings(), None)


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        (["--recipe", "relu_l1", "--l1", "5"], {"activation": "relu", "sparsity_weight": 5.0}),
        (["--activation", "jumprelu", "--l0", "0.3"], {"activation": "jumprelu", "sparsity_weight": 0.3}),
        (["--recipe", "gated", "--l0-target", "40"], {"activation": "gated", "l0_target": 40.0, "adam_beta1": 0.0}),
        (["--recipe", "topk", "--tokens", "100000", "--batch-size", "1000"], {"activation": "topk", "num_steps": 100}),
        (["--revival", "resample"], {"activation": "batchtopk", "revival": "resample"}),
    ],
)
def test_recipes_and_their_flags(flags, fields):
    settings, target_l0 = settings_from(*flags)
    assert target_l0 is None
    assert {name: getattr(settings, name) for name in fields} == fields
    assert settings.learning_rate == defaults_for(settings.activation).learning_rate


@pytest.mark.parametrize("target", ["-5", "nan", "inf", "64.5"])
def test_an_l0_that_no_threshold_gives_is_refused_before_anything_is_read(tmp_path, target):
    message = f"target_l0 must be above 0 and at most num_latents={F}, got {float(target)}"
    argv = ["--output", str(tmp_path / "run"), "--source", str(tmp_path / "nowhere"), "--target-l0", target]
    with pytest.raises(ValueError, match=message):
        main([*argv, "--num-latents", str(F)])


@pytest.mark.parametrize("flags", [[], ["--source", "a", "--corpus", "b"]])
def test_one_input_must_be_named(flags):
    with pytest.raises(TrainError, match=r"either --source .* or --corpus"):
        main(["--output", "x", *flags])


@pytest.mark.parametrize("recipe", ["relu", "batchtopk", "jumprelu"])
def test_the_command_trains_a_dictionary(harvest, tmp_path, capsys, recipe):
    sparsity = ["--k", "4"] if recipe == "batchtopk" else []
    argv = ["--source", f"{harvest}:2", "--output", str(tmp_path), "--recipe", recipe, "--name", "mine"]
    assert main([*argv, *SMALL, *sparsity]) == 0
    out, err = capsys.readouterr()
    sae = load_sae(tmp_path)
    assert json.loads(out) == {"sae_sha256": sae.manifest.sae_sha256, "tokens_seen": 12 * 128}
    assert sae.activation == recipe and sae.manifest.name == "mine" and sae.num_latents == F
    assert f"train {tmp_path.name}" in err
    assert "GPU" not in err and "Tip" not in err  # what Lightning has to say of itself
    (data,) = sae.manifest.training["data"]
    assert data["contexts_sha256"] == load_manifest(harvest)["settings"]["contexts_sha256"]


def test_a_folder_that_another_process_trains_in_is_refused(harvest, tmp_path):
    argv = ["--source", f"{harvest}:2", "--output", str(tmp_path), "--recipe", "relu", *SMALL]
    with locked(tmp_path / "lock", wait=False), pytest.raises(LabError, match="lock is held by another process"):
        main(argv)
    assert list(tmp_path.iterdir()) == []
    assert main(argv) == 0


def test_the_init_decides_what_is_not_said(harvest, tmp_path):
    source = ["--source", f"{harvest}:2"]
    main([*source, "--output", str(tmp_path / "a"), "--recipe", "topk", "--k", "4", *SMALL])
    argv = [*source, "--output", str(tmp_path / "b"), "--init", str(tmp_path / "a"), "--k", "4", *SMALL[2:]]
    assert main(argv) == 0
    manifest = load_sae(tmp_path / "b").manifest
    assert manifest.num_latents == F and manifest.activation == "topk"
    assert manifest.training["started_from"]["recipe"]["k"] == 4


@pytest.mark.parametrize(
    ("field", "value"), [("model_sha256", "1" * 64), ("quantization", "nf4"), ("hook_point", "layers.2.output")]
)
def test_an_init_of_another_model_is_refused(harvest, tmp_path, field, value):
    argv = ["--source", f"{harvest}:2", "--recipe", "topk", "--k", "4", *SMALL]
    main([*argv, "--output", str(tmp_path / "a")])
    other = write_harvest(tmp_path / "other", **{field: value})
    argv = ["--source", f"{other}:2", "--init", str(tmp_path / "a"), "--output", str(tmp_path / "b"), "--k", "4"]
    with pytest.raises(FitError, match=f"{field} of the data must be the dictionary's .*, got {value}"):
        main([*argv, *SMALL[2:]])
    assert not (tmp_path / "b").exists()


def test_straight_from_a_model(tmp_path, monkeypatch):
    monkeypatch.setenv("TELLTALE_CACHE_DIR", str(tmp_path / "cache"))
    weights = write_model(tmp_path / "model")
    text = tmp_path / "text.jsonl"
    lines = [json.dumps({"text": f"Line {number}: " + "the whale " * (3 + number % 5)}) for number in range(40)]
    text.write_text("\n".join(lines))
    argv = ["--corpus", str(text), "--model", str(tmp_path / "model"), "--dtype", "float32"]
    argv += ["--hook-point", "layers.1.output", "--split", "all", "--contexts-per-buffer", "16"]
    argv += ["--output", str(tmp_path / "run"), "--k", "4", *SMALL]
    assert main(argv) == 0
    sae = load_sae(tmp_path / "run")
    assert sae.d_model == D_MODEL and sae.manifest.model_sha256 == weights
    assert sae.manifest.training["data"][0]["sources"] == ["text"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--recipe", "sigmoid"], "activation must be one of .*'sigmoid'"),
        (["--source", "nowhere"], "nowhere is no harvest"),
        (["--device", "tpu"], "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["--recipe", "topk", "--l0-target", "5"], "topk has no penalty"),
        (["--metrics-port", "x"], "invalid int value"),
        (["--metrics-port", "65536"], "--metrics-port must lie in 0..65535, got 65536"),
        (["--checkpoint-every", "0"], "--checkpoint-every must be at least 1, got 0"),
        (["--checkpoint-every", "-3"], "--checkpoint-every must be at least 1, got -3"),
        (["--tokens", "-5"], "--tokens must be at least 1, got -5"),
        (["--tokens", "0"], "--tokens must be at least 1, got 0"),
        (["--tokens", "4096", "--num-steps", "7"], "either --tokens or --num-steps can be given, got 4096 and 7"),
        (["--num-latents", "0"], "num_latents must be positive, got 0"),
        (["--contexts-per-buffer", "0"], "--contexts-per-buffer must be at least 1, got 0"),
        (["--max-tokens", "-5"], "--max-tokens must be at least 1, got -5"),
        (["--hook-point", "nonsense"], "--hook-point: hook point must look like 'layers.15.output'"),
    ],
)
def test_wrong_flags_are_one_line(harvest, tmp_path, capsys, flags, message):
    argv = ["lab", "train", "--output", str(tmp_path), *([] if "--source" in flags else ["--source", str(harvest)])]
    try:
        assert cli.main([*argv, *flags]) == 1
    except SystemExit as error:
        assert error.code == 2
    assert message.split(".*")[0] in capsys.readouterr().err
