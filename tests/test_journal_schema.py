"""Migrations: from every version to the last, with what was in the journal; newer ones are refused by name."""

import sqlite3

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alerts import alert
from sqlalchemy import MetaData, Table, insert

from monitors import journal_schema
from monitors.errors import JournalError
from monitors.journal import Journal
from monitors.journal_chain import row_of
from monitors.journal_database import Database, place_of
from monitors.journal_entry import GENESIS, written
from monitors.journal_reader import JournalReader
from monitors.journal_tables import REVISIONS, metadata, values
from monitors.time_ids import new_id

JOURNAL = new_id()
RECORDS = [alert(number) for number in range(3)]


def made_at(path, revision):
    """A journal of an earlier version, three alerts in it."""
    database = Database.writable(place_of(path))
    with database.begin() as connection:
        journal_schema.upgrade(connection, revision)
        previous, rows = GENESIS, []
        for seq, record in enumerate(RECORDS, start=1):
            line = written(record, journal=JOURNAL, seq=seq, previous=previous)
            previous = line.hash
            rows.append(values(row_of(line)))
        there = MetaData()
        there.reflect(connection)
        connection.execute(insert(there.tables["entries"]), rows)
        head = {"journal": JOURNAL, "role": "own", "head_seq": 3, "head_hash": previous}
        connection.execute(insert(Table("chains", there)).values(head))
    database.close()


def test_the_migrations_are_a_line_and_the_code_knows_their_names():
    scripts = ScriptDirectory(str(journal_schema.MIGRATIONS))
    assert tuple(script.revision for script in scripts.walk_revisions())[::-1] == REVISIONS


@pytest.mark.parametrize("revision", [None, *REVISIONS])
def test_any_version_becomes_this_one_when_it_is_opened(tmp_path, revision):
    path = tmp_path / "alerts.sqlite"
    if revision is not None:
        made_at(path, revision)
    with Journal.open(path) as journal:
        journal.append([alert(9)])
        found = [kept.record for kept in journal.reader.alerts().alerts]
        assert found[1:] == ([] if revision is None else RECORDS[::-1])
        assert all(result.holds for result in journal.reader.verify())
        with journal._database.begin() as connection:
            assert journal_schema.revision(connection) == REVISIONS[-1]
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_readers_change_nothing_and_say_what_would(tmp_path, revision):
    made_at(tmp_path / "alerts.sqlite", revision)
    with pytest.raises(JournalError, match=f"schema: wanted {REVISIONS[-1]}, .*, got {revision}, which is older"):
        JournalReader.open(tmp_path / "alerts.sqlite")


def test_a_newer_version_is_refused_by_name(tmp_path):
    path = tmp_path / "alerts.sqlite"
    Journal.open(path).close()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    for opened in (Journal, JournalReader):
        with pytest.raises(JournalError) as error:
            opened.open(path)
        wanted = f"schema: wanted at most {REVISIONS[-1]}, this version's, got 9999, made by a newer telltale"
        assert str(error.value) == f"cannot use alert journal {path}:\n{wanted}"


def test_a_migration_that_fails_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "alerts.sqlite"

    def fail(connection, to):
        migrate(connection, to)
        raise RuntimeError("out of luck")

    migrate = journal_schema._migrate
    monkeypatch.setattr(journal_schema, "_migrate", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        Journal.open(path)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()
    monkeypatch.undo()
    Journal.open(path).close()
