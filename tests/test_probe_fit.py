"""probe_fit: equal to scikit-learn's pipelines, finds what was planted, refuses what can't be fitted."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from discovery.discrimination import auroc
from discovery.errors import MonitorLabError
from discovery.probe_fit import METHODS, LinearProbe, fit_probe

D = 24


def planted(num=300, *, shift=1.5, seed=0, positive_share=0.5):
    """Residuals of very different scales by dimension, with the labels' difference along one direction."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(num) < positive_share).astype(int)
    scale, offset = np.geomspace(0.1, 50, D), np.linspace(-30, 30, D)
    direction = np.random.default_rng(99).normal(size=D) / scale
    direction /= np.linalg.norm(direction * scale)
    resid = rng.normal(size=(num, D)) * scale + offset
    resid += np.outer(labels - 0.5, 2 * shift * direction * scale**2)
    return resid.astype(np.float32), labels


@pytest.mark.parametrize("C", [0.001, 1.0])
def test_logistic_regression_is_scikit_learns_on_standardised_residuals(C):
    resid, labels = planted(positive_share=0.5)
    labels[:10] = 1 - labels[:10]
    half = np.sort(np.concatenate([np.flatnonzero(labels == k)[:100] for k in (0, 1)]))  # balanced: weights are all 1
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000, tol=1e-10))
    reference.fit(resid[half].astype(np.float64), labels[half])
    found = fit_probe(resid[half], labels[half], "logistic_regression", C=C).scores(resid)
    np.testing.assert_allclose(found, reference.decision_function(resid), rtol=5e-3, atol=5e-3)


def test_weights_of_labels_are_scikit_learns_balanced_ones():
    resid, labels = planted(positive_share=0.1)
    standard = (resid - resid.mean(0)) / resid.std(0)
    reference = LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000).fit(standard, labels)
    found = fit_probe(standard, labels, "logistic_regression", C=0.1)
    # Standardised by weighted moments, not by plain ones: the same up to the penalty's yardstick.
    assert np.corrcoef(found.scores(standard), reference.decision_function(standard))[0, 1] > 0.999
    assert abs(np.mean(found.scores(standard)[labels == 1]) + np.mean(found.scores(standard)[labels == 0])) < 0.5


def test_a_row_of_weight_two_is_two_rows():
    resid, labels = planted(80)
    weights = np.random.default_rng(1).integers(1, 4, 80)
    repeated = np.repeat(np.arange(80), weights)
    for method in ("logistic_regression", "difference_of_means"):
        two = fit_probe(resid[repeated], labels[repeated], method, C=0.1)
        # C weighs a mean over rows against the penalty, so it goes with their number.
        one = fit_probe(resid, labels, method, C=0.1 * len(repeated) / 80, weights_I=weights)
        np.testing.assert_allclose(one.scores(resid), two.scores(resid), rtol=0.02, atol=0.02)


def test_difference_of_means_in_its_own_words():
    resid, labels = planted()
    positive, negative = resid[labels == 1].mean(0, np.float64), resid[labels == 0].mean(0, np.float64)
    found = fit_probe(resid, labels, "difference_of_means")
    direction = found.direction_D.astype(np.float64)
    cosine = direction @ (positive - negative) / np.linalg.norm(direction) / np.linalg.norm(positive - negative)
    assert cosine == pytest.approx(1, abs=1e-6)
    scores = LinearProbe(found.direction_D, found.bias).scores(resid)
    assert scores[labels == 1].mean() + scores[labels == 0].mean() == pytest.approx(0, abs=1e-3)
    spread = np.sqrt(np.mean(np.concatenate([scores[labels == k] - scores[labels == k].mean() for k in (0, 1)]) ** 2))
    assert spread == pytest.approx(1, rel=0.02)


def test_lda_is_scikit_learns():
    resid, labels = planted()
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=[0.5, 0.5])
    reference.fit(resid.astype(np.float64), labels)
    found = fit_probe(resid, labels, "lda").scores(resid)
    np.testing.assert_allclose(found, reference.decision_function(resid), rtol=5e-3, atol=5e-3)


# The difference of means takes no account of how residuals spread: the large dimensions' noise is in it.
@pytest.mark.parametrize(
    ("method", "least"), [("logistic_regression", 0.95), ("difference_of_means", 0.65), ("lda", 0.95)]
)
def test_what_was_planted_is_found_on_other_data(method, least):
    resid, labels = planted(600, shift=2.0)
    fresh, fresh_labels = planted(400, shift=2.0, seed=7)
    assert auroc(fit_probe(resid, labels, method, C=0.1).scores(fresh), fresh_labels) > least


@pytest.mark.parametrize("method", METHODS)
def test_permuted_labels_give_luck(method):
    resid, labels = planted(400)
    shuffled = np.random.default_rng(3).permutation(labels)
    fresh, fresh_labels = planted(400, seed=7)
    assert abs(auroc(fit_probe(resid, shuffled, method).scores(fresh), fresh_labels) - 0.5) < 0.35


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_fitted_is_named(method):
    resid, labels = planted(20)
    with pytest.raises(MonitorLabError, match=r"labels 1 and 0, got \[1\]"):
        fit_probe(resid, np.ones(20, int), method)
    resid[3, 4] = np.nan
    with pytest.raises(MonitorLabError, match="must be finite"):
        fit_probe(resid, labels, method)


def test_residuals_that_do_not_differ_make_no_probe():
    with pytest.raises(MonitorLabError, match="must have a direction"):
        fit_probe(np.ones((8, D), np.float32), np.tile([0, 1], 4), "difference_of_means")
