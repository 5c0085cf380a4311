"""monitor_figures: what a set's numbers are of, and null where there is no ground for one."""

import made_rows
import tiny_packs

from discovery.monitor_figures import control_figures, threshold_figures

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

    bare = tiny_packs.pack(thresholds=None, calibration=None)
    assert threshold_figures(ROWS, bare) == none | {"levels": None}
    assert control_figures(ROWS, bare)["levels"] is None
