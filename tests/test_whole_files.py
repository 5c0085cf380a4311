"""whole_file: the old file or the new one, whatever goes wrong between."""

import errno
import multiprocessing
import os
import signal
import sqlite3
from contextlib import ExitStack, closing

import pytest
import torch
from full_disk import room_for
from safetensors import SafetensorError
from safetensors.torch import save_file

from sae_runtime.checkpoint import write_atomically
from sae_runtime.whole_files import drop_partials, whole_file, whole_folder


def test_it_replaces_what_was_there(tmp_path):
    path = tmp_path / "weights"
    path.write_text("old")
    with whole_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "weights"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "weights"
    path.write_text("old")
    with room_for(1000), pytest.raises(OSError, match=r"File too large: .*weights'"), whole_file(path) as partial:
        partial.write_text("new" * 1000)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def full_device(path, save):
    """What saving to a file of at most 5000 bytes raises, as the writer's own library and as we have it."""
    with room_for(5000):
        with pytest.raises(Exception) as own:
            save(path.with_name("own"))
        path.with_name("own").unlink(missing_ok=True)  # safetensors deletes it itself
        with pytest.raises(OSError) as ours, whole_file(path) as partial:
            save(partial)
    return own.value, ours.value


def fill_database(path):
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")


@pytest.mark.parametrize(
    "save",
    [
        lambda path: torch.save(torch.zeros(5000), path),
        lambda path: save_file({"a": torch.zeros(5000)}, path),
        fill_database,
    ],
    ids=["torch", "safetensors", "sqlite"],
)
def test_a_full_disk_is_named_whatever_the_library_makes_of_it(tmp_path, save):
    own, ours = full_device(tmp_path / "weights", save)
    assert not isinstance(own, OSError)
    assert ours.errno == errno.EFBIG and ours.filename == str(tmp_path / "weights")
    assert list(tmp_path.iterdir()) == []


def test_other_faults_of_a_library_stay_what_they_are(tmp_path):
    with pytest.raises(SafetensorError), whole_file(tmp_path / "weights"):
        raise SafetensorError("a fault of its own")


def test_a_missing_folder_is_said_with_the_name_that_was_given(tmp_path):
    path = tmp_path / "none" / "weights"
    with pytest.raises(FileNotFoundError) as error, whole_file(path):
        pytest.fail("there is nowhere to write to")
    assert error.value.filename == str(path)


def test_of_two_writers_each_has_its_own_file_and_the_last_to_end_the_place(tmp_path):
    path = tmp_path / "weights"
    first, second = ExitStack(), ExitStack()
    one = first.enter_context(whole_file(path))
    one.write_text("first")
    two = second.enter_context(whole_file(path))
    two.write_text("half of")
    first.close()
    assert path.read_text() == "first"
    two.write_text("second")
    second.close()
    assert path.read_text() == "second" and list(tmp_path.iterdir()) == [path]


def test_what_a_living_writer_has_is_not_dropped(tmp_path):
    path = tmp_path / "weights"
    with whole_file(path) as partial:
        partial.write_text("new")
        drop_partials(tmp_path)
    assert path.read_text() == "new"


def test_what_is_named_alike_is_left_alone(tmp_path):
    for name in ("weights.partial", "weights.of-mine.partial", "weights.12345678.partial.d"):
        (tmp_path / name).mkdir()
    (tmp_path / "weights.12345678.partial").write_text("a file")
    before = sorted(tmp_path.iterdir())
    drop_partials(tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_appears_with_its_files(tmp_path):
    path = tmp_path / "model"
    path.mkdir()  # an empty one is in nobody's way
    with whole_folder(path) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "weights").write_text("new")
        assert list(path.iterdir()) == []
    assert (path / "deep" / "weights").read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_no_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "model") as partial:
        (partial / "weights").write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_stays(tmp_path):
    path = tmp_path / "model"
    with whole_folder(path) as partial:
        (partial / "weights").write_text("mine")
        path.mkdir()
        (path / "weights").write_text("another's")
    assert (path / "weights").read_text() == "another's" and list(tmp_path.iterdir()) == [path]


def test_a_file_in_a_folders_place_is_an_error(tmp_path):
    path = tmp_path / "model"
    path.write_text("a file")
    with pytest.raises(NotADirectoryError), whole_folder(path):
        pass
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_rights_are_those_that_the_umask_leaves(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "text", "new")
        with whole_file(tmp_path / "weights") as partial:
            save_file({"a": torch.zeros(3)}, partial)  # for the owner alone
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def _die_half_way(path):
    with whole_file(path) as partial:
        partial.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_kill_leaves_is_replaced_by_the_next_writer(tmp_path):
    path = tmp_path / "weights"
    path.write_text("old")
    process = multiprocessing.get_context("forkserver").Process(target=_die_half_way, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    with whole_file(path.with_name("weights.txt")) as partial:
        partial.write_text("another")
    assert len(list(tmp_path.iterdir())) == 3  # each writer sees to its own file
    with whole_file(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new" and len(list(tmp_path.iterdir())) == 2


def test_what_killed_writers_leave_of_any_file_can_be_dropped(tmp_path):
    process = multiprocessing.get_context("forkserver").Process(target=_die_half_way, args=(tmp_path / "weights",))
    process.start()
    process.join()
    assert len(list(tmp_path.iterdir())) == 1
    drop_partials(tmp_path)
    assert list(tmp_path.iterdir()) == []
