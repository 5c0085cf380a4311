"""A server's parts with the native kernels: they read the dictionary too, and what they keep is planned."""

from types import SimpleNamespace

import native_models as native
import pytest
import tiny
import torch
from serving import manifest

from sae_runtime.checkpoint import save_sae
from sae_runtime.native_sae import NativeSAE
from service import assembly
from service.assembly import Parts, assemble
from service.config import NO_DICTIONARY, Settings

CONTEXT_LENGTH = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of shapes that the kernels take, and a dictionary for it whose weights have the residual's format."""
    folder = tmp_path_factory.mktemp("native")
    native.save_model(folder / "model")
    sha256 = native.load(folder / "model").identity.weights_sha256
    made = tiny.sae("batchtopk", d_model=native.D_MODEL)
    for parameter in made.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).to(torch.float32)
    facts = manifest(model_sha256=sha256, d_model=native.D_MODEL, activation="batchtopk", quantization="none")
    save_sae(made, facts, folder / "sae")
    return folder


def assembled(folder, **changes) -> Parts:
    native.library()
    fixed = {"model": str(folder / "model"), "sae": str(folder / "sae"), "dtype": "bfloat16", "device": "cpu"}
    sizes = {"slots": 2, "context_length": CONTEXT_LENGTH, "cache_dir": folder / "cache", "shipped_monitors": False}
    return assemble(Settings(**(fixed | sizes | changes)))


def test_the_dictionary_is_read_by_the_kernels_too(folder, monkeypatch):
    monkeypatch.setattr(assembly, "process_bytes", lambda: 1000)
    parts = assembled(folder)
    runner, plan = parts.runner, parts.planned_memory
    assert isinstance(runner.sae, NativeSAE)
    assert runner.reads_evenly
    assert runner.passes == "native kernels"
    encoder_bytes = runner.sae.num_bytes
    assert encoder_bytes >= native.D_MODEL * tiny.NUM_LATENTS  # all weights once more, if in fewer bits
    blocks_bytes = runner.language_model.blocks.num_bytes(CONTEXT_LENGTH)
    assert blocks_bytes > runner.language_model.blocks.num_bytes(0) > 0
    assert plan.kernels == encoder_bytes + blocks_bytes
    assert plan.weights == runner.language_model.weights_bytes > 0
    assert plan.dictionary == sum(t.nbytes for t in runner.sae.state_dict().values())
    assert plan.keys_and_values == sum(t.nbytes for t in (*runner.cache.keys, *runner.cache.values))
    assert plan.libraries == 1000


def test_without_a_dictionary_only_the_blocks_are_planned(folder):
    parts = assembled(folder, sae=NO_DICTIONARY)
    assert parts.planned_memory.kernels == parts.runner.language_model.blocks.num_bytes(CONTEXT_LENGTH)
    assert parts.planned_memory.dictionary == 0


def test_with_transformers_nothing_is_read_by_the_kernels(folder):
    parts = assembled(folder, native_kernels=False)
    assert parts.planned_memory.kernels == 0
    assert not isinstance(parts.runner.sae, NativeSAE)
    assert not parts.runner.reads_evenly
    assert parts.runner.passes == "transformers"


def test_what_graphs_are_played_from_is_planned(folder, monkeypatch):
    fixed = SimpleNamespace(machinery=SimpleNamespace(num_bytes=77), way="CUDA graphs")
    monkeypatch.setattr(assembly, "_fixed_decode", lambda *_: fixed)
    assert assembled(folder, native_kernels=False).planned_memory.kernels == 77
