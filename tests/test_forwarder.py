"""Forwarding to a real PostgreSQL: in order, each entry once, whatever is stopped or killed, and it can be seen."""

import itertools
import random
import shutil
import sqlite3
import threading
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from alerts import alert, text
from killed_journal import killed_writer
from postgres import running_postgres

from monitors import journal_schema
from monitors.errors import JournalError, JournalUnreachable
from monitors.forwarder import Forwarder, ForwardStatus
from monitors.journal import Journal
from monitors.journal_database import Database, place_of
from monitors.journal_query import Filters
from monitors.journal_reader import JournalReader
from monitors.journal_retention import Keep
from monitors.journal_tables import REVISIONS

RETRY = (0.01, 0.05)
PATIENCE = 60.0
"""Far more than anything here takes; what is waited for happens, or the test fails."""


@pytest.fixture(scope="module")
def server():
    with running_postgres() as server:
        yield server


@pytest.fixture
def url(server, request):
    return server.new_database(f"alerts_{abs(hash(request.node.name))}")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "alerts.sqlite"


class Forwarding:
    """A journal with a forwarder at work on it."""

    def __init__(self, path, url, **settings):
        self.journal = Journal.open(path)
        self.forwarder = Forwarder(self.journal, url, retry_seconds=RETRY, **settings)

    def __enter__(self):
        self.forwarder.start()
        return self.journal, self.forwarder

    def __exit__(self, *_):
        self.forwarder.close()
        self.journal.close()


def lines(where, journal):
    with JournalReader.open(where) as reader:
        assert [each.finding for each in reader.verify()] == [None] * len(reader.heads())
        return list(reader.lines(journal))


@pytest.mark.parametrize("batch_rows", [1, 7, 200])
def test_what_is_appended_arrives_as_it_is_and_both_chains_hold(path, url, batch_rows):
    awkward = 'a "quote", a \0, a \\, 語 and 😀'
    with Forwarding(path, url, batch_rows=batch_rows) as (journal, forwarder):
        for number in range(0, 30, 3):
            journal.append([alert(number + i, label=awkward, text=text(awkward)) for i in range(3)])
        last = journal.reader.alerts().alerts[0].record
        journal.review(last.id, verdict="true", reviewer=awkward)
        assert forwarder.wait_sent(PATIENCE)
        assert forwarder.status() == ForwardStatus(0, None, last_error="")
    assert lines(url, journal.id) == lines(path, journal.id)
    with JournalReader.open(url) as reader:
        assert reader.alerts(Filters(verdict="true")).alerts[0].record == last


def test_what_waited_since_before_arrives_and_nothing_twice(path, url):
    with Journal.open(path) as journal:
        journal.append([alert(number) for number in range(5)])
    for turn in range(3):
        with Forwarding(path, url, batch_rows=2) as (journal, forwarder):
            journal.append([alert(10 + turn)])
            assert forwarder.wait_sent(PATIENCE)
        # As if the database's last answer had been lost.
        connection = sqlite3.connect(path)
        with connection:
            connection.execute("UPDATE chains SET shipped_seq = 0")
        connection.close()
    assert len(lines(url, journal.id)) == 8
    assert lines(url, journal.id) == lines(path, journal.id)


def test_alerts_wait_while_the_database_is_stopped_and_arrive_when_it_is_back(path, url, server):
    stop_writing, written = threading.Event(), itertools.count()

    def write() -> None:
        while not stop_writing.is_set():
            journal.append([alert(next(written))])

    with Forwarding(path, url, batch_rows=5) as (journal, forwarder):
        writer = threading.Thread(target=write)
        writer.start()
        for _ in range(2):
            wait_until(lambda: forwarder.status().last_error == "" and sent(journal) > 0)
            before = journal.reader.heads()[journal.id].seq
            server.stop()
            wait_until(lambda: forwarder.status().last_error)
            wait_until(lambda least=before + 20: journal.reader.heads()[journal.id].seq > least)  # nobody waits for it
            status = forwarder.status()
            assert status.num_waiting > 0 and status.waiting_since is not None
            assert "database: wanted an answer, got connection" in status.last_error
            server.start()
        stop_writing.set()
        writer.join()
        assert forwarder.wait_sent(PATIENCE)
    assert len(lines(path, journal.id)) == next(written)
    assert lines(url, journal.id) == lines(path, journal.id)


