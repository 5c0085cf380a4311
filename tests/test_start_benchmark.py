"""benchmarks.start: the parts that it tells of a start, on a tiny model, and what it makes of several."""

import json
import sys

import pytest
from tiny_files import write_model

from benchmarks import start
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


def test_what_an_operator_set_for_another_server_is_not_taken_over(tmp_path, monkeypatch):
    """Nor is a journal kept in the state folder of whoever measures."""
    write_model(tmp_path / "model")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TELLTALE_JOURNAL", str(tmp_path / "operator.sqlite"))
    monkeypatch.setenv("TELLTALE_CONTEXT_LENGTH", "-1")
    seconds, _ = start_seconds(
        "service.cli", "serve", "--model", str(tmp_path / "model"), "--sae", "none", "--device", "cpu",
        "--slots", "1", "--cache-dir", str(tmp_path / "cache"),
    )  # fmt: skip
    assert seconds > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model"]


def test_a_journal_that_is_asked_for_is_kept(tmp_path, monkeypatch):
    write_model(tmp_path / "model")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    start_seconds(
        "service.cli", "serve", "--model", str(tmp_path / "model"), "--sae", "none", "--device", "cpu", "--slots", "1",
        "--cache-dir", str(tmp_path / "cache"), "--journal", str(tmp_path / "mine.sqlite"),
    )  # fmt: skip
    assert (tmp_path / "mine.sqlite").is_file()


def test_figures_are_medians_and_ratios_those_of_a_round():
    rounds = [{"import": i, "ready": r, "model": m} for i, r, m in ((1.0, 2.0, 0.5), (4.0, 4.0, 1.0), (2.0, 3.0, 1.5))]
    found = summarize(rounds)
    assert found["seconds"] == {"import": 2.0, "ready": 3.0, "model": 1.0}
    assert found["to_import_ratio"] == {"ready": 1.5, "model": 0.5}
    assert found["seconds_of_starts"]["ready"] == [2.0, 4.0]
    assert found["to_import_ratio_of_starts"]["ready"] == [1.0, 2.0]


def test_nobody_collects_garbage_while_importing(monkeypatch):
    """The server does not, either: with it the imports alone would take longer than they take in the server."""
    monkeypatch.setattr(start, "IMPORTS", start.IMPORTS.partition("import torch")[0] + "assert not gc.isenabled()")
    assert start.import_seconds() > 0


def test_a_start_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(start, "start_seconds", lambda *_: (3.0, {"imports": 1.0}))
    monkeypatch.setattr(start, "import_seconds", lambda: 1.5)
    monkeypatch.setattr(sys, "argv", ["start", "--starts", "2", "--record", str(tmp_path / "start.json")])
    start.main()
    kept = json.loads((tmp_path / "start.json").read_text())
    assert kept == json.loads(capsys.readouterr().out)
    assert kept["seconds"]["ready"] == 3.0 and kept["machine"]["cores"] >= 1 and kept["versions"]["torch"]
