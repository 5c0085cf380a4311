"""What is planned, by part, and what a process holds."""

from pathlib import Path

import pytest

from service import memory_plan
from service.memory_plan import MemoryPlan, process_bytes

GIB = 2**30


def test_it_is_the_sum_and_shows_its_parts():
    plan = MemoryPlan(weights=GIB, kernels=GIB // 2, dictionary=GIB // 4, keys_and_values=3 * GIB, libraries=GIB)
    assert plan.total_bytes == 5.75 * GIB
    assert str(plan) == (
        "5.75 GiB planned (weights 1.00, kernels 0.50, dictionary 0.25, keys and values 3.00, libraries 1.00)"
    )


def test_what_is_not_there_is_not_shown():
    plan = MemoryPlan(weights=GIB, kernels=0, dictionary=0, keys_and_values=GIB, libraries=0)
    assert str(plan) == "2.00 GiB planned (weights 1.00, keys and values 1.00)"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_process_knows_what_it_holds():
    before = process_bytes()
    held = b"\1" * 2**26
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now = process_bytes()
    assert now - before > 0.9 * len(held)
    assert now == pytest.approx(int(fields["VmRSS"].split()[0]) * 1024, rel=0.05)


def test_where_the_system_does_not_tell_it_is_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(memory_plan, "_STATM", tmp_path / "none")
    assert process_bytes() == 0
