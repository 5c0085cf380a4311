"""A server's journal is looked after, whatever goes wrong meanwhile, and its state is that of the last write."""

import threading

import pytest
from alerts import alert

from monitors.journal import Journal
from monitors.journal_retention import Keep
from service import journal_keeper
from service.journal_keeper import JournalKeeper


@pytest.fixture
def journal(tmp_path):
    return Journal.open(tmp_path / "alerts.sqlite")


def test_a_fault_of_any_kind_is_logged_once_and_the_status_goes_on(journal, monkeypatch, caplog):
    monkeypatch.setattr(journal_keeper, "STATUS_SECONDS", 0.001)
    monkeypatch.setattr(journal_keeper, "RETENTION_SECONDS", 0.0)
    tries, is_tried = [], threading.Event()

    def retain(keep):
        tries.append(keep)
        if len(tries) < 4:
            raise OverflowError("date value out of range")
        is_tried.set()
        return []

    monkeypatch.setattr(journal, "retain", retain)
    keeper = JournalKeeper(journal, keep=Keep(max_alerts=9))
    keeper.append([alert()])
    keeper.start()
    try:
        assert is_tried.wait(30), "the thread has ended"
    finally:
        keeper.close()
    assert keeper.status.num_entries == 1
    assert [record.getMessage() for record in caplog.records] == [
        "the alert journal can't be looked after: date value out of range"
    ]
