"""benchmarks.native_levers: what takes turns is what is said, and levers run; what is timed is not tested here."""

import json
import time
from unittest.mock import patch

import native_models as native
import pytest
import torch

from benchmarks import native_levers
from benchmarks.native_levers import Beside, by_turns, embedded, engine_seconds, kernel_step, ratio
from sae_runtime import native_weights
from service.request import TokenEvent


def test_ratios_are_those_of_rounds_whose_order_changes():
    taken, values = [], iter([2.0, 1.0, 4.0, 10.0, 9.0, 3.0])

    def run(name):
        def figure():
            taken.append(name)
            return next(values)

        return figure

    found = by_turns(3, a=run("a"), b=run("b"))
    assert "".join(taken) == "abbaab"
    assert found == [{"a": 2.0, "b": 1.0}, {"a": 10.0, "b": 4.0}, {"a": 9.0, "b": 3.0}]
    assert ratio(found, "a", "b") == {"ratio": 2.5, "of_rounds": [2.0, 3.0]}


def test_counting_is_measured_on_the_same_steps(monkeypatch):
    observed = []

    class Metrics:
        def __init__(self, *_):
            pass

        def observe_step(self, record):
            observed.append(record.readings_NW)

    monkeypatch.setattr(native_levers, "FeatureMetrics", Metrics)
    monkeypatch.setattr(native_levers, "median_seconds", lambda step: (step(), 1.0)[1])
    found = native_levers.counting(1)
    one_by_one, at_once = observed[:64], [each for each in observed[64:] if len(each)]
    assert all(len(each) == 1 for each in one_by_one) and len(at_once) == 1
    assert torch.equal(torch.tensor(at_once[0]), torch.cat([torch.tensor(each) for each in one_by_one]))
    assert list(found["ratios"].values()) == [{"ratio": 1.0, "of_rounds": [1.0, 1.0]}]


def test_a_lever_measured_alone_leaves_the_others(tmp_path, monkeypatch, capsys):
    ratios = {"a over b": {"ratio": 1.0, "of_rounds": [1.0, 1.0]}}
    monkeypatch.setattr(native_levers, "LEVERS", {name: lambda _rounds: {"ratios": ratios} for name in "xy"})
    path = tmp_path / "levers.json"
    native_levers.main(["--threads", "1", "--record", str(path)])
    native_levers.main(["--threads", "1", "--only", "y", "--rounds", "2", "--record", str(path)])
    kept = json.loads(path.read_text())["levers"]
    assert (kept["x"]["rounds"], kept["y"]["rounds"]) == (7, 2) and kept["x"]["ratios"] == ratios
    assert [json.loads(line)["lever"] for line in capsys.readouterr().out.splitlines()] == ["x", "y", "y"]


@pytest.fixture(scope="module")
def parts():
    native.library()
    return embedded()


@pytest.mark.slow
def test_kernels_step_as_the_model_with_weights_of_other_pages(parts):
    with patch.object(native_weights, "side_by_side", native_levers._as_they_come):
        other = native_levers.native_model()
    for num_rows in (1, 3):
        logits_BTV = kernel_step(parts.runner.language_model, num_rows)()
        assert logits_BTV.shape[:2] == (num_rows, 1)
        assert torch.equal(logits_BTV, kernel_step(other, num_rows)())


def tokens_of(parts, options, monkeypatch):
    """What rows of the measured engine get: readings of the tokens of one of them."""
    submissions, submit = [], native_levers.Engine

    class Watched(submit):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            add = self.admission.submit
            self.admission.submit = lambda request: submissions.append(add(request)) or submissions[-1]

    monkeypatch.setattr(native_levers, "Engine", Watched)
    monkeypatch.setattr(native_levers, "ENGINE_STEPS", 4)
    assert engine_seconds(parts, 2, options) > 0
    assert len(submissions) == 2
    return [event for event in submissions[0].mailbox.take()[0] if isinstance(event, TokenEvent)]


@pytest.mark.slow
def test_the_measured_engine_reads_and_steers_or_does_neither(parts, monkeypatch):
    watching = native_levers.watching(parts)
    assert len(watching["watched"]) == 16 and [monitor.name for monitor in watching["monitors"]] == ["lying"]
    monitored = tokens_of(parts, watching, monkeypatch)
    assert all(len(event.readings) == 16 for event in monitored)
    found = {}

    def seconds(parts, num_rows, options):
        # What the lever asks for, in the order it asks.
        reads = parts.runner.sae.num_latents > 0, bool(parts.catalog.default_latents), "watched" in options
        found.setdefault(num_rows, []).append((*reads, len(options.get("steering", ()))))
        return 1.0

    monkeypatch.setattr(native_levers, "engine_seconds", seconds)
    said = native_levers.engine(1)
    asked = [(False, False, False, 0), (True, True, True, 0), (True, True, True, 1)]
    assert found == {1: asked, 16: asked}
    assert len(said["ratios"]) == 4


@pytest.mark.slow
def test_a_long_prompt_is_read_beside_streams_in_fewer_steps_without_a_pace(parts, monkeypatch):
    monkeypatch.setattr(native_levers, "ENGINE_STEPS", 4)
    monkeypatch.setattr(native_levers, "LONG_PROMPT_TOKENS", 700)
    steps = {}
    for is_paced in (True, False):
        beside, taken = Beside(parts, is_paced=is_paced), []
        step = beside._step
        beside._step = lambda step=step, taken=taken: taken.append(time.perf_counter()) or step()
        unsteadiness, seconds = beside.run()
        assert unsteadiness > 0 and seconds > 0
        steps[is_paced] = len(taken) - 4
    assert steps[False] == 3 < steps[True]  # chunks of 256
