"""The file that packed weights are kept in: whole or not there, made anew where it is of no use, and never needed."""

import logging
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import native_models as native
import pytest
import torch
from full_disk import room_for
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from sae_runtime import native_weights
from sae_runtime.native_weights import load_rest, pack_matrix, packed_shapes, packed_weights, packing_bytes
from sae_runtime.packed_weights import TILE

NAME = "packed-1.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    native.save_model(folder, dtype=torch.float32)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def wanted(made):
    return pack(made, keeps=False)


def pack(folder, *, keeps=True):
    packed = packed_weights(folder, AutoConfig.from_pretrained(folder), keeps=keeps)
    return {name: weight.blocks for name, weight in packed.items()}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def left_in(folder):
    return {path.name for path in folder.iterdir() if path.name.startswith("packed")}


def test_they_are_packed_once(folder, wanted, monkeypatch):
    assert_same(pack(folder), wanted)
    assert left_in(folder) == {NAME}
    # Others who share the cache may read it, as any new file.
    (folder / "new").touch()
    assert (folder / NAME).stat().st_mode == (folder / "new").stat().st_mode
    monkeypatch.setattr(native_weights, "pack_matrix", lambda *_, **__: pytest.fail("packed again"))
    assert_same(pack(folder), wanted)


def test_nothing_is_kept_unasked(folder, wanted):
    assert_same(pack(folder, keeps=False), wanted)
    assert left_in(folder) == set()


def cut(file, share):
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def change(file, edit):
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


