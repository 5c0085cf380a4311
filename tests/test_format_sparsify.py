"""sparsify: the decoder is not transposed, the folder is the hook point, and what can't be expressed is refused."""

import shutil

import pytest
import torch
from format_files import FIXTURES, change_json, change_tensors, copy_case, refusal, residuals
from safetensors.torch import load_file

from sae_runtime.formats import import_sae

TOPK = "sparsify/topk/layers.3"


def test_the_maths_by_hand():
    w, x_TD = load_file(FIXTURES / TOPK / "sae.safetensors"), residuals()
    pre_TF = ((x_TD - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]).relu()
    top = pre_TF.topk(5, dim=-1)
    f_TF = torch.zeros_like(pre_TF).scatter(-1, top.indices, top.values)
    sae = import_sae(FIXTURES / TOPK)
    torch.testing.assert_close(sae.encode(x_TD), f_TF)
    torch.testing.assert_close(sae.reconstruct(x_TD), f_TF @ w["W_dec"] + w["b_dec"])


def test_the_decoder_is_not_transposed(tmp_path):
    folder = copy_case(TOPK, tmp_path)
    path = folder / "sae.safetensors"
    assert torch.equal(import_sae(folder).W_dec, load_file(path)["W_dec"])
    change_tensors(path, W_dec=load_file(path)["W_dec"].T)
    assert "tensor W_dec must have shape [40, 12], got [12, 40]" in refusal(folder)


def test_a_square_one_is_read_as_the_format_has_it(tmp_path):
    folder = tmp_path / "layers.3"
    shutil.copytree(FIXTURES / TOPK, folder)
    change_json(folder / "cfg.json", num_latents=12)
    square = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
    changes = {"encoder__weight": square, "W_dec": square, "encoder__bias": torch.zeros(12)}
    change_tensors(folder / "sae.safetensors", **changes)
    sae = import_sae(folder)
    assert torch.equal(sae.W_enc, square.T)
    assert torch.equal(sae.W_dec, square)


def test_no_number_of_latents_means_the_expansion_factor():
    sae = import_sae(FIXTURES / "sparsify/expansion_factor/layers.3")
    assert sae.num_latents == 48


@pytest.mark.parametrize("field", ["activation", "normalize_decoder", "multi_topk", "skip_connection", "transcode"])
def test_older_configurations_lack_fields(tmp_path, field):
    folder = copy_case(TOPK, tmp_path)
    change_json(folder / "cfg.json", **{field: None})
    assert torch.equal(import_sae(folder).encode(residuals()), import_sae(FIXTURES / TOPK).encode(residuals()))


@pytest.mark.parametrize(
    ("name", "hook_point"),
    [
        ("layers.16", "layers.16.output"),
        ("model.layers.16", "layers.16.output"),
        ("h.5", "layers.5.output"),
        ("embed_tokens", "layers.0.input"),
        ("layers.3/seed1", "layers.3.output"),
        ("anything", "unknown"),
    ],
)
def test_the_folder_is_the_hook_point(tmp_path, name, hook_point):
    shutil.copytree(FIXTURES / TOPK, tmp_path / name)
    assert import_sae(tmp_path / name).manifest.hook_point == hook_point


def test_the_run_names_the_model():
    assert import_sae(FIXTURES / TOPK).manifest.model_name == "tiny-llama"
    assert import_sae(FIXTURES / "sparsify/seeds/layers.3/seed1").manifest.model_name == "tiny-llama"


def test_without_the_run_the_model_is_unknown(tmp_path):
    shutil.copytree(FIXTURES / TOPK, tmp_path / "layers.3")
    assert import_sae(tmp_path / "layers.3").manifest.model_name == "unknown"


def test_groupmax_is_refused_by_name():
    assert "activation must be topk, got 'groupmax'" in refusal(FIXTURES / "sparsify/groupmax/layers.3")


def test_transcoders_are_refused():
    assert "transcode must be false" in refusal(FIXTURES / "sparsify/transcoder/layers.3.mlp")


def test_skip_connections_are_refused(tmp_path):
    assert "skip_connection must be false" in refusal(FIXTURES / "sparsify/skip/layers.3")
    folder = copy_case("sparsify/skip/layers.3", tmp_path)
    change_json(folder / "cfg.json", skip_connection=False)
    assert "unexpected tensor W_skip" in refusal(folder)


def test_negative_latents_are_refused(tmp_path):
    folder = copy_case(TOPK, tmp_path)
    change_json(folder / "cfg.json", signed=False)
    import_sae(folder)
    change_json(folder / "cfg.json", signed=True)
    assert "signed must be false" in refusal(folder)


def test_an_mlp_is_refused(tmp_path):
    shutil.copytree(FIXTURES / TOPK, tmp_path / "layers.16.mlp")
    assert "place in the residual stream, got 'layers.16.mlp'" in refusal(tmp_path / "layers.16.mlp")


def test_a_scale_is_refused():
    assert "scale is 1 according to the file" in refusal(FIXTURES / TOPK, scale=2.0)


@pytest.mark.parametrize("k", [None, 0, 41, "5"])
def test_k_is_a_whole_number(tmp_path, k):
    folder = copy_case(TOPK, tmp_path)
    change_json(folder / "cfg.json", k=k)
    assert f"k must be a whole number in 1..40, got {k!r}" in refusal(folder)
