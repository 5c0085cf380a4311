"""Gemma Scope: no configuration, so the path is read; the decoder bias is not subtracted."""

import json
import shutil

import numpy as np
import pytest
import torch
from format_files import FIXTURES, change_json, change_tensors, copy_case, refusal, residuals

from sae_runtime.formats import import_sae

NPZ = FIXTURES / "published/gemma_scope/gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_82/params.npz"
EMBEDDING = (
    FIXTURES / "published/gemma_scope_embedding/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6/params.npz"
)
SECOND = "published/gemma_scope_2/resid_post/layer_3_width_16k_l0_small"


def arrays() -> dict[str, np.ndarray]:
    with np.load(NPZ) as content:
        return dict(content)


def written(folder, **changes):
    """A params.npz in `folder` with some arrays changed, or taken out where they are None."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **{name: a for name, a in (arrays() | changes).items() if a is not None})
    return folder / "params.npz"


def test_the_maths_by_hand():
    w, x_TD = {name: torch.from_numpy(array) for name, array in arrays().items()}, residuals()
    pre_TF = x_TD @ w["W_enc"] + w["b_enc"]  # b_dec is not subtracted
    f_TF = torch.where(pre_TF > w["threshold"], pre_TF.relu(), 0.0)
    sae = import_sae(NPZ)
    torch.testing.assert_close(sae.encode(x_TD), f_TF)
    torch.testing.assert_close(sae.reconstruct(x_TD), f_TF @ w["W_dec"] + w["b_dec"])


def test_the_path_says_what_the_file_does_not():
    manifest = import_sae(NPZ).manifest
    assert manifest.hook_point == "layers.3.output"
    assert manifest.model_name == "gemma-2-2b"
    assert manifest.bos_policy == "always"
    assert manifest.training["import"]["expected_l0"] == 82


@pytest.mark.parametrize(
    ("folder", "model"),
    [("gemma-scope-9b-it-res", "gemma-2-9b-it"), ("models--google--gemma-scope-2b-pt-res", "gemma-2-2b")],
)
def test_models_by_the_repository(tmp_path, folder, model):
    assert import_sae(written(tmp_path / folder / "layer_5")).manifest.model_name == model


@pytest.mark.parametrize("site", ["att", "mlp", "transcoders"])
def test_other_sites_are_refused(tmp_path, site):
    path = written(tmp_path / f"gemma-scope-2b-pt-{site}" / "layer_5")
    assert f"place in the residual stream, got Gemma Scope's '{site}'" in refusal(path)


def test_a_layer_without_a_site_is_assumed_to_be_the_residual(tmp_path):
    manifest = import_sae(written(tmp_path / "layer_5")).manifest
    assert manifest.hook_point == "layers.5.output"
    assert any("no site" in sentence for sentence in manifest.training["import"]["assumed"])


def test_without_a_layer_the_hook_point_is_unknown(tmp_path):
    assert import_sae(written(tmp_path / "somewhere")).manifest.hook_point == "unknown"


def test_embeddings_are_rescaled_to_those_the_model_computes_with():
    with np.load(EMBEDDING) as content:
        W_enc = torch.from_numpy(content["W_enc"])
    sae = import_sae(EMBEDDING)
    torch.testing.assert_close(sae.W_enc, W_enc / 12**0.5)
    assert sae.manifest.hook_point == "layers.0.input"


def test_lower_case_names_and_double_precision(tmp_path):
    lower = {name.lower(): array.astype(np.float64) for name, array in arrays().items()}
    gone = dict.fromkeys(("W_enc", "W_dec"))
    sae = import_sae(written(tmp_path / "layer_3", **(gone | lower)))
    assert torch.equal(sae.encode(residuals()), import_sae(NPZ).encode(residuals()))


def test_square_matrices_are_ambiguous(tmp_path):
    square, vector = np.zeros((12, 12), np.float32), np.zeros(12, np.float32)
    path = written(tmp_path, W_enc=square, W_dec=square, b_enc=vector, threshold=vector)
    assert "the matrices are square (12 x 12)" in refusal(path)


def test_matrices_the_wrong_way_round_are_refused(tmp_path):
    path = written(tmp_path, W_enc=arrays()["W_enc"].T)
    assert "tensor W_enc must have shape [12, 40], got [40, 12]" in refusal(path)


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "threshold"])
def test_missing_arrays(tmp_path, name):
    assert f"missing tensor {name}" in refusal(written(tmp_path, **{name: None}))


@pytest.mark.parametrize("name", ["b_enc", "b_dec"])
def test_biases_say_how_wide_it_is(tmp_path, name):
    assert f"tensor {name} must be there and have one dimension" in refusal(written(tmp_path, **{name: None}))


def test_a_scale_is_refused():
    assert "scale is 1 according to the file" in refusal(NPZ, scale=2.0)


# --- Gemma Scope 2 ----------------------------------------------------------------------------------------------------


def test_the_second_has_a_configuration(tmp_path):
    manifest = import_sae(FIXTURES / SECOND).manifest
    assert (manifest.hook_point, manifest.model_name) == ("layers.3.output", "gemma-3-1b-it")
    folder = copy_case(SECOND, tmp_path)
    change_json(folder / "config.json", hf_hook_point_in="model.layers.7.output")
    assert import_sae(folder).manifest.hook_point == "layers.7.output"


@pytest.mark.parametrize(
    ("path", "hook_point"), [("resid_post/layer_5_width_16k", "layers.5.output"), ("layer_5_width_16k", "unknown")]
)
def test_the_second_without_its_configuration(tmp_path, path, hook_point):
    shutil.copytree(FIXTURES / SECOND, tmp_path / path)
    (tmp_path / path / "config.json").unlink()
    assert import_sae(tmp_path / path).manifest.hook_point == hook_point


@pytest.mark.parametrize("site", ["mlp_out", "attn_out", "transcoder"])
def test_other_sites_of_the_second_are_refused(tmp_path, site):
    folder = tmp_path / site / "layer_5_width_16k"
    shutil.copytree(FIXTURES / SECOND, folder)
    (folder / "config.json").unlink()
    assert f"place in the residual stream, got '{site}'" in refusal(folder)


def test_transcoders_are_refused(tmp_path):
    folder = copy_case(SECOND, tmp_path)
    change_json(folder / "config.json", hf_hook_point_out="model.layers.3.post_feedforward_layernorm.output")
    assert "transcoder" in refusal(folder)
    change_json(folder / "config.json", hf_hook_point_out=None)
    change_tensors(folder / "params.safetensors", affine_skip_connection=torch.zeros(12, 12))
    assert "affine_skip_connection" in refusal(folder)


def test_another_architecture_is_refused(tmp_path):
    folder = copy_case(SECOND, tmp_path)
    (folder / "config.json").write_text(json.dumps({"architecture": "topk"}))
    assert "architecture must be jump_relu, got 'topk'" in refusal(folder)
