"""SAELens: its maths written out once more, versions told apart, and what of it can't be expressed."""

import json
from pathlib import Path

import pytest
import torch
from format_files import (
    D_MODEL,
    FIXTURES,
    NUM_LATENTS,
    change_json,
    change_tensors,
    copy_case,
    oracle,
    refusal,
    residuals,
)
from safetensors.torch import load_file

from sae_runtime.formats import import_sae

STANDARD, JUMPRELU, SCALED = "saelens/standard", "saelens/jumprelu", "saelens/training_standard"


def config(folder: Path) -> dict:
    return json.loads((folder / "cfg.json").read_text())


# --- the maths, by hand -----------------------------------------------------------------------------------------------


def test_jumprelu_subtracts_the_decoder_bias_by_default(tmp_path):
    folder = copy_case(JUMPRELU, tmp_path)
    content = config(folder)
    del content["apply_b_dec_to_input"]
    (folder / "cfg.json").write_text(json.dumps(content))
    w, x_TD = load_file(folder / "sae_weights.safetensors"), residuals()
    pre_TF = (x_TD - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    wanted_TF = torch.where(pre_TF > w["threshold"], pre_TF.relu(), 0.0)
    torch.testing.assert_close(import_sae(folder).encode(x_TD), wanted_TF)


def test_a_pre_activation_at_the_threshold_does_not_pass(tmp_path):
    """x = e_0: the pre-activation of latent j is W_enc[0, j] exactly, and the threshold is made equal to it."""
    folder = copy_case(JUMPRELU, tmp_path)
    change_json(folder / "cfg.json", apply_b_dec_to_input=False)
    row_F = torch.linspace(0.5, 2, NUM_LATENTS)
    W_enc = torch.zeros(D_MODEL, NUM_LATENTS)
    W_enc[0] = row_F
    threshold_F = row_F.clone()
    threshold_F[1] = torch.nextafter(row_F[1], torch.tensor(0.0))
    changes = {"W_enc": W_enc, "b_enc": torch.zeros(NUM_LATENTS), "threshold": threshold_F}
    change_tensors(folder / "sae_weights.safetensors", **changes)
    f_TF = import_sae(folder).encode(torch.eye(D_MODEL)[:1])
    assert f_TF.nonzero().tolist() == [[0, 1]]


def test_an_activation_norm_that_was_not_folded_is_our_scale():
    folder = FIXTURES / SCALED
    w, x_TD = load_file(folder / "sae_weights.safetensors"), residuals()
    sae = import_sae(folder)
    assert sae.scale == 0.37
    wanted_TF = ((0.37 * x_TD - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    torch.testing.assert_close(sae.encode(x_TD), wanted_TF)
    torch.testing.assert_close(sae.reconstruct(x_TD), (wanted_TF @ w["W_dec"] + w["b_dec"]) / 0.37)


def test_log_threshold_of_older_training_checkpoints(tmp_path):
    folder = copy_case(JUMPRELU, tmp_path)
    path = folder / "sae_weights.safetensors"
    change_tensors(path, log_threshold=load_file(path)["threshold"].log(), threshold=None)
    torch.testing.assert_close(import_sae(folder).threshold, import_sae(FIXTURES / JUMPRELU).threshold)


def test_training_of_batchtopk_rescales_unless_told_not_to(tmp_path):
    folder = copy_case("saelens/training_batchtopk", tmp_path)
    change_json(folder / "cfg.json", rescale_acts_by_decoder_norm=None)
    wanted = import_sae(FIXTURES / "saelens/training_batchtopk")
    assert torch.equal(import_sae(folder).encode(residuals()), wanted.encode(residuals()))


# --- expected_average_only_in -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, '{"scaling_factor": null}'])
def test_an_unknown_activation_norm_is_refused(tmp_path, content):
    folder = copy_case(SCALED, tmp_path)
    (folder / "activation_scaler.json").unlink()
    if content is not None:
        (folder / "activation_scaler.json").write_text(content)
    message = refusal(folder)
    assert "expected_average_only_in" in message
    assert "must be stated" in message
    stated = import_sae(folder, scale=0.37)
    assert torch.equal(stated.encode(residuals()), import_sae(FIXTURES / SCALED).encode(residuals()))
    assert any("0.37, as stated" in sentence for sentence in stated.manifest.training["import"]["assumed"])


@pytest.mark.parametrize("factor", [0, -1.5, "0.3", True])
def test_a_factor_is_a_positive_number(tmp_path, factor):
    folder = copy_case(SCALED, tmp_path)
    change_json(folder / "activation_scaler.json", scaling_factor=factor)
    assert f"scaling_factor must be a positive number, got {factor!r}" in refusal(folder)


def test_a_factor_can_not_be_contradicted():
    assert "scale is 0.37 according to the file, got 0.5" in refusal(FIXTURES / SCALED, scale=0.5)
    assert import_sae(FIXTURES / SCALED, scale=0.37).scale == 0.37


def test_a_factor_that_was_folded_is_left_alone(tmp_path):
    folder = copy_case(STANDARD, tmp_path)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 2.0}')
    assert import_sae(folder).scale == 1.0


# --- versions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "is_old"),
    [("6.0.0-rc.0", False), ("6.54.12", False), ("10.0.0", False), ("5.11.0", True), (None, True)],
)
def test_versions_are_told_apart(tmp_path, version, is_old):
    folder = copy_case(STANDARD, tmp_path)
    metadata = config(folder)["metadata"] | {"sae_lens_version": version}
    change_json(folder / "cfg.json", metadata=metadata, hook_name="blocks.9.hook_resid_post")
    manifest = import_sae(folder).manifest
    assert ("before 6" in manifest.training["import"]["format"]) is is_old
    # The flat layout has the hook point outside the metadata.
    assert manifest.hook_point == ("layers.9.output" if is_old else "layers.3.output")


@pytest.mark.parametrize(("value", "scale"), [(True, 0.5), ("expected_average_only_in", 0.5), (False, 1), (None, 1)])
def test_old_values_of_normalize_activations(tmp_path, value, scale):
    folder = copy_case("saelens_old/standard", tmp_path)
    content = config(folder) | {"normalize_activations": value}
    (folder / "cfg.json").write_text(json.dumps(content))
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.5}')
    assert import_sae(folder).scale == scale


