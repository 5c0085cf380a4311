"""Evaluating and comparing on a GPU: what they give on a CPU."""

import json

import pytest
import tiny
import tiny_files
import torch

from discovery import evaluate, fidelity
from discovery.corpus import Context
from discovery.harvest import harvest
from sae_runtime.language_model import load_language_model

pytestmark = pytest.mark.gpu

CONTEXTS = [Context([3 + (7 * n + i) % 190 for i in range(30)], n, 0, "made") for n in range(8)]


def figures(main, argv, capsys):
    assert main(argv) == 0
    return json.loads(capsys.readouterr().out)


def test_figures_of_a_gpu_are_those_of_a_cpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny_files.write_dictionary(tmp_path / "sae", tiny_files.write_model(tmp_path / "model"))
    lm = load_language_model(str(tmp_path / "model"), dtype="float32", device="cpu")
    for name in ("one", "two"):
        harvest(lm, tiny.HOOK_POINT, CONTEXTS, tmp_path / name)
    argv = [str(tmp_path / "sae"), "--model", str(tmp_path / "model"), "--dtype", "float32", "--unverified"]
    argv += ["--quantization", "none"]  # nf4 by itself on a GPU
    sets = [*argv, "--set", f"one={tmp_path / 'one'}", "--set", f"two={tmp_path / 'two'}"]
    sets += ["--report", str(tmp_path / "page.html")]
    on_cpu, on_gpu = (figures(evaluate.main, [*sets, "--device", device], capsys) for device in ("cpu", "cuda"))
    assert on_gpu["all"] == pytest.approx(on_cpu["all"], rel=0.01, abs=0.01)
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": f"{n} words " * 20}) + "\n" for n in range(300)))
    words = [*argv, "--corpus", str(tmp_path / "text.jsonl"), "--against-dtype", "bfloat16", "--json"]
    words += ["--against-quantization", "none"]
    on_cpu, on_gpu = (figures(fidelity.main, [*words, "--device", device], capsys) for device in ("cpu", "cuda"))
    assert on_gpu["l0"] == pytest.approx(on_cpu["l0"], rel=0.02)
    assert torch.cuda.is_available()
