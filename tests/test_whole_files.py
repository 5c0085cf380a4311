"""whole_file: the old file or the new one, whatever goes wrong between."""

import multiprocessing
import os
import signal

import pytest
from full_disk import room_for

from sae_runtime.whole_files import whole_file


def test_it_replaces_what_was_there(tmp_path):
    path = tmp_path / "weights"
    path.write_text("old")
    with whole_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o644
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
    with room_for(1000), pytest.raises(OSError, match="File too large"), whole_file(path) as partial:
        partial.write_text("new" * 1000)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


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
    assert path.read_text() == "old"
    with whole_file(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
