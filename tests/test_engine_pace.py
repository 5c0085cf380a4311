"""An engine reads prompts at the pace that its own passes set, by a clock that the test holds."""

from types import SimpleNamespace

import tiny
from test_engine import request, submit

from service import passes
from service.model_runner import ModelRunner
from service.prefill_pace import SHARE
from service.records import Phase

UNIT = 2.0**-10
"""Seconds; sums of few of them are exact."""
DECODE_UNITS = 20


def test_chunks_follow_what_passes_take_and_one_slow_pass_little(model, dictionary, monkeypatch):
    published, now = [], 0.0
    per_token = 1
    engine = tiny.engine(model, dictionary, chunk_tokens=40, publish=published.append)
    forward = engine.runner.forward

    def timed(rows, *args, **kwargs):
        nonlocal now
        num_tokens = len(rows[0].ids)
        now += UNIT * (DECODE_UNITS if num_tokens == 1 else num_tokens * per_token)
        return forward(rows, *args, **kwargs)

    monkeypatch.setattr(passes, "time", SimpleNamespace(perf_counter=lambda: now, monotonic=lambda: now))
    monkeypatch.setattr(ModelRunner, "reads_evenly", True)
    monkeypatch.setattr(engine.runner, "forward", timed)
    submit(engine, request(model, "The sea was calm.", request_id="first", max_tokens=30))
    engine.step()
    submit(engine, request(model, "It rained. " * 14, request_id="second", max_tokens=3))
    for units in (1, 5, 1, 1):
        per_token = units
        engine.step()
    chunks = [step.num_tokens for each in published for step in each.steps if step.phase is Phase.PREFILL]
    # A fifth of the slow pass goes into the mean: 1 + (5 - 1) / 5, and less again with the next.
    means = (1, 1, 1.8, 1.64)
    assert chunks[1:] == [int(SHARE * DECODE_UNITS / mean) for mean in means] == [20, 20, 11, 12]
    engine.runner.tap.remove()
