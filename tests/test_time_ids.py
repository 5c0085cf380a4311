"""Ids: of version 7, rising, and saying when."""

import time
import uuid

import pytest

from monitors import time_ids
from monitors.time_ids import TimeIds


def test_an_id_is_a_uuid_of_version_7_and_says_when():
    before = time.time_ns() // 1_000_000
    made = uuid.UUID(time_ids.new_id())
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert before <= made.int >> 80 <= time.time_ns() // 1_000_000


@pytest.mark.parametrize("clock", [lambda: 5_000_000, iter(range(9 * 10**12, 0, -(10**6))).__next__])
def test_ids_rise_though_the_clock_stands_still_or_goes_back(monkeypatch, clock):
    monkeypatch.setattr(time_ids.time, "time_ns", clock)
    ids = TimeIds()
    made = [ids.new() for _ in range(9000)]  # more than one millisecond's counter can count
    assert made == sorted(set(made))
