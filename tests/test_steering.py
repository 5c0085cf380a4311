"""Steering against the formulas written out per row, its limits, and the proof it keeps of what it did."""

import itertools
import math
from collections.abc import Sequence

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_runtime.errors import SteeringError
from sae_runtime.sae import SAE
from sae_runtime.steering import Steering, SteeringReport, relative_moves, steer_rows
from sae_runtime.steering_spec import PositionScope, SteeringLimits, SteeringOp, SteeringSpec, StrengthUnit

T, D = 9, tiny.D_MODEL
FEATURE = 3
VECTOR = tuple(torch.randn(D, generator=torch.Generator().manual_seed(11)).mul(0.8).tolist())
DTYPES = (torch.float32, torch.bfloat16)
RAW, RELATIVE = StrengthUnit.RAW, StrengthUnit.RELATIVE


def residuals(dtype: torch.dtype = torch.float32, *, num_tokens: int = T, seed: int = 4) -> Tensor:
    return (torch.randn(num_tokens, D, generator=torch.Generator().manual_seed(seed)) * 1.5).to(dtype)


def steering(sae: SAE, *specs: SteeringSpec, num_prompt: int = 4, max_relative: float = 1e9, **add: int) -> Steering:
    """Ready to apply; without a limit to speak of unless one is given."""
    made = Steering(sae, num_prompt, SteeringLimits.of(sae, None, max_relative))
    made.add(specs, **add)
    return made


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int16 if x.element_size() == 2 else torch.int32)


def changed_rows(before: Tensor, after: Tensor) -> list[int]:
    """Rows of which any bit differs."""
    return (bits(before) != bits(after)).any(-1).nonzero().flatten().tolist()


def by_formula(sae: SAE, spec: SteeringSpec, h_TD: Tensor) -> Tensor:
    """One operation on every row, in 64-bit floats, one row at a time."""
    return torch.stack([_row_by_formula(sae, spec, h) for h in h_TD]).to(torch.float32)


def _row_by_formula(sae: SAE, spec: SteeringSpec, h_D: Tensor) -> Tensor:
    h, c = h_D.double(), spec.strength
    if isinstance(spec.direction, int):
        v = sae.W_dec[spec.direction].double() / _scale(sae, h)
        f = float(sae.encode(h_D[None])[0, spec.direction])
        d = v  # what one unit of the activation adds
    else:
        v = torch.tensor(spec.direction, dtype=torch.float64)
        d = v / v.norm()
        f = float(h @ d)
    unit = v / v.norm()
    if spec.unit is RELATIVE:
        c = c * float(h.norm())
    match spec.op:
        case SteeringOp.ADD:
            return h + c * (unit if spec.unit is RELATIVE else v)
        case SteeringOp.SCALE:
            return h + (c - 1) * f * d
        case SteeringOp.SET:
            wanted = c / float(d.norm()) if spec.unit is RELATIVE else c
            return h + (wanted - f) * d
        case SteeringOp.PROJECT_OUT:
            return h - (h @ unit) * unit
        case SteeringOp.CAP:
            return h - max(float(h @ unit) - c, 0.0) * unit


def _scale(sae: SAE, h: Tensor) -> float:
    match sae.normalization:
        case "scalar":
            return sae.scale
        case "constant_norm_rescale":
            return math.sqrt(len(h)) / float(h.norm())
        case "layer_norm":
            return 1 / float(h.std())


CASES = [
    (SteeringOp.ADD, RAW, 2.5),
    (SteeringOp.ADD, RAW, -1.0),
    (SteeringOp.ADD, RELATIVE, 0.4),
    (SteeringOp.ADD, RELATIVE, -0.4),
    (SteeringOp.SCALE, RAW, 3.0),
    (SteeringOp.SCALE, RAW, 0.0),
    (SteeringOp.SCALE, RAW, -2.0),
    (SteeringOp.SET, RAW, 4.0),
    (SteeringOp.SET, RAW, 0.0),
    (SteeringOp.SET, RELATIVE, 0.3),
    (SteeringOp.PROJECT_OUT, RAW, 0.0),
    (SteeringOp.CAP, RAW, 0.5),
    (SteeringOp.CAP, RAW, -1.0),
    (SteeringOp.CAP, RELATIVE, 0.1),
]
every_case = pytest.mark.parametrize(("op", "unit", "strength"), CASES)
every_direction = pytest.mark.parametrize("direction", [FEATURE, VECTOR], ids=["feature", "vector"])


