"""live_rates: a server's own alarms on benign replies, counted."""

import pytest

from discovery.binomial import share
from discovery.live_rates import as_table, live_rates


def reading(monitor, level, scored, *, statistic: float | None = 0.5, role="assistant"):
    return {
        "monitor": monitor,
        "role": role,
        "level": level,
        "scored_tokens": scored,
        "max_statistic": statistic,
    }


def row(*readings, label: int | None = 0):
    return {"label": label, "meta": {"monitors": list(readings)}}


ROWS = [
    row(reading("calm", "none", 40), reading("jumpy", "critical", 40)),
    row(reading("calm", "warning", 64), reading("jumpy", "warning", 64)),
    row(reading("calm", "none", 65)),
    row(reading("calm", "none", 3, statistic=None)),
    row(reading("calm", "critical", 50), label=None),
    row(reading("calm", "critical", 50), label=1),
]


def test_replies_are_counted_by_monitor_length_and_level():
    rates = live_rates(ROWS)
    assert rates["calm"]["all"] == {"warning": share(1, 3).as_json(), "critical": share(0, 3).as_json()}
    assert rates["calm"]["up to 8"]["warning"]["num"] == 0
    assert rates["calm"]["up to 64"]["warning"] == share(1, 2).as_json()
    assert rates["calm"]["up to 256"]["warning"] == share(0, 1).as_json()
    assert rates["calm"]["up to 1024"]["warning"]["num"] == 0
    assert rates["jumpy"]["all"] == {"warning": share(2, 2).as_json(), "critical": share(1, 2).as_json()}


def test_a_reply_of_two_roles_counts_once_with_its_highest_level():
    parts = [reading("calm", "warning", 30, role="reasoning"), reading("calm", "none", 50)]
    for readings in (parts, parts[::-1]):
        rates = live_rates([row(*readings)])["calm"]
        assert rates["all"]["warning"] == rates["up to 256"]["warning"] == share(1, 1).as_json()


def test_the_table_has_a_line_for_every_stratum():
    assert as_table(live_rates(ROWS)).row_count == 2 * 5


@pytest.mark.parametrize("level", ["warning", "critical"])
def test_a_level_that_the_monitor_has_not_has_no_rate(level):
    rates = live_rates([row(reading("calm", "none", 40) | {"levels": [level]})])
    other = "critical" if level == "warning" else "warning"
    assert rates["calm"]["all"] == {level: share(0, 1).as_json(), other: None}
    table = as_table(rates)
    cells = {str(column.header): next(iter(column.cells)) for column in table.columns}
    assert cells["replies"] == "1" and cells[other] == "-" and cells[level].startswith("0.00%")