def test_a_database_that_was_made_anew_gets_its_tables_and_all_that_the_file_has(path, url):
    with Forwarding(path, url) as (journal, forwarder):
        journal.append([alert(number) for number in range(3)])
        assert forwarder.wait_sent(PATIENCE)
        database = Database.writable(place_of(url))
        with database.begin() as connection:
            connection.execute(sa.text("DROP TABLE entries, chains, alembic_version"))
        database.close()
        journal.append([alert(3)])
        assert forwarder.wait_sent(PATIENCE), forwarder.status().last_error
    assert len(lines(url, journal.id)) == 4 and lines(url, journal.id) == lines(path, journal.id)


def wait_until(condition):
    """Asks again and again; the forwarder says nothing when it fails."""
    deadline = datetime.now(UTC) + timedelta(seconds=PATIENCE)
    while not condition():
        assert datetime.now(UTC) < deadline
        threading.Event().wait(0.005)


def sent(journal):
    return journal.reader.heads()[journal.id].seq - journal.reader.unsent(journal.id).num


def test_a_process_killed_while_it_forwards_loses_nothing_and_repeats_nothing(path, url):
    Journal.open(url).close()
    rng = random.Random(0)
    said = []
    for _ in range(4):
        said += killed_writer(path, rng, url)
        with JournalReader.open(url) as reader:
            assert all(each.holds for each in reader.verify())
    with Forwarding(path, url) as (journal, forwarder):
        assert forwarder.wait_sent(PATIENCE)
    assert lines(url, journal.id)[-len(lines(path, journal.id)) :] == lines(path, journal.id)
    with JournalReader.open(url) as reader:
        assert {found.record.id for found in reader.all_alerts()} >= set(said)


def test_a_server_that_starts_while_the_database_is_down_takes_alerts(path, server, url):
    server.stop()
    with Forwarding(path, url) as (journal, forwarder):
        record = alert()
        journal.append([record])
        wait_until(lambda: forwarder.status().last_error)
        assert forwarder.status().num_waiting == 1 and forwarder.status().waiting_since == record.time
        with pytest.raises(JournalUnreachable, match="database: wanted an answer"):
            JournalReader.open(url)
        server.start()
        assert forwarder.wait_sent(PATIENCE)


# Several journals in one database


def test_many_servers_alerts_are_reviewed_in_one_place(tmp_path, url):
    records = []
    for name in ("one", "two"):
        with Forwarding(tmp_path / name, url) as (journal, forwarder):
            records.append(alert(len(records)))
            journal.append(records[-1:])
            assert forwarder.wait_sent(PATIENCE)
    with Journal.open(url) as desk:
        desk.review(records[0].id, verdict="false", reviewer="ann")
        with Journal.open(url) as another:  # no lock: the database lets them take turns
            another.acknowledge(records[1].id, by="bob")
            assert another.id == desk.id
        found = desk.reader.alerts()
        assert [kept.record for kept in found.alerts] == records[::-1]
        assert [len(kept.reviews) for kept in found.alerts] == [0, 1]
        assert desk.reader.alerts(Filters(acknowledged=True)).alerts[0].record == records[1]
        results = desk.reader.verify()
    assert len(results) == 3 and all(each.holds for each in results)
    # What is said there does not get in the way of what is forwarded.
    with Forwarding(tmp_path / "one", url) as (journal, forwarder):
        journal.append([alert(9)])
        assert forwarder.wait_sent(PATIENCE)


def test_retention_in_the_database_accounts_for_copies(path, url):
    with Forwarding(path, url) as (journal, forwarder):
        journal.append([alert(number) for number in range(6)])
        assert forwarder.wait_sent(PATIENCE)
        with Journal.open(url) as desk:
            by_age = Keep(max_age=timedelta(microseconds=1))  # deletes what accounts for earlier runs, too
            for keep, num in ((Keep(max_alerts=2), 2), (Keep(max_alerts=0), 0), (by_age, 0), (by_age, 0)):
                desk.retain(keep)
                assert len(desk.reader.alerts().alerts) == num
                assert all(each.holds for each in desk.reader.verify())
        journal.append([alert(7)])
        assert forwarder.wait_sent(PATIENCE)
    assert len(lines(url, journal.id)) == 1


