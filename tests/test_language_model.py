"""Loading a model: the weights asked for and no others, or one line that says why not."""

import importlib.util
import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import tiny
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from sae_runtime import weights
from sae_runtime.errors import ModelError
from sae_runtime.language_model import wrap_model

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


def change_tensor(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(folder / WEIGHTS) | {name: tensor}
    save_file({key: t for key, t in tensors.items() if t is not None}, folder / WEIGHTS, metadata={"format": "pt"})


# --- folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_computes_what_transformers_computes(saved, load_model, name, dtype):
    loaded = load_model(saved, dtype=name)
    wanted = AutoModelForCausalLM.from_pretrained(saved, dtype=dtype).eval()
    assert tiny.logits(loaded.model).dtype == dtype
    assert torch.equal(tiny.logits(loaded.model), tiny.logits(wanted))
    assert loaded.identity.dtype == name
    assert loaded.weights_bytes == sum(p.numel() for p in wanted.parameters()) * dtype.itemsize


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_computes_in_bf16_where_the_processor_can(saved, load_model, monkeypatch, has_bf16, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": has_bf16})
    assert load_model(saved).identity.dtype == dtype


def test_says_what_was_loaded(saved, load_model, model):
    loaded = load_model(saved)
    assert loaded.identity.name == "tiny-llama"
    assert loaded.identity.quantization == "none"
    assert loaded.identity.device == "cpu"
    assert loaded.device == torch.device("cpu")
    assert loaded.eos_token_ids == {2}
    assert (loaded.d_model, loaded.num_layers) == (tiny.D_MODEL, tiny.NUM_LAYERS)
    assert loaded.context_length == tiny.NUM_POSITIONS
    assert loaded.vocab_size == len(model.tokenizer)
    assert loaded.tokenizer("Ärger").input_ids == model.tokenizer("Ärger").input_ids
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_a_relative_folder_is_named_after_where_it_leads(saved, load_model, monkeypatch):
    monkeypatch.chdir(saved)
    assert load_model(".").identity.name == "tiny-llama"


def test_shared_weights_are_counted_once(load_model, tmp_path):
    lm = tiny.language_model()
    lm.model.config.tie_word_embeddings = True
    lm.model.lm_head.weight = lm.model.model.embed_tokens.weight
    lm.model.save_pretrained(tmp_path / "tied")
    lm.tokenizer.save_pretrained(tmp_path / "tied")
    loaded = load_model(tmp_path / "tied", dtype="float32")
    assert torch.equal(tiny.logits(loaded.model), tiny.logits(lm.model))
    shared = lm.vocab_size * tiny.D_MODEL * 4
    apart = sum(p.numel() for p in tiny.language_model().model.parameters()) * 4
    assert loaded.weights_bytes == apart - shared


# --- which weights they are -----------------------------------------------------------------------------------------


def test_the_hash_follows_the_weights_and_nothing_else(saved, copy, load_model, tmp_path):
    sha256 = load_model(saved).identity.weights_sha256
    assert len(sha256) == 64
    assert load_model(copy, dtype="float32", cache_dir=tmp_path / "other").identity.weights_sha256 == sha256
    (copy / "README.md").write_text("Weights of a test.")
    assert load_model(copy).identity.weights_sha256 == sha256
    change_tensor(copy, ONE_TENSOR, load_file(copy / WEIGHTS)[ONE_TENSOR] + 1)
    assert load_model(copy).identity.weights_sha256 != sha256


def test_the_expected_hash_is_accepted_and_another_refused(saved, load_model, model_refusal):
    sha256 = load_model(saved).identity.weights_sha256
    assert load_model(saved, expected_sha256=sha256).identity.weights_sha256 == sha256
    assert (
        model_refusal(saved, expected_sha256="a" * 64)
        == f"weights of {saved} must have sha256 {'a' * 64}, got {sha256}"
    )


# --- damaged and unsuitable models ----------------------------------------------------------------------------------


def test_missing_config(copy, model_refusal):
    (copy / "config.json").unlink()
    assert model_refusal(copy) == f"model folder {copy} has no config.json"


@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_config(copy, model_refusal, content):
    (copy / "config.json").write_text(content)
    assert f"{copy / 'config.json'} is no model configuration: " in model_refusal(copy)


def test_missing_weights(copy, model_refusal):
    (copy / WEIGHTS).unlink()
    assert model_refusal(copy) == f"model folder {copy} has no .safetensors weights"


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_truncated_weights(copy, model_refusal, kept):
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:kept])
    assert f"model copy can't be loaded from {copy}: Error while deserializing" in model_refusal(copy)


