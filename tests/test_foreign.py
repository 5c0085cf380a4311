"""Reading other people's files: no code from them is run, and what is wrong is named."""

import io
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from format_files import FIXTURES, change_tensors, copy_case, refusal

from sae_runtime.errors import CheckpointError
from sae_runtime.foreign import residual_hook
from sae_runtime.formats import import_sae
from sae_runtime.hook_point import HookPoint

GOODFIRE = "published/goodfire"
GOODFIRE_FILE = "Llama-3.1-8B-Instruct-SAE-l19.pth"


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "run")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_configuration_must_be_a_json_object(tmp_path, content):
    folder = copy_case("saelens/standard", tmp_path)
    (folder / "cfg.json").write_bytes(content)
    assert str(folder / "cfg.json") in refusal(folder)


def test_no_code_from_a_pytorch_file_is_run(tmp_path):
    sign = tmp_path / "sign"
    torch.save({"state_dict": Trap(sign)}, tmp_path / "a.pt")
    assert "tensors and plain values only" in refusal(tmp_path / "a.pt", scale=1.0)
    assert not sign.exists()


def test_no_code_from_an_npz_file_is_run(tmp_path):
    sign = tmp_path / "sign"
    np.savez(tmp_path / "params.npz", W_enc=np.array([Trap(sign)], dtype=object))
    assert "no readable npz file" in refusal(tmp_path / "params.npz")
    assert not sign.exists()


def test_an_old_pickle_is_refused(tmp_path):
    buffer = io.BytesIO()
    pickle.dump({"state_dict": Trap(tmp_path / "sign")}, buffer)
    (tmp_path / "a.ckpt").write_bytes(buffer.getvalue())
    refusal(tmp_path / "a.ckpt", scale=1.0)
    assert not (tmp_path / "sign").exists()


@pytest.mark.parametrize(
    ("case", "file"),
    [
        ("saelens/standard", "sae_weights.safetensors"),
        ("sparsify/topk/layers.3", "sae.safetensors"),
        ("dictionary_learning/topk/trainer_0", "ae.pt"),
        ("published/gemma_scope/gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_82", "params.npz"),
        (GOODFIRE, GOODFIRE_FILE),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, case, file, share):
    path = copy_case(case, tmp_path) / file
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert str(path) in refusal(path)


def test_a_pytorch_file_of_a_list(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "a.pt")
    assert "must hold a dict of tensors, got list" in refusal(tmp_path / "a.pt")


# --- tensors ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def standard(tmp_path):
    return copy_case("saelens/standard", tmp_path)


def spoilt(folder: Path, **changes: torch.Tensor | None) -> str:
    change_tensors(folder / "sae_weights.safetensors", **changes)
    return refusal(folder)


def test_everything_wrong_is_named_at_once(standard):
    message = spoilt(standard, W_enc=torch.zeros(40, 12), b_enc=None, W_skip=torch.zeros(2), b_dec=torch.zeros(3))
    assert "missing tensor b_enc [40]" in message
    assert "unexpected tensor W_skip" in message
    assert "tensor W_enc must have shape [12, 40], got [40, 12]" in message
    assert "tensor b_dec must have shape [12], got [3]" in message


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers(standard, value):
    tensor = torch.zeros(40)
    tensor[3] = value
    assert "tensor b_enc must be finite, got 1 NaN or infinite of 40 values" in spoilt(standard, b_enc=tensor)


def test_another_dtype(standard):
    assert "tensor b_enc must hold floating-point numbers, got int64" in spoilt(
        standard, b_enc=torch.zeros(40, dtype=torch.int64)
    )


def test_something_else_than_a_tensor(tmp_path):
    path = copy_case(GOODFIRE, tmp_path) / GOODFIRE_FILE
    content = torch.load(path, weights_only=True) | {"encoder_linear.weight": "weights"}
    torch.save(content, path)
    assert "tensor encoder_linear.weight must be a tensor, got str" in refusal(path)


@pytest.mark.parametrize("name", ["d_in", "d_sae"])
@pytest.mark.parametrize("value", [None, "12", 12.0, True])
def test_widths_are_whole_numbers(standard, name, value):
    content = json.loads((standard / "cfg.json").read_text()) | {name: value}
    (standard / "cfg.json").write_text(json.dumps(content))
    assert f"{name} must be of type int, got {value!r}" in refusal(standard)


def test_widths_must_be_those_of_the_tensors(standard):
    content = json.loads((standard / "cfg.json").read_text()) | {"d_in": 13}
    (standard / "cfg.json").write_text(json.dumps(content))
    assert "tensor W_enc must have shape [13, 40], got [12, 40]" in refusal(standard)


# --- anything at all --------------------------------------------------------------------------------------------------

CONFIGURED = {
    "saelens/training_batchtopk": "cfg.json",
    "saelens/training_standard": "activation_scaler.json",
    "saelens_old/topk": "cfg.json",
    "sparsify/topk/layers.3": "cfg.json",
    "dictionary_learning/batchtopk/trainer_0": "config.json",
    "published/gemma_scope_2/resid_post/layer_3_width_16k_l0_small": "config.json",
    "published/llama_scope/Llama3_1-8B-Base-L3R-8x": "hyperparams.json",
    "published/llama_scope_r1/800M-Slimpajama-0-OpenR1-Math-220k/L3R": "config.json",
}
ODD = [None, -1, "x", [1], {"a": 1}]


def fields(content: dict, path: tuple[str, ...] = ()):
    for name, value in content.items():
        yield (*path, name)
        if isinstance(value, dict) and name != "training_architecture_details":
            yield from fields(value, (*path, name))


@pytest.mark.parametrize(("case", "file"), CONFIGURED.items())
def test_an_odd_value_in_a_configuration_is_read_or_refused(tmp_path, case, file):
    folder = copy_case(case, tmp_path)
    wanted = (folder / file).read_text()
    refused = 0
    for path in fields(json.loads(wanted)):
        for value in ODD:
            content = json.loads(wanted)
            inner = content
            for name in path[:-1]:
                inner = inner[name]
            inner[path[-1]] = value
            (folder / file).write_text(json.dumps(content))
            try:
                import_sae(folder)
            except CheckpointError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > 3


# --- hook points ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("blocks.16.hook_resid_post", HookPoint(16)),
        ("blocks.16.hook_resid_pre", HookPoint(16, "input")),
        ("layers.16", HookPoint(16)),
        ("model.layers.16", HookPoint(16)),
        ("model.layers.16.output", HookPoint(16)),
        ("model.language_model.layers.16.output", HookPoint(16)),
        ("layers.16.input", HookPoint(16, "input")),
        ("gpt_neox.layers.3", HookPoint(3)),
        ("transformer.h.5", HookPoint(5)),
        ("embed_tokens", HookPoint(0, "input")),
        ("hook_embed", HookPoint(0, "input")),
    ],
)
def test_names_of_places_in_the_residual_stream(name, hook):
    assert residual_hook(FIXTURES, name) == hook


def test_the_input_of_a_block_is_the_output_of_the_one_before():
    pre, post = (residual_hook(FIXTURES, f"blocks.{name}") for name in ("15.hook_resid_pre", "14.hook_resid_post"))
    assert pre.is_same_residual(post)


@pytest.mark.parametrize(
    "name",
    ["blocks.3.hook_mlp_out", "blocks.3.attn.hook_z", "layers.3.mlp", "model.layers.3.self_attn.o_proj.input", "ln_f"],
)
def test_other_places_are_refused_by_name(name):
    with pytest.raises(CheckpointError, match="place in the residual stream"):
        residual_hook(FIXTURES, name)
