"""train_settings: schedules, and what is refused."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from training import changed

from discovery.train_settings import TrainSettings, defaults_for


def test_rate_warms_up_and_falls_to_nothing():
    settings = changed(warmup_steps=10, num_steps=100, decay_share=0.5)
    assert settings.rate_at(0) == pytest.approx(1e-3)
    assert settings.rate_at(30) == settings.learning_rate
    assert settings.rate_at(99) == pytest.approx(settings.learning_rate / 50)


def test_lambda_warms_up_over_the_first_twentieth():
    settings = TrainSettings(activation="relu", num_steps=1000)
    assert [settings.sparsity_ramp_at(step) for step in (0, 25, 50, 999)] == [0, 0.5, 1, 1]


def test_relu_decays_over_the_last_fifth():
    settings = defaults_for("relu")
    assert settings.rate_at(0) == settings.rate_at(1599) == settings.learning_rate
    assert settings.rate_at(1800) == pytest.approx(settings.learning_rate / 2)


def test_resampling_keeps_clear_of_the_decay():
    settings = changed(revival="resample", resample_every=100, num_steps=1000, decay_share=0.5)
    assert [step for step in range(1001) if settings.is_resampling_step(step)] == [100, 200, 300, 400, 500]
    assert not any(changed(revival="auxk").is_resampling_step(step) for step in range(100))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 65}, r"1\.\.num_latents=64, got 65"),
        ({"activation": "sigmoid"}, "activation must be one of relu, .*, got 'sigmoid'"),
        ({"revival": "prayer"}, "revival must be one of auxk, resample, none, got 'prayer'"),
        ({"precision": "fp8"}, "precision must be one of bf16, fp32"),
        ({"num_steps": 0}, "num_steps must be positive, got 0"),
        ({"num_latents": 0}, "num_latents must be positive, got 0"),
        ({"activation": "relu", "num_latents": -4}, "num_latents must be positive, got -4"),
        ({"dead_after_tokens": 0}, "dead_after_tokens must be positive, got 0"),
        ({"dead_after_tokens": -1}, "dead_after_tokens must be positive, got -1"),
        ({"learning_rate": float("inf")}, "learning_rate must be finite, got inf"),
        ({"aux_weight": float("inf")}, "aux_weight must be finite, got inf"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, got nan"),
        ({"decay_share": 1.5}, r"decay_share must lie in \[0, 1\], got 1.5"),
        ({"sparsity_weight": 1.0}, "batchtopk has no penalty"),
        ({"activation": "relu", "l0_target": -1.0}, "l0_target must not be negative, got -1.0"),
        (
            {"activation": "jumprelu", "decoder_norm": "unit", "bandwidth": 0.0},
            "bandwidth and threshold_init must be positive",
        ),
        (
            {"activation": "relu", "sparsity_weight": 0.0, "l0_target": 30.0},
            "sparsity_weight must be above 0 to be steered to l0_target 30.0, got 0.0",
        ),
        (
            {"activation": "relu", "sparsity_weight": 1.0, "l0_target": 65.0},
            "l0_target must be at most num_latents=64, got 65.0",
        ),
    ],
)
def test_settings_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        changed(**fields)


@pytest.mark.parametrize("activation", ["relu", "topk", "batchtopk", "jumprelu", "gated"])
def test_every_recipe_has_defaults(activation):
    assert defaults_for(activation).activation == activation
    # What the documented commands rely on.
    if activation == "batchtopk":
        assert asdict(defaults_for(activation)) == asdict(TrainSettings())


def test_the_documented_defaults_are_the_codes():
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    (head,) = [row for row in rows if row[0] == "setting"]
    documented = {
        row[0]: dict(zip(head[1:], map(value_of, row[1:]), strict=True)) for row in rows if is_setting(row[0])
    }
    all_of = {activation: asdict(defaults_for(activation)) for activation in head[1:]}
    differing = {name for name in asdict(TrainSettings()) if len({str(of[name]) for of in all_of.values()}) > 1}
    assert set(documented) == differing - {"activation"}
    for name, values in documented.items():
        assert values == {activation: of[name] for activation, of in all_of.items()}, name


def value_of(cell):
    try:
        return float(cell)
    except ValueError:
        return cell


def is_setting(name):
    return name in asdict(TrainSettings())


@pytest.mark.parametrize(
    ("activation", "norm"), [("relu", "unit"), ("jumprelu", "free"), ("gated", "free"), ("topk", "small")]
)
def test_a_norm_that_the_recipe_has_no_meaning_for_is_refused(activation, norm):
    with pytest.raises(ValueError, match=rf"decoder_norm must be one of .*, got '{norm}'"):
        replace(defaults_for(activation), decoder_norm=norm)
