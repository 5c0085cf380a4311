"""Zeros that take memory where they are written to, or when they are told to."""

import mmap
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from service import run_server
from service.slot_cache import SlotCache
from service.zero_pages import take_pages, zeros

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


def test_where_the_system_cannot_do_it_nothing_happens(monkeypatch):
    monkeypatch.setattr("service.zero_pages._MADV_POPULATE_WRITE", 999)
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
