"""monitor_figures: what a set's numbers are of, and null where there is no ground for one."""

import math

import made_rows
import numpy as np
import pytest
import tiny_packs

from discovery.monitor_figures import control_figures, set_figures, threshold_figures
from monitors.thresholds import Levels, LevelThreshold, Stratum, Thresholds

BARE = tiny_packs.pack(thresholds=None, calibration=None)
LEVELS = ["critical", "warning", "warning", None]
ROWS = made_rows.rows([3.0, 1.0, 0.8, 0.1], [1, 1, 0, 0], levels=LEVELS)


def test_a_level_that_the_pack_has_not_has_no_shares():
    both = tiny_packs.pack(thresholds=tiny_packs.thresholds(0.5, 2.0))
    found = threshold_figures(ROWS, both)
    assert (found["fpr_at_threshold"], found["recall_at_threshold"]) == (0.5, 1.0)
    counts = {level: (of["negatives"]["count"], of["positives"]["count"]) for level, of in found["levels"].items()}
    assert counts == {"warning": (1, 2), "critical": (0, 1)}

    warning = tiny_packs.pack(thresholds=tiny_packs.thresholds(0.5))
    assert threshold_figures(ROWS, warning) == found | {"levels": found["levels"] | {"critical": None}}
    assert control_figures(ROWS, warning)["levels"] == {
        "warning": control_figures(ROWS, both)["levels"]["warning"],
        "critical": None,
    }

    critical = tiny_packs.pack(thresholds=tiny_packs.thresholds(None, 2.0))
    none = {"fpr_at_threshold": None, "recall_at_threshold": None}
    assert threshold_figures(ROWS, critical) == none | {"levels": found["levels"] | {"warning": None}}

    assert threshold_figures(ROWS, BARE) == none | {"levels": None}
    assert control_figures(ROWS, BARE)["levels"] is None


def test_a_threshold_that_does_not_stand_at_every_length_is_no_basis_for_recall():
    """All exceed the warning's offset, and none of them can fire: they are as long as where it is absent."""
    level = LevelThreshold(0.01, 0.5, (16,), absent=(64,))
    strata = (Stratum(16, 0.0), Stratum(64, 0.0))
    partial = tiny_packs.pack(thresholds=Thresholds(strata, Levels(level, None), 0.4))
    rows = made_rows.rows([3.0, 1.0, 0.6, 0.9, 0.2], [1, 1, 1, 0, 0], count=40)
    found = set_figures(rows, partial, None)
    assert found["recall_at_threshold"] == 0.0 and found["recall_basis"] == "negatives"
    assert found["recall_at_1pct_fpr"]["mean"] == pytest.approx(2 / 3, abs=1e-4)
    whole = set_figures(rows, tiny_packs.pack(), None)
    assert whole["recall_basis"] == "calibration" and whole["recall_at_1pct_fpr"]["mean"] == 1.0


def test_copies_within_a_group_make_no_interval_narrower():
    rng, labels = np.random.default_rng(0), np.tile([0, 1], 40)
    rows = made_rows.rows((rng.normal(size=80) + labels).tolist(), labels.tolist(), groups=[f"g{i}" for i in range(80)])
    copied = rows.take(np.repeat(np.arange(80), 16).tolist())
    alone, found = (set_figures(some, BARE, None) for some in (rows, copied))
    assert alone["num_groups"] == found["num_groups"] == 80
    for name in ("auroc", "recall_at_1pct_fpr"):
        assert width(found[name]) == pytest.approx(width(alone[name]), rel=0.25) and width(alone[name]) > 0.1, name


def width(estimate):
    return estimate["high"] - estimate["low"]


def test_controls_are_told_by_quantiles_of_those_that_could_fire():
    rows = made_rows.rows([*range(101), -math.inf, -math.inf])
    found = control_figures(rows, BARE)
    assert (found["num"], found["num_too_short"]) == (103, 2)
    assert found["quantiles"] == {"50%": 50, "95%": 95, "99%": 99}


def test_controls_set_the_threshold_and_those_too_short_to_fire_have_no_part_in_it():
    rows = made_rows.rows([150.5, 198.5, 250, 3], [1, 1, 1, 0], length=[1, 3, 3, 3])
    controls = made_rows.rows([*range(200), *[-math.inf] * 900], length=[2] * 200 + [9] * 900)
    found = set_figures(rows, tiny_packs.pack(), controls)
    # Of 200 two may be above: 197 itself is not.
    assert found["recall_basis"] == "controls" and found["recall_at_1pct_fpr"]["mean"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["baselines"]["length"]["recall_at_1pct_fpr"]["mean"] == pytest.approx(2 / 3, abs=1e-4)
