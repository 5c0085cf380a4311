"""Which tokens a monitor leaves out as massive activations: what the dictionary says, or what its own probes know."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from tiny_packs import feature_component, pack, probe_component

from monitors.bank import MonitorBank
from monitors.components import Inputs
from monitors.errors import MonitorError
from monitors.pack import MonitorPack
from service.pass_output import RowInput

ALONE = pack("alone", [probe_component("p", largest_norm=10.0)])
OLDER = pack("older", [probe_component("p")])
LATENTS = pack("latents", [feature_component(3)])
MIXED = pack("mixed", [probe_component("p", largest_norm=10.0), feature_component(3, name="f")])
BOTH = pack("both", [probe_component("p", largest_norm=10.0), probe_component("q", direction="q", largest_norm=20.0)])


def inputs(made: MonitorPack, *norms: float, off_scale: bool = False) -> Inputs:
    names = [probe.name for probe in made.probes()]
    values = dict.fromkeys(names, 1.0)
    return Inputs({3: 1.0}, values, dict(zip(names, norms, strict=False)), off_scale)


@pytest.mark.parametrize(
    ("made", "norms", "by_dictionary", "wanted"),
    [
        (ALONE, [10.0], False, False),
        (ALONE, [10.1], False, True),
        (ALONE, [10.0], True, False),  # whatever the dictionary holds usual elsewhere
        (OLDER, [1e9], False, False),
        (OLDER, [1.0], True, True),
        (LATENTS, [], False, False),
        (LATENTS, [], True, True),
        (MIXED, [9.0], True, True),
        (MIXED, [11.0], False, True),
        (MIXED, [9.0], False, False),
        (BOTH, [9.0, 19.0], True, False),
        (BOTH, [9.0, 21.0], False, True),
        (BOTH, [11.0, 19.0], False, True),
    ],
)
def test_a_probe_with_a_largest_norm_judges_for_itself_and_the_dictionary_for_the_rest(
    made, norms, by_dictionary, wanted
):
    token = inputs(made, *norms, off_scale=by_dictionary)
    assert made.spec().is_off_scale(token) is wanted
    bank = MonitorBank([made.spec()])
    bank.observe(0, Inputs(), None)
    updates = bank.observe(1, token, "assistant")
    assert (bank.left_out, [name for name, _ in updates]) == (wanted, [] if wanted else [made.name])
    assert bank.observe(2, Inputs(), None) == [] and not bank.left_out


def test_one_monitor_may_leave_a_token_out_that_another_scores():
    bank = MonitorBank([ALONE.spec(), LATENTS.spec()])
    assert [name for name, _ in bank.observe(1, inputs(ALONE, 11.0), "assistant")] == ["latents"]
    assert bank.left_out
    assert [name for name, _ in bank.observe(2, inputs(ALONE, 9.0, off_scale=True), "assistant")] == ["alone"]
    assert [name for name, _ in bank.observe(3, inputs(ALONE, 9.0), "assistant")] == ["alone", "latents"]
    assert not bank.left_out
    assert [summary.num_scored for summary in bank.summaries()] == [2, 2]


def test_a_norm_that_is_missing_is_named():
    with pytest.raises(MonitorError, match=r"norms\.alone\.p: wanted a norm, got nothing"):
        MonitorBank([ALONE.spec()]).observe(1, inputs(ALONE), "assistant")


def test_a_pack_keeps_it_and_one_without_keeps_its_hash(tmp_path):
    ALONE.save(tmp_path / "alone.pack.yaml")
    assert MonitorPack.load(tmp_path / "alone.pack.yaml") == ALONE
    (component,) = ALONE.as_json()["components"]
    assert component["probe"]["largest_norm"] == 10.0
    (component,) = OLDER.as_json()["components"]
    assert list(component["probe"]) == ["method", "direction", "bias"]
    # It decides the score, so it is frozen with the rest.
    assert replace(OLDER, name="alone").frozen_sha256 != ALONE.frozen_sha256


@pytest.mark.parametrize("norm", [0.0, -1.0, math.inf, math.nan])
def test_a_largest_norm_that_is_none_is_refused(norm):
    with pytest.raises(MonitorError, match="largest_norm: wanted a finite number above 0"):
        probe_component("p", largest_norm=norm)


def test_norms_are_those_of_the_residuals_that_probes_read(model, dictionary):
    places = ("layers.3.input", "layers.0.input", "layers.1.output", "layers.2.input", "layers.2.output")
    probes = [tiny.probe(f"p{i}", place, seed=i) for i, place in enumerate(places)]
    runner = tiny.model_runner(tiny.language_model(), dictionary, probes=probes)
    ids = [0, 5, 9, 70, 31, 12]
    seen = runner.forward([RowInput(0, 0, ids)], [], with_probes=True).stats
    with torch.inference_mode():
        hidden = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    points = {probe.name: probe.hook_point.hidden_state_index for probe in probes}
    wanted = torch.stack([hidden[points[name]][0].norm(dim=-1) for name in runner.probe_names], dim=1)
    torch.testing.assert_close(seen.norms_NP, wanted, rtol=1e-4, atol=1e-4)
    assert runner.forward([RowInput(0, 6, [4])], []).stats.norms_NP.shape == (1, 0)