def test_prepend_bos(tmp_path):
    folder = copy_case(STANDARD, tmp_path)
    metadata = config(folder)["metadata"]
    for value, policy in ((True, "always"), (False, "never"), (None, "unknown")):
        change_json(folder / "cfg.json", metadata=metadata | {"prepend_bos": value})
        assert import_sae(folder).manifest.bos_policy == policy


def test_the_name_in_transformers_words_will_do(tmp_path):
    folder = copy_case(STANDARD, tmp_path)
    metadata = config(folder)["metadata"] | {"hook_name": None, "hf_hook_name": "model.layers.8"}
    change_json(folder / "cfg.json", metadata=metadata)
    assert import_sae(folder).manifest.hook_point == "layers.8.output"


# --- the old finetuning factor ----------------------------------------------------------------------------------------


def test_a_finetuning_factor_that_is_not_announced_is_refused(tmp_path):
    folder = copy_case("saelens_old/finetuned", tmp_path)
    change_json(folder / "cfg.json", finetuning_scaling_factor=False)
    assert "scaling_factor must be all ones where finetuning_scaling_factor is false" in refusal(folder)


def test_a_finetuning_factor_changes_reconstructions_alone():
    sae, wanted = import_sae(FIXTURES / "saelens_old/finetuned"), oracle(FIXTURES / "saelens_old/finetuned")
    w = load_file(FIXTURES / "saelens_old/finetuned/sae_weights.safetensors")
    assert not torch.allclose(w["scaling_factor"], torch.ones(NUM_LATENTS))
    x_hat_TD = (sae.encode(wanted.x_TD) * w["scaling_factor"]) @ w["W_dec"] + w["b_dec"]
    torch.testing.assert_close(x_hat_TD, wanted.x_hat_TD)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "architecture",
    ["transcoder", "skip_transcoder", "jumprelu_transcoder", "temporal", "matching_pursuit", "abstopk", "mystery", 3],
)
def test_other_architectures_are_refused_by_name(tmp_path, architecture):
    folder = copy_case(STANDARD, tmp_path)
    change_json(folder / "cfg.json", architecture=architecture)
    wanted = "standard, jumprelu, topk, gated, batchtopk, matryoshka_batchtopk"
    assert f"architecture must be one of {wanted}, got {architecture!r}" in refusal(folder)


@pytest.mark.parametrize("normalize", ["covariance_whitening", "constant_scalar_rescale", "mystery"])
def test_other_normalisations_are_refused_by_name(tmp_path, normalize):
    folder = copy_case(STANDARD, tmp_path)
    change_json(folder / "cfg.json", normalize_activations=normalize)
    wanted = "none, expected_average_only_in, constant_norm_rescale, layer_norm"
    assert f"normalize_activations must be one of {wanted}, got {normalize!r}" in refusal(folder)


def test_an_old_activation_function_is_refused_by_name(tmp_path):
    folder = copy_case("saelens_old/standard", tmp_path)
    change_json(folder / "cfg.json", activation_fn_str="tanh-relu")
    assert "'standard with activation_fn tanh-relu'" in refusal(folder)


@pytest.mark.parametrize("k", [None, 0, 41, 5.0, True])
def test_k_is_a_whole_number(tmp_path, k):
    folder = copy_case("saelens/topk", tmp_path)
    change_json(folder / "cfg.json", k=k)
    assert f"k must be a whole number in 1..40, got {k!r}" in refusal(folder)


def test_attention_heads_are_refused(tmp_path):
    folder = copy_case(STANDARD, tmp_path)
    change_json(folder / "cfg.json", reshape_activations="hook_z")
    assert "reshape_activations must be none" in refusal(folder)
    folder = copy_case("saelens_old/standard", tmp_path)
    change_json(folder / "cfg.json", hook_name="blocks.3.attn.hook_z")
    assert "reshape_activations must be none" in refusal(folder)
    change_json(folder / "cfg.json", hook_name="blocks.3.hook_resid_pre", hook_head_index=2)
    assert "hook_head_index must be null" in refusal(folder)


def test_other_hook_points_are_refused(tmp_path):
    folder = copy_case(STANDARD, tmp_path)
    metadata = config(folder)["metadata"] | {"hook_name": "blocks.3.hook_mlp_out"}
    change_json(folder / "cfg.json", metadata=metadata)
    assert "place in the residual stream, got 'blocks.3.hook_mlp_out'" in refusal(folder)


def test_metadata_is_an_object(tmp_path):
    folder = copy_case(STANDARD, tmp_path)
    change_json(folder / "cfg.json", metadata=[1], sae_lens_version="6.0.0")
    assert "metadata must be an object, got [1]" in refusal(folder)
