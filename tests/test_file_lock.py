import subprocess
import sys

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


def test_a_lock_is_let_go_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock", wait=False):
        raise ZeroDivisionError
    with locked(tmp_path / "lock", wait=False):
        pass
