"""At which layer is the difference read best? Answered on training groups alone, by cross-validation.

A layer's figure is the mean, over data sets, of the mean AUROC of held-out folds within the set. Sets are never pooled:
a probe that tells the sets apart would look good in a pool.

Shape suffixes: I replies, L hook points, D model width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from discovery.discrimination import auroc
from discovery.errors import MonitorLabError
from discovery.group_split import folds
from discovery.probe_fit import DEFAULT_C, Method, fit_probe

NUM_FOLDS = 5


class CrossValidated(NamedTuple):
    """What held-out folds say."""

    auroc: float
    """Mean over data sets."""
    by_dataset: dict[str, float]
    """Mean over the folds in which the set has both labels."""


def cross_validate(
    resid_ID: NDArray[np.float32],
    labels_I: NDArray[np.int64],
    groups: Sequence[str],
    datasets: Sequence[str],
    method: Method,
    *,
    C: float = DEFAULT_C,
    num_folds: int = NUM_FOLDS,
    seed: int = 0,
) -> CrossValidated:
    """AUROC of a probe on groups that it was not fitted on.

    MonitorLabError if there are too few groups, or no data set has both labels in any fold.
    """
    datasets_I = np.asarray(datasets, object)
    found: dict[str, list[float]] = {}
    for fitting, validation in folds(labels_I, groups, num_folds, seed):
        scores_I = fit_probe(resid_ID[fitting], labels_I[fitting], method, C=C).scores(resid_ID[validation])
        for dataset in dict.fromkeys(datasets):
            inside = datasets_I[validation] == dataset
            value = auroc(scores_I[inside], labels_I[validation][inside])
            if np.isfinite(value):
                found.setdefault(dataset, []).append(value)
    by_dataset = {dataset: float(np.mean(values)) for dataset, values in found.items()}
    if not by_dataset:
        raise MonitorLabError(
            "cross-validation needs a data set with both labels in a fold, got none: give more groups"
        )
    return CrossValidated(float(np.mean(list(by_dataset.values()))), by_dataset)


def sweep_layers(
    mean_ILD: NDArray[np.float32],
    labels_I: NDArray[np.int64],
    groups: Sequence[str],
    datasets: Sequence[str],
    method: Method,
    *,
    C: float = DEFAULT_C,
    num_folds: int = NUM_FOLDS,
    seed: int = 0,
) -> list[CrossValidated]:
    """One figure per hook point, in their order."""
    with tqdm(range(mean_ILD.shape[1]), desc="layers", unit="layer", mininterval=5) as layers:
        return [
            cross_validate(mean_ILD[:, layer], labels_I, groups, datasets, method, C=C, num_folds=num_folds, seed=seed)
            for layer in layers
        ]


def best_layer(figures: Sequence[CrossValidated]) -> int:
    """Index of the largest; of equals the first, which costs least to read."""
    return int(np.argmax([round(figure.auroc, 6) for figure in figures]))