DAMAGES = {
    "empty": (lambda file: file.write_bytes(b""), "header too small"),
    "half": (lambda file: cut(file, 0.5), "incomplete metadata"),
    "other bytes": (lambda file: file.write_bytes(b"\xff" * 1000), "header"),
    "a missing matrix": (lambda file: change(file, lambda t: t.pop("blocks.2.down")), r"blocks\.2\.down"),
    "another width": (
        lambda file: change(file, lambda t: t.update({"blocks.1.qkv": t["blocks.1.qkv"][:, :-1].contiguous()})),
        r"blocks\.1\.qkv must have shape \[320, 96\], got \[320, 64\]",
    ),
    "fewer outputs": (
        lambda file: change(file, lambda t: t.update(head=t["head"][:-1].contiguous())),
        r"head must have shape \[272, 96\], got \[256, 96\]",
    ),
    "other numbers": (
        lambda file: change(file, lambda t: t.update(head=t["head"].to(torch.int16))),
        r"head must hold bytes of tiles, got int16 \[17, 3, 1024\]",
    ),
    "another order": (
        lambda file: change(file, lambda t: t.update(head=t["head"][..., :-8].contiguous())),
        r"head must hold bytes of tiles, got uint8 \[17, 3, 1016\]",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_of_no_use_is_named_and_made_anew(folder, wanted, damage, caplog):
    pack(folder)
    whole = (folder / NAME).read_bytes()
    spoil, said = DAMAGES[damage]
    spoil(folder / NAME)
    with caplog.at_level(logging.WARNING):
        assert_same(pack(folder), wanted)
    [record] = caplog.records
    assert str(folder / NAME) in record.getMessage() and "made anew" in record.getMessage()
    assert re.search(said, record.getMessage())
    assert (folder / NAME).read_bytes() == whole
    assert left_in(folder) == {NAME}


def test_a_full_disk_is_named_and_the_model_loaded_all_the_same(folder, wanted, caplog):
    with caplog.at_level(logging.WARNING), room_for(10_000):
        assert_same(pack(folder), wanted)
    [record] = caplog.records
    assert str(folder / NAME) in record.getMessage() and "File too large" in record.getMessage()
    assert left_in(folder) == set()


def test_a_place_that_can_not_be_written_is_named_and_the_model_loaded_all_the_same(folder, wanted, caplog):
    (folder / NAME).mkdir()
    with caplog.at_level(logging.WARNING):
        assert_same(pack(folder), wanted)
    [record] = caplog.records
    assert str(folder / NAME) in record.getMessage() and "Is a directory" in record.getMessage()


def test_two_that_pack_at_the_same_time_leave_one_whole_file(folder, wanted, monkeypatch):
    """With the same process id, as servers in two containers may have: here they are threads."""
    both, save = Barrier(2), native_weights.save_file

    def save_together(*arguments):
        both.wait(60)
        save(*arguments)
        both.wait(60)

    monkeypatch.setattr(native_weights, "save_file", save_together)
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(pack, [folder, folder]):
            assert_same(found, wanted)
    assert left_in(folder) == {NAME}
    monkeypatch.setattr(native_weights, "pack_matrix", lambda *_, **__: pytest.fail("packed again"))
    assert_same(pack(folder), wanted)


def test_what_a_killed_one_left_is_dropped(folder):
    left = folder / f"{NAME}.abcdefgh.partial"
    left.mkdir()
    (left / NAME).write_bytes(b"half of it")
    pack(folder)
    assert left_in(folder) == {NAME}


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_the_shapes_are_those_of_the_models_modules(tmp_path, architecture):
    native.save_model(tmp_path, architecture=architecture)
    config = AutoConfig.from_pretrained(tmp_path)
    packed = packed_weights(tmp_path, config, keeps=False)
    assert {name: (weight.num_outputs, weight.num_inputs) for name, weight in packed.items()} == packed_shapes(config)
    assert packed_shapes(config)["head"][0] == native.VOCAB_SIZE + -native.VOCAB_SIZE % TILE


@pytest.mark.parametrize(
    ("tensor", "shape", "said"),
    [
        (
            "model.layers.1.self_attn.o_proj.weight",
            (96, 160),
            r"1\.output must have shape \[96, 192\], got \[96, 160",
        ),
        ("model.layers.2.mlp.up_proj.weight", (144, 96), r"blocks\.2\.gate_up"),
        ("model.layers.2.mlp.up_proj.weight", (150, 96), r"blocks\.2\.gate_up"),
    ],
)
def test_weights_of_other_shapes_than_the_config_says_are_refused(folder, tensor, shape, said):
    """The kernels would read beyond them."""
    weights = load_file(folder / "model.safetensors")
    assert weights[tensor].shape != shape
    weights[tensor] = torch.randn(shape)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=said):
        pack(folder)
    assert left_in(folder) == set()


@pytest.mark.parametrize(
    ("tensor", "shape", "wanted"),
    [
        ("model.norm.weight", (64,), "[96], got [64]"),
        ("model.layers.2.input_layernorm.weight", (128,), "[96], got [128]"),
        ("model.embed_tokens.weight", (200, 96), "[259, 96], got [200, 96]"),
    ],
)
def test_what_is_not_packed_must_have_the_shapes_of_the_config(folder, tensor, shape, wanted):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {tensor: torch.zeros(shape)}, folder / "model.safetensors")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    with pytest.raises(ValueError, match=re.escape(f"tensor {tensor} must have shape {wanted}")):
        load_rest(model, folder, torch.bfloat16)


def peak_bytes() -> int:
    """The most memory that this process has had since it was last reset."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not say what memory was taken")
@pytest.mark.parametrize("vocab_size", [60_000, 60_001])
@pytest.mark.parametrize("is_tied", [True, False])
def test_the_memory_that_packing_takes_is_counted(vocab_size, is_tied):
    """Of a head beside which the rest is small."""
    config = LlamaConfig(hidden_size=512, vocab_size=vocab_size, tie_word_embeddings=is_tied)
    stored = torch.randn(vocab_size, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    pack_matrix("head", lambda _name: torch.randn(512, 512), is_tied=is_tied)  # what the first call alone takes
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    packed = pack_matrix("head", lambda _name: stored.float(), is_tied=is_tied)
    taken, room = peak_bytes() - before, 8 * 2**20
    assert packed.bits == 16
    # An untied head in bf16 is one of the weights; of a tied one that is the embedding.
    counted = packing_bytes(config) + (0 if is_tied else stored.nbytes)
    assert counted - room < taken < counted + room
