"""Probes at several hook points in one pass, against transformers' own hidden states."""

import math

import pytest
import tiny
import torch

from sae_runtime.errors import ProbeError, TapError
from sae_runtime.hook_point import HookPoint
from sae_runtime.probes import Probe, ProbeSet
from sae_runtime.steering import Steering
from sae_runtime.steering_spec import SteeringOp, SteeringSpec
from sae_runtime.tap import Tap, TapRecord
from service.model_runner import ModelRunner
from service.pass_output import RowInput

IDS = [0, 5, 9, 70, 31, 12, 77, 140]
OTHER_IDS = [0, 44, 3, 8, 120, 9, 9, 201]
PROBES = [
    tiny.probe("late", "layers.3.input", seed=3, bias=-1.0),
    tiny.probe("first", "layers.0.input", seed=1),
    tiny.probe("at_the_dictionary", "layers.1.output", seed=4, bias=0.25),
    tiny.probe("same_residual", "layers.2.input", seed=5),
    tiny.probe("beside_late", "layers.2.output", seed=6),
]


@pytest.fixture
def runner(dictionary):
    # A model of its own: other tests' taps on a shared one would not disturb this, but its own would stay on it.
    return tiny.model_runner(tiny.language_model(), dictionary, probes=PROBES)


def values(runner: ModelRunner, *rows: RowInput) -> torch.Tensor:
    return runner.forward(rows, [0], with_probes=True).stats.probes_NP


def reference(model, ids: list[int]) -> torch.Tensor:
    """[T, P] from an offline pass over the ids, in the order of PROBES."""
    with torch.inference_mode():
        hidden = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    columns = [hidden[p.hook_point.hidden_state_index][0] @ torch.tensor(p.direction) + p.bias for p in PROBES]
    return torch.stack(columns, dim=1)


def in_order(runner: ModelRunner, values_NP: torch.Tensor) -> torch.Tensor:
    return values_NP[:, [runner.probe_names.index(probe.name) for probe in PROBES]]


