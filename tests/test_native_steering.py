"""Steering by the C kernel against `steer_rows` in fp32, which has the formulas in torch."""

import itertools
import math

import native_models as parts
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_runtime.latent_reader import NoDictionary
from sae_runtime.native_sae import NativeSAE
from sae_runtime.native_steering import NativeSteering
from sae_runtime.sae import SAE
from sae_runtime.steering import Steering, steer_rows
from sae_runtime.steering_spec import PositionScope, SteeringLimits, SteeringOp, SteeringSpec, StrengthUnit

D, FEATURE, OTHER = 96, 3, 150
VECTOR, OTHER_VECTOR = (
    tuple(torch.randn(D, generator=torch.Generator().manual_seed(seed)).mul(0.8).tolist()) for seed in (11, 12)
)
RAW, RELATIVE = StrengthUnit.RAW, StrengthUnit.RELATIVE
ONE_STEP = 2.0**-7
"""Between two bf16 numbers, of the lower, at most: where sums in another order are rounded to either side."""


def dictionary(activation: str = "relu", **changes) -> SAE:
    """With weights of bf16; about half its latents fire."""
    generator = torch.Generator().manual_seed(1)
    made = SAE(d_model=D, num_latents=160, activation=activation, k=12, scale=0.7, **changes)
    for name, tensor in made.state_dict().items():
        values = torch.randn(tensor.shape, generator=generator) * 0.2
        tensor.copy_(values.abs() if name == "threshold" else values.to(torch.bfloat16))
    return NativeSAE.of(made.requires_grad_(False), parts.library())


def residuals(num_rows: int, num_tokens: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return (torch.randn(num_rows, num_tokens, D, generator=generator) * 1.5).to(torch.bfloat16)


def steering(sae, *specs: SteeringSpec, most: float = 1e9, active_from: int = 0) -> Steering:
    made = Steering(sae, 4, SteeringLimits(D, [1.0] * 160, None, most))
    made.add(specs, active_from=active_from)
    return made


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int16)


def by_torch(rows: list[tuple[Steering, int]], resid_BTD: Tensor) -> Tensor:
    return steer_rows(rows, resid_BTD.to(torch.float32))


def assert_same(found: Tensor, exact: Tensor) -> None:
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.to(torch.float32), exact, rtol=ONE_STEP, atol=1e-5)


def strengths(op: SteeringOp, unit: StrengthUnit) -> tuple[float, ...]:
    if op is SteeringOp.PROJECT_OUT:
        return (0.0,)
    if unit is RELATIVE:
        return (-0.25, 0.1)
    return (-1.5, 0.0, 0.5) if op is SteeringOp.CAP else (-1.5, 0.0, 4.0)


CASES = [
    (op, unit, strength)
    for op, unit in itertools.product(SteeringOp, StrengthUnit)
    if not (unit is RELATIVE and op in (SteeringOp.SCALE, SteeringOp.PROJECT_OUT))
    for strength in strengths(op, unit)
]


@pytest.mark.parametrize("direction", [FEATURE, VECTOR], ids=["feature", "vector"])
@pytest.mark.parametrize(("op", "unit", "strength"), CASES)
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "batchtopk"])
def test_an_operation_is_that_of_its_formula(activation, op, unit, strength, direction):
    sae, resid_BTD = dictionary(activation), residuals(24)
    rows = [(steering(sae, SteeringSpec(direction, op, strength, unit)), 7) for _ in range(24)]
    found = NativeSteering(parts.library(), sae).steer([(b, *row) for b, row in enumerate(rows)], resid_BTD)
    assert_same(found, by_torch(rows, resid_BTD))
    if (op, strength) != (SteeringOp.ADD, 0.0):
        assert not torch.equal(found, resid_BTD)


@st.composite
def asked(draw) -> tuple:
    specs = []
    for _ in range(draw(st.integers(0, 3))):
        op = draw(st.sampled_from(SteeringOp))
        unit = draw(st.sampled_from([RAW] if op in (SteeringOp.SCALE, SteeringOp.PROJECT_OUT) else list(StrengthUnit)))
        direction = draw(st.sampled_from([FEATURE, OTHER, VECTOR, OTHER_VECTOR]))
        scope = draw(st.sampled_from(PositionScope))
        specs.append(SteeringSpec(direction, op, draw(st.sampled_from(strengths(op, unit))), unit, scope))
    return specs, draw(st.integers(0, 6)), draw(st.sampled_from([0, 5])), draw(st.sampled_from([0.3, 1e9]))


