"""Importing: every format against what the library that owns it computes, and what an import says of itself."""

import hashlib
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from format_files import FIXTURES, NUM_LATENTS, assert_reads_as, change_tensors, copy_case, oracle, refusal, residuals
from serving import manifest as own_manifest

from sae_runtime.checkpoint import load_sae, save_sae
from sae_runtime.formats import UNKNOWN, import_sae
from sae_runtime.hook_point import HookPoint
from service.assembly import model_facts
from service.catalog import provenance_mismatches

CASES = sorted(
    str(path.parent.relative_to(FIXTURES))
    for path in FIXTURES.rglob("oracle.safetensors")
    if "exported" not in path.parts
)
STANDARD = FIXTURES / "saelens" / "standard"


def dictionary_path(case: str) -> Path:
    checkpoints = FIXTURES / case / "checkpoints" / "ae_50.pt"
    return checkpoints if checkpoints.exists() else FIXTURES / case


def test_every_library_has_its_cases():
    libraries = {case.split("/")[0] for case in CASES}
    assert libraries == {"saelens", "saelens_old", "sparsify", "dictionary_learning", "published"}
    assert len(CASES) >= 40


@pytest.mark.parametrize("case", CASES)
def test_reads_as_the_library_does(case):
    assert_reads_as(dictionary_path(case), oracle(FIXTURES / case))


@pytest.mark.parametrize("case", CASES)
def test_comes_back_from_our_own_format(case, tmp_path):
    imported = import_sae(dictionary_path(case))
    save_sae(imported, imported.manifest, tmp_path)
    loaded = load_sae(tmp_path)
    assert loaded.manifest == imported.manifest
    x_TD = oracle(FIXTURES / case).x_TD
    assert torch.equal(loaded.encode(x_TD), imported.encode(x_TD))
    assert torch.equal(loaded.reconstruct(x_TD), imported.reconstruct(x_TD))


# --- what is said of it -----------------------------------------------------------------------------------------------


def test_the_manifest_has_what_the_files_say():
    manifest = import_sae(STANDARD).manifest
    assert manifest.model_name == "tiny-llama"
    assert manifest.hook_point == "layers.3.output"
    assert manifest.bos_policy == "always"
    assert manifest.first_position == "unknown"
    assert (manifest.d_model, manifest.num_latents) == (12, 40)
    record = manifest.training["import"]
    assert record["format"] == "SAELens, standard"
    assert record["hook_name"] == "blocks.3.hook_resid_post"
    assert record["found"]["sae_lens_version"] == "6.54.12"
    assert record["assumed"] == []
    weights = (STANDARD / "sae_weights.safetensors").read_bytes()
    assert record["files"]["sae_weights.safetensors"] == hashlib.sha256(weights).hexdigest()


def test_assumptions_are_recorded():
    record = import_sae(FIXTURES / "published/goodfire").manifest.training["import"]
    assert any("not scaled" in sentence for sentence in record["assumed"])
    assert any("layer 19" in sentence for sentence in record["assumed"])


def test_an_imported_dictionary_is_unverified_for_every_model(model):
    manifest = import_sae(STANDARD).manifest
    assert manifest.model_sha256 == manifest.quantization == UNKNOWN
    mismatches = provenance_mismatches(manifest, model_facts(model))
    assert len(mismatches) == 2
    assert "model weights unknown" in mismatches[0]


def test_the_identity_is_that_of_the_saved_dictionary(tmp_path):
    imported = import_sae(STANDARD)
    saved = save_sae(imported, imported.manifest, tmp_path)
    assert imported.manifest.sae_sha256 == saved.sae_sha256
    assert imported.manifest.sae_sha256 != import_sae(FIXTURES / "saelens/jumprelu").manifest.sae_sha256


def test_the_dtype_is_that_of_the_weights():
    assert import_sae(FIXTURES / "saelens/standard_bfloat16").manifest.dtype == "bfloat16"
    assert import_sae(STANDARD).manifest.dtype == "float32"


