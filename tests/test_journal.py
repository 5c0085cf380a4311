"""The journal on disk: what was appended is there, what is wrong with a file is named, one process writes at a time."""

import os
import shutil
import sqlite3
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alerts import alert
from as_another_user import as_another_user
from full_disk import room_for

from monitors.errors import JournalError, JournalLocked, JournalWriteFailed
from monitors.journal import Journal
from monitors.journal_chain import Fault
from monitors.journal_reader import JournalReader


@pytest.fixture
def path(tmp_path):
    return tmp_path / "alerts.sqlite"


@pytest.fixture
def public_folder():
    """One that others may enter, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def refusal(path, *, writing=True):
    with pytest.raises(JournalError) as error:
        (Journal if writing else JournalReader).open(path).close()
    return str(error.value)


def findings(path):
    with JournalReader.open(path) as reader:
        return [each.finding for each in reader.verify()]


def test_what_was_appended_is_there_after_the_journal_was_closed(path):
    records = [alert(number) for number in range(5)]
    with Journal.open(path) as journal:
        receipts = [*journal.append(records[:2]), *journal.append([]), *journal.append(records[2:])]
    with Journal.open(path) as journal:
        assert [found.record for found in journal.reader.alerts().alerts] == records[::-1]
        assert [receipt.id for receipt in receipts] == [record.id for record in records]
        assert [receipt.seq for receipt in receipts] == [1, 2, 3, 4, 5]
        assert journal.reader.heads() == {journal.id: receipts[-1][1:]}
        (result,) = journal.reader.verify()
    assert result.holds and (result.journal, result.num_rows, result.head) == (journal.id, 5, receipts[-1][1:])


def test_a_commit_waits_for_the_disk(path):
    with Journal.open(path) as journal, journal._database.begin() as connection:
        read = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")}
        assert read == {"journal_mode": "wal", "synchronous": 2}  # FULL
        assert connection.exec_driver_sql("PRAGMA secure_delete").scalar() == 1


def test_alerts_of_one_step_are_kept_all_or_none(path):
    first, second = alert(1), alert(2)
    with Journal.open(path) as journal:
        journal.append([first])
        with pytest.raises(JournalError, match="entry: wanted one that is not there yet"):
            journal.append([second, first])
        assert [found.record for found in journal.reader.alerts().alerts] == [first]
        journal.append([second])
        assert all(each.holds for each in journal.reader.verify())


def test_threads_take_turns(path):
    records = [alert(number) for number in range(60)]
    with Journal.open(path) as journal:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda start: journal.append(records[start : start + 3]), range(0, 60, 3)))
        assert {found.record.id for found in journal.reader.all_alerts()} == {record.id for record in records}
        assert all(each.holds for each in journal.reader.verify())


def test_a_reader_holds_nobody_up_and_sees_one_state(path):
    with Journal.open(path) as journal:
        journal.append([alert(0)])
        with JournalReader.open(path) as reader:
            lines = reader.lines(journal.id)
            assert next(lines)
            journal.append([alert(1)])
            assert list(lines) == []
            assert len(list(reader.lines(journal.id))) == 2


def test_listeners_hear_of_what_is_kept(path):
    heard = []
    with Journal.open(path) as journal:
        journal.on_append(lambda: heard.append(journal.reader.heads()[journal.id].seq))
        journal.append([alert(0), alert(1)])
        journal.append([])
        journal.acknowledge(journal.reader.alerts().alerts[0].record.id, by="ann")
    assert heard == [2, 3]


# Who else is there


def test_a_second_writer_is_refused_by_name_and_readers_are_not(path):
    with Journal.open(path) as journal:
        with pytest.raises(JournalLocked) as error:
            Journal.open(path)
        assert str(error.value) == (
            f"cannot use alert journal {path}:\n"
            "writer: wanted no other process that writes there (through a running server go by --target HOST:PORT), "
            f"got process {os.getpid()}, which does"
        )
        journal.append([alert()])
        assert findings(path) == [None]
    Journal.open(path).close()


def test_a_refused_opening_leaves_no_lock_behind(path):
    path.write_bytes(b"something else " * 100)
    assert "not a database" in refusal(path)
    path.unlink()
    with Journal.open(path) as journal:
        journal.append([alert()])
    assert findings(path) == [None]


# Files that are no use


@pytest.mark.parametrize("writing", [True, False])
def test_a_file_that_is_no_journal_is_named(path, writing):
    path.write_bytes(b"no database at all, but long enough for one" * 50)
    assert refusal(path, writing=writing) == (
        f"cannot use alert journal {path}:\nfile: wanted an alert journal, undamaged, got file is not a database"
    )
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    assert refusal(path, writing=writing).endswith("wanted an alert journal, or no file, got tables recipes")


def test_a_file_that_is_not_there_is_named_to_readers_and_made_for_writers(path):
    assert refusal(path, writing=False).endswith("file: wanted an alert journal, got no such file")
    with Journal.open(path.parent / "new folder" / "#1?.sqlite") as journal:
        journal.append([alert()])
    assert findings(path.parent / "new folder" / "#1?.sqlite") == [None]


@pytest.mark.parametrize("umask", [0o022, 0o000, 0o077])
def test_a_new_journal_is_its_owners_alone_and_one_that_was_there_keeps_its_rights(tmp_path, umask):
    path = tmp_path / "state" / "alerts.sqlite"
    before = os.umask(umask)
    try:
        with Journal.open(path) as journal:
            journal.append([alert()])
            rights = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert rights.pop("alerts.sqlite.lock") == 0o644 & ~umask  # the number of a process
    assert rights == {name: 0o600 for name in ("alerts.sqlite", "alerts.sqlite-wal", "alerts.sqlite-shm")}
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.chmod(0o640)
    with Journal.open(path):
        assert path.stat().st_mode & 0o777 == 0o640


def test_a_damaged_file_is_named(path):
    with Journal.open(path) as journal:
        journal.append([alert(number) for number in range(100)])
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    wanted = "file: wanted an alert journal, undamaged, got database disk image is malformed"
    assert refusal(path).endswith(wanted)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(JournalError, match="undamaged"):
        findings(path)


@pytest.mark.parametrize(
    ("damage", "wanted"),
    [
        ("DELETE FROM entries WHERE seq = 3", "entries: wanted entry 3, which the head names, got nothing"),
        (
            "UPDATE entries SET text = replace(text, 'warning', 'info') WHERE seq = 3",
            "head: wanted the hash of entry 3, ",
        ),
        ("UPDATE chains SET head_seq = 2", "head: wanted the hash of entry 2, "),
    ],
)
def test_a_journal_that_does_not_end_in_its_head_is_not_added_to(path, damage, wanted):
    with Journal.open(path) as journal:
        journal.append([alert(number) for number in range(3)])
    change(path, damage)
    assert wanted in refusal(path)
    assert findings(path) != [None]


def change(path, statement):
    connection = sqlite3.connect(path)
    with connection:
        connection.executescript(statement)
    connection.close()


SWAP_4_AND_5 = ";".join(f"UPDATE entries SET seq = {new} WHERE seq = {old}" for old, new in ((4, 99), (5, 4), (99, 5)))


@pytest.mark.parametrize(
    ("statement", "fault", "seq"),
    [
        ("UPDATE entries SET level = 'info' WHERE seq = 3", Fault.CHANGED, 3),
        ("UPDATE entries SET text = replace(text, 'deception', 'honesty') WHERE seq = 2", Fault.CHANGED, 2),
        ("UPDATE entries SET hash = substr(hash, 2) || substr(hash, 1, 1) WHERE seq = 5", Fault.CHANGED, 5),
        ("DELETE FROM entries WHERE seq IN (2, 3)", Fault.MISSING, 2),
        ("DELETE FROM entries WHERE seq <= 4", Fault.MISSING, 1),
        ("DELETE FROM entries WHERE seq >= 5", Fault.MISSING, 5),
        ("DELETE FROM entries", Fault.MISSING, 1),
        (SWAP_4_AND_5, Fault.REORDERED, 4),
        ("DELETE FROM chains", Fault.FORGED_HEAD, 6),
        ("UPDATE chains SET head_hash = substr(head_hash, 2) || substr(head_hash, 1, 1)", Fault.FORGED_HEAD, 6),
        ("UPDATE entries SET journal = '0' WHERE seq = 6", Fault.REORDERED, 6),
    ],
)
def test_whatever_is_done_to_the_file_is_found_and_named(path, statement, fault, seq):
    with Journal.open(path) as journal:
        journal.append([alert(number) for number in range(6)])
    change(path, statement)
    assert (fault, seq) in [finding[:2] for finding in findings(path) if finding is not None]


# Disks that are no use


def test_a_full_disk_is_named_and_the_journal_goes_on_when_there_is_room(path):
    with Journal.open(path) as journal:
        kept = []
        with room_for(200_000), pytest.raises(JournalWriteFailed) as error:
            for number in range(1000):
                journal.append([alert(number)])
                kept.append(number)
        assert f"{path}:\ndisk: wanted room to write, and no fault, got " in str(error.value)
        journal.append([alert(1000)])
        assert {found.record.score - 1.25 for found in journal.reader.all_alerts()} == {*kept, 1000} and kept
        assert all(each.holds for each in journal.reader.verify())
    assert findings(path) == [None]


def read_only_folder(folder: Path) -> list[str]:
    said = []
    for opened in (folder / "new.sqlite", folder / "alerts.sqlite"):
        try:
            Journal.open(opened).close()
        except JournalError as error:
            said.append(str(error))
    with JournalReader.open(folder / "alerts.sqlite") as reader:
        return [*said, *(str(each.finding) for each in reader.verify())]


def test_a_read_only_folder_is_named_to_writers_and_can_be_read(public_folder):
    with Journal.open(public_folder / "alerts.sqlite") as journal:
        journal.append([alert()])
    (public_folder / "alerts.sqlite.lock").unlink()
    (public_folder / "alerts.sqlite").chmod(0o644)
    public_folder.chmod(0o555)
    *refused, verified = as_another_user(read_only_folder, public_folder)
    wanted = f"file: wanted a folder that this user may write to: {public_folder}, got Permission denied"
    assert [each.splitlines()[1] for each in refused] == [wanted, wanted]
    assert verified == "None"


def test_closing_twice_closes_nothing_that_is_somebody_elses(path):
    journal = Journal.open(path)
    journal.close()
    opened_since = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]  # one has the number that the lock had
    journal.close()
    assert {os.fstat(handle).st_rdev for handle in opened_since} == {Path(os.devnull).stat().st_rdev}
    for handle in opened_since:
        os.close(handle)


def test_verifying_beside_a_writer_finds_nothing(path):
    with Journal.open(path) as journal, JournalReader.open(path) as reader:
        done = threading.Event()

        def write() -> None:
            for number in range(40):
                journal.append([alert(number)])
            done.set()

        thread = threading.Thread(target=write)
        thread.start()
        seen = []
        while not done.is_set() or not seen:
            seen += [each.finding for each in reader.verify()]
        thread.join()
        assert set(seen) == {None}


def test_a_row_that_is_not_what_its_column_says_is_named_where_it_is_read(path):
    with Journal.open(path) as journal:
        journal.append([record := alert()])
        journal.review(record.id, verdict="true", reviewer="ann")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE entries SET kind = 'alert' WHERE seq = 2")
    connection.close()
    with JournalReader.open(path) as reader:
        with pytest.raises(JournalError, match=r"alerts\.sqlite:\nentry 2: wanted an alert, as its .*, got 'review'"):
            reader.alerts()
        assert reader.verify()[0].finding.seq == 2
