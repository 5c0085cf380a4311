"""Latents that tell the labels apart better than the best of so many would by luck, their signs, and their weights.

    choice    AUROC of each latent's mean reading over a reply's scored tokens, within each data set that has both
              labels, and the mean over these sets; the strength is |AUROC - 0.5|
    luck      the largest strength of all latents under labels permuted among the groups of each set (max-statistic
              permutation test: its p-values hold for all latents together; Westfall and Young 1993)
    sign      that of AUROC - 0.5, fixed before weights are fitted
    scale     median of the latent's readings above 0 at scored tokens
    weight    logistic regression with an L2 penalty and weights >= 0 on sign * mean of log1p(f / scale), so that
              fitting can drop a latent and never turn it around

Everything is of training groups alone. Sets are never pooled: with different shares of positives in them, a latent that
tells the sets apart would look good in a pool.

Shape suffixes: I replies, N scored tokens, F latents, K chosen ones, P permutations.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import expit  # type: ignore[import-untyped]

from discovery.contrast_search import auroc, permute_labels
from discovery.errors import MonitorLabError
from discovery.reply_readings import ReplyReadings
from monitors.components import WeightedFeature

MAX_FEATURES = 20
MIN_ACTIVE_REPLIES = 10
"""A latent that is active in fewer training replies is not considered: its scale would rest on too few readings."""
DEFAULT_L2 = 0.01

_RANKS = 2**25


class ChosenFeature(NamedTuple):
    """A latent that was chosen."""

    latent: int
    sign: int
    auroc: float
    """Of its mean reading, on training groups, averaged over data sets; below 0.5 if the sign is -1."""
    p_value: float
    """Share of labellings, the true one among them, under which some latent is as strong."""


class FeatureChoice(NamedTuple):
    """What was chosen, and out of how many."""

    chosen: list[ChosenFeature]
    """Strongest first."""
    num_considered: int
    luck: list[float]
    """Largest AUROC (or 1 - AUROC) of all latents under each permutation."""


def choose_features(
    mean_IF: Any,
    labels_I: NDArray[np.int64],
    groups: Sequence[str],
    datasets: Sequence[str],
    *,
    max_features: int = MAX_FEATURES,
    max_p_value: float = 0.05,
    num_permutations: int = 200,
    seed: int = 0,
) -> FeatureChoice:
    """The strongest latents among those that beat luck; `mean_IF` is sparse.

    MonitorLabError if no latent does, saying how near the best came, or if no data set has both labels.
    """
    sets = _with_both_labels(labels_I, datasets)
    considered = np.flatnonzero((mean_IF > 0).sum(axis=0) >= MIN_ACTIVE_REPLIES)
    if not len(considered):
        raise MonitorLabError(f"some latent must be active in {MIN_ACTIVE_REPLIES} training replies, got none")
    labels_PI = torch.cat(
        [
            torch.from_numpy(labels_I)[None],
            permute_labels(torch.from_numpy(labels_I), list(groups), num_permutations, seed, sets=list(datasets)),
        ]
    )
    # Groups that reach over sets can leave one of them with one label; its AUROC means nothing.
    labels_PI = labels_PI[torch.stack([_has_both(labels_PI[:, rows]) for rows in sets]).all(0)]
    auroc_F, largest_P = _true_and_largest(mean_IF[:, considered], labels_PI, sets)
    strength_F = np.abs(auroc_F - 0.5)
    p_value_F = (1 + (largest_P[:, None] >= strength_F - 1e-6).sum(0)) / (1 + len(largest_P))
    best = np.argsort(-strength_F, kind="stable")[:max_features]
    chosen = [
        ChosenFeature(int(considered[i]), 1 if auroc_F[i] >= 0.5 else -1, float(auroc_F[i]), float(p_value_F[i]))
        for i in best
        if p_value_F[i] <= max_p_value
    ]
    if not chosen:
        raise MonitorLabError(
            f"some latent must tell the labels apart with p <= {max_p_value} against the best of {len(considered)} by "
            f"luck; the best, {considered[best[0]]}, has AUROC {auroc_F[best[0]]:.3f} and p = {p_value_F[best[0]]:.3f} "
            "(--max-p-value 1 goes on)"
        )
    return FeatureChoice(chosen, len(considered), [round(float(0.5 + value), 4) for value in largest_P])


def _with_both_labels(labels_I: NDArray[np.int64], datasets: Sequence[str]) -> list[torch.Tensor]:
    """Rows of each data set that has both labels. MonitorLabError if none has."""
    datasets_I = np.asarray(datasets, object)
    rows = [torch.from_numpy(np.flatnonzero(datasets_I == name)) for name in dict.fromkeys(datasets)]
    sets = [of_set for of_set in rows if len(set(labels_I[of_set].tolist())) == 2]
    if not sets:
        raise MonitorLabError("some training data set must have both labels, got none")
    return sets


def _has_both(labels_PI: torch.Tensor) -> torch.Tensor:
    num_positive_P = labels_PI.sum(1)
    return (num_positive_P > 0) & (num_positive_P < labels_PI.shape[1])


def _true_and_largest(
    mean_IF: Any, labels_PI: torch.Tensor, sets: Sequence[torch.Tensor]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """([F] AUROC under the first labelling, [P - 1] largest |AUROC - 0.5| under each other one), means over sets."""
    # Some latents at a time: ranks of all under all labellings would take several times their memory.
    step = max(1, _RANKS // mean_IF.shape[0])
    columns = mean_IF.tocsc()
    true, largest_P = [], np.zeros(len(labels_PI) - 1)
    for begin in range(0, columns.shape[1], step):
        dense_IF = torch.from_numpy(columns[:, begin : begin + step].toarray().astype(np.float32))
        of_sets = [auroc(dense_IF[rows], labels_PI[:, rows]).numpy().astype(np.float64) for rows in sets]
        auroc_PF = np.mean(of_sets, axis=0)
        true.append(auroc_PF[0])
        if len(largest_P):
            largest_P = np.maximum(largest_P, np.abs(auroc_PF[1:] - 0.5).max(1))
    return np.concatenate(true), largest_P


def fit_weights(
    readings: ReplyReadings, labels_I: NDArray[np.int64], chosen: Sequence[ChosenFeature], *, l2: float = DEFAULT_L2
) -> tuple[WeightedFeature, ...]:
    """The chosen latents with their scales and weights; those of weight 0 are gone.

    MonitorLabError if nothing is left: together the chosen ones then say less than nothing.
    """
    latents = [feature.latent for feature in chosen]
    signs_K = np.array([feature.sign for feature in chosen], np.float64)
    f_NK = readings.latents_NF[:, latents].toarray().astype(np.float64)
    scales_K = np.array([float(np.median(f_NK[f_NK[:, k] > 0, k])) for k in range(len(latents))])
    mean_IK = readings.mean_over_tokens(np.log1p(f_NK / scales_K)).astype(np.float64)
    weights_K = non_negative_logistic(mean_IK * signs_K, labels_I, l2)
    features = tuple(
        WeightedFeature(latent, round(float(sign * weight), 6), round(float(scale), 6))
        for latent, sign, weight, scale in zip(latents, signs_K, weights_K, scales_K, strict=True)
        if round(float(weight), 6) > 0
    )
    if not features:
        raise MonitorLabError("some chosen latent must get a weight above 0, got none")
    return features


def non_negative_logistic(x_IK: NDArray[np.float64], labels_I: NDArray[np.int64], l2: float) -> NDArray[np.float64]:
    """[K] weights >= 0 that minimise the balanced mean logistic loss + l2 / 2 sum (w_k std_k)^2, with a free bias."""
    std_K = x_IK.std(0)
    std_K[std_K == 0] = 1.0
    z_IK = (x_IK - x_IK.mean(0)) / std_K
    signs_I = np.where(labels_I == 1, 1.0, -1.0)
    share_I = 0.5 / np.bincount(labels_I, minlength=2)[labels_I]

    def loss(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights_K, bias = theta[:-1], theta[-1]
        margin_I = signs_I * (z_IK @ weights_K + bias)
        value = share_I @ np.logaddexp(0, -margin_I) + l2 / 2 * weights_K @ weights_K
        slope_I = -share_I * signs_I * expit(-margin_I)
        return float(value), np.append(z_IK.T @ slope_I + l2 * weights_K, slope_I.sum())

    bounds = [(0, None)] * x_IK.shape[1] + [(None, None)]
    found = minimize(loss, np.zeros(x_IK.shape[1] + 1), jac=True, method="L-BFGS-B", bounds=bounds)
    return np.asarray(found.x[:-1] / std_K)
