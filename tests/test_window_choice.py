"""window_choice: the window that fits the signal is found; units put the labels at -1 and 1."""

import math

import numpy as np
import pytest

from discovery.errors import MonitorLabError
from discovery.window_choice import choose_window, statistic, units_of


def replies(length, burst, num=120, seed=0):
    """Positives have a burst of so many high tokens somewhere."""
    rng = np.random.default_rng(seed)
    labels = np.tile([0, 1], num // 2)
    rows = rng.normal(size=(num, length))
    for row, label in zip(rows, labels, strict=True):
        begin = rng.integers(0, length - burst + 1)
        row[begin : begin + burst] += 1.2 * label
    return rows.tolist(), labels


@pytest.mark.parametrize(("burst", "wanted"), [(4, 4), (40, 40)])
def test_the_window_of_the_signal_is_found(burst, wanted):
    rows, labels = replies(80, burst)
    figures = choose_window(rows, labels, ["a"] * 120, windows=(4, 40), min_tokens=(8,))
    assert figures[0].window == wanted and figures[0].auroc > figures[1].auroc


def test_short_replies_cannot_fire_and_count():
    rows, labels = replies(80, 30)
    rows = [row[:6] if label else row for row, label in zip(rows, labels, strict=True)]
    figures = choose_window(rows, labels, ["a"] * 120, windows=(8,), min_tokens=(8, 2))
    assert figures[0].min_tokens == 2 and figures[1].auroc == 0.0
    assert statistic([1.0] * 7, 8, 8) == -math.inf


def test_sets_count_the_same_and_those_of_one_label_not_at_all():
    rows, labels = replies(30, 10)
    sets = ["a"] * 100 + ["b"] * 20
    by_set = [
        choose_window(rows[p], labels[p], ["x"] * len(labels[p]), windows=(8,))[0].auroc
        for p in (slice(100), slice(100, 120))
    ]
    assert choose_window(rows, labels, sets, windows=(8,))[0].auroc == pytest.approx(np.mean(by_set))
    assert choose_window([*rows, [9.0] * 30], np.append(labels, 0), [*sets, "c"], windows=(8,))[
        0
    ].auroc == pytest.approx(np.mean(by_set))
    with pytest.raises(MonitorLabError, match="both labels in development groups"):
        choose_window(rows, np.ones(120, int), sets)


def test_units_put_the_labels_at_minus_one_and_one():
    statistics, labels = np.array([2.0, 4.0, 8.0, 12.0, -math.inf]), np.array([0, 0, 1, 1, 1])
    units = units_of(statistics, labels)
    assert [(mean - units.center) / units.scale for mean in (3.0, 10.0)] == pytest.approx([-1, 1])
    with pytest.raises(MonitorLabError, match="positives' mean statistic must be above"):
        units_of(-statistics[:4], labels[:4])
    with pytest.raises(MonitorLabError, match="long enough to fire"):
        units_of(np.array([1.0, -math.inf]), np.array([0, 1]))
