"""Hashes of weight files, remembered but never beyond a change, and the memory there is."""

import hashlib
import os
from pathlib import Path

import pytest

from sae_runtime import weights
from sae_runtime.weights import available_memory_bytes, default_cache_dir, file_sha256, folder_sha256


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Weights are bytes here: nothing looks into them."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "b.safetensors").write_bytes(b"second")
    (folder / "a.safetensors").write_bytes(b"first")
    return folder


def test_the_hash_of_a_file_is_that_of_its_bytes(folder, cache):
    file = folder / "a.safetensors"
    assert file_sha256(file, cache) == hashlib.sha256(b"first").hexdigest()
    assert file_sha256(file, cache) == hashlib.sha256(b"first").hexdigest()  # the remembered one


def test_the_hash_of_a_folder_is_over_names_and_hashes_in_order(folder, cache):
    first, second = (hashlib.sha256(content).hexdigest() for content in (b"first", b"second"))
    lines = f"a.safetensors {first}\nb.safetensors {second}\n"
    assert folder_sha256(folder, cache) == hashlib.sha256(lines.encode()).hexdigest()


def test_the_hash_follows_the_names_of_the_weight_files(folder, cache):
    sha256 = folder_sha256(folder, cache)
    lone = folder / "extra.safetensors"
    lone.write_bytes(b"unused")
    with_extra = folder_sha256(folder, cache)
    lone.rename(folder / "other.safetensors")
    assert len({sha256, with_extra, folder_sha256(folder, cache)}) == 3


def test_the_hash_is_computed_once(folder, cache, monkeypatch):
    sha256 = folder_sha256(folder, cache)
    monkeypatch.setattr(weights, "tqdm", None)  # hashing shows a bar: without one it can't be hashed again
    assert folder_sha256(folder, cache) == sha256


@pytest.mark.parametrize("keeps", ["time", "size"])
def test_the_remembered_hash_does_not_outlive_a_change(folder, cache, tmp_path, keeps):
    file = folder / "a.safetensors"
    before, stat = folder_sha256(folder, cache), file.stat()
    file.write_bytes(b"other" if keeps == "size" else b"longer than before")
    assert (file.stat().st_size == stat.st_size) == (keeps == "size")
    later = 1_000_000 if keeps == "size" else 0
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + later))
    after = folder_sha256(folder, cache)
    assert after != before
    assert after == folder_sha256(folder, tmp_path / "fresh")


def test_a_cache_that_can_not_be_written_costs_nothing_but_time(folder, cache, tmp_path):
    (tmp_path / "file").write_text("")
    assert folder_sha256(folder, tmp_path / "file") == folder_sha256(folder, cache)


def test_nor_does_one_that_can_not_be_looked_into(folder, cache, tmp_path):
    """As a folder that may not be entered, but for root, too: the system says nothing of a name that is too long."""
    assert folder_sha256(folder, tmp_path / ("a" * 300)) == folder_sha256(folder, cache)


def test_the_cache_is_where_the_desktop_rules_say(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "telltale"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "telltale"


def test_available_memory_is_some_and_not_more_than_the_machine_has():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_memory_bytes("cpu") <= total