@given(asked=st.lists(st.none() | asked(), min_size=1, max_size=5), num_tokens=st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_rows_at_once_are_what_torch_makes_of_them(asked, num_tokens):
    """Several operations, of some rows, at some of their positions, within limits."""
    sae, resid_BTD = dictionary(), residuals(len(asked), num_tokens)
    before_BTD, rows = resid_BTD.clone(), {}
    for b, one in enumerate(asked):
        if one is not None:
            specs, start, active_from, most = one
            rows[b] = steering(sae, *specs, most=most, active_from=active_from), start
    found = NativeSteering(parts.library(), sae).steer([(b, *row) for b, row in rows.items()], resid_BTD)
    assert torch.equal(bits(resid_BTD), bits(before_BTD)), "the argument was written to"
    wanted = resid_BTD.to(torch.float32)
    for b, row in rows.items():
        wanted[b] = by_torch([row], resid_BTD[b : b + 1])[0]
    # Each operation rounds sums once more, and SCALE multiplies what the one before left.
    torch.testing.assert_close(found.to(torch.float32), wanted, rtol=ONE_STEP, atol=2e-4)
    for b in range(len(asked)):
        left = [t for t in range(num_tokens) if b not in rows or not rows[b][0].operations_at(rows[b][1] + t)]
        assert torch.equal(bits(found[b, left]), bits(resid_BTD[b, left]))


def test_what_it_does_to_a_row_does_not_depend_on_the_others():
    sae, resid_BTD = dictionary(), residuals(6, 2)
    specs = [SteeringSpec(latent, SteeringOp.SET, float(b)) for b, latent in enumerate([FEATURE, OTHER, VECTOR] * 2)]
    rows, kernel = [(steering(sae, spec), 7) for spec in specs], NativeSteering(parts.library(), sae)
    together = kernel.steer([(b, *row) for b, row in enumerate(rows)], resid_BTD)
    for b, row in enumerate(rows):
        assert torch.equal(bits(kernel.steer([(0, *row)], resid_BTD[b : b + 1])[0]), bits(together[b]))


def test_a_row_keeps_its_own_limit():
    sae, resid_BTD = dictionary(), residuals(2)
    little, much = SteeringSpec(VECTOR, SteeringOp.ADD, 0.4, RELATIVE), SteeringSpec(VECTOR, SteeringOp.SCALE, 400.0)
    rows = [(0, steering(sae, little, little, most=0.5), 7), (1, steering(sae, much, most=2.0), 7)]
    found = NativeSteering(parts.library(), sae).steer(rows, resid_BTD).to(torch.float32)
    moved = (found - resid_BTD).norm(dim=-1) / resid_BTD.to(torch.float32).norm(dim=-1)
    torch.testing.assert_close(moved[:, 0], torch.tensor([0.5, 2.0]), rtol=1e-2, atol=0)


def test_what_is_not_finite_stays_so_and_alone():
    sae, resid_BTD = dictionary(), residuals(3)
    resid_BTD[1, 0, 5] = math.nan
    rows = [(b, steering(sae, SteeringSpec(FEATURE, SteeringOp.CAP, 0.1)), 7) for b in range(3)]
    found = NativeSteering(parts.library(), sae).steer(rows, resid_BTD)
    assert found.isfinite().all(-1).flatten().tolist() == [True, False, True]


def test_residuals_that_lie_otherwise_are_steered_alike():
    sae, resid_BTD = dictionary(), residuals(4)
    row = (steering(sae, SteeringSpec(FEATURE, SteeringOp.ADD, 4.0)), 7)
    kernel = NativeSteering(parts.library(), sae)
    wanted = kernel.steer([(0, *row)], resid_BTD[::2])
    assert torch.equal(wanted, kernel.steer([(0, *row)], resid_BTD[::2].contiguous()))


def test_raw_vectors_need_no_dictionary():
    none, resid_BTD = NoDictionary(torch.device("cpu")), residuals(2)
    row = (steering(none, SteeringSpec(VECTOR, SteeringOp.SCALE, 3.0)), 7)
    assert NativeSteering.takes(none, D)
    found = NativeSteering(parts.library(), none).steer([(1, *row)], resid_BTD)
    assert torch.equal(found[0], resid_BTD[0])
    assert_same(found[1], by_torch([row], resid_BTD[1:])[0])


def test_dictionaries_that_the_kernel_can_not_read_are_left_to_torch():
    assert NativeSteering.takes(dictionary(), D)
    assert not NativeSteering.takes(dictionary("topk"), D)  # a latent's value depends on all others
    assert not NativeSteering.takes(dictionary("relu", normalization="layer_norm"), D)
    assert not NativeSteering.takes(NoDictionary(torch.device("cpu")), 2**14 + 32)
