"""The guards of a small server that has something of each kind to guard."""

from dataclasses import replace

import serving
import tiny
import tiny_packs

from monitors.pack_parts import PackCalibration
from service.guards import Guarded, Guards
from service.monitor_packs import ServedMonitor


def guards() -> Guards:
    """A monitor of a latent whose pack keeps histograms of its calibration."""
    histogram = {"edges": [0.0], "counts": [1, 1]}
    figures = {"reference": {"statistic": histogram, "token_score": histogram}}
    calibration = PackCalibration(method="by_hand", source="A test.", figures=figures)
    monitor = ServedMonitor(tiny_packs.pack(calibration=calibration))
    catalog = replace(serving.catalog(tiny.language_model()), monitors=(monitor,))
    return Guards(Guarded.of(catalog), catalog, [])
