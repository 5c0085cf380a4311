"""benchmarks.recording: what is said of a run, and files of results."""

import json

from benchmarks.recording import facts, keep


def test_facts_name_machine_and_versions():
    found = facts()
    assert found["machine"]["processor"] and found["machine"]["cores"] >= 1
    assert set(found["versions"]) == {"python", "torch", "transformers", "grpcio"}


def test_what_was_not_measured_stays(tmp_path):
    path = tmp_path / "levers.json"
    keep(path, {"a": {"1": {"ratio": 1.0}}, "b": {"1": {"ratio": 2.0}}})
    keep(path, {"b": {"4": {"ratio": 3.0}}})
    kept = json.loads(path.read_text())
    assert kept == {"a": {"1": {"ratio": 1.0}}, "b": {"1": {"ratio": 2.0}, "4": {"ratio": 3.0}}}


def test_what_was_measured_again_is_replaced(tmp_path):
    path = tmp_path / "growth.json"
    keep(path, {"streams": {"points": [1, 2], "date": "a"}, "width": {"points": [3], "date": "a"}})
    keep(path, {"streams": {"points": [4], "date": "b"}})
    kept = json.loads(path.read_text())
    assert kept == {"streams": {"points": [4], "date": "b"}, "width": {"points": [3], "date": "a"}}