def test_gradients_are_off_and_decode_is_the_dense_one():
    sae = import_sae(STANDARD)
    assert not any(parameter.requires_grad for parameter in sae.parameters())
    assert not sae.training
    wanted = oracle(STANDARD)
    torch.testing.assert_close(sae.decode(sae.encode(wanted.x_TD)), wanted.x_hat_TD)


# --- our own format ---------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    save_sae(tiny.sae(), own_manifest(), tmp_path / "own")
    return tmp_path / "own"


@pytest.mark.parametrize("file", [None, "sae.json", "sae.safetensors"])
def test_our_own_goes_straight_through(own, file):
    imported = import_sae(own / file if file else own)
    assert imported.manifest == load_sae(own).manifest
    assert torch.equal(imported.W_enc, load_sae(own).W_enc)


def test_our_own_says_everything_itself(own):
    assert "our own format" in refusal(own, scale=2.0)
    assert "our own format" in refusal(own, hook_point="layers.1.output")
    assert "our own format" in refusal(own, fold_decoder_norms=True)


# --- what the user states ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_is_positive_and_finite(scale):
    assert "scale must be positive and finite" in refusal(STANDARD, scale=scale)


def test_a_scale_the_file_contradicts_is_refused():
    assert "scale is 1 according to the file, got 4.6621" in refusal(STANDARD, scale=4.6621)
    assert import_sae(STANDARD, scale=1.0).scale == 1.0


def test_a_hook_point_the_file_contradicts_is_refused():
    message = refusal(STANDARD, hook_point="layers.5.output")
    assert "hook point is layers.3.output according to the file, got layers.5.output" in message
    assert import_sae(STANDARD, hook_point="layers.4.input").manifest.hook_point == "layers.3.output"


@pytest.mark.parametrize("stated", [{"k": 5}, {"threshold": 0.5}])
def test_what_the_format_has_itself_can_not_be_stated(stated):
    assert "k and threshold must be left out: SAELens, standard has its own" in refusal(STANDARD, **stated)


def test_a_hook_point_that_is_none_is_refused():
    assert "hook point must look like" in refusal(STANDARD, hook_point="layer 3")


def test_an_unknown_hook_point_is_said_to_be(tmp_path):
    path = tmp_path / "weights.pth"
    shutil.copy(FIXTURES / "published/goodfire/Llama-3.1-8B-Instruct-SAE-l19.pth", path)
    assert import_sae(path).manifest.hook_point == UNKNOWN
    stated = import_sae(path, hook_point=HookPoint(7))
    assert stated.manifest.hook_point == "layers.7.output"
    assert torch.equal(stated.W_enc, import_sae(path).W_enc)


# --- decoder norms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", ["saelens/standard", "saelens/jumprelu", "saelens/gated", "dictionary_learning/batchtopk/trainer_0"]
)
def test_folding_decoder_norms_multiplies_latents_by_them(case):
    plain, folded = import_sae(FIXTURES / case), import_sae(FIXTURES / case, fold_decoder_norms=True)
    x_TD = residuals()
    norms_F = plain.W_dec.norm(dim=-1)
    assert (norms_F - 1).abs().max() > 0.1
    torch.testing.assert_close(folded.encode(x_TD), plain.encode(x_TD) * norms_F)
    torch.testing.assert_close(folded.reconstruct(x_TD), plain.reconstruct(x_TD))
    torch.testing.assert_close(folded.W_dec.norm(dim=-1), torch.ones(NUM_LATENTS))
    assert folded.manifest.decoder_norms_folded
    assert not plain.manifest.decoder_norms_folded


def test_topk_can_not_be_folded():
    message = refusal(FIXTURES / "saelens/topk", fold_decoder_norms=True)
    assert "latents of a topk dictionary can't be rescaled" in message


def test_a_dictionary_trained_with_normed_rows_is_folded_as_it_is():
    # SAELens ranks latents times the norms here: the fold is part of the import.
    assert import_sae(FIXTURES / "saelens/topk_rescaled").manifest.decoder_norms_folded


def test_values_that_leave_fp32_are_refused(tmp_path):
    folder = copy_case("saelens/topk_rescaled", tmp_path)
    change_tensors(folder / "sae_weights.safetensors", W_enc=torch.full((12, 40), 3e38))
    assert "finite" in refusal(folder)
