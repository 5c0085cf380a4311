"""tune_space: what may be searched, and that draws are what they say."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.errors import TuneError
from discovery.train_settings import defaults_for
from discovery.tune_space import Dimension, default_space, draw_trials, parse_space


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("sparsity_weight=loguniform:0.5:20", (0.5, 20.0)),
        ("learning-rate=uniform:1e-4:1e-2", (1e-4, 1e-2)),
        ("num_latents=choice:4096,8192", (4096, 8192)),
        ("k=randint:16:128", (16, 128)),
        ("revival=grid:auxk,none", ("auxk", "none")),
    ],
)
def test_a_dimension_is_read_and_written(text, values):
    dimension = Dimension.parse(text)
    assert dimension.values == values
    assert Dimension.parse(str(dimension)) == dimension


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate", "must be FIELD=KIND:VALUES"),
        ("learning_rate=normal:0:1", "KIND one of loguniform"),
        ("lr=uniform:0:1", "must name one of activation, .*got 'lr'"),
        ("k=choice:4,many", "values of k must be of type int, got 'many'"),
        ("k=uniform:8:4", "the lowest below the highest"),
        ("k=uniform:8", "LOWEST:HIGHEST"),
        ("revival=uniform:auxk:none", "LOWEST:HIGHEST"),
        ("learning_rate=loguniform:0:1", "must begin above 0"),
        ("learning_rate=randint:0:1", "no whole number"),
        ("k=choice:4,4", "must differ"),
    ],
)
def test_what_is_no_dimension_is_refused(text, message):
    with pytest.raises(TuneError, match=message):
        Dimension.parse(text)


def test_a_field_is_named_once():
    with pytest.raises(TuneError, match="a field once, got k 2 times"):
        parse_space(["k=choice:4,8", "k=randint:1:5"])


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["loguniform", "uniform"]), st.floats(1e-6, 1e3), st.floats(1.01, 1e3), st.integers(0, 99))
def test_draws_lie_between_their_bounds(kind, low, factor, seed):
    space = parse_space([f"sparsity_weight={kind}:{low}:{low * factor}"])
    assert all(low <= fields["sparsity_weight"] <= low * factor for fields in draw_trials(space, 5, seed))


def test_draws_are_even_in_the_logarithm():
    space = parse_space(["sparsity_weight=loguniform:0.01:100"])
    logs = [math.log10(fields["sparsity_weight"]) for fields in draw_trials(space, 2000, 0)]
    # The mean of 2000 has a standard deviation of 4 / sqrt(12) / sqrt(2000) = 0.026.
    assert abs(sum(logs) / len(logs)) < 0.15
    assert min(logs) < -1.9 and max(logs) > 1.9


def test_a_trial_follows_from_the_seed_and_its_number():
    space = parse_space(["sparsity_weight=loguniform:0.5:20", "num_latents=choice:4096,8192"])
    assert draw_trials(space, 8, 3)[:5] == draw_trials(space, 5, 3)
    assert draw_trials(space, 5, 3) != draw_trials(space, 5, 4)


def test_a_grid_is_gone_through_with_every_draw():
    space = parse_space(["num_latents=grid:64,128", "learning_rate=uniform:1e-4:1e-2", "batch_size=grid:1,2,3"])
    trials = draw_trials(space, 2, 0)
    assert len(trials) == 2 * 2 * 3
    assert list(trials[0]) == ["num_latents", "learning_rate", "batch_size"]
    points = {(fields["num_latents"], fields["batch_size"]) for fields in trials[:6]}
    assert len(points) == 6 and len({fields["learning_rate"] for fields in trials[:6]}) == 1


def test_no_trial_comes_twice():
    trials = draw_trials(parse_space(["num_latents=choice:64,128", "k=randint:1:3"]), 50, 0)
    assert len(trials) == 6 == len({tuple(fields.items()) for fields in trials})


@pytest.mark.parametrize("activation", ["relu", "topk", "batchtopk", "jumprelu", "gated"])
def test_the_default_is_sparsity_rate_and_width_by_batch(activation):
    names = [dimension.name for dimension in default_space(activation, {})]
    sparsity = "k" if defaults_for(activation).has_fixed_l0 else "sparsity_weight"
    assert names == [sparsity, "learning_rate", "num_latents", "batch_size"]
    left = default_space(activation, {"num_latents": 64, "learning_rate": 1e-3})
    assert [dimension.name for dimension in left] == [sparsity, "batch_size"]


def test_a_steered_lambda_is_not_searched():
    names = [dimension.name for dimension in default_space("relu", {"l0_target": 40.0})]
    assert names == ["learning_rate", "num_latents", "batch_size"]
