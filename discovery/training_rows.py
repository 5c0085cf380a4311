"""The rows that something is fitted on, as they were read; and probes fitted on them.

Shape suffixes: I replies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from discovery.layer_sweep import NUM_FOLDS, best_layer, cross_validate, sweep_layers
from discovery.probe_fit import LinearProbe, Method, fit_probe
from discovery.reply_readings import ReplyReadings
from sae_runtime.hook_point import HookPoint


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Labelled replies with their readings."""

    readings: ReplyReadings
    """With the mean residual at each of `points`, and predictions."""
    labels_I: NDArray[np.int64]
    groups: list[str]
    datasets: list[str]
    texts: list[str]
    """What is scored."""
    points: tuple[HookPoint, ...]

    def probe_at(self, point: HookPoint, method: Method, C: float) -> LinearProbe:
        """Fitted on all of them."""
        mean_ID = self.readings.mean_ILD[:, self.points.index(point)]
        return fit_probe(mean_ID, self.labels_I, method, C=C)


@dataclass(frozen=True, slots=True)
class SweptProbe:
    """The probe at the layer that cross-validation liked best."""

    point: HookPoint
    C: float
    probe: LinearProbe
    record: dict[str, Any]
    """What each layer and each C gave."""


def sweep(
    rows: TrainingRows, method: Method, C_values: Sequence[float], *, num_folds: int = NUM_FOLDS, seed: int = 0
) -> SweptProbe:
    """Layer by cross-validation at the first of `C_values`, then C at that layer, then a fit on all rows."""
    settings: dict[str, Any] = {"num_folds": num_folds, "seed": seed}
    layers = sweep_layers(
        rows.readings.mean_ILD, rows.labels_I, rows.groups, rows.datasets, method, C=C_values[0], **settings
    )
    best = best_layer(layers)
    mean_ID = rows.readings.mean_ILD[:, best]
    by_C = {C_values[0]: layers[best]}
    for C in C_values[1:] if method == "logistic_regression" else ():
        by_C[C] = cross_validate(mean_ID, rows.labels_I, rows.groups, rows.datasets, method, C=C, **settings)
    C = max(by_C, key=lambda value: round(by_C[value].auroc, 6))
    record = {
        "method": method,
        "num_folds": num_folds,
        "layers": {
            str(point): {"auroc": round(figure.auroc, 4), "by_set": _rounded(figure.by_dataset)}
            for point, figure in zip(rows.points, layers, strict=True)
        },
        "chosen": str(rows.points[best]),
        "C": {str(value): round(figure.auroc, 4) for value, figure in by_C.items()},
        "chosen_C": C,
    }
    return SweptProbe(rows.points[best], C, fit_probe(mean_ID, rows.labels_I, method, C=C), record)


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}
