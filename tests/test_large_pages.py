"""Zeros that take memory where they are written to, or when they are told to; copies side by side in large pages."""

import mmap
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sae_runtime.large_pages import side_by_side, take_pages, zeros
from service import run_server
from service.slot_cache import SlotCache

MEBIBYTE = 2**20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_they_are_zeros_of_that_shape(dtype):
    made = zeros((2, 3, 5), dtype)
    assert torch.equal(made, torch.zeros((2, 3, 5), dtype=dtype)) and made.dtype is dtype
    made[1, 2] = 7
    assert made.sum() == 35


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_taken_where_it_is_written_to_or_all_of_it_on_demand():
    before = resident_bytes()
    made = zeros((64, MEBIBYTE), torch.uint8)
    views = [made[:32], made[32:]]
    made[5] = 9
    assert resident_bytes() - before < 16 * MEBIBYTE
    take_pages(views)
    assert 60 * MEBIBYTE < resident_bytes() - before < 80 * MEBIBYTE
    assert made[5].eq(9).all() and not made[6:].any()


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="no large pages here")
def test_large_pages_are_asked_for():
    made = side_by_side({"one": torch.ones(4 * MEBIBYTE, dtype=torch.uint8)})
    assert " hg" in flags_of(made["one"].data_ptr())
    assert " hg" not in flags_of(torch.ones(64 * MEBIBYTE, dtype=torch.uint8).data_ptr())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not say what memory was taken")
def test_what_is_copied_is_not_there_twice():
    tensors = {str(number): torch.ones(64 * MEBIBYTE, dtype=torch.uint8) for number in range(3)}
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    copies = side_by_side(tensors)
    assert peak_bytes() - before < 80 * MEBIBYTE
    assert not tensors and all(copy.eq(1).all() for copy in copies.values())


def peak_bytes() -> int:
    """The most memory that this process has had since it was last reset."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def flags_of(address: int) -> str:
    """What the system knows of the memory there."""
    is_there = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first and rest:
            start, end = (int(part, 16) for part in first.split("-"))
            is_there = start <= address < end
        elif is_there and first == "VmFlags:":
            return line
    raise AssertionError("nothing lies there")


def test_copies_lie_side_by_side_each_from_a_line_of_the_caches_on():
    tensors = {
        "odd": torch.arange(7, dtype=torch.uint8),
        "matrix": torch.randn(3, 5).to(torch.bfloat16),
        "turned": torch.randn(4, 6).T,
        "none": torch.empty(0),
    }
    copies = side_by_side(dict(tensors))
    assert list(copies) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(copies[name], tensor) and copies[name].dtype is tensor.dtype
        assert copies[name].data_ptr() % 64 == 0 and copies[name].is_contiguous()
    assert len({copy.untyped_storage().data_ptr() for copy in copies.values()}) == 1
    tensors["odd"][0] = 9
    assert copies["odd"][0] == 0


def test_where_the_system_cannot_do_it_nothing_happens(monkeypatch):
    monkeypatch.setattr("sae_runtime.large_pages._MADV_POPULATE_WRITE", 999)
    made = zeros((4, MEBIBYTE), torch.uint8)
    take_pages([made])
    assert not made.any()


def test_memory_that_does_not_begin_with_a_page_is_taken_up_to_its_last_whole_one():
    made = torch.ones(3 * mmap.PAGESIZE + 10, dtype=torch.uint8)[5:]
    take_pages([made])
    assert made.all()


def test_a_server_takes_all_memory_of_its_slots(monkeypatch):
    taken = []
    monkeypatch.setattr(run_server, "take_pages", lambda tensors: taken.extend(tensors))
    cache = SlotCache(
        num_layers=3, num_slots=2, num_heads=1, num_positions=5, head_dim=4,
        dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip
    run_server._take_memory(SimpleNamespace(runner=SimpleNamespace(cache=cache))).join()
    of_tensors = sum(t.nbytes for t in (*cache.keys, *cache.values))
    assert of_tensors == 2 * 5 * SlotCache.bytes_per_position(3, 1, 4, torch.float32)
    assert sum({s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in taken)}.values()) == of_tensors
