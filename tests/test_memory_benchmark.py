"""benchmarks.memory, on a tiny model: what a server holds is near what it planned, most of which is the libraries."""

import json
import sys

import pytest
from tiny_files import write_model

from benchmarks import memory


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_what_is_held_is_near_what_was_planned(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_SETTLED_SECONDS", 0.05)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_model(tmp_path / "model", context_length=4096)
    found = await memory.measure(
        2, 4, "--model", str(tmp_path / "model"), "--sae", "none", "--device", "cpu", "--journal", "none",
        "--slots", "2", "--cache-dir", str(tmp_path / "cache"),
    )  # fmt: skip
    assert (found["slots"], found["context_length"]) == (2, 4096)
    held, ratio = found["held_bytes"], found["held_to_planned_ratio"]
    assert held["peak"] >= held["loaded"] > 0 and held["peak"] >= held["ready"] > 0
    assert ratio["loaded"] == pytest.approx(held["loaded"] / found["planned_bytes"], abs=0.001)
    assert 0.8 < ratio["ready"] < 1.4 and 0.8 < ratio["loaded"] < 1.5


def test_runs_with_other_slots_are_kept(tmp_path, monkeypatch, capsys):
    async def measured(_streams, _tokens, context_length):
        return {"context_length": int(context_length), "planned_bytes": 10 * int(context_length)}

    monkeypatch.setattr(memory, "measure", measured)
    for context_length in ("1024", "8192", "1024"):
        monkeypatch.setattr(sys, "argv", ["memory", "--record", str(tmp_path / "memory.json"), context_length])
        memory.main()
    assert json.loads((tmp_path / "memory.json").read_text()) == {
        str(at): {"context_length": at, "planned_bytes": 10 * at} for at in (1024, 8192)
    }
    assert json.loads(capsys.readouterr().out.splitlines()[1])["planned_bytes"] == 81920
