"""Names of residuals: both notations, the index of transformers, and which names mean the same tensor."""

import itertools

import pytest

from sae_runtime.hook_point import HookPoint


@pytest.mark.parametrize(
    ("text", "layer", "side"),
    [
        ("layers.15.output", 15, "output"),
        ("layers.16.input", 16, "input"),
        ("layers.0.input", 0, "input"),
        ("blocks.15.hook_resid_post", 15, "output"),
        ("blocks.16.hook_resid_pre", 16, "input"),
    ],
)
def test_parses_both_notations(text, layer, side):
    assert HookPoint.parse(text) == HookPoint(layer, side)


@pytest.mark.parametrize("layer", [0, 7, 31])
@pytest.mark.parametrize("side", ["input", "output"])
def test_writes_what_it_parses(layer, side):
    point = HookPoint(layer, side)
    assert str(point) == f"layers.{layer}.{side}"
    assert HookPoint.parse(str(point)) == point


def test_output_is_the_default_side():
    assert HookPoint(15) == HookPoint(15, "output")


def test_the_default_hook_point_under_its_five_names():
    names = ["layers.15.output", "layers.16.input", "blocks.15.hook_resid_post", "blocks.16.hook_resid_pre"]
    points = [HookPoint.parse(name) for name in names]
    assert [point.hidden_state_index for point in points] == [16] * 4
    assert all(a.is_same_residual(b) for a, b in itertools.product(points, points))


@pytest.mark.parametrize("other", ["layers.15.input", "layers.16.output", "layers.14.output", "layers.17.input"])
def test_neighbours_are_other_residuals(other):
    assert not HookPoint.parse("layers.15.output").is_same_residual(HookPoint.parse(other))


def test_equal_residuals_are_still_two_hook_points():
    assert HookPoint(1, "output") != HookPoint(2, "input")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "15",
        "layers.15",
        "layers.15.mlp",
        "layers.-1.output",
        "layers.x.output",
        "layers.15.output.extra",
        " layers.15.output",
        "layers.15.output\n",
        "model.layers.15.output",
        "blocks.15.hook_resid_mid",
        "blocks.15.output",
        "layers.15.hook_resid_post",
        "Layers.15.output",
    ],
)
def test_refuses_other_names(text):
    with pytest.raises(ValueError, match=r"hook point must look like 'layers\.15\.output'") as refusal:
        HookPoint.parse(text)
    assert repr(text) in str(refusal.value)


def test_refuses_a_negative_layer():
    with pytest.raises(ValueError, match="layer must be 0 or more, got -1"):
        HookPoint(-1)


def test_refuses_another_side():
    with pytest.raises(ValueError, match="side must be 'input' or 'output', got 'middle'"):
        HookPoint(1, "middle")  # type: ignore[arg-type]