def test_retention_in_the_file_waits_for_what_was_not_sent(path, server, url):
    with Forwarding(path, url) as (journal, forwarder):
        journal.append([alert(number) for number in range(4)])
        assert forwarder.wait_sent(PATIENCE)
        server.stop()
        journal.append([alert(number) for number in range(4, 8)])
        (done,) = journal.retain(Keep(max_alerts=1))
        assert done.through_seq == 4
        server.start()
        assert forwarder.wait_sent(PATIENCE)
    assert len(lines(url, journal.id)) == 9


# What can't be continued


def test_an_older_state_of_the_file_is_not_sent(path, url, tmp_path):
    with Journal.open(path) as journal:
        journal.append([alert(0)])
    shutil.copy(path, tmp_path / "older")
    with Forwarding(path, url) as (journal, forwarder):
        journal.append([alert(1)])
        assert forwarder.wait_sent(PATIENCE)
    shutil.copy(tmp_path / "older", path)
    with Forwarding(path, url) as (journal, forwarder):
        wait_until(lambda: "an older state of the file" in forwarder.status().last_error)
        journal.append([alert(2)])
        wait_until(lambda: "two chains of one journal" in forwarder.status().last_error)
        journal.append([alert(3)])
        wait_until(lambda: "hash of entry 2: wanted" in forwarder.status().last_error)
    assert len(lines(url, journal.id)) == 2


def test_a_gap_is_not_sent(path, url):
    with Journal.open(path) as journal:
        journal.append([alert(number) for number in range(4)])
        journal.mark_forwarded()
        assert journal.retain(Keep(max_alerts=1)) == []
        assert len(journal.retain(Keep(max_alerts=1, unsent_too=True))) == 1
    with Forwarding(path, url) as (_, forwarder):
        wait_until(lambda: "next entry: wanted 1, got 4: those between were deleted" in forwarder.status().last_error)


@pytest.mark.parametrize(
    "where",
    [
        "mysql://somewhere/alerts",
        "sqlite:///alerts.sqlite",
        "https://user:secret@host",
        "postgresql://host:secret/alerts",
        "postgresql://user@host:/alerts",
    ],
)
def test_another_database_is_refused_by_name(where):
    with pytest.raises(JournalError) as error:
        place_of(where)
    assert "journal: wanted a path or postgresql://USER@HOST/DATABASE, got " in str(error.value)
    assert "secret" not in str(error.value)


def test_a_file_can_be_forwarded_to_a_database_only(path, tmp_path):
    with Journal.open(path) as journal, pytest.raises(JournalError, match="to forward to, got a path"):
        Forwarder(journal, str(tmp_path / "other.sqlite"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://telltale:secret@127.0.0.1:1/alerts", "telltale:***@127.0.0.1"),
        ("postgresql://127.0.0.1:1/alerts?user=telltale&password=secret", "127.0.0.1:1/alerts?user=telltale"),
        ("postgresql://127.0.0.1:1/alerts?user=telltale&sslpassword=secret", "127.0.0.1:1/alerts?user=telltale"),
    ],
)
def test_no_error_shows_a_password(url, shown):
    with pytest.raises(JournalUnreachable) as error:
        JournalReader.open_place(place_of(url))
    assert "secret" not in str(error.value) and shown in str(error.value)


# The schema there


@pytest.mark.parametrize("revision", [None, *REVISIONS])
def test_any_version_becomes_this_one(url, revision):
    if revision is not None:
        database = Database.writable(place_of(url))
        with database.begin() as connection:
            journal_schema.upgrade(connection, revision)
        database.close()
    if revision != REVISIONS[-1]:
        with pytest.raises(JournalError, match=f"schema: wanted {REVISIONS[-1]}"):
            JournalReader.open(url)
    with Journal.open(url) as journal:
        journal.append([alert()])
        assert all(each.holds for each in journal.reader.verify())


def test_a_newer_version_is_refused_by_name(url, path):
    Journal.open(url).close()
    database = Database.writable(place_of(url))
    with database.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    for opened in (Journal, JournalReader):
        with pytest.raises(JournalError, match=r"schema: wanted at most .*, got 9999, made by a newer telltale"):
            opened.open(url)
    with Forwarding(path, url) as (_, forwarder):
        wait_until(lambda: "made by a newer telltale" in forwarder.status().last_error)