# --- the formulas ---------------------------------------------------------------------------------------------------


@every_case
@every_direction
@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_equals_the_formula(op, unit, strength, direction, activation):
    sae, h_TD = tiny.sae(activation, scale=0.6), residuals()
    spec = SteeringSpec(direction, op, strength, unit)
    got, wanted = steering(sae, spec).apply(h_TD, 0), by_formula(sae, spec, h_TD)
    assert not torch.allclose(wanted, h_TD)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@every_case
@pytest.mark.parametrize("normalization", ["constant_norm_rescale", "layer_norm"])
def test_equals_the_formula_with_a_scale_for_each_token(op, unit, strength, normalization):
    sae = tiny.sae("relu", normalization=normalization)
    h_TD = residuals() * torch.arange(1, T + 1)[:, None]  # norms far apart, so that one scale for all would show
    spec = SteeringSpec(FEATURE, op, strength, unit)
    torch.testing.assert_close(steering(sae, spec).apply(h_TD, 0), by_formula(sae, spec, h_TD), rtol=1e-5, atol=1e-4)


def test_the_decoder_bias_is_no_part_of_a_feature():
    sae, h_TD = tiny.sae("relu", scale=0.5), residuals()
    sae.b_dec.fill_(50.0)
    got = steering(sae, SteeringSpec(FEATURE, SteeringOp.ADD, 2.0)).apply(h_TD, 0)
    torch.testing.assert_close(got - h_TD, (2.0 * 2 * sae.W_dec[FEATURE]).expand(T, D), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("op", "unit", "strength"), [case for case in CASES if case[:2] != (SteeringOp.ADD, RAW)])
def test_the_length_of_a_vector_counts_only_when_it_is_added_raw(op, unit, strength, length):
    sae, h_TD = tiny.sae("relu"), residuals()
    scaled = tuple(length * x for x in VECTOR)
    got = steering(sae, SteeringSpec(scaled, op, strength, unit)).apply(h_TD, 0)
    wanted = steering(sae, SteeringSpec(VECTOR, op, strength, unit)).apply(h_TD, 0)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@every_direction
