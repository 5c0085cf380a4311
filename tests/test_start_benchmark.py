"""benchmarks.start: the parts that it tells of a start, on a tiny model, and what it makes of several."""

import pytest
from tiny_files import write_model

from benchmarks.start import start_seconds, summarize


def test_a_start_is_told_by_its_parts(tmp_path, monkeypatch):
    write_model(tmp_path / "model")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    seconds, phases = start_seconds(
        "benchmarks.start_phases", "--model", str(tmp_path / "model"), "--sae", "none", "--device", "cpu",
        "--slots", "1", "--journal", "none", "--cache-dir", str(tmp_path / "cache"),
    )  # fmt: skip
    assert set(phases) == {"imports", "journal", "model", "dictionary", "monitors", "keys_and_values", "warm_up"}
    assert all(each >= 0 for each in phases.values())
    assert 0 < sum(phases.values()) < seconds
    assert phases["imports"] > phases["journal"]


def test_what_stops_it_is_said():
    with pytest.raises(RuntimeError, match=r"did not start: .*slots"):
        start_seconds("service.cli", "serve", "--slots", "-1")


def test_figures_are_medians_and_ratios_those_of_a_round():
    rounds = [{"import": i, "ready": r, "model": m} for i, r, m in ((1.0, 2.0, 0.5), (4.0, 4.0, 1.0), (2.0, 3.0, 1.5))]
    found = summarize(rounds)
    assert found["seconds"] == {"import": 2.0, "ready": 3.0, "model": 1.0}
    assert found["to_import_ratio"] == {"ready": 1.5, "model": 0.5}
