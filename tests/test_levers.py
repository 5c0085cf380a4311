"""benchmarks.levers: every lever computes what the baseline does; what is timed is not tested here."""

import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import tools
import torch
from torch import nn

from benchmarks import lever_threads, levers
from benchmarks.lever_parts import GROUP, Int4, Int8, Linear, Prepacked, Transposed, quantised
from benchmarks.lever_steps import STEPS, Bench

TEXT = "What a telltale shows is the state of something hidden. " * 20
COMPILED = ["compiled", "compiled_over_all", "compiled_int4"]


@pytest.fixture(scope="module")
def exact():
    """fp32 weights that are Q4_1's, so that no lever loses any."""
    made = tiny.language_model()
    with torch.no_grad():
        for layer in made.model.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(quantised(layer.weight).weight_NK())
    return made


@pytest.fixture(scope="module", params=[1, 3])
def bench(request, exact):
    in_bf16 = tiny.language_model().model
    in_bf16.load_state_dict(exact.model.state_dict())
    in_bf16 = in_bf16.to(torch.bfloat16)
    return Bench(replace(exact, model=in_bf16), exact.model, request.param, text=TEXT, num_positions=tiny.NUM_POSITIONS)


def spread(bench):
    """What logits would differ by if a step computed something else."""
    return float((bench.exact_BV - bench.exact_BV.roll(1, dims=-1)).abs().max())


def check(bench, made):
    logits_BV = made.step()
    assert logits_BV.shape == bench.exact_BV.shape
    assert bench.difference(logits_BV) < 0.1 * spread(bench)


