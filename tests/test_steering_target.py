"""What a study steers, and what its strengths mean: features, latents and vectors, units spelt out, errors by name."""

import numpy as np
import pytest
import tiny
import torch

from discovery.errors import SteerError
from discovery.reading_scale import ReadingScale
from discovery.steering_target import Grid, Target, find_target, parse_strengths, spec_of, with_scale
from monitors.watchlist import NamedFeature, Watchlist
from sae_runtime.errors import SteeringError
from sae_runtime.steering_spec import SteeringOp, SteeringSpec, StrengthUnit

ADD, SET, SCALE = SteeringOp.ADD, SteeringOp.SET, SteeringOp.SCALE
MEDICAL = Target("medical", 3, reference_scale=1.5, maximum=4.0)


def watchlist(**evidence: object) -> Watchlist:
    feature = NamedFeature(
        index=3,
        name="medical",
        description="d",
        reference_scale=1.5,
        validated=False,
        default_watched=False,
        evidence=evidence,
    )
    return Watchlist("0" * 64, (feature,))


def grid(op: SteeringOp, unit: str) -> Grid:
    return Grid(op, unit, (2.0,))  # type: ignore[arg-type]


def test_a_target_is_a_feature_a_latent_or_a_vector(dictionary, tmp_path):
    names = watchlist(max_held_out=4.0)
    assert find_target("medical", dictionary, names) == MEDICAL
    assert find_target("3", dictionary, names) == MEDICAL
    assert find_target("5", dictionary, names) == Target("latent 5", 5)
    assert find_target("3", dictionary, None) == Target("latent 3", 3)
    vector = np.linspace(-1, 1, tiny.D_MODEL).astype(np.float32)
    np.save(tmp_path / "v.npy", vector)
    found = find_target(str(tmp_path / "v.npy"), dictionary, names)
    assert found.name == "v.npy" and found.direction == tuple(vector.tolist())


@pytest.mark.parametrize("text", ["sports", "64", "-1", "1.5", "missing.npy"])
def test_an_unknown_target_is_refused_by_name(dictionary, text):
    with pytest.raises(SteerError, match=rf"feature must be .*medical.* in 0\.\.63 .*got '{text}'"):
        find_target(text, dictionary, watchlist())


def test_a_vector_of_another_width_is_refused(dictionary, tmp_path):
    np.save(tmp_path / "v.npy", np.ones(5, np.float32))
    with pytest.raises(SteerError, match="must hold 32 finite numbers"):
        find_target(str(tmp_path / "v.npy"), dictionary, None)


@pytest.mark.parametrize(
    ("op", "unit", "strength", "wire_unit"),
    [
        (ADD, "raw", 2.0, StrengthUnit.RAW),
        (ADD, "reference", 3.0, StrengthUnit.RAW),
        (SET, "maximum", 8.0, StrengthUnit.RAW),
        (SET, "relative", 2.0, StrengthUnit.RELATIVE),
        (SCALE, "raw", 2.0, StrengthUnit.RAW),
    ],
)
def test_units_are_turned_into_the_servers_own(op, unit, strength, wire_unit):
    wanted = SteeringSpec(3, op, strength, wire_unit, window=(1, 2**31 - 1))
    assert spec_of(MEDICAL, grid(op, unit), 2.0) == wanted


def test_position_0_is_left_alone_unless_asked_for():
    assert not spec_of(MEDICAL, grid(ADD, "raw"), 1.0).covers(0, 5)
    assert spec_of(MEDICAL, grid(ADD, "raw"), 1.0).covers(1, 5)
    assert spec_of(MEDICAL, grid(ADD, "raw")._replace(first_position=True), 1.0).covers(0, 5)


def test_what_has_no_size_has_no_multiples():
    for unit, flag in (("reference", "--reference-scale"), ("maximum", "--maximum")):
        with pytest.raises(SteerError, match=f"{flag} must say how large a reading of latent 5 is"):
            spec_of(Target("latent 5", 5), grid(ADD, unit), 2.0)
        with pytest.raises(SteerError, match="got -1"):
            spec_of(Target("latent 5", 5, -1.0, -1.0), grid(ADD, unit), 2.0)


def test_what_is_stated_goes_before_what_is_counted():
    counted = ReadingScale(0.5, 3.0)
    assert with_scale(MEDICAL, counted) == MEDICAL
    assert with_scale(Target("latent 5", 5, maximum=7.0), counted) == Target("latent 5", 5, 0.5, 7.0)
    assert with_scale(Target("latent 5", 5), None) == Target("latent 5", 5)


def test_a_factor_has_no_other_unit():
    with pytest.raises(SteerError, match=r"unit must be raw for scale .*got reference"):
        spec_of(MEDICAL, grid(SCALE, "reference"), 2.0)


@pytest.mark.parametrize("text", ["", "1,,2", "1;2", "many"])
def test_what_is_no_list_of_numbers_is_refused(text):
    with pytest.raises(SteerError, match="strengths must be numbers with commas"):
        parse_strengths(text)


@pytest.mark.parametrize("text", ["nan", "1,inf", "-inf"])
def test_strengths_are_finite(text):
    with pytest.raises(SteerError, match="strengths must be finite"):
        parse_strengths(text)
    with pytest.raises(SteerError, match="strength must be finite"):
        spec_of(MEDICAL, grid(ADD, "raw"), float(text.split(",")[-1]))


def test_strengths_are_sorted_and_each_there_once():
    assert parse_strengths("4,-1,4,0.5") == (-1.0, 0.5, 4.0)


def test_strengths_beyond_the_wire_are_refused():
    with pytest.raises(SteeringError, match=r"strength must lie within"):
        spec_of(MEDICAL, grid(ADD, "reference"), 1e6)


def test_readings_of_a_vector_are_the_residuals_coordinate(dictionary):
    resid_TD = torch.randn(5, tiny.D_MODEL, generator=torch.Generator().manual_seed(1))
    vector = (3.0, *[0.0] * (tiny.D_MODEL - 1))
    torch.testing.assert_close(Target("v", vector).read(dictionary, resid_TD), resid_TD[:, 0])
    torch.testing.assert_close(Target("f", 7).read(dictionary, resid_TD), dictionary.encode(resid_TD)[:, 7])
