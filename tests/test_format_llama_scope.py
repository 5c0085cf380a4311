"""Llama Scope and Llamascopium: the scale of the data, the units of the threshold, gates that measure decoder norms."""

import json
import math

import pytest
import torch
from format_files import FIXTURES, change_json, change_tensors, copy_case, refusal, residuals
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_runtime.formats import import_sae

FIRST = "published/llama_scope/Llama3_1-8B-Base-L3R-8x"
SECOND = "published/llama_scope_r1/800M-Slimpajama-0-OpenR1-Math-220k/L3R"
SCALE = math.sqrt(12) / 5.5


def openmoss(w: dict[str, Tensor], x_TD: Tensor, threshold: Tensor | float, *, by_norms: bool) -> Tensor:
    """OpenMOSS's encoder for inputs in the mode its weights are in: f = pre where pre * ||W_dec row|| > threshold."""
    pre_TF = x_TD @ w["encoder.weight"].T + w["encoder.bias"]
    norms_F = w["decoder.weight"].norm(dim=0) if by_norms else 1.0
    return torch.where(pre_TF * norms_F > threshold, pre_TF, 0.0)


def inference_mode(w: dict[str, Tensor]) -> dict[str, Tensor]:
    """What OpenMOSS does to the weights of an SAE before it runs them on activations as they are."""
    biases = {name: w[name] / SCALE for name in ("encoder.bias", "decoder.bias")}
    return w | biases


# --- Llama Scope ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_norms", [False, True])
def test_equals_their_own_inference_mode_times_the_scale(tmp_path, by_norms):
    """The threshold is in units of the unscaled residual; decoder rows of all norms."""
    folder = copy_case(FIRST, tmp_path)
    weights = folder / "checkpoints/final.safetensors"
    generator = torch.Generator().manual_seed(0)
    change_tensors(weights, decoder__weight=torch.randn(12, 40, generator=generator) * 0.4)
    change_json(folder / "hyperparams.json", sparsity_include_decoder_norm=by_norms)
    w, x_TD = inference_mode(load_file(weights)), residuals()
    theirs_TF = openmoss(w, x_TD, 0.25, by_norms=by_norms)
    sae = import_sae(folder)
    torch.testing.assert_close(sae.encode(x_TD), theirs_TF * SCALE)
    x_hat_TD = theirs_TF @ w["decoder.weight"].T + w["decoder.bias"]
    torch.testing.assert_close(sae.reconstruct(x_TD), x_hat_TD)


def test_the_threshold_is_multiplied_by_the_scale(tmp_path):
    folder = copy_case(FIRST, tmp_path)
    change_json(folder / "hyperparams.json", sparsity_include_decoder_norm=False)
    sae = import_sae(folder)
    assert sae.scale == pytest.approx(SCALE)
    assert sae.threshold.tolist() == pytest.approx([0.25 * SCALE] * 40)


def test_what_it_says_of_itself():
    manifest = import_sae(FIXTURES / FIRST).manifest
    assert manifest.hook_point == "layers.3.output"
    assert manifest.model_name == "meta-llama/Llama-3.1-8B"
    assert not manifest.apply_b_dec


def test_already_in_inference_mode(tmp_path):
    folder = copy_case(FIRST, tmp_path)
    change_json(folder / "hyperparams.json", norm_activation="inference", sparsity_include_decoder_norm=False)
    w, x_TD = load_file(folder / "checkpoints/final.safetensors"), residuals()
    torch.testing.assert_close(import_sae(folder).encode(x_TD), openmoss(w, x_TD, 0.25, by_norms=False))


