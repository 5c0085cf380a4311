"""shards: a harvest on disk comes back as it was, or with the name of the file that did not."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from discovery.errors import HarvestError
from discovery.shards import (
    Harvested,
    finished_shards,
    has_sources,
    load_manifest,
    load_resid,
    load_shard,
    load_token_ids,
    ordinary,
    save_shard,
    shard_path,
)


def shard(num_tokens=20):
    generator = torch.Generator().manual_seed(num_tokens)
    return Harvested(
        torch.randn(num_tokens, 8, generator=generator).bfloat16(),
        torch.arange(num_tokens, dtype=torch.int32),
        torch.arange(1, num_tokens + 1, dtype=torch.int32),
        torch.zeros(num_tokens, dtype=torch.int32),
        torch.full((num_tokens,), 2**62),
        torch.tensor([7], dtype=torch.int32),
        torch.tensor([2], dtype=torch.int32),
    )


def test_a_shard_comes_back_as_it_was(tmp_path):
    save_shard(shard_path(tmp_path, 0), shard())
    for one, other in zip(load_shard(shard_path(tmp_path, 0)), shard(), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    assert torch.equal(load_resid(shard_path(tmp_path, 0)), shard().resid_ND)
    assert load_shard(shard_path(tmp_path, 0)).token_ids() == [[7, *range(20)]]


@pytest.mark.parametrize("name", Harvested._fields)
def test_a_changed_bit_is_seen_in_every_tensor(tmp_path, name):
    path = shard_path(tmp_path, 0)
    save_shard(path, shard())
    data = bytearray(path.read_bytes())
    start = int.from_bytes(data[:8], "little") + 8
    header = json.loads(data[8:start])
    data[start + header[name]["data_offsets"][0]] ^= 1
    path.write_bytes(data)
    damaged = rf"shard-00000.safetensors is damaged: checksum of {name} must be .* got"
    with pytest.raises(HarvestError, match=damaged):
        load_shard(path)
    if name in ("resid_ND", "sources_C"):
        assert load_token_ids(path) == shard().token_ids(), "not read for them"
    else:
        with pytest.raises(HarvestError, match=damaged):
            load_token_ids(path)


def test_a_shard_without_sources_is_read(tmp_path):
    path = shard_path(tmp_path, 0)
    save_shard(path, shard())
    assert has_sources(path)
    save_shard(path, shard()._replace(sources_C=None))
    assert not has_sources(path) and load_shard(path).sources_C is None
    assert torch.equal(load_shard(path).token_ids_N, shard().token_ids_N)


def test_shards_without_checksums_are_read(tmp_path):
    save_file(shard()._asdict(), shard_path(tmp_path, 0))
    assert torch.equal(load_resid(shard_path(tmp_path, 0)), shard().resid_ND)


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_a_shard_cut_short_is_named(tmp_path, keep):
    path = shard_path(tmp_path, 0)
    save_shard(path, shard())
    path.write_bytes(path.read_bytes()[:keep])
    for load in (load_shard, load_resid):
        with pytest.raises(HarvestError, match=r"shard-00000.safetensors is no readable shard.*harvest again"):
            load(path)


def test_a_shard_without_a_tensor_is_named(tmp_path):
    path = shard_path(tmp_path, 0)
    save_shard(path, shard())
    tensors = load_file(path)
    del tensors["positions_N"]
    save_file(tensors, path)
    with pytest.raises(HarvestError, match=r"no readable shard.*positions_N"):
        load_shard(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is no harvest: it has no manifest.json"),
        ("{", "manifest.json is no readable manifest"),
        ("[]", "must hold an object with settings"),
        ("{}", "must hold an object with settings"),
    ],
)
def test_a_manifest_that_is_none_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(HarvestError, match=message):
        load_manifest(tmp_path)


def test_a_finished_harvest_has_all_its_shards(tmp_path):
    settings = {"num_contexts": 7, "contexts_per_shard": 3}
    (tmp_path / "manifest.json").write_text(json.dumps({"settings": settings, "finished": True}))
    for number in range(3):
        save_shard(shard_path(tmp_path, number), shard())
    assert finished_shards(tmp_path) == [shard_path(tmp_path, number) for number in range(3)]
    shard_path(tmp_path, 1).unlink()
    with pytest.raises(HarvestError, match=r"must have 3 shards, got none of shard-00001.safetensors; harvest again"):
        finished_shards(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"settings": settings, "finished": False}))
    with pytest.raises(HarvestError, match="must be a finished harvest"):
        finished_shards(tmp_path)


def test_massive_activations_are_told_apart():
    resid_ND = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    resid_ND[17] *= 100
    assert (~ordinary(resid_ND)).nonzero()[:, 0].tolist() == [17]