def test_values_are_those_of_an_offline_pass_at_every_position(model, runner):
    """A prompt in two pieces, then single tokens beside another row."""
    wanted, other = reference(model, IDS), reference(model, OTHER_IDS)
    seen = [values(runner, RowInput(0, 0, IDS[:3])), values(runner, RowInput(0, 3, IDS[3:6]))]
    values(runner, RowInput(1, 0, OTHER_IDS[:6]))
    for position in (6, 7):
        both = values(runner, RowInput(0, position, [IDS[position]]), RowInput(1, position, [OTHER_IDS[position]]))
        seen.append(both[:1])
        torch.testing.assert_close(in_order(runner, both[1:]), other[position : position + 1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(in_order(runner, torch.cat(seen)), wanted, rtol=1e-4, atol=1e-4)
    # Not for being nearly constant: a position further on is far off.
    assert not torch.allclose(wanted[:-1], wanted[1:], rtol=0.1, atol=0.1)


def test_a_residual_has_one_tap_and_the_dictionarys_is_shared(runner):
    layers = runner.language_model.model.model.layers
    hooks = [len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in layers]
    # The dictionary's at layer 1 (for two probes too), one into layer 0, one for both probes between 2 and 3.
    assert sum(hooks) == 3
    assert set(runner.probe_names) == {probe.name for probe in PROBES}


def test_probes_not_asked_for_are_not_computed(runner):
    stats = runner.forward([RowInput(0, 0, IDS)], [0]).stats
    assert stats.probes_NP.shape == (len(IDS), 0)
    assert stats.finite_N.all()


def test_a_runner_without_probes_has_no_columns(dictionary):
    bare = tiny.model_runner(tiny.language_model(), dictionary)
    assert bare.probe_names == ()
    assert bare.forward([RowInput(0, 0, IDS)], [0], with_probes=True).stats.probes_NP.shape == (len(IDS), 0)


def test_they_come_to_the_host_with_the_readings(runner):
    output = runner.forward([RowInput(0, 0, IDS)], [0, 3], with_probes=True)
    fetched = runner.fetch(output, [])
    assert fetched.stats.probes_NP.shape == (len(IDS), len(PROBES))
    assert (fetched.stats.probes_NP == output.stats.probes_NP.numpy()).all()
    assert (fetched.stats.readings_NU == output.stats.readings_NU.numpy()).all()


def test_a_probe_reads_before_the_steering_at_its_place_and_sees_it_further_on(model, runner):
    spec = SteeringSpec(7, SteeringOp.ADD, strength=3.0)
    steering = Steering(runner.sae, len(IDS), tiny.limits(runner.sae))
    steering.add([spec])
    seen = in_order(runner, values(runner, RowInput(0, 0, IDS, steering)))
    plain = reference(model, IDS)
    moved = dict(zip([probe.name for probe in PROBES], (seen - plain).abs().amax(0).tolist(), strict=True))
    assert max(moved[name] for name in ("first", "at_the_dictionary", "same_residual")) < 1e-4
    assert min(moved[name] for name in ("late", "beside_late")) > 0.1


def test_what_a_token_gets_does_not_depend_on_its_company():
    """To the bit, values and norms: a reply is read one by one, and as a prompt when it is scored."""
    width, generator = 576, torch.Generator().manual_seed(1)
    model = tiny.language_model(d_model=width).model
    tap = Tap(model, tiny.HOOK_POINT, width)
    made = [
        Probe(f"probe {i}", tiny.HOOK_POINT, torch.randn(width, generator=generator).tolist(), 0.5) for i in range(5)
    ]
    probes = ProbeSet(model, made, shared=tap, device=torch.device("cpu"))
    resid_ND = torch.randn(150, width, generator=generator).to(torch.bfloat16)

    def read(piece_ND):
        seen = [None], TapRecord(None, piece_ND[None])
        return torch.cat([probes.read(*seen), probes.norms(*seen)], dim=1)

    whole = read(resid_ND)
    for size in (1, 2, 3, 7, 16, 64):
        assert torch.equal(torch.cat([read(piece) for piece in torch.split(resid_ND, size)]), whole), size


def test_a_row_of_nan_is_marked_and_leaves_the_others_alone(runner):
    alone = values(runner, RowInput(0, 0, IDS))
    runner.release(0, len(IDS))
    embedding = runner.language_model.model.model.embed_tokens
    with torch.no_grad():
        kept, embedding.weight[200] = embedding.weight[200].clone(), math.nan
    try:
        stats = runner.forward([RowInput(0, 0, IDS), RowInput(1, 0, [*IDS[:-1], 200])], [0], with_probes=True).stats
    finally:
        with torch.no_grad():
            embedding.weight[200] = kept
    assert stats.finite_N[: len(IDS)].all()
    assert not stats.finite_N[-1]
    assert stats.probes_NP[-1].isnan().all()
    torch.testing.assert_close(stats.probes_NP[: len(IDS)], alone, rtol=1e-5, atol=1e-5)


def test_a_probe_alone_that_overflows_marks_its_token(dictionary):
    huge = replace_direction(tiny.probe("huge", "layers.3.output"), 3e38)
    runner = tiny.model_runner(tiny.language_model(), dictionary, probes=[huge])
    assert not runner.forward([RowInput(0, 0, IDS)], [0], with_probes=True).stats.finite_N.any()
    assert runner.forward([RowInput(0, 0, IDS)], [0]).stats.finite_N.all()


def replace_direction(probe, value: float):
    return probe._replace(direction=[value] * tiny.D_MODEL)


def test_a_tap_that_saw_nothing_fails_the_pass(runner):
    assert runner.probes is not None
    with pytest.raises(TapError, match=r"must see 8 tokens, got 0"), runner.probes.step(8):
        pass


def test_taken_off_again_they_leave_only_the_dictionarys_tap():
    lm = tiny.language_model()
    tap = Tap(lm.model, tiny.HOOK_POINT, tiny.D_MODEL)
    before = [(len(layer._forward_hooks), len(layer._forward_pre_hooks)) for layer in lm.model.model.layers]
    probes = ProbeSet(lm.model, PROBES, shared=tap, device=lm.device)
    probes.remove()
    assert [(len(layer._forward_hooks), len(layer._forward_pre_hooks)) for layer in lm.model.model.layers] == before


@pytest.mark.parametrize(
    ("probes", "message"),
    [
        ([PROBES[0], PROBES[0]], "probe late must have a name of its own, got it twice"),
        ([PROBES[0]._replace(direction=[1.0])], "probe late must have a direction of 32 numbers, got 1"),
        ([PROBES[0]._replace(bias=math.nan)], "probe late must have finite numbers in fp32, got others"),
        ([PROBES[0]._replace(direction=[1e39] * 32)], "probe late must have finite numbers in fp32, got others"),
    ],
)
def test_a_bad_probe_is_refused_by_name(model, probes, message):
    tap = Tap(model.model, tiny.HOOK_POINT, tiny.D_MODEL)
    try:
        with pytest.raises(ProbeError, match=f"^{message}$"):
            ProbeSet(model.model, probes, shared=tap, device=model.device)
        with pytest.raises(TapError, match="must name one of the model's 4 layers"):
            ProbeSet(model.model, [PROBES[0]._replace(hook_point=HookPoint(4))], shared=tap, device=model.device)
    finally:
        tap.remove()
