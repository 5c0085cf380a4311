"""The benchmark of the reference shape, on a shape that a processor runs in seconds."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import reference, reference_growth, reference_parts
from benchmarks.reference_parts import prepare
from sae_runtime.latent_reader import NoDictionary

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


def test_each_curve_changes_one_thing_up_to_its_end():
    found = {curve: list(reference_growth.points(curve, 65536, 64)) for curve in reference_growth.CURVES}
    assert [(p.num_streams, p.num_slots) for p in found["streams"]] == [(n, 256) for n in reference_growth.NUM_STREAMS]
    assert {p.num_streams for p in found["width"]} == {p.num_streams for p in found["watched"]} == {1, 32}
    assert [p.num_latents for p in found["width"][::2]] == [8192, 16384, 32768, 65536, 131072]
    assert [p.num_watched for p in found["watched"][::2]] == [1, 4, 16, 64, 256]
    assert [p.prompt_tokens + 64 for p in found["context"]] == [128, 256, 512, 1024, 2048, 4096, 8192]
    for curve, its_own in {"streams": "num_streams", "watched": "num_watched", "context": "prompt_tokens"}.items():
        alone = [point for point in found[curve] if point.num_streams == 1 or curve == "streams"]
        assert len({replace(point, at=0, **{its_own: 0}) for point in alone}) == 1


def test_growth_is_measured_at_every_point_with_one_server_for_those_that_can_share_it(tmp_path, monkeypatch):
    small = {"NUM_STREAMS": (1, 3), "WIDTHS": (256, 512), "NUM_WATCHED": (1, 8), "CONTEXTS": (72, 96)}
    for name, values in (small | {"_FEW_AND_MANY": (1, 2), "_WATCHED": 8}).items():
        monkeypatch.setattr(reference_growth, name, values)
    prepared, ran = [], []
    run = reference_growth.run

    def prepare_noted(args, *rest):
        prepared.append(args.latents)
        return prepare(args, *rest)

    def run_noted(runner, limits, num_streams, num_tokens, watched, *, prompt_tokens):
        ran.append((isinstance(runner.sae, NoDictionary), num_streams, len(watched), prompt_tokens, num_tokens))
        return run(runner, limits, num_streams, num_tokens, watched, prompt_tokens=prompt_tokens)

    monkeypatch.setattr(reference_growth, "prepare", prepare_noted)
    monkeypatch.setattr(reference_growth, "run", run_noted)
    given = ["--device", "cpu", "--quantization", "none", "--layers", "2", "--latents", "512", "--tokens", "6"]
    result = reference_growth.measure(reference_growth.parse([*given, "--repeats", "2"]), tmp_path, SHAPE)
    assert [(p["at"], p["streams"]) for p in result["streams"]] == [(1, 1), (3, 3)]
    assert [(p["at"], p["streams"]) for p in result["width"]] == [(256, 1), (256, 2), (512, 1), (512, 2)]
    assert prepared == [512, 256, 512, 512, 512]
    assert all(point["tokens_per_second"] > 0 for curve in reference_growth.CURVES for point in result[curve])
    # Monitored and not, once to warm up, then by turns.
    assert ran[:6] == [(way, 1, 0 if way else 8, 64, 6) for way in (False, True, False, True, True, False)]
    assert [prompt for *_, prompt, _ in ran[-12::6]] == [66, 90]
    assert json.loads(json.dumps(result))["machine"]


def test_what_was_made_is_used_again(tmp_path, monkeypatch):
    first = prepare(arguments(streams=[1]), tmp_path, SHAPE, 80).catalog.model.identity
    monkeypatch.setattr(reference_parts, "save_random_model", None)
    assert prepare(arguments(streams=[2], latents=256), tmp_path, SHAPE, 80).catalog.model.identity == first
