"""Linear probes on residuals, with everything that happens to a residual before the product folded into the product.

    logistic_regression   on residuals standardised by the fitting data: z = (x - mean) / std
                          score = w . z + b = (w / std) . x + b - (w / std) . mean
    difference_of_means   direction = mean of positives - mean of negatives; 0 half-way between the two; in units of the
                          projections' spread within labels
    lda                   Fisher's discriminant with Ledoit and Wolf's shrinkage of the shared covariance

Labels are weighted so that both count the same. A probe has one direction and one bias at one hook point, in fp32.

Shape suffixes: I replies (or tokens), D model width.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from discovery.errors import MonitorLabError

Method = Literal["logistic_regression", "difference_of_means", "lda"]
METHODS: tuple[Method, ...] = get_args(Method)

DEFAULT_C = 0.01
"""Inverse strength of logistic regression's penalty, on standardised residuals: strong, as D is larger than I often."""

Floats = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """`score = resid . direction + bias`, larger for label 1."""

    direction_D: NDArray[np.float32]
    bias: float

    def scores(self, resid_ID: Floats) -> NDArray[np.float64]:
        """[I] scores, in fp64."""
        return resid_ID.astype(np.float64) @ self.direction_D.astype(np.float64) + self.bias


def fit_probe(
    resid_ID: Floats,
    labels_I: NDArray[np.int64],
    method: Method,
    *,
    C: float = DEFAULT_C,
    weights_I: Floats | None = None,
) -> LinearProbe:
    """Fit on residuals with both labels.

    Args:
        resid_ID: mean residuals of replies, or residuals of single tokens.
        labels_I: 1 or 0.
        method: how.
        C: of logistic regression alone.
        weights_I: of each row; default 1. Single tokens of a long reply count less with 1 / its tokens. LDA has none.

    Raises:
        MonitorLabError: residuals are not finite, a label is missing, or nothing tells the labels apart.
    """
    if not np.isfinite(resid_ID).all():
        raise MonitorLabError("residuals must be finite to fit a probe, got NaN or infinity")
    if set(np.unique(labels_I).tolist()) != {0, 1}:
        raise MonitorLabError(f"a probe needs labels 1 and 0, got {sorted(set(labels_I.tolist()))}")
    weights_I = _balanced(labels_I, np.ones(len(labels_I)) if weights_I is None else weights_I.astype(np.float64))
    exact_ID = resid_ID.astype(np.float64)
    match method:
        case "logistic_regression":
            return _logistic(exact_ID, labels_I, weights_I, C)
        case "difference_of_means":
            return _difference(exact_ID, labels_I, weights_I)
        case "lda":
            return _lda(exact_ID, labels_I)


def _balanced(labels_I: NDArray[np.int64], weights_I: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights with which each label counts half, and all together I."""
    totals = np.array([weights_I[labels_I == label].sum() for label in (0, 1)])
    return weights_I * (len(labels_I) / 2 / totals)[labels_I]


def _logistic(
    resid_ID: NDArray[np.float64], labels_I: NDArray[np.int64], weights_I: NDArray[np.float64], C: float
) -> LinearProbe:
    from sklearn.linear_model import LogisticRegression

    mean_D = np.average(resid_ID, axis=0, weights=weights_I)
    std_D = np.sqrt(np.average((resid_ID - mean_D) ** 2, axis=0, weights=weights_I))
    std_D[std_D == 0] = 1.0
    model = LogisticRegression(C=C, max_iter=2000, tol=1e-6)
    model.fit((resid_ID - mean_D) / std_D, labels_I, sample_weight=weights_I)
    direction_D = model.coef_[0] / std_D
    return _probe(direction_D, float(model.intercept_[0] - direction_D @ mean_D))


def _difference(
    resid_ID: NDArray[np.float64], labels_I: NDArray[np.int64], weights_I: NDArray[np.float64]
) -> LinearProbe:
    means = [np.average(resid_ID[labels_I == k], axis=0, weights=weights_I[labels_I == k]) for k in (0, 1)]
    direction_D = means[1] - means[0]
    within_I = (resid_ID - np.stack(means)[labels_I]) @ direction_D
    spread = float(np.sqrt(np.average(within_I**2, weights=weights_I)))
    direction_D = direction_D / (spread or 1.0)
    return _probe(direction_D, float(-direction_D @ (means[0] + means[1]) / 2))


def _lda(resid_ID: NDArray[np.float64], labels_I: NDArray[np.int64]) -> LinearProbe:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=[0.5, 0.5])
    model.fit(resid_ID, labels_I)
    return _probe(model.coef_[0], float(model.intercept_[0]))


def _probe(direction_D: NDArray[np.float64], bias: float) -> LinearProbe:
    if not np.isfinite(direction_D).all() or not np.isfinite(bias):
        raise MonitorLabError("a probe's direction must be finite: the residuals are too large to be fitted")
    if not direction_D.any():
        raise MonitorLabError("a probe must have a direction: the residuals don't differ between the labels at all")
    return LinearProbe(direction_D.astype(np.float32), bias)
