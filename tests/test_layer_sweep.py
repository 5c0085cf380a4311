"""layer_sweep: finds the layer that knows, is not fooled by what tells the sets apart, and sees luck as luck."""

import numpy as np
import pytest

from discovery.errors import MonitorLabError
from discovery.layer_sweep import best_layer, cross_validate, sweep_layers


def residuals(seed=0, num_groups=40, strength=(0.0, 0.5, 3.0, 0.5)):
    rng = np.random.default_rng(seed)
    labels = np.tile([0, 1], num_groups)
    mean_ILD = rng.normal(size=(len(labels), len(strength), 12)).astype(np.float32)
    mean_ILD[:, :, 0] += np.outer(labels, strength)
    return mean_ILD, labels, [f"g{n // 2}" for n in range(len(labels))]


def test_the_layer_that_knows_is_found():
    mean_ILD, labels, groups = residuals()
    figures = sweep_layers(mean_ILD, labels, groups, ["a"] * 80, "logistic_regression")
    assert best_layer(figures) == 2
    assert figures[2].auroc > 0.9 > figures[1].auroc and abs(figures[0].auroc - 0.5) < 0.2


def test_what_tells_the_sets_apart_is_no_merit():
    mean_ILD, labels, groups = residuals(strength=(0.0,))
    sets = np.array(["few", "many"])[(np.arange(80) >= 40).astype(int)]
    # Nine of ten positives are in one set, and the set shows at once: pooled, a probe would look good.
    labels = np.where(sets == "many", (np.arange(80) % 10 > 0), (np.arange(80) % 10 == 0)).astype(int)
    mean_ILD[sets == "many", :, 3] += 20
    found = cross_validate(mean_ILD[:, 0], labels, groups, sets.tolist(), "logistic_regression")
    assert set(found.by_dataset) == {"few", "many"} and abs(found.auroc - 0.5) < 0.3


def test_copies_of_a_group_are_not_learned_by_heart():
    rng = np.random.default_rng(4)
    fingerprints = np.repeat(rng.normal(size=(20, 64)), 6, axis=0)
    labels = np.repeat(rng.permutation(np.tile([0, 1], 10)), 6)
    groups = [f"g{n // 6}" for n in range(120)]
    found = cross_validate(fingerprints.astype(np.float32), labels, groups, ["a"] * 120, "logistic_regression", C=1.0)
    assert found.auroc < 0.85  # 1 if copies were on both sides


def test_of_equals_the_first_layer_is_taken():
    mean_ILD, labels, groups = residuals(strength=(3.0,))
    figures = sweep_layers(np.repeat(mean_ILD, 3, axis=1), labels, groups, ["a"] * 80, "difference_of_means")
    assert best_layer(figures) == 0


def test_too_few_groups_are_named():
    mean_ILD, labels, groups = residuals(num_groups=3)
    with pytest.raises(MonitorLabError, match="at least 5 training groups with label 0, got 3"):
        sweep_layers(mean_ILD, labels, groups, ["a"] * 6, "lda")
    mean_ILD, labels, groups = residuals()
    with pytest.raises(MonitorLabError, match="a data set with both labels in a fold"):
        sweep_layers(mean_ILD, labels, groups, [str(label) for label in labels], "lda")
