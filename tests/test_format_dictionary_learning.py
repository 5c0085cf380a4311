"""dictionary_learning: which class subtracts what, backups of training, and thresholds that were never set."""

import json
from pathlib import Path

import pytest
import torch
from format_files import FIXTURES, change_json, change_tensors, copy_case, refusal, residuals

from sae_runtime.formats import import_sae

ROOT = "dictionary_learning"


def case(name: str) -> str:
    return f"{ROOT}/{name}/trainer_0"


def weights(name: str) -> dict[str, torch.Tensor]:
    return torch.load(FIXTURES / case(name) / "ae.pt", weights_only=True)


def change_trainer(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    trainer = {name: value for name, value in (config["trainer"] | changes).items() if value is not None}
    change_json(folder / "config.json", trainer=trainer)


# --- the maths, by hand -----------------------------------------------------------------------------------------------


def test_jumprelu_does_not_subtract_the_decoder_bias():
    w, x_TD = weights("jumprelu"), residuals()
    pre_TF = x_TD @ w["W_enc"] + w["b_enc"]
    torch.testing.assert_close(
        import_sae(FIXTURES / case("jumprelu")).encode(x_TD), pre_TF.relu() * (pre_TF > w["threshold"])
    )


def test_standard_subtracts_it_and_its_new_form_does_not():
    x_TD = residuals()
    w = weights("standard")
    wanted_TF = ((x_TD - w["bias"]) @ w["encoder.weight"].T + w["encoder.bias"]).relu()
    torch.testing.assert_close(import_sae(FIXTURES / case("standard")).encode(x_TD), wanted_TF)
    w = weights("standard_new")
    wanted_TF = (x_TD @ w["encoder.weight"].T + w["encoder.bias"]).relu()
    torch.testing.assert_close(import_sae(FIXTURES / case("standard_new")).encode(x_TD), wanted_TF)


def test_batchtopk_is_read_by_its_threshold():
    w, x_TD = weights("batchtopk"), residuals()
    post_TF = ((x_TD - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]).relu()
    sae = import_sae(FIXTURES / case("batchtopk"))
    assert sae.activation == "batchtopk"
    torch.testing.assert_close(sae.encode(x_TD), post_TF * (post_TF > w["threshold"]))


def test_the_threshold_of_topk_is_left_aside():
    sae = import_sae(FIXTURES / case("topk"))
    assert (sae.activation, sae.k) == ("topk", 5)
    assert (sae.encode(residuals()) > 0).sum(-1).max() <= 5


# --- backups ----------------------------------------------------------------------------------------------------------


def test_biases_of_a_backup_are_multiplied_by_the_norm():
    content, sae = weights("backup"), import_sae(FIXTURES / case("backup"))
    assert content["norm_factor"] == 3.25
    for name, ours in (("encoder.bias", "b_enc"), ("b_dec", "b_dec"), ("threshold", "threshold")):
        torch.testing.assert_close(getattr(sae, ours).data, content["ae"][name] * 3.25)
    assert torch.equal(sae.W_enc, content["ae"]["encoder.weight"].T)
    assert any("norm_factor 3.25" in sentence for sentence in sae.manifest.training["import"]["assumed"])


def test_a_backup_that_was_not_normalised(tmp_path):
    folder = copy_case(case("backup"), tmp_path)
    content = torch.load(folder / "ae.pt", weights_only=True)
    torch.save(content | {"norm_factor": None}, folder / "ae.pt")
    torch.testing.assert_close(import_sae(folder).b_enc.data, content["ae"]["encoder.bias"])
    torch.save(content | {"norm_factor": torch.tensor(2.0)}, folder / "ae.pt")
    torch.testing.assert_close(import_sae(folder).b_enc.data, content["ae"]["encoder.bias"] * 2)


@pytest.mark.parametrize("factor", [0.0, -1.0, "3"])
def test_a_norm_is_a_positive_number(tmp_path, factor):
    folder = copy_case(case("backup"), tmp_path)
    content = torch.load(folder / "ae.pt", weights_only=True)
    torch.save(content | {"norm_factor": factor}, folder / "ae.pt")
    assert f"norm_factor must be a positive number, got {factor!r}" in refusal(folder)


def test_a_backup_without_its_norm_is_refused(tmp_path):
    folder = copy_case(case("backup"), tmp_path)
    content = torch.load(folder / "ae.pt", weights_only=True)
    del content["norm_factor"]
    torch.save(content, folder / "ae.pt")
    assert "a backup of training must hold norm_factor, got step, ae, optimizer, config" in refusal(folder)


# --- what the configuration says --------------------------------------------------------------------------------------


def test_what_it_says_of_itself():
    manifest = import_sae(FIXTURES / case("topk")).manifest
    assert (manifest.hook_point, manifest.model_name) == ("layers.3.output", "tiny-llama")
    assert manifest.training["import"]["expected_l0"] == 5
    assert manifest.training["import"]["found"] == {"ctx_len": 64}


def test_a_layer_without_a_submodule_is_assumed_to_be_the_residual(tmp_path):
    folder = copy_case(case("topk"), tmp_path)
    change_trainer(folder, submodule_name=None)
    manifest = import_sae(folder).manifest
    assert manifest.hook_point == "layers.3.output"
    assert any("no submodule_name" in sentence for sentence in manifest.training["import"]["assumed"])
    change_trainer(folder, layer=None)
    assert import_sae(folder).manifest.hook_point == "unknown"


@pytest.mark.parametrize("submodule", ["attn_out_layer_3", "mlp_out_layer_3"])
def test_other_submodules_are_refused(tmp_path, submodule):
    folder = copy_case(case("topk"), tmp_path)
    change_trainer(folder, submodule_name=submodule)
    assert f"place in the residual stream, got {submodule!r}" in refusal(folder)


@pytest.mark.parametrize("name", ["IdentityDict", "CrossCoder", None])
def test_other_classes_are_refused_by_name(tmp_path, name):
    folder = copy_case(case("topk"), tmp_path)
    change_trainer(folder, dict_class=name)
    message = refusal(folder)
    assert "dict_class must be one of AutoEncoder, AutoEncoderNew, GatedAutoEncoder, " in message
    assert message.endswith(f"got {name!r}")


def test_two_ks_are_refused(tmp_path):
    folder = copy_case(case("topk"), tmp_path)
    change_trainer(folder, k=6)
    assert "k must be 6, as in config.json, got 5" in refusal(folder)


def test_k_of_older_files_is_in_the_configuration_alone(tmp_path):
    folder = copy_case(case("topk"), tmp_path)
    change_tensors(folder / "ae.pt", k=None, threshold=None)
    assert import_sae(folder).k == 5
    change_trainer(folder, k=None)
    assert "k must be a whole number in 1..40, got None" in refusal(folder)


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka"])
def test_a_threshold_that_was_never_set_is_refused(tmp_path, name):
    folder = copy_case(case(name), tmp_path)
    change_tensors(folder / "ae.pt", threshold=torch.tensor(-1.0))
    assert "threshold must be 0 or more, got -1: it was never set" in refusal(folder)


def test_a_missing_threshold_is_refused(tmp_path):
    folder = copy_case(case("batchtopk"), tmp_path)
    change_tensors(folder / "ae.pt", threshold=None)
    assert "missing tensor threshold []" in refusal(folder)


def test_another_class_than_the_configuration_has(tmp_path):
    folder = copy_case(case("gated"), tmp_path)
    change_trainer(folder, dict_class="AutoEncoder")
    message = refusal(folder)
    assert "missing tensor bias [12]" in message
    assert "unexpected tensor r_mag" in message


def test_a_scale_is_refused():
    assert "scale is 1 according to the file" in refusal(FIXTURES / case("topk"), scale=2.0)