def test_a_missing_tensor_is_not_filled_with_random_numbers(copy, model_refusal):
    change_tensor(copy, ONE_TENSOR, None)
    assert f"model copy can't be loaded from {copy}: missing tensor {ONE_TENSOR}" in model_refusal(copy)


def test_a_misshaped_tensor_is_not_filled_with_random_numbers(copy, model_refusal):
    change_tensor(copy, ONE_TENSOR, torch.zeros(3, 32))
    assert f"tensor {ONE_TENSOR} must have shape [64, 32], got [3, 32]" in model_refusal(copy)


def test_missing_tokenizer(copy, model_refusal):
    for file in copy.glob("token*"):
        file.unlink()
    assert f"model copy can't be loaded from {copy}: " in (message := model_refusal(copy))
    assert "tokenizer" in message


def test_unknown_folder(tmp_path, model_refusal):
    assert model_refusal(tmp_path / "absent") == f"model folder {tmp_path / 'absent'} does not exist"
    assert model_refusal("./absent") == "model folder absent does not exist"


def test_a_model_that_is_not_like_llama(tmp_path, model, model_refusal):
    config = GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=len(model.tokenizer), n_positions=16)
    config.bos_token_id, config.eos_token_id = 0, 2
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    model.tokenizer.save_pretrained(tmp_path / "gpt2")
    wanted = "model gpt2: GPT2LMHeadModel has no model.layers: only Llama-like decoders can be tapped"
    assert model_refusal(tmp_path / "gpt2") == wanted


def test_a_kind_of_model_that_transformers_does_not_know(copy, model_refusal):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "abacus", "architectures": ["Abacus"]}))
    assert f"model copy can't be loaded from {copy}: " in (message := model_refusal(copy))
    assert "abacus" in message


