"""A server whose database is stopped and started under load: alerts wait and arrive, and it can be seen."""

import asyncio

import pytest
from postgres import running_postgres
from serving import connect, eventually, healthz, outcomes, sample, serving

from monitors import forwarder
from monitors.journal_reader import JournalReader
from service import journal_keeper

PATIENCE = 60.0
"""Far more than anything here takes."""


@pytest.fixture
def database():
    with running_postgres() as server:
        yield server


async def test_alerts_wait_for_the_database_and_arrive_while_generation_goes_on(tmp_path, database, monkeypatch):
    monkeypatch.setattr(journal_keeper, "STATUS_SECONDS", 0.05)
    monkeypatch.setattr(
        journal_keeper, "Forwarder", lambda journal, url: forwarder.Forwarder(journal, url, retry_seconds=(0.01, 0.05))
    )
    url = database.new_database("alerts")
    path = tmp_path / "alerts.sqlite"
    seen: list[str] = []
    async with serving(journal=str(path), journal_forward=url) as server, connect(server) as client:
        keeper = server.journal

        async def load():
            while True:
                reply = await client.complete("The sea", max_tokens=6, ignore_eos=True)
                seen.extend(alert.alert_id for alert in reply.alerts)

        def has_sent():
            return keeper.status.num_waiting == 0 and not keeper.status.forward_error

        loads = [asyncio.create_task(load()) for _ in range(2)]
        for _ in range(2):
            before = len(seen)
            await eventually(lambda least=before + 4: len(seen) > least, seconds=PATIENCE)
            await asyncio.to_thread(database.stop)
            await eventually(lambda: keeper.status.forward_error, seconds=PATIENCE)
            stopped = len(seen)
            await eventually(lambda least=stopped + 4: len(seen) > least, seconds=PATIENCE)
            await eventually(lambda: keeper.status.num_waiting > 4 and keeper.status.lag_seconds > 0, seconds=PATIENCE)
            await server.update_health()
            status, facts = await healthz(server)
            info = (await client.server_info()).journal
            assert (status, facts["serving"]) == (200, True)
            assert facts["journal"]["forwarded"] and not facts["journal"]["forward_up"] and facts["journal"]["writable"]
            assert facts["journal"]["waiting"] > 4 and info.is_writable and info.is_forwarded
            assert info.num_waiting > 4 and info.lag_seconds > 0 and info.forward_error
            assert sample(server, "telltale_journal_forward_up") == 0
            assert sample(server, "telltale_journal_forward_waiting_entries") > 4
            assert sample(server, "telltale_journal_forward_lag_seconds") > 0
            await asyncio.to_thread(database.start)
            await eventually(lambda: not keeper.status.forward_error, seconds=PATIENCE)
        for task in loads:
            task.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        await eventually(has_sent, seconds=PATIENCE)
        await server.update_health()
        assert sample(server, "telltale_journal_forward_up") == 1
        assert sample(server, "telltale_journal_forward_lag_seconds") == 0
        assert "engine_error" not in outcomes(server) and "alert_not_kept" not in outcomes(server)
        journal = keeper.journal.id
    with JournalReader.open(url) as copy, JournalReader.open(path) as own:
        assert list(copy.lines(journal)) == list(own.lines(journal))
        assert all(each.holds for each in (*copy.verify(), *own.verify()))
        assert set(seen) <= {kept.record.id for kept in copy.all_alerts()}
