"""benchmarks.serving_growth: rates while all streams decode, its points, and pictures that equal the data."""

import asyncio
import json
import sys
from pathlib import Path

import pytest
import torch
from tiny_files import write_model

from benchmarks import serving_growth, serving_growth_plots
from benchmarks.serving_growth import CONTEXTS, NUM_STREAMS, TOKENS, Point, medians, points, steady_rate
from sae_runtime.checkpoint import load_sae

PAGE = Path(__file__).parents[1] / "docs" / "speed.md"


def test_the_rate_is_that_while_all_decode():
    # All decode from 2 to 4: tokens at 3 and 4 of the first, at 2.5, 3.5 and 4 of the second.
    first, second = [0.0, 1.0, 2.0, 3.0, 4.0], [2.0, 2.5, 3.5, 4.0, 5.0, 6.0]
    assert steady_rate([first, second]) == pytest.approx(2.5)
    assert steady_rate([first]) == pytest.approx(1.0)


def test_streams_that_never_decode_together_have_no_rate():
    with pytest.raises(ValueError, match="must overlap"):
        steady_rate([[0.0, 1.0], [1.0, 2.0]])


def test_figures_are_medians():
    taken = [{"rate": rate, "held_bytes": held} for rate, held in ((1.0, 10.4), (300.123456, 2.0), (2.0, 4e9))]
    assert medians(taken) == {"rate": 2.0, "held_bytes": 10}


def test_a_curve_changes_one_thing(tmp_path):
    assert [point.at for point in points("streams", tmp_path)] == list(NUM_STREAMS)
    assert all(point.num_streams == point.at for point in points("streams", tmp_path))
    watched = points("watched", tmp_path)
    assert [len(point.options["watch"]) for point in watched] == [point.at for point in watched]
    assert len({point.flags for point in watched}) == 1
    context = points("context", tmp_path)
    assert [len(point.prompt) + point.num_tokens for point in context] == list(CONTEXTS)
    assert len({point.flags for point in context}) == 1


def test_random_dictionaries_are_as_wide_as_said_and_active_as_real_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(serving_growth, "WIDTHS", (256, 512))
    found = points("width", tmp_path)
    folders = [Path(point.flags[point.flags.index("--sae") + 1]) for point in found]
    assert [point.at for point in found] == [256, 256, 512, 512]
    assert folders[0] == folders[1] and load_sae(folders[0]).num_latents == 256
    loaded = load_sae(folders[2])
    assert loaded.num_latents == 512 and loaded.manifest.dtype == "bfloat16"
    resid_TD = torch.randn(50, loaded.d_model) * serving_growth.RESID_NORM / loaded.d_model**0.5
    assert (loaded.encode(resid_TD) > 0).sum(-1).float().mean() == pytest.approx(64, rel=0.1)


async def test_a_point_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_model(tmp_path / "model")
    flags = ("--model", str(tmp_path / "model"), "--sae", "none", "--device", "cpu", "--slots", "2")
    flags += ("--cache-dir", str(tmp_path / "cache"))
    measured = [Point(at, at, flags, {"no_defaults": True}, 100) for at in (1, 2)]
    found = [each async for each in serving_growth.one_round(measured, 1, None)]
    assert [number for number, _ in found] == [0, 1]
    for number, figures in found:
        assert figures["step_milliseconds"] == pytest.approx(1e3 * (number + 1) / figures["tokens_per_second"])
        assert figures["held_bytes"] > 10**8 and figures["planned_bytes"] > 10**6
        # A process's clock of milliseconds would be quantised by tenths of them over so few tokens.
        for whose in ("event_loop", "client"):
            assert 0 < figures[f"{whose}_milliseconds_a_token"] < figures["step_milliseconds"]


ROWS = [
    {
        "at": at,
        "streams": streams,
        "tokens_per_second": 100.0 * streams / at,
        "held_bytes": at << 30,
        "planned_bytes": 1,
    }
    for at in (1, 2)
    for streams in (1, 16)
]


async def test_a_curve_that_is_measured_alone_leaves_the_others_with_their_facts(tmp_path, monkeypatch):
    before = {"passes": {"points": [1], "date": "then"}, "streams": {"points": [2], "date": "then", "rounds": 3}}
    path = tmp_path / "growth.json"
    path.write_text(json.dumps(before))
    monkeypatch.setattr(serving_growth, "passes", lambda: [{"at": 1, "pass_milliseconds": 4.0}])
    monkeypatch.setattr(serving_growth, "read_bandwidth", lambda: 4e10)
    monkeypatch.setattr(sys, "argv", ["serving_growth", "--threads", "1", "--only", "passes", "--record", str(path)])
    await asyncio.to_thread(serving_growth.main)
    kept = json.loads(path.read_text())
    assert kept["streams"] == before["streams"]
    assert kept["passes"]["points"] == [{"at": 1, "pass_milliseconds": 4.0}] and kept["passes"]["date"] != "then"
    assert kept["passes"]["machine"] and kept["passes"]["versions"] and kept["passes"]["threads"] == 1
    assert set(kept) == {"benchmark", "passes", "streams"}


def test_pictures_show_the_data_and_nothing_else():
    picture = serving_growth_plots.draw("width", ROWS)
    assert picture == serving_growth_plots.draw("width", ROWS)
    assert "16 streams" in picture and "latents of the dictionary" in picture
    changed = [{**ROWS[0], "tokens_per_second": 99.0}, *ROWS[1:]]
    assert picture != serving_growth_plots.draw("width", changed)
    assert picture != serving_growth_plots.draw("width", [{**row, "held_bytes": 5} for row in ROWS])


def test_pictures_lie_beside_the_data(tmp_path):
    data = tmp_path / "growth.json"
    data.write_text(json.dumps({"width": {"points": ROWS}, "other": 1}))
    serving_growth_plots.main(["--result", str(data)])
    assert [path.name for path in tmp_path.glob("*.svg")] == ["growth_width.svg"]


@pytest.mark.parametrize("curve", list(serving_growth_plots.LABELS))
def test_the_pictures_are_those_of_what_was_measured(curve):
    figures = json.loads(serving_growth_plots.RESULT.read_text(encoding="utf-8"))
    path = serving_growth_plots.path_of(curve)
    assert path.read_text(encoding="utf-8") == serving_growth_plots.draw(curve, figures[curve]["points"])
    assert f"benchmarks/results/{path.name}" in PAGE.read_text(encoding="utf-8")


def test_tokens_suffice_for_streams_to_overlap(tmp_path):
    assert all(point.num_tokens >= TOKENS + 2 * point.num_streams for point in points("streams", tmp_path))