def test_a_decoder_bias_that_is_subtracted(tmp_path):
    folder = copy_case(FIRST, tmp_path)
    change_json(folder / "hyperparams.json", apply_decoder_bias_to_pre_encoder=True)
    assert import_sae(folder).apply_b_dec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "topk"}, "act_fn must be jumprelu, got 'topk'"),
        ({"norm_activation": "token-wise"}, "norm_activation must be one of dataset-wise, inference, got 'token-wise'"),
        ({"use_glu_encoder": True}, "use_glu_encoder must be false"),
        ({"hook_point_out": "blocks.3.hook_mlp_out"}, "a transcoder"),
        ({"jump_relu_threshold": None}, "jump_relu_threshold must be a positive number, got None"),
        ({"jump_relu_threshold": -0.1}, "jump_relu_threshold must be a positive number, got -0.1"),
        ({"dataset_average_activation_norm": None}, "dataset_average_activation_norm must be of type dict, got None"),
        (
            {"dataset_average_activation_norm": {"in": 0}},
            "dataset_average_activation_norm.in must be a positive number",
        ),
        (
            {"dataset_average_activation_norm": {"in": 5, "out": 6}},
            "must be the same on the way in and out, got 5 and 6",
        ),
        ({"d_sae": 41}, "tensor encoder.weight must have shape [41, 12], got [40, 12]"),
        (
            {"hook_point_in": "blocks.3.hook_attn_out", "hook_point_out": None},
            "place in the residual stream, got 'blocks.3.hook_attn_out'",
        ),
    ],
)
def test_refusals(tmp_path, changes, message):
    folder = copy_case(FIRST, tmp_path)
    change_json(folder / "hyperparams.json", **changes)
    assert message in refusal(folder)


def test_a_scale_can_be_repeated_not_contradicted():
    assert import_sae(FIXTURES / FIRST, scale=SCALE).scale == pytest.approx(SCALE)
    assert "according to the file, got 2" in refusal(FIXTURES / FIRST, scale=2.0)


def test_without_a_decoder_bias(tmp_path):
    folder = copy_case(FIRST, tmp_path)
    change_json(folder / "hyperparams.json", use_decoder_bias=False)
    assert "unexpected tensor decoder.bias" in refusal(folder)
    change_tensors(folder / "checkpoints/final.safetensors", decoder__bias=None)
    assert import_sae(folder).b_dec.abs().max() == 0


# --- R1-Distill and Llamascopium --------------------------------------------------------------------------------------


def written(folder, *, act_fn="jumprelu", names="new", **changes):
    """A Llamascopium checkpoint, under the names of R1-Distill or of today. Returns its weights under the old names."""
    folder.mkdir(parents=True, exist_ok=True)
    w = load_file(FIXTURES / SECOND / "sae_weights.safetensors")
    norm = {"dataset_average_activation_norm.blocks.3.hook_resid_post": torch.tensor(5.5)}
    log_threshold = {"activation_function.log_jumprelu_threshold": w["log_jumprelu_threshold"]}
    tensors = {
        "W_E": w["encoder.weight"].T.contiguous(),
        "b_E": w["encoder.bias"],
        "W_D": w["decoder.weight"].T.contiguous(),
        "b_D": w["decoder.bias"],
    }
    tensors |= norm | (log_threshold if act_fn == "jumprelu" else {})
    save_file(w if names == "old" else tensors, folder / "sae_weights.safetensors")
    config = json.loads((FIXTURES / SECOND / "config.json").read_text()) | {"act_fn": act_fn, "top_k": 5} | changes
    (folder / "config.json").write_text(json.dumps(config))
    return w


@pytest.mark.parametrize("names", ["old", "new"])
@pytest.mark.parametrize("by_norms", [False, True])
def test_thresholds_of_the_second_are_in_units_of_the_scaled_residual(tmp_path, names, by_norms):
    w, x_TD = written(tmp_path, names=names, sparsity_include_decoder_norm=by_norms), residuals()
    sae = import_sae(tmp_path)
    f_TF = openmoss(w, x_TD * SCALE, w["log_jumprelu_threshold"].exp(), by_norms=by_norms)
    torch.testing.assert_close(sae.encode(x_TD), f_TF)
    torch.testing.assert_close(sae.reconstruct(x_TD), (f_TF @ w["decoder.weight"].T + w["decoder.bias"]) / SCALE)


def test_token_wise_normalisation(tmp_path):
    w, x_TD = written(tmp_path, norm_activation="token-wise"), residuals()
    scale_T1 = 12**0.5 / x_TD.norm(dim=-1, keepdim=True)
    f_TF = openmoss(w, x_TD * scale_T1, w["log_jumprelu_threshold"].exp(), by_norms=False)
    torch.testing.assert_close(import_sae(tmp_path).encode(x_TD), f_TF)


