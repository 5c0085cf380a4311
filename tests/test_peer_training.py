"""benchmarks.peers.training: everybody trains on the same batches, and the best rate is looked for alike."""

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training import write_harvest

from benchmarks.peers.training import prepare, sweep, table
from discovery.buffers import stream_batches
from discovery.shard_stream import ShardBuffers, Source

SCRIPTS = Path(sweep.__file__).parent


@pytest.fixture
def common(monkeypatch):
    """The module as the libraries' scripts see it, at a small batch."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import common

    monkeypatch.setattr(common, "BATCH_SIZE", 128)
    yield common
    sys.modules.pop("common")


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "BATCH_SIZE", 128)
    facts = {"quantization": "none", "dtype": "float32", "model_sha256": "0" * 64}
    source = write_harvest(tmp_path / "train", **facts)
    held_out = write_harvest(tmp_path / "held-out", num_shards=1, seed=5, **facts)
    argv = [
        "--source",
        f"{source}:2",
        "--held-out",
        str(held_out),
        "--tokens",
        "1280",
        "--output",
        str(tmp_path / "data"),
    ]
    monkeypatch.setattr(sys, "argv", ["prepare", *argv])
    prepare.main()
    return tmp_path / "data"


def run_of(common, data, **fields):
    argv = ["--data", str(data), "--rate", "1e-3", "--num-steps", "10", "--output", "unused"]
    return common.parse_run([*argv, *(word for name, value in fields.items() for word in (f"--{name}", str(value)))])


def test_batches_are_those_that_our_own_training_reads(common, data, tmp_path):
    batches = common.Batches(run_of(common, data))
    ours = stream_batches(ShardBuffers([Source.parse(f"{tmp_path / 'train'}:2")]), 128, seed=0)
    read = [next(batches) for _ in range(12)]
    for batch, (wanted, _) in zip(read[:10], ours, strict=False):
        assert torch.equal(batch, wanted.float())
    assert torch.equal(read[10], read[0])  # from the first again


def test_variance_explained_is_that_of_the_reconstruction(common, data):
    resid_MD = load_file(data / "held_out.safetensors")["resid_ND"].float()
    mean_D = load_file(data / "residuals.safetensors")["mean_D"]
    assert common.variance_explained(lambda x: x, data) == 1
    assert common.variance_explained(lambda x: mean_D.expand_as(x), data) == pytest.approx(0, abs=1e-6)
    half = common.variance_explained(lambda x: mean_D + 0.5 * (x - mean_D), data)
    assert half == pytest.approx(0.75)
    assert len(resid_MD) > common.BATCH_SIZE


@pytest.mark.parametrize(
    ("best", "trained"),
    [(-5, [-5, -4, -6]), (-3, [-5, -4, -3, -2]), (-7, [-5, -4, -6, -7, -8])],
)
def test_rates_are_tried_until_the_best_lies_between_two_others(monkeypatch, tmp_path, best, trained):
    seen = []

    def train(_args, _name, _recipe, rate):
        seen.append(rate)
        return -abs(sweep.rate_of(best) - rate) / max(sweep.rate_of(best), rate)

    monkeypatch.setattr(sweep, "train", train)
    args = argparse.Namespace(runs=tmp_path, max_runs=9)
    found = sweep.sweep(args, "ours", "topk")
    assert max(found, key=found.get) == best
    assert seen == [sweep.rate_of(step) for step in trained]
    assert {best - 1, best + 1} <= set(found)


def test_a_run_that_is_done_is_not_repeated(monkeypatch, tmp_path):
    args = argparse.Namespace(runs=tmp_path, num_steps=96, num_latents=8192, k=64)
    folder = sweep.run_folder(tmp_path, "saelens", "topk", 1e-3)
    folder.mkdir()
    done = {"own_variance_explained": 0.5, "num_steps": 96, "num_latents": 8192, "k": 64}
    (folder / "result.json").write_text(json.dumps(done))
    monkeypatch.setattr(sweep.subprocess, "run", lambda *_, **__: pytest.fail("it was trained again"))
    assert sweep.train(args, "saelens", "topk", 1e-3) == 0.5
    args.num_steps = 250
    with pytest.raises(SystemExit, match="num_steps must be 250, got 96"):
        sweep.train(args, "saelens", "topk", 1e-3)


def test_the_best_rate_of_each_is_in_the_table():
    def result(library, rate, variance):
        return {
            "library": library,
            "recipe": "topk",
            "rate": rate,
            "variant": "",
            "tokens": 1000,
            "variance_explained": variance,
            "own_variance_explained": variance,
            "l0": 64.0,
            "dead_ratio": 0.01,
        }

    results = [result("ours", 1e-3, 0.8), result("ours", 3e-3, 0.9), result("SAELens", 1e-3, 0.85)]
    rows = table.quality_table(results).splitlines()[2:]
    assert len(rows) == 2
    assert "0.9000" in rows[0] and "0.8500" in rows[1]
    assert table.sweep_table(results).count("0.8000, 1.0%") == 1


def test_the_speed_in_the_tables_is_the_median_of_an_even_number_of_rounds_too(tmp_path):
    rounds = {"ours": [700, 100, 400, 301], "saelens": [30, 10, 20]}
    speed = {"recipe": "topk", "tokens_per_second": rounds, "ours_to_peer_speed_ratio": {"saelens": 2.5}}
    (tmp_path / "speed_topk.json").write_text(json.dumps(speed))
    assert table.tokens_per_second(tmp_path) == {("topk", "ours"): 350.5, ("topk", "saelens"): 20}
    rows = table.speed_table(tmp_path).splitlines()[2:]
    assert rows == ["| topk | ours | 350 | 100 to 700 |  |", "| topk | saelens | 20 | 10 to 30 | 2.50 |"]
