"""monitor calibrate's table: a share of each level that the pack has, and a dash for one that it has not."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_packs

from discovery.monitor_calibrate import show


@pytest.mark.parametrize(("critical", "cells"), [(None, ["-", "460", "-", "-"]), (2.0, ["0", "460", "0.00%", "0.00%"])])
def test_a_level_that_the_pack_has_not_was_reached_by_no_share(critical, cells, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shares = {
        level: {"count": count, "num": 460, "share": count / 460, "low": 0.0, "high": 0.1}
        for level, count in (("warning", 5), ("critical", 0))
    }
    figures = {"cross_fitted": {"all": shares, "by_stratum": {"64": shares}, "by_set": {}}, "hard_negatives": {}}
    pack = tiny_packs.pack(thresholds=tiny_packs.thresholds(0.5, critical))
    show(replace(pack, calibration=replace(pack.calibration, figures=figures)), Path("it.yaml"), as_json=False)
    warning, other = [line for line in capsys.readouterr().out.splitlines() if "up to 64 tokens" in line]
    assert warning.replace("│", " ").split()[5:8] == ["5", "460", "1.09%"]
    assert other.replace("│", " ").split()[5:9] == cells