@pytest.mark.parametrize("name", list(STEPS))
def test_a_lever_gives_the_logits_of_fp32_weights(bench, name):
    check(bench, levers.LEVERS[name](bench))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_lever_gives_them_and_is_compiled_once(bench, name, tmp_path, monkeypatch):
    if shutil.which("g++") is None:
        tools.missing("g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    made = levers.LEVERS[name](bench)
    check(bench, made)
    assert made.facts["graphs"] == 1
    assert made.facts["compile"]["seconds"] > 0
    assert float(made.tapped.resid_BD.abs().max()) > 0


def test_the_baseline_is_near_too_and_a_step_on_another_token_is_not(bench):
    assert 0 < bench.difference(bench.baseline()) < 0.1 * spread(bench)
    ids_BL, bench.ids_BL = bench.ids_BL, (bench.ids_BL + 7) % 200
    try:
        assert bench.difference(bench.baseline()) > 0.2 * spread(bench)
    finally:
        bench.ids_BL = ids_BL


@pytest.mark.parametrize("name", ["hand_written", "hand_written_int4"])
def test_the_tap_sees_and_steers_the_middle_block(bench, name):
    made = levers.LEVERS[name](bench)
    middle = bench.tapped
    wanted = {layer: residual(bench, bench.exact, layer) for layer in (middle - 1, middle, middle + 1)}
    own = distance(residual(bench, bench.model, middle), wanted[middle])
    unsteered_BV = made.step().clone()
    seen_BD = made.tapped.resid_BD
    assert distance(seen_BD, wanted[middle]) < 1.5 * own  # bf16's own
    assert all(distance(seen_BD, wanted[layer]) > 5 * own for layer in (middle - 1, middle + 1))
    made.tapped.steering_BD.fill_(3.0)
    assert float((made.step() - unsteered_BV).abs().max()) > 0.2 * spread(bench)


def residual(bench, model, layer):
    """What transformers' model leaves behind a block at the step's token, [B, D]."""
    seen = []
    handle = model.model.layers[layer].register_forward_hook(
        lambda _module, _args, output: seen.append((output[0] if isinstance(output, tuple) else output)[:, -1])
    )
    try:
        bench.step(model, bench.filled(model, tiny.NUM_POSITIONS))
    finally:
        handle.remove()
    return seen[-1].float()


def distance(found, wanted):
    return float((found.float() - wanted).norm() / wanted.norm())


def test_weights_that_were_q4_1_are_recovered():
    torch.manual_seed(0)
    codes = torch.randint(0, 16, (64, 4 * GROUP)).unflatten(1, (-1, GROUP))
    codes[..., 0], codes[..., 1] = 0, 15
    scales, least = torch.rand(64, 4, 1) * 0.01, torch.randn(64, 4, 1) * 0.1
    weight = (codes * scales + least).flatten(1)
    found = quantised(weight)
    assert torch.equal(found.codes_NK, codes.flatten(1).to(torch.int32))
    assert torch.allclose(found.weight_NK(), weight, atol=1e-6)


@pytest.mark.parametrize("kind", [Linear, Transposed, lambda w: Prepacked(w, 3), Int4, Int8])
def test_a_product_is_that_of_its_weights(kind):
    torch.manual_seed(0)
    weight = quantised(torch.randn(64, 2 * GROUP)).weight_NK()
    x = torch.randn(3, 2 * GROUP).to(torch.bfloat16)
    wanted = x.float() @ weight.T
    got = kind(weight)(x).float()
    assert float((got - wanted).norm() / wanted.norm()) < 0.02
    assert float((got - wanted.roll(1, 1)).norm() / wanted.norm()) > 0.5


def test_ratios_are_those_of_turns_in_one_round():
    found = lever_threads.ratios({"baseline": [2.0, 4.0, 9.0], "pinned": [1.0, 4.0, 3.0]})
    assert found["pinned"] == {"ratio": 2.0, "ratio_lowest": 1.0, "ratio_highest": 3.0, "milliseconds": 3000.0}


def test_the_busiest_thread_is_found_and_pinned():
    is_over, ids = threading.Event(), []

    def work():
        ids.append(threading.get_native_id())
        while not is_over.is_set():
            sum(range(1000))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        [found] = lever_threads.busiest(lambda: is_over.wait(0.5), 1)
        assert [found] == ids
        processor = min(os.sched_getaffinity(0))
        lever_threads.pin([found], [processor])
        assert os.sched_getaffinity(found) == {processor}
    finally:
        is_over.set()
        thread.join()


def cell(figures):
    if figures is None:
        return "-"
    return f"{figures['ratio']:.2f} ({figures['ratio_lowest']:.2f}-{figures['ratio_highest']:.2f})"


def test_the_notes_tell_what_was_measured():
    root = Path(levers.__file__).parent
    results = json.loads((root / "results" / "levers.json").read_text())
    lines = (root / "NOTES.md").read_text().splitlines()
    measured = [name for name in levers.LEVERS if name in results]
    assert len(measured) > 10
    assert not {name for name in results if name.startswith(("compiled", "hand_written"))} - set(levers.LEVERS)
    for name in measured:
        figures = [results[name].get(rows) for rows in ("1", "4", "16")]
        difference = max(one["logit_difference"] for one in figures if one)
        assert f"| `{name}` | " + " | ".join(map(cell, figures)) + f" | {difference:.2f} |" in lines
    # What the text says of all of them.
    page = " ".join(lines)
    for rows, words in {"1": "{} to {} ms with one row", "4": "{} to {} with 4", "16": "{} to {} with 16"}.items():
        each = [results[name][rows]["baseline_milliseconds"] for name in measured if rows in results[name]]
        assert words.format(round(min(each)), round(max(each))) in page
    compiled = [found["compile"] for name in measured for found in results[name].values() if "compile" in found]
    for figure, words in {"process_seconds": "takes {} to {} s of", "seconds": "took {} to {} s with"}.items():
        each = [found[figure] for found in compiled]
        assert words.format(int(min(each)), round(max(each))) in page
    threads = results["threads"]["1"]
    for name in lever_threads.SETTINGS:
        assert f"| {name} | {cell(threads['alone'][name])} | {cell(threads['busy'][name])} |" in lines
    assert f"{results['floor']['bytes_per_second'] / 1e9:.1f} GB/s" in "\n".join(lines)
