"""SIGKILL of a whole server under load: every alert that a client saw is in the journal, and the chain holds."""

import random

import pytest
from killed_server import killed_server

from monitors.journal_reader import JournalReader


async def kill_again_and_again(path, times):
    """How many alerts clients saw, and how many were kept: more, as some were kept that nobody was told of yet."""
    rng = random.Random(0)
    seen = set()
    for _ in range(times):
        seen |= set(await killed_server(path, rng))
        with JournalReader.open(path) as reader:
            (result,) = reader.verify()
            assert result.holds, result.finding
            kept = {found.record.id for found in reader.all_alerts()}
        assert "" not in seen
        assert seen <= kept
    return len(seen), len(kept)


async def test_no_alert_that_a_client_saw_is_lost_when_the_server_is_killed(tmp_path):
    num_seen, _ = await kill_again_and_again(tmp_path / "alerts.sqlite", 3)
    assert num_seen > 0


@pytest.mark.slow
async def test_no_alert_that_a_client_saw_is_lost_in_200_kills(tmp_path):
    num_seen, num_kept = await kill_again_and_again(tmp_path / "alerts.sqlite", 200)
    print(f"\n{num_seen} alerts seen by clients, {num_kept} in the journal")  # noqa: T201
    assert num_seen > 200
