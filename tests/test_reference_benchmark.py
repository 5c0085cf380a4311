"""The benchmark of the reference shape, on a shape that a processor runs in seconds."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import reference
from benchmarks.reference_parts import prepare

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
}


def arguments(**changes):
    settings = dict(
        device="cpu", quantization="none", layers=2, latents=512, streams=[1, 3], tokens=6, eager_tokens=6, repeats=1
    )
    return Namespace(**settings | changes)


@pytest.fixture(autouse=True)
def same_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.manual_seed(0)


def test_every_way_is_measured_and_readings_are_those_of_an_offline_pass(tmp_path):
    result = reference.measure(arguments(), tmp_path, SHAPE)
    for streams in ("1", "3"):
        ways = result[streams]
        assert all(ways[way]["tokens_per_second"] > 0 for way in ("generate", "eager", "monitored", "unmonitored"))
        assert ways["monitored"]["max_reading_error_ratio"] < 0.05
        assert ways["monitored"]["active_readings_compared"] > 20
        assert ways["floor"]["tokens_per_second"] > ways["monitored"]["tokens_per_second"]
    assert result["decoding"] == "transformers" and result["copy_bytes_per_second"] > 0


def test_readings_of_other_tokens_are_found_out(tmp_path):
    """The check fails for the reasons it is there for: readings one token off, or of another dictionary."""
    parts = prepare(arguments(streams=[1]), tmp_path, SHAPE, reference.PROMPT_TOKENS + 13)
    runner, ids = parts.runner, reference.prompt(0, SHAPE["vocab_size"])
    first = reference.run(runner, parts.steering_limits, 1, 12, (0,))
    f_TF, _ = reference.offline_latents(parts, [*ids, *(event.id for event in first.events)])
    watched = tuple(f_TF[len(ids) :].sum(0).topk(64).indices.tolist())
    events = reference.run(runner, parts.steering_limits, 1, 12, watched).events
    assert reference.reading_error(parts, ids, events, watched)["max_reading_error_ratio"] < 0.05
    readings = [event.readings for event in events]
    shifted = [replace(event, readings=other) for event, other in zip(events, readings[1:] + readings[:1], strict=True)]
    assert reference.reading_error(parts, ids, shifted, watched)["max_reading_error_ratio"] > 0.1
    with torch.no_grad():
        reference.dictionary(parts).W_enc.copy_(reference.dictionary(parts).W_enc.roll(1, dims=1))
    assert reference.reading_error(parts, ids, events, watched)["max_reading_error_ratio"] > 0.1


def test_the_page_tells_what_was_measured():
    root = Path(__file__).parent.parent
    result = json.loads((root / "benchmarks" / "results" / "reference.json").read_text())
    lines = (root / "docs" / "gpu.md").read_text().splitlines()
    for streams in ("1", "8", "32"):
        figures = result[streams]
        speeds = [
            figures[way]["tokens_per_second"] for way in ("monitored", "unmonitored", "eager", "generate", "floor")
        ]
        cells = [streams, *(f"{speed:,.0f}" for speed in speeds), f"{figures['monitoring_costs_percent']:.1f} %"]
        assert "| " + " | ".join(cells) + " |" in lines
