"""four_columns: shares of what can be reached, and intervals of groups."""

import made_rows
import tiny_packs

from discovery.four_columns import four_columns

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
