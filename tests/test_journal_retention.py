"""Retention: what is left is a chain that holds, what was deleted is gone from the disk, and nobody else can do it."""

import sqlite3
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from alerts import alert, text
from pydantic import ValidationError

from monitors.errors import JournalError
from monitors.journal import Journal, add
from monitors.journal_chain import EMPTY, Fault, NotedHead
from monitors.journal_database import Database, place_of
from monitors.journal_retention import MAX_DAYS, Keep
from monitors.journal_tables import COPY, chains
from monitors.time_ids import new_id
from service import cli_alerts
from service.config import Settings

DAY = timedelta(days=1)


def days_old(days, **changes):
    return alert(time=datetime.now(UTC) - days * DAY, **changes)


@pytest.fixture
def journal(tmp_path):
    with Journal.open(tmp_path / "alerts.sqlite") as journal:
        yield journal


def left(journal):
    (result,) = journal.reader.verify()
    assert result.holds, result.finding
    return [found.record for found in journal.reader.alerts().alerts][::-1]


def test_by_age_what_is_older_than_the_first_young_one_goes(journal):
    records = [days_old(days) for days in (9, 8, 3, 7, 1)]
    journal.append(records)
    (done,) = journal.retain(Keep(max_age=5 * DAY))
    # The fourth is old too, and stays: only beginnings are deleted.
    assert {record.id for record in left(journal)} == {record.id for record in records[2:]}
    assert (done.journal, done.through_seq, done.num_deleted) == (journal.id, 2, 2)
    assert done.reason == "older than 5 days"
    assert journal.retain(Keep(max_age=5 * DAY)) == []


def test_by_number_the_newest_stay(journal):
    records = [days_old(1) for _ in range(8)]
    journal.append(records[:6])
    journal.review(records[0].id, verdict="true", reviewer="ann")
    journal.append(records[6:])
    (done,) = journal.retain(Keep(max_alerts=3))
    assert {record.id for record in left(journal)} == {record.id for record in records[5:]}
    assert done.through_seq == 5
    # A verdict still counts when its alert is gone.
    assert [review.verdict for review in journal.reader.reviews()] == ["true"]


@pytest.mark.parametrize("keep", [Keep(max_alerts=0), Keep(max_age=timedelta(microseconds=1))])
def test_all_can_go_and_the_journal_goes_on(journal, keep):
    for _ in range(3):
        journal.append([days_old(1), days_old(1)])
        assert len(journal.retain(keep)) == 1
        assert left(journal) == []
    last = journal.reader.heads()[journal.id]
    assert last.seq == 9
    record = days_old(0)
    assert journal.append([record])[0].seq == 10
    assert left(journal) == [record]


def test_again_and_again(journal):
    for turn in range(12):
        journal.append([days_old(1) for _ in range(turn % 4)])
        journal.retain(Keep(max_alerts=5))
        assert len(left(journal)) <= 5


@pytest.fixture
def database(journal):
    database = Database.writable(place_of(journal.place.path))
    yield database
    database.close()


@pytest.mark.parametrize("num_runs", [2, 5])
def test_a_copy_that_was_emptied_and_got_nothing_since_is_accounted_for_in_every_run(journal, database, num_runs):
    """By age the run deletes the entry that accounts for the copy, and finds nothing in the copy to write of."""
    copy = new_id()
    with database.begin() as connection:
        new = {"journal": copy, "role": COPY, "head_seq": EMPTY.seq, "head_hash": EMPTY.hash}
        connection.execute(sa.insert(chains).values(new))
        add(connection, copy, [days_old(1) for _ in range(3)])
    for run in range(num_runs):
        done = journal.retain(Keep(max_age=timedelta(microseconds=1)))
        assert [each.num_deleted for each in done] == [3 if run == 0 else min(run, 2)]
        assert [each.finding for each in journal.reader.verify()] == [None, None]
    with database.begin() as connection:
        add(connection, copy, [days_old(0)])
    assert [each.finding for each in journal.reader.verify()] == [None, None]


def test_a_dry_run_says_what_would_go_and_does_nothing(journal):
    records = [days_old(days) for days in (9, 1)]
    journal.append(records)
    (would,) = journal.retain(Keep(max_age=5 * DAY), dry_run=True)
    assert would.num_deleted == 1
    assert left(journal) == records


def test_what_was_deleted_is_gone_from_the_disk(journal, tmp_path):
    secret = "a sentence nobody may keep"
    journal.append([days_old(9, text=text(secret)), days_old(1)])
    journal.retain(Keep(max_age=5 * DAY))
    on_disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"nobody believed" in on_disk  # what was kept
    assert secret.encode() not in on_disk


def test_a_reader_does_not_hold_retention_up_and_what_it_reads_is_gone_the_next_time(journal, tmp_path):
    secret = "a sentence nobody may keep"
    journal.append([days_old(9, text=text(secret)), days_old(1)])
    lines = journal.reader.lines(journal.id)
    assert secret in next(lines)
    assert len(journal.retain(Keep(max_age=5 * DAY))) == 1  # would wait for 10 seconds, and fail
    assert len(list(lines)) == 1
    journal.append([days_old(0)])
    journal.retain(Keep(max_alerts=1))
    assert secret.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_a_beginning_that_somebody_else_deletes_is_missed(journal, tmp_path):
    journal.append([days_old(1) for _ in range(6)])
    journal.retain(Keep(max_alerts=4))
    connection = sqlite3.connect(tmp_path / "alerts.sqlite")
    with connection:
        connection.execute("DELETE FROM entries WHERE seq = 3")
    connection.close()
    (result,) = journal.reader.verify()
    assert result.finding is not None and (result.finding.fault, result.finding.seq) == (Fault.MISSING, 1)


def test_a_head_noted_before_is_still_good_for_what_is_left(journal):
    receipts = journal.append([days_old(1) for _ in range(6)])
    journal.retain(Keep(max_alerts=3))
    for receipt in receipts[2:]:
        assert journal.reader.verify(NotedHead(receipt.hash, receipt.seq))[0].holds
    for seq in (1, None):
        assert not journal.reader.verify(NotedHead(receipts[0].hash, seq))[0].holds


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({}, "retention: wanted an age, a number of alerts, or both, got neither"),
        ({"max_alerts": -1}, "max_alerts: wanted 0 or more, got -1"),
        ({"max_age": timedelta(0)}, "max_age: wanted more than no time, got 0:00:00"),
        ({"max_age": timedelta(days=36_501)}, "max_age: wanted at most 36500 days, got 36501 days"),
    ],
)
def test_limits_that_make_no_sense_are_named(limits, says):
    with pytest.raises(JournalError, match=says):
        Keep(**limits)


def test_the_largest_limits_keep_everything(journal):
    """Further back than the calendar goes there is no date, and no database counts so far."""
    journal.append([days_old(30_000)])
    assert journal.retain(Keep(max_age=timedelta(days=MAX_DAYS), max_alerts=10**30)) == []
    assert MAX_DAYS == cli_alerts.MAX_DAYS
    with pytest.raises(ValidationError):
        Settings(journal_max_days=MAX_DAYS + 1)
    assert Settings(journal_max_days=MAX_DAYS).journal_max_days == MAX_DAYS
