import fcntl
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from discovery.errors import LabError
from discovery.file_lock import locked
from discovery.result_lines import claimed

HOLD = """
import sys
from pathlib import Path
from discovery.file_lock import locked
with locked(Path(sys.argv[1]), wait=False):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `results.jsonl.lock`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "results.jsonl.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_what_another_process_holds_is_refused_until_it_is_gone(tmp_path, holder):
    with (
        pytest.raises(LabError, match=r"results\.jsonl\.lock is held by another process"),
        claimed(tmp_path / "results.jsonl"),
    ):
        pytest.fail("two hold it")
    holder.kill()
    holder.wait()
    with claimed(tmp_path / "results.jsonl"):
        pass


def test_results_kept_in_memory_need_no_lock(tmp_path):
    with claimed(None):
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fails", [True, False])
def test_nothing_is_left_of_a_lock_and_its_folders(tmp_path, fails):
    (tmp_path / "mine").mkdir()
    with (
        pytest.raises(ZeroDivisionError) if fails else nullcontext(),
        locked(tmp_path / "mine" / "new" / "run" / "lock", wait=False),
    ):
        assert (tmp_path / "mine" / "new" / "run" / "lock").exists()
        1 / int(not fails)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]  # it was there before
    with locked(tmp_path / "new" / "run" / "lock", wait=False):
        (tmp_path / "new" / "run" / "result").write_text("something")
    assert sorted(path.name for path in (tmp_path / "new").rglob("*")) == ["result", "run"]


def test_a_lock_that_its_holder_deleted_keeps_nobody_off_and_is_taken_anew(tmp_path, monkeypatch):
    """Opened before its holder deleted it, locked after that: whoever came next would have the file of that name."""
    path, taken = tmp_path / "lock", []

    def late(file, how):
        if not taken:
            path.unlink()
        taken.append(file)
        flock(file, how)

    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", late)
    with locked(path, wait=True):
        assert len(taken) == 2 and os.path.samestat(os.fstat(taken[1].fileno()), path.stat())
        with pytest.raises(LabError, match="held by another process"), locked(path, wait=False):
            pytest.fail("two hold it")
    assert not path.exists()


def test_a_folder_that_another_run_deletes_meanwhile_is_made_again(tmp_path, monkeypatch):
    """Another run that made the folder ends between our finding it there and our opening the file in it."""
    (tmp_path / "new" / "run").mkdir(parents=True)
    opened, others = [], Path.open

    def late(path, *how):
        if not opened:
            path.parent.rmdir()
        opened.append(path)
        return others(path, *how)

    monkeypatch.setattr(Path, "open", late)
    with locked(tmp_path / "new" / "run" / "lock", wait=False):
        assert (tmp_path / "new" / "run" / "lock").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]  # it was there before


def test_a_place_that_can_never_be_is_not_tried_for_ever(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "nowhere" / "lock")
    with pytest.raises(FileNotFoundError), locked(tmp_path / "lock", wait=False):
        pytest.fail("it holds nothing")


def test_a_lock_is_let_go_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock", wait=False):
        raise ZeroDivisionError
    with locked(tmp_path / "lock", wait=False):
        pass
