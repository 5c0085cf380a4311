"""A runner without a dictionary: the same probes, the same steering along vectors, and no latents."""

import pytest
import tiny
import torch

from sae_runtime.errors import SteeringError
from sae_runtime.latent_reader import NoDictionary
from sae_runtime.steering import Steering
from sae_runtime.steering_spec import SteeringLimits, SteeringOp, SteeringSpec, StrengthUnit
from service.pass_output import RowInput

IDS = [0, 5, 9, 70, 31, 12]
PROBES = [tiny.probe("here", "layers.1.output", seed=1), tiny.probe("there", "layers.3.output", seed=2)]
NOTHING = NoDictionary(torch.device("cpu"))
LIMITS = SteeringLimits.without_dictionary(tiny.D_MODEL, 20.0)
VECTOR = tuple(torch.randn(tiny.D_MODEL, generator=torch.Generator().manual_seed(3)).tolist())


def runner(sae):
    return tiny.model_runner(tiny.language_model(), sae, probes=PROBES)


def steering(sae, limits, spec):
    made = Steering(sae, len(IDS), limits)
    made.add([spec])
    return made


def test_it_reads_nothing_in_the_shapes_of_a_dictionary(dictionary):
    resid_TD = torch.randn(5, tiny.D_MODEL)
    nobody = torch.zeros(0, dtype=torch.long)
    found, wanted = NOTHING.read_tokens(resid_TD, nobody, 0), dictionary.read_tokens(resid_TD, nobody, 0)
    for name, mine, theirs in zip(found._fields, found, wanted, strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype), name
    assert found.fvu_T.tolist() == found.l0_T.tolist() == [0] * 5
    assert NOTHING.read(resid_TD, []).shape == (5, 0)
    assert (NOTHING.num_latents, NOTHING.device) == (0, dictionary.device)


def test_what_is_asked_of_it_all_the_same_is_refused():
    resid_TD = torch.randn(5, tiny.D_MODEL)
    with pytest.raises(IndexError, match="got 2 latents"):
        NOTHING.read(resid_TD, [1, 2])
    with pytest.raises(IndexError, match="num_top must be 0 without a dictionary, got 3"):
        NOTHING.read_tokens(resid_TD, torch.zeros(0, dtype=torch.long), 3)
    with pytest.raises(SteeringError, match=r"no dictionary, got \[7\]"):
        NOTHING.directions(torch.tensor([7]), resid_TD)


def test_probes_are_the_same_with_a_dictionary_and_without(dictionary):
    with_one, without = runner(dictionary), runner(NOTHING)
    without.warm_up()
    for rows in ([RowInput(0, 0, IDS)], [RowInput(0, len(IDS), [17])]):
        wanted, found = (r.forward(rows, [], with_probes=True) for r in (with_one, without))
        assert torch.equal(found.stats.probes_NP, wanted.stats.probes_NP)
        assert torch.equal(found.stats.norms_NP, wanted.stats.norms_NP)
        assert torch.equal(found.logits_BTV, wanted.logits_BTV)
    fetched = without.fetch(without.forward([RowInput(0, 7, [9])], [], with_probes=True), [])
    assert fetched.stats.readings_NU.shape == fetched.stats.top_values_Nk.shape == (1, 0)
    assert fetched.stats.finite_N.tolist() == [1]


def test_only_position_0_is_off_scale_without_a_dictionary():
    assert runner(NOTHING).forward([RowInput(0, 0, IDS)], []).stats.off_scale_N.tolist() == [True] + [False] * 5


@pytest.mark.parametrize(
    "spec",
    [
        SteeringSpec(VECTOR, SteeringOp.ADD, 2.0),
        SteeringSpec(VECTOR, SteeringOp.ADD, 0.5, StrengthUnit.RELATIVE),
        SteeringSpec(VECTOR, SteeringOp.PROJECT_OUT),
        SteeringSpec(VECTOR, SteeringOp.SET, 3.0),
        SteeringSpec(VECTOR, SteeringOp.CAP, 0.1),
    ],
    ids=lambda spec: f"{spec.op}-{spec.unit}",
)
def test_vectors_steer_as_they_do_at_a_dictionarys_place(dictionary, spec):
    wanted = runner(dictionary).forward([RowInput(0, 0, IDS, steering(dictionary, tiny.limits(dictionary), spec))], [])
    found = runner(NOTHING).forward([RowInput(0, 0, IDS, steering(NOTHING, LIMITS, spec))], [])
    plain = runner(NOTHING).forward([RowInput(0, 0, IDS)], [])
    assert torch.equal(found.logits_BTV, wanted.logits_BTV)
    assert not torch.allclose(found.logits_BTV, plain.logits_BTV)
    assert torch.equal(found.steered[0].relative_T, wanted.steered[0].relative_T)


def test_latents_are_refused_by_name_before_anything_runs():
    with pytest.raises(SteeringError, match="feature must be unset, since there is no dictionary, got 3"):
        LIMITS.check(SteeringSpec(3, SteeringOp.ADD, 1.0))
