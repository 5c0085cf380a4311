"""SIGKILL under load: no alert that somebody was told of is lost, and the chain holds after every kill."""

import random

import pytest
from killed_journal import MAX_ALERTS, killed_writer

from monitors.journal import Journal


def kill_again_and_again(path, times):
    """Everything said to be kept is there, or retention accounts for it; returns how many alerts were said."""
    rng = random.Random(0)
    said = []
    for _ in range(times):
        said += killed_writer(path, rng)
        with Journal.open(path) as journal:
            (result,) = journal.reader.verify()
            assert result.holds, result.finding
            kept = {found.record.id for found in journal.reader.all_alerts()}
        # In the order they were kept those of three threads may be said a step or two later.
        assert set(said[-MAX_ALERTS // 2 :]) <= kept
    return len(said)


def test_nothing_that_was_told_is_lost_when_the_writer_is_killed(tmp_path):
    assert kill_again_and_again(tmp_path / "alerts.sqlite", 6) > 0


@pytest.mark.slow
def test_nothing_is_lost_in_200_kills(tmp_path):
    assert kill_again_and_again(tmp_path / "alerts.sqlite", 200) > 200
