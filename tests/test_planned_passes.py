"""What `telltale serve --print-config` says of passes, and that a server then runs them so."""

import importlib.util

import native_models as parts
import pytest
import tiny
import torch

from sae_runtime.kernels import native
from sae_runtime.language_model import load_language_model
from service import cli, planned_passes
from service.config import Settings

ALL_SETS = dict.fromkeys(native._SETS.values(), True)


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A processor with all instruction sets, a compiler, no GPU, and nothing compiled yet."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: ALL_SETS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(native.shutil, "which", lambda name: f"/opt/bin/{name}")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def planned(**settings) -> str:
    return planned_passes.planned_passes(Settings(**settings))


def compiled(cache_dir) -> None:
    library = cache_dir / "kernels" / native.library_name()
    library.parent.mkdir(parents=True)
    library.touch()


def test_native_kernels_are_compiled_first():
    assert planned() == "native kernels (once /opt/bin/cc has compiled them)"


def test_compiled_ones_need_no_compiler(machine, monkeypatch):
    monkeypatch.setattr(native.shutil, "which", lambda _name: None)
    compiled(machine / "telltale")
    assert planned() == "native kernels"
    compiled(machine / "elsewhere")
    assert planned(cache_dir=machine / "elsewhere") == "native kernels"
    assert planned(cache_dir=machine / "empty").startswith("transformers (there is no C compiler")


def test_those_beside_the_source_come_first(machine, monkeypatch):
    monkeypatch.setattr(native, "SOURCE", machine / native.SOURCE.name)
    native.SOURCE.write_text("")
    (machine / native.library_name()).touch()
    assert planned() == "native kernels"


def test_of_other_models_only_loading_can_tell(machine):
    compiled(machine / "telltale")
    assert planned(model="some/where") == "native kernels (for Llama and Qwen2 models)"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"native_kernels": False}, "native_kernels is off"),
        ({"dtype": "float32"}, "dtype is float32"),
        ({"quantization": "nf4", "model": "some/where"}, "quantization is nf4"),
    ],
)
def test_settings_that_leave_it_to_transformers(settings, reason):
    assert planned(**settings) == f"transformers ({reason})"


@pytest.mark.parametrize("model", ["embedded", "some.gguf"])
def test_settings_that_no_model_is_loaded_with(model):
    wanted = "none (quantization of a GGUF file must be auto or none (it is quantised already), got nf4)"
    assert planned(model=model, quantization="nf4") == wanted
    assert planned(model=model, quantization="none", native_kernels=False).startswith("transformers")


def test_processors_that_leave_it_to_transformers(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: ALL_SETS | {"avx512_bf16": False})
    assert planned() == "transformers (dtype is float32)"
    assert planned(dtype="bfloat16") == "transformers (this processor has no avx512bf16)"


def test_on_a_gpu(monkeypatch):
    assert planned(device="cuda").startswith("none (device 'cuda' was asked for")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: object())
    assert planned() == planned(device="cuda:1") == "CUDA graphs"
    assert planned(model="some/where") == "CUDA graphs (for Llama and Qwen2 models)"
    assert planned(cuda_graphs=False) == "transformers (cuda_graphs is off)"
    assert planned(quantization="int8", model="some/where") == "transformers (quantization is int8)"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert planned() == "transformers (CUDA graphs need triton)"


def test_the_printed_config_ends_with_it(capsys):
    assert cli.main(["serve", "--no-native-kernels", "--print-config"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "# passes: transformers (native_kernels is off)"


@pytest.mark.parametrize("native_kernels", [True, False])
def test_a_loaded_model_runs_them_so(tmp_path, monkeypatch, native_kernels):
    monkeypatch.undo()
    parts.library()
    parts.save_model(tmp_path / "model")
    settings = {"native_kernels": native_kernels, "dtype": "bfloat16", "device": "cpu", "cache_dir": tmp_path}
    made = load_language_model(str(tmp_path / "model"), **settings)
    runner = tiny.model_runner(made, tiny.sae("topk", d_model=parts.D_MODEL))
    assert runner.passes == ("native kernels" if native_kernels else "transformers")
    assert planned(model=str(tmp_path / "model"), **settings).partition(" (")[0] == runner.passes
    runner.tap.remove()
