"""four_columns: shares of what can be reached, and intervals of groups."""

import made_rows
import numpy as np
import pytest
import tiny_packs

from discovery.four_columns import COLUMNS, four_columns

LIE, TRUTH = {"class": "lie", "arm": "must"}, {"class": "honest_truth", "arm": "honest"}


def test_what_is_flagged_is_the_share_that_reaches_a_warning_and_null_where_there_is_none():
    rows = made_rows.rows(
        [3.0, 1.0, 0.2, 0.1], metas=[LIE, LIE, LIE, TRUTH], levels=["critical", "warning", None, None]
    )
    flagged = four_columns(rows, tiny_packs.pack(thresholds=tiny_packs.thresholds(0.5, 2.0)))["flagged"]
    assert {name: (of["count"], of["num"]) for name, of in flagged.items()} == {"lie": (2, 3), "honest_truth": (0, 1)}
    bare = tiny_packs.pack(thresholds=None, calibration=None)
    for pack in (bare, tiny_packs.pack(thresholds=tiny_packs.thresholds(None, 2.0))):
        assert four_columns(rows, pack)["flagged"] == {"lie": None, "honest_truth": None}


def test_copies_within_a_group_make_no_interval_narrower():
    rng = np.random.default_rng(0)
    classes = ["lie", "told_to_lie_but_true", "honest_truth", "honest_mistake"]
    metas = [{"class": classes[n % 4], "arm": ("must", "please")[n % 8 < 4]} for n in range(160)]
    scores = [rng.normal() + (meta["class"] == "lie") for meta in metas]
    levels = ["warning" if score > 0 else None for score in scores]
    rows = made_rows.rows(scores, metas=metas, levels=levels, noise=rng.normal(size=160))
    copied = rows.take(np.repeat(np.arange(160), 16).tolist())
    alone, found = (four_columns(some, tiny_packs.pack()) for some in (rows, copied))
    for name in ("monitor", "noise"):
        for column in COLUMNS:
            once, often = alone["predictors"][name][column], found["predictors"][name][column]
            assert (often["num_high"], often["num_low"]) == (16 * once["num_high"], 16 * once["num_low"]) == (640, 640)
            assert often["mean"] == once["mean"] and width(often) == pytest.approx(width(once), rel=0.25), column
    for name in classes:
        once, often = alone["flagged"][name], found["flagged"][name]
        assert (often["count"], often["num"]) == (16 * once["count"], 640)
        assert width(often["by_group"]) == pytest.approx(width(once["by_group"]), rel=0.25)
        # That of counts knows of no groups, and says so by its name.
        assert width(often) < 0.5 * width(once)


def width(found):
    return found["high"] - found["low"]
