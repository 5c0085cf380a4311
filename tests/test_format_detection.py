"""Telling formats apart by their files, and saying what is there where no dictionary is."""

import shutil

import pytest
import torch
from format_files import FIXTURES, copy_case, refusal

from sae_runtime.formats import import_sae

BY_FILE = [
    ("saelens/standard", "cfg.json", "SAELens, standard"),
    ("saelens/standard", "sae_weights.safetensors", "SAELens, standard"),
    ("saelens_old/standard", "cfg.json", "SAELens before 6, standard"),
    ("sparsify/topk/layers.3", "sae.safetensors", "sparsify, topk"),
    ("sparsify/topk/layers.3", "cfg.json", "sparsify, topk"),
    ("dictionary_learning/gated/trainer_0", "ae.pt", "dictionary_learning, GatedAutoEncoder"),
    ("dictionary_learning/gated/trainer_0", "config.json", "dictionary_learning, GatedAutoEncoder"),
    ("published/goodfire", "Llama-3.1-8B-Instruct-SAE-l19.pth", "Goodfire, relu"),
    ("published/qresearch", "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", "qresearch, relu"),
]
GEMMA = "published/gemma_scope/gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_82"
GEMMA_2 = "published/gemma_scope_2/resid_post/layer_3_width_16k_l0_small"
LLAMA = "published/llama_scope/Llama3_1-8B-Base-L3R-8x"
LLAMA_R1 = "published/llama_scope_r1/800M-Slimpajama-0-OpenR1-Math-220k/L3R"
BY_FILE += [
    (GEMMA, "params.npz", "Gemma Scope, jumprelu"),
    (GEMMA_2, "params.safetensors", "Gemma Scope 2, jumprelu"),
    (GEMMA_2, "config.json", "Gemma Scope 2, jumprelu"),
    (LLAMA, "hyperparams.json", "Llama Scope, jumprelu"),
    (LLAMA, "checkpoints/final.safetensors", "Llama Scope, jumprelu"),
    (LLAMA_R1, "sae_weights.safetensors", "Llamascopium, jumprelu"),
]


@pytest.mark.parametrize(("case", "file", "name"), BY_FILE)
def test_a_file_stands_for_its_dictionary(case, file, name):
    by_file, by_folder = import_sae(FIXTURES / case / file), import_sae(FIXTURES / case)
    assert by_file.manifest.training["import"]["format"] == name
    assert by_file.manifest.sae_sha256 == by_folder.manifest.sae_sha256


def test_a_checkpoint_is_read_by_name():
    sae = import_sae(FIXTURES / "dictionary_learning/checkpoint/trainer_0/checkpoints/ae_50.pt")
    assert sae.manifest.training["import"]["format"] == "dictionary_learning, BatchTopKSAE"


def test_a_path_may_be_a_string():
    assert import_sae(str(FIXTURES / GEMMA)).num_latents == 40


def test_nothing_there(tmp_path):
    assert refusal(tmp_path / "none") == f"{tmp_path / 'none'} does not exist"


def test_an_empty_folder(tmp_path):
    assert "is no dictionary of a known format: it has nothing" in refusal(tmp_path)


def test_a_folder_of_other_things(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert "it has notes.txt" in refusal(tmp_path)


def test_a_folder_of_dictionaries_names_them():
    message = refusal(FIXTURES / "sparsify/seeds")
    assert "is no dictionary but holds some: name one of layers.3/seed1" in message
    message = refusal(FIXTURES / "saelens")
    assert message.endswith(", ...")
    assert message.count(",") == 5


def test_another_kind_of_file(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"x")
    assert "is no dictionary of a known format" in refusal(path)


def test_a_configuration_without_weights(tmp_path):
    folder = copy_case("saelens/standard", tmp_path)
    (folder / "sae_weights.safetensors").unlink()
    assert "no sae_weights.safetensors (SAELens) or sae.safetensors (sparsify)" in refusal(folder)


def test_weights_without_a_configuration(tmp_path):
    folder = copy_case("saelens/standard", tmp_path)
    (folder / "cfg.json").unlink()
    assert "is no dictionary" in refusal(folder)
    shutil.copy(FIXTURES / "dictionary_learning/topk/trainer_0/ae.pt", tmp_path / "ae.pt")
    assert "no config.json" in refusal(tmp_path / "ae.pt")


def test_a_folder_with_two_bare_files_is_not_guessed_at(tmp_path):
    for name in ("a.pt", "b.pt"):
        torch.save({"W": torch.zeros(1)}, tmp_path / name)
    assert "it has a.pt, b.pt" in refusal(tmp_path)
