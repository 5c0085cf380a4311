"""Token scores by hand, and every input and setting that a component refuses."""

import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from monitors.components import Component, FeatureScore, Inputs, ProbeScore, WeightedFeature
from monitors.errors import MonitorError

PART = WeightedFeature(feature=7, weight=1.0, scale=1.0)
TWO = (WeightedFeature(feature=3, weight=2.0, scale=4.0), WeightedFeature(feature=9, weight=-1.0, scale=0.5))


def refused_fields(make, *args, **kwargs) -> list[str]:
    with pytest.raises(MonitorError) as caught:
        make(*args, **kwargs)
    return [problem.field for problem in caught.value.problems]


def test_linear_parts_by_hand():
    assert FeatureScore(TWO, "linear").parts(Inputs({3: 6.0, 9: -1.0})) == (2.0 * 6.0 / 4.0, -1.0 * -1.0 / 0.5)


def test_log1p_parts_by_hand_take_negative_readings_as_zero():
    parts = FeatureScore(TWO, "log1p").parts(Inputs({3: 6.0, 9: -1.0}))
    assert parts == (pytest.approx(2.0 * math.log(1 + 1.5)), 0.0)


def test_a_probes_part_is_its_value():
    assert ProbeScore("deception.stance").parts(Inputs({}, {"deception.stance": -1.5})) == (-1.5,)


def test_standard_units_by_hand():
    component = Component(name="a", score=ProbeScore("p"), center=2.0, scale=4.0)
    assert [component.standardised(mean) for mean in (2.0, 6.0, 0.0)] == [0.0, 1.0, -0.5]


def test_latents_are_those_of_the_features():
    assert Component(name="a", score=FeatureScore(TWO, "linear")).latents == (3, 9)
    assert Component(name="a", score=ProbeScore("p")).latents == ()


def test_numpy_inputs_give_plain_floats():
    score = FeatureScore((replace(PART, scale=3.0),), "linear")
    [part] = score.parts(Inputs({7: np.float32(0.1)}))  # type: ignore[dict-item]
    assert type(part) is float
    assert part == float(np.float32(0.1)) / 3.0
    assert type(ProbeScore("p").parts(Inputs({}, {"p": np.float32(0.1)}))[0]) is float  # type: ignore[dict-item]


def test_a_missing_input_is_refused_by_name():
    with pytest.raises(MonitorError, match=r"^readings\.7: wanted a reading, got nothing$"):
        FeatureScore((PART,), "linear").parts(Inputs({8: 1.0}))
    with pytest.raises(MonitorError, match=r"^probes\.a\.b: wanted a value, got nothing$"):
        ProbeScore("a.b").parts(Inputs({}, {"a.c": 1.0}))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_input_is_refused_by_name(value):
    for transform in ("linear", "log1p"):
        with pytest.raises(MonitorError, match=rf"^readings\.7: wanted a finite number .*, got {value}$"):
            FeatureScore((PART,), transform).parts(Inputs({7: value}))
    with pytest.raises(MonitorError, match=rf"^probes\.p: wanted a finite number .*, got {value}$"):
        ProbeScore("p").parts(Inputs({}, {"p": value}))


def test_a_summand_too_large_to_average_is_refused():
    score = FeatureScore((WeightedFeature(feature=7, weight=1e200, scale=1e-200),), "linear")
    with pytest.raises(MonitorError, match=r"^contributions\.7: wanted a finite number .*, got inf$"):
        score.parts(Inputs({7: 1.0}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("feature", -1),
        ("feature", 7.0),
        ("weight", math.nan),
        ("weight", 0.0),
        ("scale", 0.0),
        ("scale", -1.0),
        ("scale", math.inf),
        ("scale", "1"),
    ],
)
def test_a_bad_weighted_feature_is_refused_by_field(field, value):
    with pytest.raises(MonitorError) as caught:
        replace(PART, **{field: value})
    [problem] = caught.value.problems
    assert (problem.field, problem.got) == (field, repr(value))


def test_bad_scores_and_components_are_refused_by_field():
    assert refused_fields(FeatureScore, (), "linear") == ["features"]
    assert refused_fields(FeatureScore, (PART, replace(PART, weight=2.0)), "linear") == ["features.1.feature"]
    assert refused_fields(FeatureScore, (PART,), "square") == ["transform"]
    assert refused_fields(ProbeScore, " ") == ["probe"]
    assert refused_fields(Component, name="A", score=ProbeScore("p")) == ["name"]
    assert refused_fields(Component, name="a", score=ProbeScore("p"), center=math.nan, scale=0) == ["center", "scale"]


def test_a_component_cannot_change_under_a_running_monitor():
    with pytest.raises(FrozenInstanceError):
        Component(name="a", score=ProbeScore("p")).center = 1.0  # type: ignore[misc]
