"""A server's journal is looked after, whatever goes wrong meanwhile, and its state is that of the last write."""

import threading
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from alerts import alert

from monitors.errors import JournalWriteFailed, Problem
from monitors.journal import Journal
from monitors.journal_reader import JournalReader
from monitors.journal_retention import Keep
from service import journal_keeper
from service.alert_keeper import AlertKeeper
from service.config import Settings
from service.journal_keeper import JournalKeeper


@pytest.fixture
def journal(tmp_path):
    return Journal.open(tmp_path / "alerts.sqlite")


def until(condition, otherwise):
    """Wait for what the keeper's thread brings about."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, otherwise
        time.sleep(0.005)


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


def test_no_verdict_is_lost_where_two_come_at_once(journal, monkeypatch):
    """The second comes between the first one's look into the journal and what it makes of it."""
    records = [alert(), alert()]
    journal.append(records)
    keeper = JournalKeeper(journal)
    reviews, threads = journal.reader.reviews, []

    def review(number: int) -> None:
        journal.review(records[number].id, verdict="true", reviewer="ann")
        keeper.note_reviewed()

    def interrupted():
        found = reviews()
        if not threads:
            threads.append(threading.Thread(target=review, args=(1,)))
            threads[0].start()
            threads[0].join(0.5)  # it either ends, or waits for us
        return found

    monkeypatch.setattr(journal.reader, "reviews", interrupted)
    review(0)
    threads[0].join()
    assert [each.num_true for each in keeper.precisions] == [2]
    keeper.close()


def test_reviews_that_retention_deletes_no_longer_count(journal):
    old, new = alert(), alert()
    journal.append([old])
    journal.review(old.id, verdict="true", reviewer="ann")
    journal.append([new])
    keeper = JournalKeeper(journal, keep=Keep(max_alerts=0))
    assert [each.num_true for each in keeper.precisions] == [1]
    keeper.start()
    try:
        until(lambda: keeper.precisions == [], "what was deleted still counts")
    finally:
        keeper.close()


def days_old(days):
    return alert(time=datetime.now(UTC) - timedelta(days=days))


@pytest.mark.parametrize(
    ("options", "num_left"),
    [
        ({"journal_max_alerts": 1}, 1),
        ({"journal_max_days": 2.5}, 2),
        ({"journal_max_days": 2.5, "journal_max_alerts": 1}, 1),
    ],
)
def test_a_server_deletes_what_its_options_say(tmp_path, options, num_left):
    keeper = JournalKeeper.open(Settings(journal=str(tmp_path / "alerts.sqlite"), **options))
    records = [days_old(days) for days in (4, 3, 2, 1)]
    keeper.append(records)

    def left():
        return {kept.record.id for kept in keeper.journal.reader.all_alerts()}

    keeper.start()
    try:
        until(lambda: len(left()) < len(records), "nothing was deleted")
    finally:
        keeper.close()
    with JournalReader.open(tmp_path / "alerts.sqlite") as reader:
        assert {kept.record.id for kept in reader.all_alerts()} == {record.id for record in records[-num_left:]}


class Maker:
    """Makes a record of whatever it is given, but of nothing that has none."""

    def record(self, raised):
        if raised.made is None:
            raise ValueError("no record can be made of it")
        return raised.made


def raised(request_id, made=None):
    return SimpleNamespace(event=SimpleNamespace(request_id=request_id), made=made)


def test_only_a_write_says_that_writing_works_again(journal, monkeypatch):
    """A step of which no record could be made writes nothing, and so says nothing of the disk."""
    keeper = JournalKeeper(journal)
    alerts = AlertKeeper(Maker(), keeper)

    def fail(_records):
        raise JournalWriteFailed(Problem("disk", "room to write, and no fault", "disk full"))

    with monkeypatch.context() as patch:
        patch.setattr(journal, "append", fail)
        record = alert()
        assert alerts.keep([raised(record.request_id, record)]) == {record.request_id}
    assert not keeper.status.is_writable
    assert alerts.keep([raised("odd")]) == {"odd"}
    assert not keeper.status.is_writable and keeper.take_append_seconds() == []
    assert alerts.keep([raised("odd"), raised(record.request_id, record)]) == {"odd"}
    assert keeper.status.is_writable and len(keeper.take_append_seconds()) == 1
    keeper.close()


@pytest.mark.parametrize("num_shipped", [2, 1, None])
def test_entries_that_wait_for_a_database_that_is_no_longer_named_are_told_of(journal, caplog, num_shipped):
    """Retention spares them, so the journal grows for ever. None: none is to be forwarded."""
    journal.append([alert(), alert()])
    if num_shipped is not None:
        journal.mark_forwarded()
        journal.note_shipped(num_shipped)
    keeper = JournalKeeper(journal, keep=Keep(max_alerts=0))
    keeper.start()
    keeper.close()
    told = [record.getMessage() for record in caplog.records]
    assert [line[:41] for line in told] == (["1 entries of the alert journal were to be"] if num_shipped == 1 else [])