def test_too_little_memory(saved, model_refusal, load_model, monkeypatch):
    # 10 bytes short of the weights in fp32 and the room to work in; enough in bf16.
    need = (saved / WEIGHTS).stat().st_size + 512 * 2**20
    asked: list[str] = []

    def available(device: str) -> int:
        asked.append(device)
        return need - 10

    monkeypatch.setattr(weights, "available_memory_bytes", available)
    message = "model tiny-llama needs about 0.0 GiB and 0.5 GiB to work in, but 0.5 GiB are free on cpu"
    assert model_refusal(saved, dtype="float32") == message
    assert load_model(saved, dtype="bfloat16").identity.dtype == "bfloat16"
    assert asked == ["cpu", "cpu"]


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_memory_is_reckoned_from_the_dtype_of_the_files(copy, load_model, key, monkeypatch):
    config = json.loads((copy / "config.json").read_text())
    del config["dtype"]
    (copy / "config.json").write_text(json.dumps(config | {key: "float32"}))
    stored = (copy / WEIGHTS).stat().st_size
    monkeypatch.setattr(weights, "available_memory_bytes", lambda _device: stored + 512 * 2**20)
    assert load_model(copy, dtype="float32").identity.dtype == "float32"


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
def test_an_unknown_choice(saved, model_refusal, choice, message):
    assert model_refusal(saved, **choice) == message


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there(saved, model_refusal, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert model_refusal(saved, device=device) == f"device {device!r} was asked for, but torch finds no CUDA device"


def test_without_a_gpu_auto_is_the_cpu_unquantised(saved, load_model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    identity = load_model(saved, device="auto", quantization="auto").identity
    assert (identity.device, identity.quantization) == ("cpu", "none")


@pytest.mark.gpu
def test_on_a_gpu_auto_is_nf4(saved, load_model):
    loaded = load_model(saved, device="auto")
    assert (loaded.identity.device, loaded.identity.quantization) == ("cuda", "nf4")
    assert loaded.model.device.type == "cuda"


# --- the hub --------------------------------------------------------------------------------------------------------


def test_a_name_that_the_hub_does_not_know(model_refusal, monkeypatch):
    def fail(*_args: object, **_settings: object) -> str:
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    wanted = "model 'someone/model' is neither 'embedded', a .gguf file, a folder, nor to be had from the hub: "
    assert model_refusal("someone/model") == wanted + "no route to the hub"


def test_another_file_is_not_looked_for_on_the_hub(model_refusal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("essay.txt").write_text("Whales sing.")
    wanted = "model must be 'embedded', a .gguf file, a folder or a hub name, got another file: essay.txt"
    assert model_refusal("essay.txt") == wanted


def test_a_model_of_the_hub_keeps_its_name(saved, load_model, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda _source, **_settings: str(saved))
    identity = load_model("someone/model").identity
    assert identity.name == "someone/model"
    assert identity.weights_sha256 == load_model(saved).identity.weights_sha256


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
def test_quantised_weights_compute_nearly_the_same(wide, load_model, quantization, layer, dtype):
    loaded, whole = load_model(wide, quantization=quantization, dtype=dtype), load_model(wide, dtype=dtype)
    assert (loaded.identity.quantization, loaded.identity.dtype) == (quantization, dtype)
    assert {type(block.mlp.up_proj).__name__ for block in loaded.model.model.layers} == {layer}
    assert loaded.weights_bytes < whole.weights_bytes
    assert loaded.identity.weights_sha256 == whole.identity.weights_sha256
    got, wanted = tiny.logits(loaded.model).float(), tiny.logits(whole.model).float()
    assert not torch.equal(got, wanted)
    # Two logit vectors of unrelated models are at 0 +- 0.06 (259 entries).
    assert torch.nn.functional.cosine_similarity(got, wanted, dim=-1).min() > 0.8


def test_four_bits_in_fp32_compute_with_the_weights_they_stand_for(wide, load_model, monkeypatch):
    """On every processor: bitsandbytes' kernels for those with bf16 round whatever they are given to it."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    loaded = load_model(wide, quantization="nf4", dtype="float32")
    got = tiny.logits(loaded.model)
    for name, module in list(loaded.model.named_modules()):
        if isinstance(module, Linear4bit):
            plain = nn.Linear(module.in_features, module.out_features, bias=False)
            plain.weight = nn.Parameter(dequantize_4bit(module.weight.data, module.weight.quant_state))
            loaded.model.set_submodule(name, plain)
    torch.testing.assert_close(got, tiny.logits(loaded.model))


def test_four_bits_of_a_width_that_bitsandbytes_gets_wrong_on_a_cpu_are_refused(saved, model_refusal):
    assert model_refusal(saved, quantization="nf4") == (
        "quantization nf4 on a CPU needs layers whose inputs are a multiple of 64, got 32 in "
        "model.layers.0.self_attn.q_proj of model tiny-llama"
    )


def test_a_folder_stored_quantised_is_refused(wide, load_model, model_refusal, tmp_path):
    loaded = load_model(wide, quantization="nf4")
    loaded.model.save_pretrained(tmp_path / "stored")
    loaded.tokenizer.save_pretrained(tmp_path / "stored")
    assert "must hold plain weights (they are quantised on loading), got bitsandbytes" in model_refusal(
        tmp_path / "stored"
    )


def test_quantising_without_bitsandbytes(saved, model_refusal, monkeypatch):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find_spec(name, *rest)
    )
    wanted = "quantization nf4 needs bitsandbytes: run `pip install telltale-llm[gpu]`"
    assert model_refusal(saved, quantization="nf4") == wanted


# --- wrapping a model that is built already -------------------------------------------------------------------------


@pytest.mark.parametrize(("eos", "wanted"), [(7, {7}), ([2, 9], {2, 9}), (None, {2})])
def test_end_of_sequence_tokens(eos, wanted):
    lm = tiny.language_model()
    lm.model.generation_config.eos_token_id = eos
    wrapped = wrap_model(
        lm.model, lm.tokenizer, name="tiny", sha256="0" * 64, quantization="none", dtype=torch.float32, device="cpu"
    )
    assert wrapped.eos_token_ids == wanted


def test_wrapping_freezes_the_weights():
    model = tiny.language_model().model.requires_grad_(True)
    wrapped = wrap_model(
        model, None, name="tiny", sha256="f" * 64, quantization="nf4", dtype=torch.bfloat16, device="cpu"
    )
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert (wrapped.identity.weights_sha256, wrapped.identity.quantization) == ("f" * 64, "nf4")
    assert wrapped.identity.dtype == "bfloat16"


def test_wrapping_refuses_what_is_not_like_llama():
    with pytest.raises(ModelError, match=r"model line: Linear has no model\.layers"):
        wrap_model(
            nn.Linear(2, 2), None, name="line", sha256="0" * 64, quantization="none", dtype=torch.float32, device="cpu"
        )