def test_operations_act_in_the_order_given(direction):
    sae, h_TD = tiny.sae("relu"), residuals()
    specs = [
        SteeringSpec(direction, SteeringOp.ADD, 2.0),
        SteeringSpec(direction, SteeringOp.PROJECT_OUT),
        SteeringSpec(FEATURE, SteeringOp.SCALE, 3.0),
    ]
    results = []
    for order in itertools.permutations(specs):
        wanted = h_TD
        for spec in order:
            wanted = by_formula(sae, spec, wanted)
        results.append(steering(sae, *order).apply(h_TD, 0))
        torch.testing.assert_close(results[-1], wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(results[0], results[2], atol=1e-2)


def test_operations_added_later_act_last():
    sae, h_TD = tiny.sae("relu"), residuals()
    add, project = SteeringSpec(VECTOR, SteeringOp.ADD, 2.0), SteeringSpec(VECTOR, SteeringOp.PROJECT_OUT)
    grown = steering(sae, add)
    grown.add([project])
    assert torch.equal(grown.apply(h_TD, 0), steering(sae, add, project).apply(h_TD, 0))


# --- what each operation promises -----------------------------------------------------------------------------------


def orthonormal_sae(scale: float) -> SAE:
    """Four latents along orthonormal directions: changing one leaves the others as they are."""
    sae = SAE(d_model=D, num_latents=4, activation="relu", scale=scale).requires_grad_(False)
    basis, _ = torch.linalg.qr(torch.randn(D, 4, generator=torch.Generator().manual_seed(2)))
    sae.W_enc.copy_(basis)
    sae.W_dec.copy_(basis.T)
    sae.b_dec.copy_(torch.randn(D, generator=torch.Generator().manual_seed(3)))
    return sae


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize(("op", "strength"), [(SteeringOp.SET, 5.0), (SteeringOp.SET, 0.0), (SteeringOp.SCALE, 3.0)])
def test_set_and_scale_change_one_feature_and_keep_the_error_term(op, strength, scale):
    sae = orthonormal_sae(scale)
    f_TF = torch.rand(T, 4, generator=torch.Generator().manual_seed(6)) + 0.5
    h_TD = sae.decode(f_TF) + 0.1 * residuals()
    f_TF, error_TD = sae.encode(h_TD), h_TD - sae(h_TD)
    assert (f_TF > 0).all()
    assert error_TD.norm() > 1
    steered_TD = steering(sae, SteeringSpec(2, op, strength)).apply(h_TD, 0)
    wanted_TF = f_TF.clone()
    wanted_TF[:, 2] = strength if op is SteeringOp.SET else strength * f_TF[:, 2]
    torch.testing.assert_close(sae.encode(steered_TD), wanted_TF, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(steered_TD - sae(steered_TD), error_TD, rtol=1e-4, atol=1e-5)


def test_scaling_a_feature_by_one_changes_nothing():
    h_TD = residuals(torch.bfloat16)
    after_TD = steering(tiny.sae("relu"), SteeringSpec(FEATURE, SteeringOp.SCALE, 1.0)).apply(h_TD, 0)
    assert not changed_rows(h_TD, after_TD)


@every_direction
def test_project_out_leaves_no_coordinate(direction):
    sae, h_TD = tiny.sae("relu"), residuals()
    after_TD = steering(sae, SteeringSpec(direction, SteeringOp.PROJECT_OUT)).apply(h_TD, 0)
    v = sae.W_dec[direction] if isinstance(direction, int) else torch.tensor(direction)
    assert (h_TD @ v / v.norm()).abs().min() > 1e-3
    assert (after_TD @ v / v.norm()).abs().max() < 1e-5


@every_direction
def test_cap_lowers_what_is_above_and_leaves_what_is_below(direction):
    sae, h_TD = tiny.sae("relu"), residuals()
    v = sae.W_dec[direction] if isinstance(direction, int) else torch.tensor(direction)
    along_T = h_TD @ (v / v.norm())
    cap = float(along_T.median())
    after_TD = steering(sae, SteeringSpec(direction, SteeringOp.CAP, cap - 0.01)).apply(h_TD, 0)
    above = (along_T > cap - 0.01).nonzero().flatten().tolist()
    assert len(above) == (T + 1) // 2
    assert changed_rows(h_TD, after_TD) == above
    torch.testing.assert_close((after_TD @ (v / v.norm()))[above], torch.full((len(above),), cap - 0.01))


# --- which positions ------------------------------------------------------------------------------------------------

NUM_PROMPT = 4
SCOPES = {
    PositionScope.ALL: set(range(T)),
    PositionScope.PROMPT: set(range(NUM_PROMPT)),
    PositionScope.GENERATED: set(range(NUM_PROMPT, T)),
}


@pytest.mark.parametrize("scope", PositionScope)
@pytest.mark.parametrize("window", [None, (0, 1), (2, 6), (3, 4), (4, 5), (7, 100), (100, 200)])
@pytest.mark.parametrize("active_from", [0, 3, 6, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changes_the_covered_rows_and_no_bit_of_the_others(scope, window, active_from, dtype):
    sae, h_TD = tiny.sae("relu"), residuals(dtype)
    h_TD[:, 0] = -0.0
    before_TD = h_TD.clone()
    spec = SteeringSpec(VECTOR, SteeringOp.ADD, 3.0, scope=scope, window=window)
    made = steering(sae, spec, num_prompt=NUM_PROMPT, active_from=active_from)
    wanted = SCOPES[scope] & set(range(active_from, T)) & set(range(*(window or (0, T))))
    after_TD = made.apply(h_TD, 0)
    assert after_TD.dtype == dtype
    assert set(changed_rows(before_TD, after_TD)) == wanted
    assert torch.equal(bits(h_TD), bits(before_TD)), "the argument was written to"
    assert {p for p in range(T) if made.covers(p, p + 1)} == wanted
    assert made.covers(0, T) == bool(wanted)
    # The same positions in two passes, as a prompt read in chunks.
    for cut in (1, NUM_PROMPT, 6):
        parts = [made.apply(h_TD[:cut], 0), made.apply(h_TD[cut:], cut)]
        assert set(changed_rows(before_TD, torch.cat(parts))) == wanted


def test_each_operation_covers_its_own_positions():
    sae, h_TD = tiny.sae("relu"), residuals()
    first = SteeringSpec(VECTOR, SteeringOp.ADD, 2.0, window=(0, 3))
    second = SteeringSpec(FEATURE, SteeringOp.ADD, -1.0, window=(2, 5))
    after_TD = steering(sae, first, second).apply(h_TD, 0)
    by_first, by_second = by_formula(sae, first, h_TD), by_formula(sae, second, h_TD)
    by_both = by_formula(sae, second, by_first)
    wanted_TD = torch.cat([by_first[:2], by_both[2:3], by_second[3:5], h_TD[5:]])
    torch.testing.assert_close(after_TD, wanted_TD)
    assert changed_rows(h_TD, after_TD) == [0, 1, 2, 3, 4]


def test_operations_an_alert_switched_on_join_those_of_the_request():
    sae, h_TD = tiny.sae("relu"), residuals()
    made = steering(sae, SteeringSpec(VECTOR, SteeringOp.ADD, 2.0, window=(0, 2)))
    assert not made.covers(2, 100)
    made.add([SteeringSpec(VECTOR, SteeringOp.ADD, 2.0)], active_from=6)
    assert changed_rows(h_TD, made.apply(h_TD, 0)) == [0, 1, 6, 7, 8]
    assert not made.covers(2, 6)
    assert made.covers(5, 7)


def test_without_operations_nothing_is_covered():
    made, h_TD = steering(tiny.sae("relu")), residuals(torch.bfloat16)
    assert not made.covers(0, 100)
    assert not changed_rows(h_TD, made.apply(h_TD, 0))


# --- rows at once ---------------------------------------------------------------------------------------------------

OTHER_VECTOR = tuple(torch.randn(D, generator=torch.Generator().manual_seed(12)).tolist())


@st.composite
def asked(draw: st.DrawFn) -> tuple[list[SteeringSpec], int, int, float]:
    """Operations of a row, where its tokens begin, from where on an alert's operations act, and its limit."""
    specs = []
    for _ in range(draw(st.integers(0, 3))):
        op = draw(st.sampled_from(SteeringOp))
        relative = op not in (SteeringOp.SCALE, SteeringOp.PROJECT_OUT) and draw(st.booleans())
        strength = (
            0.0
            if op is SteeringOp.PROJECT_OUT
            else draw(st.sampled_from([-0.25, 0.0, 0.2] if relative else [-1.5, 0.0, 4.0]))
        )
        direction = draw(st.sampled_from([FEATURE, 5, VECTOR, OTHER_VECTOR]))
        scope = draw(st.sampled_from(PositionScope))
        specs.append(SteeringSpec(direction, op, strength, RELATIVE if relative else RAW, scope))
    return specs, draw(st.integers(0, 6)), draw(st.sampled_from([0, 5])), draw(st.sampled_from([0.3, 1e9]))


@given(rows=st.lists(asked(), min_size=1, max_size=6), num_tokens=st.integers(1, 3), dtype=st.sampled_from(DTYPES))
@settings(max_examples=150)
@pytest.mark.parametrize("normalization", ["scalar", "layer_norm"])
def test_rows_at_once_are_each_what_it_is_alone(normalization, rows, num_tokens, dtype):
    sae = tiny.sae("relu", normalization=normalization)
    resid_BTD = residuals(dtype, num_tokens=len(rows) * num_tokens).view(len(rows), num_tokens, D)
    before_BTD = resid_BTD.clone()
    made = [
        (steering(sae, *specs, max_relative=most, active_from=active_from), start)
        for specs, start, active_from, most in rows
    ]
    together_BTD = steer_rows(made, resid_BTD)
    alone_BTD = torch.stack([one.apply(resid_BTD[b], start) for b, (one, start) in enumerate(made)])
    torch.testing.assert_close(together_BTD, alone_BTD, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    assert torch.equal(bits(resid_BTD), bits(before_BTD)), "the argument was written to"
    for b, (one, start) in enumerate(made):
        left = [t for t in range(num_tokens) if not one.covers(start + t, start + t + 1)]
        assert torch.equal(bits(together_BTD[b, left]), bits(resid_BTD[b, left]))


def test_a_feature_that_many_rows_share_is_read_once(monkeypatch):
    sae, resid_BTD = tiny.sae("relu"), residuals(num_tokens=6)[:, None]
    specs = [SteeringSpec(latent, SteeringOp.SET, float(b)) for b, latent in enumerate([FEATURE, 5] * 3)]
    made = [(steering(sae, spec), 7) for spec in specs]
    read, asked_for = sae.read, []

    def counted(x_TD, watched):
        asked_for.append(list(watched))
        return read(x_TD, watched)

    monkeypatch.setattr(sae, "read", counted)
    steer_rows(made, resid_BTD)
    assert asked_for == [[FEATURE, 5]]


# --- limits ---------------------------------------------------------------------------------------------------------


def limits(**changes: object) -> SteeringLimits:
    return SteeringLimits(**{"d_model": 2, "direction_norms": [0.5, 0.0], "resid_norm_mean": 10.0} | changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": math.nan}, "strength must be finite, got nan"),
        ({"strength": math.inf}, "strength must be finite, got inf"),
        ({"strength": 1.1e6}, "strength must lie within +-1e+06, got 1.1e+06"),
        ({"op": SteeringOp.SCALE, "unit": RELATIVE}, "unit must be raw for scale, got relative"),
        ({"op": SteeringOp.PROJECT_OUT, "unit": RELATIVE}, "unit must be raw for project_out, got relative"),
        ({"op": SteeringOp.PROJECT_OUT, "strength": 2.0}, "strength must be 0 or unset for project_out, got 2"),
        ({"window": (3, 3)}, "window must have 0 <= start < end, got [3, 3)"),
        ({"window": (5, 3)}, "window must have 0 <= start < end, got [5, 3)"),
        ({"window": (-1, 3)}, "window must have 0 <= start < end, got [-1, 3)"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused_by_field(arguments, message):
    with pytest.raises(SteeringError) as error:
        SteeringSpec(**{"direction": 0, "op": SteeringOp.ADD} | arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("direction", "message"),
    [
        (2, "feature must be a latent in 0..1, got 2"),
        (-1, "feature must be a latent in 0..1, got -1"),
        (1, "direction must not be the zero vector"),
        ((0.0, 0.0), "direction must not be the zero vector"),
        ((1.0,), "vector must hold 2 numbers, got 1"),
        ((1.0, 2.0, 3.0), "vector must hold 2 numbers, got 3"),
        ((1.0, math.nan), "vector must be finite, got NaN, infinity or a norm that overflows"),
        ((math.inf, 0.0), "vector must be finite, got NaN, infinity or a norm that overflows"),
        ((1e200, 1e200), "vector must be finite, got NaN, infinity or a norm that overflows"),
        ((1e-25, 0.0), "direction must have a norm of 1e-12 to 1e+12, got 1e-25"),
        ((0.0, 1e20), "direction must have a norm of 1e-12 to 1e+12, got 1e+20"),
    ],
)
@pytest.mark.parametrize("op", SteeringOp)
def test_a_direction_that_can_not_be_used_is_refused_for_every_operation(direction, message, op):
    with pytest.raises(SteeringError) as error:
        limits(max_relative_norm=1e30).check(SteeringSpec(direction, op))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("op", "unit", "direction", "most"),
    [
        (SteeringOp.ADD, RELATIVE, 0, 2.0),
        (SteeringOp.ADD, RELATIVE, (3.0, 4.0), 2.0),
        (SteeringOp.SET, RELATIVE, 0, 2.0),
        # 2 * mean norm 10, in units of the direction's length.
        (SteeringOp.ADD, RAW, 0, 40.0),
        (SteeringOp.ADD, RAW, (3.0, 4.0), 4.0),
        (SteeringOp.SET, RAW, 0, 40.0),
        (SteeringOp.SET, RAW, (3.0, 4.0), 20.0),
    ],
)
def test_strength_is_limited_relative_to_the_residual(op, unit, direction, most):
    made = limits(max_relative_norm=2.0)
    for sign in (1, -1):
        made.check(SteeringSpec(direction, op, sign * most, unit))
        with pytest.raises(SteeringError) as error:
            made.check(SteeringSpec(direction, op, sign * most * 1.01, unit))
        assert str(error.value) == (
            f"strength must move the residual by at most 2 times its norm, which is a strength of {most:g}, "
            f"got 2.02 times with {sign * most * 1.01:g}"
        )


def test_raw_strength_is_not_judged_without_a_yardstick():
    made = limits(max_relative_norm=2.0, resid_norm_mean=None)
    made.check(SteeringSpec(0, SteeringOp.ADD, 1e6))
    with pytest.raises(SteeringError, match="strength must move"):
        made.check(SteeringSpec(0, SteeringOp.ADD, 3.0, RELATIVE))


@pytest.mark.parametrize("op", [SteeringOp.SCALE, SteeringOp.CAP])
def test_strength_that_depends_on_the_activation_is_not_judged_beforehand(op):
    made = limits(max_relative_norm=2.0)
    made.check(SteeringSpec(0, op, 1e6))
    with pytest.raises(SteeringError, match="strength must move"):
        made.check(SteeringSpec(0, SteeringOp.ADD, 1e6))


def test_limits_of_a_dictionary():
    sae = tiny.sae("relu", scale=0.25)
    made = SteeringLimits.of(sae, 3.0, 2.0)
    assert (made.d_model, made.resid_norm_mean, made.max_relative_norm) == (D, 3.0, 2.0)
    directions = torch.cat([sae.directions(torch.tensor([i]), residuals()) for i in range(sae.num_latents)])
    assert made.direction_norms == pytest.approx(directions.norm(dim=-1).tolist())


@pytest.mark.parametrize("normalization", ["constant_norm_rescale", "layer_norm"])
def test_no_yardstick_where_a_features_length_changes_with_the_token(normalization):
    assert SteeringLimits.of(tiny.sae("relu", normalization=normalization), 3.0, 2.0).resid_norm_mean is None


def test_adding_checks_the_limits():
    made = steering(tiny.sae("relu"), max_relative=2.0)
    with pytest.raises(SteeringError, match="strength must move"):
        made.add([SteeringSpec(FEATURE, SteeringOp.ADD, 2.5, RELATIVE)])
    with pytest.raises(SteeringError, match="feature must be a latent"):
        made.add([SteeringSpec(tiny.NUM_LATENTS, SteeringOp.ADD, 1.0)])


@pytest.mark.parametrize(
    ("op", "strength"),
    [(SteeringOp.ADD, 500.0), (SteeringOp.SCALE, 1e5), (SteeringOp.SET, -1e5), (SteeringOp.CAP, -1e5)],
)
@every_direction
def test_a_move_beyond_the_limit_is_shortened_and_keeps_its_direction(op, strength, direction):
    sae, h_TD = tiny.sae("relu"), residuals()
    spec = SteeringSpec(direction, op, strength)
    delta_TD = steering(sae, spec, max_relative=0.5).apply(h_TD, 0) - h_TD
    free_TD = by_formula(sae, spec, h_TD) - h_TD
    moved = (free_TD.norm(dim=-1) > 0).nonzero().flatten().tolist()
    assert moved
    torch.testing.assert_close(delta_TD.norm(dim=-1)[moved], 0.5 * h_TD.norm(dim=-1)[moved], rtol=1e-4, atol=0)
    cosine_T = torch.nn.functional.cosine_similarity(delta_TD, free_TD)
    torch.testing.assert_close(cosine_T[moved], torch.ones(len(moved)), rtol=1e-4, atol=0)


def test_a_move_within_the_limit_is_not_shortened():
    sae, h_TD = tiny.sae("relu"), residuals()
    spec = SteeringSpec(VECTOR, SteeringOp.ADD, 0.499, RELATIVE)
    torch.testing.assert_close(steering(sae, spec, max_relative=0.5).apply(h_TD, 0), by_formula(sae, spec, h_TD))


def test_only_the_rows_beyond_the_limit_are_shortened():
    sae, h_TD = tiny.sae("relu"), residuals() * torch.tensor([[0.01]] * 4 + [[1.0]] * 5)
    spec = SteeringSpec(VECTOR, SteeringOp.ADD, 1.0)
    delta_TD = steering(sae, spec, max_relative=1.0).apply(h_TD, 0) - h_TD
    torch.testing.assert_close(delta_TD[:4].norm(dim=-1), h_TD[:4].norm(dim=-1), rtol=1e-4, atol=0)
    torch.testing.assert_close(delta_TD[4:], torch.tensor(VECTOR).expand(5, D), rtol=1e-4, atol=1e-5)


@settings(deadline=None)
@given(
    st.sampled_from(SteeringOp),
    st.floats(-11.5, 11.5),
    st.floats(-1e6, 1e6, width=32),
    st.integers(0, 1000),
)
def test_whatever_the_limits_let_through_stays_finite_and_within_them(op, exponent, strength, seed):
    sae, h_TD = tiny.sae("relu"), residuals(seed=seed)
    v = torch.randn(D, generator=torch.Generator().manual_seed(seed))
    vector = (v / v.norm() * 10.0**exponent).tolist()
    spec = SteeringSpec(tuple(vector), op, 0.0 if op is SteeringOp.PROJECT_OUT else strength)
    delta_TD = steering(sae, spec, max_relative=2.0).apply(h_TD, 0) - h_TD
    assert delta_TD.isfinite().all()
    assert (delta_TD.norm(dim=-1) <= 2.001 * h_TD.norm(dim=-1)).all()
    if op is SteeringOp.PROJECT_OUT:
        assert (delta_TD.norm(dim=-1) > 0).all()


# --- the proof ------------------------------------------------------------------------------------------------------


def directly(pairs: Sequence[tuple[Tensor, Tensor]]) -> SteeringReport:
    """Row by row in Python's floats."""
    relative = []
    for before_TD, after_TD in pairs:
        for before, after in zip(before_TD.double().tolist(), after_TD.double().tolist(), strict=True):
            if before != after:
                relative.append(math.dist(before, after) / math.hypot(*before))
    return SteeringReport(len(relative), sum(relative) / max(len(relative), 1), max(relative, default=0.0))


def assert_reports(made: Steering, wanted: SteeringReport) -> None:
    got = made.report()
    assert got.positions_changed == wanted.positions_changed
    assert got.mean_relative_norm == pytest.approx(wanted.mean_relative_norm, rel=1e-5)
    assert got.max_relative_norm == pytest.approx(wanted.max_relative_norm, rel=1e-5)


def test_nothing_is_reported_before_anything_was_done():
    made = steering(tiny.sae("relu"), SteeringSpec(VECTOR, SteeringOp.ADD, 1.0))
    assert made.report() == (0, 0.0, 0.0)
    made.apply(residuals(), 0)
    assert made.report() == (0, 0.0, 0.0), "a pass that may still fail was counted"


@every_case
@every_direction
def test_reports_what_was_changed(op, unit, strength, direction):
    sae, h_TD = tiny.sae("relu"), residuals(num_tokens=30)
    made = steering(sae, SteeringSpec(direction, op, strength, unit, PositionScope.GENERATED))
    after_TD = made.apply(h_TD, 0)
    made.account(relative_moves(h_TD, after_TD).tolist())
    assert_reports(made, directly([(h_TD, after_TD)]))
    assert 0 < made.report().positions_changed <= 30 - NUM_PROMPT
    assert made.report().max_relative_norm > 1e-3


def test_reports_over_all_passes():
    made = steering(tiny.sae("relu"), SteeringSpec(VECTOR, SteeringOp.ADD, 1.0, window=(2, 100)))
    pairs, start = [], 0
    for num_tokens in (3, 1, 4):
        h_TD = residuals(num_tokens=num_tokens, seed=start)
        pairs.append((h_TD, made.apply(h_TD, start)))
        made.account(relative_moves(*pairs[-1]).tolist())
        start += num_tokens
    assert made.report().positions_changed == 6
    assert made.report().mean_relative_norm < made.report().max_relative_norm
    assert_reports(made, directly(pairs))


def test_a_relative_strength_is_what_the_report_shows():
    made, h_TD = steering(tiny.sae("relu"), SteeringSpec(VECTOR, SteeringOp.ADD, 0.3, RELATIVE)), residuals()
    made.account(relative_moves(h_TD, made.apply(h_TD, 0)).tolist())
    assert made.report() == (T, pytest.approx(0.3, rel=1e-4), pytest.approx(0.3, rel=1e-4))


def test_the_report_of_half_width_residuals_is_of_what_was_written():
    sae, h_TD = tiny.sae("relu"), residuals(torch.bfloat16)
    spec = SteeringSpec(VECTOR, SteeringOp.ADD, 0.004, RELATIVE)  # about the spacing of bfloat16
    made = steering(sae, spec)
    after_TD = made.apply(h_TD, 0)
    assert torch.equal(after_TD, made.apply(h_TD.to(torch.float32), 0).to(torch.bfloat16))
    made.account(relative_moves(h_TD, after_TD).tolist())
    assert_reports(made, directly([(h_TD, after_TD)]))
    assert made.report().mean_relative_norm != pytest.approx(0.004, rel=1e-2)


def test_a_change_that_half_width_swallows_is_no_change():
    made = steering(tiny.sae("relu"), SteeringSpec(VECTOR, SteeringOp.ADD, 1e-6, RELATIVE))
    h_TD = residuals(torch.bfloat16).sign() * 2
    after_TD = made.apply(h_TD, 0)
    assert not changed_rows(h_TD, after_TD)
    made.account(relative_moves(h_TD, after_TD).tolist())
    assert made.report() == (0, 0.0, 0.0)