def test_inference_mode_of_the_second(tmp_path):
    w, x_TD = written(tmp_path, norm_activation="inference"), residuals()
    f_TF = openmoss(w, x_TD, w["log_jumprelu_threshold"].exp(), by_norms=False)
    torch.testing.assert_close(import_sae(tmp_path).encode(x_TD), f_TF)


def test_relu(tmp_path):
    w, x_TD = written(tmp_path, act_fn="relu"), residuals()
    torch.testing.assert_close(import_sae(tmp_path).encode(x_TD), openmoss(w, x_TD * SCALE, 0.0, by_norms=False))


@pytest.mark.parametrize("by_norms", [False, True])
def test_topk_that_ranks_by_decoder_norms_has_latents_in_their_units(tmp_path, by_norms):
    w, x_TD = written(tmp_path, act_fn="topk", sparsity_include_decoder_norm=by_norms), residuals()
    norms_F = w["decoder.weight"].norm(dim=0) if by_norms else torch.ones(40)
    ranked_TF = ((x_TD * SCALE) @ w["encoder.weight"].T + w["encoder.bias"]) * norms_F
    top = ranked_TF.topk(5, dim=-1)
    f_TF = torch.zeros_like(ranked_TF).scatter(-1, top.indices, top.values.relu())
    sae = import_sae(tmp_path)
    torch.testing.assert_close(sae.encode(x_TD), f_TF)
    x_hat_TD = ((f_TF / norms_F) @ w["decoder.weight"].T + w["decoder.bias"]) / SCALE
    torch.testing.assert_close(sae.reconstruct(x_TD), x_hat_TD)


def test_a_pytorch_file(tmp_path):
    written(tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    torch.save({"sae": load_file(path), "version": "2.0"}, tmp_path / "sae_weights.pt")
    wanted = import_sae(tmp_path)
    path.unlink()
    for place in (tmp_path, tmp_path / "sae_weights.pt"):
        assert torch.equal(import_sae(place).encode(residuals()), wanted.encode(residuals()))


def test_the_average_norm_may_have_to_be_stated(tmp_path):
    written(tmp_path, names="old")
    wanted = import_sae(tmp_path)
    change_tensors(
        tmp_path / "sae_weights.safetensors", dataset_average_activation_norm__blocks__3__hook_resid_post=None
    )
    message = refusal(tmp_path)
    assert "the weights hold no dataset_average_activation_norm" in message
    assert "must be stated" in message
    torch.testing.assert_close(import_sae(tmp_path, scale=SCALE).encode(residuals()), wanted.encode(residuals()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sae_type": "clt"}, "sae_type must be sae, got 'clt'"),
        ({"act_fn": "batchtopk"}, "act_fn must be one of relu, jumprelu, topk, got 'batchtopk'"),
        (
            {"norm_activation": "batch-wise"},
            "must be one of dataset-wise, token-wise, inference, got 'batch-wise'",
        ),
        ({"use_glu_encoder": True}, "use_glu_encoder must be false"),
        ({"hook_point_out": "blocks.3.hook_mlp_out"}, "a transcoder"),
        ({"expansion_factor": None}, "expansion_factor must be a positive number"),
        ({"d_model": None}, "d_model must be of type int"),
    ],
)
def test_refusals_of_the_second(tmp_path, changes, message):
    written(tmp_path, **changes)
    assert message in refusal(tmp_path)


def test_an_average_norm_that_is_none(tmp_path):
    written(tmp_path)
    change_tensors(
        tmp_path / "sae_weights.safetensors",
        dataset_average_activation_norm__blocks__3__hook_resid_post=torch.tensor(0.0),
    )
    assert "must be a positive number, got 0.0" in refusal(tmp_path)


def test_distributed_checkpoints_are_refused(tmp_path):
    written(tmp_path)
    (tmp_path / "sae_weights.safetensors").unlink()
    (tmp_path / "sae_weights.dcp").mkdir()
    assert "distributed checkpoint" in refusal(tmp_path)
