"""shard_stream: every token once per pass, from any place, and damaged shards by name."""

import pytest
import torch
from safetensors.torch import save_file
from training import D, N, buffers_of, write_harvest

from discovery.buffers import START, Place, stream_batches
from discovery.errors import HarvestError
from discovery.shard_stream import ShardBuffers, Source, read_shard
from discovery.shards import load_resid


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_harvest(tmp_path_factory.mktemp("harvest"))


def test_stream_goes_on_from_any_place(folder):
    buffers = buffers_of(folder)
    stream = stream_batches(buffers, 128, seed=5)
    seen = [next(stream) for _ in range(25)]
    for start in (0, 8, 9, 20):
        place = START if start == 0 else seen[start - 1][1]
        resumed = stream_batches(buffers, 128, seed=5, place=Place(place))
        for batch_BD, _ in seen[start:]:
            assert torch.equal(next(resumed)[0], batch_BD)


def test_each_shard_is_read_once_per_pass(folder):
    rows = torch.cat([buffers_of(folder).load(buffer, 0) for buffer in range(5)])
    # Five buffers of two shards pass over five shards twice.
    _, counts = rows.float().unique(dim=0, return_counts=True)
    assert rows.shape[0] == 2 * 5 * N and counts.min() >= 2


def test_the_order_depends_on_the_seed(folder):
    buffers = buffers_of(folder)
    assert torch.equal(buffers.load(1, 0), buffers_of(folder).load(1, 0))
    assert not torch.equal(buffers.load(1, 0), buffers.load(1, 1))


def test_a_buffer_too_small_for_a_batch_is_refused(folder):
    with pytest.raises(HarvestError, match="at least one batch of 5000, got 1200 tokens"):
        next(stream_batches(buffers_of(folder), 5000, seed=0))


def test_sources_must_be_of_one_model(folder, tmp_path):
    other = write_harvest(tmp_path, model_sha256="1" * 64)
    with pytest.raises(HarvestError, match=rf"{tmp_path}: model_sha256 must be 000.*, got 111"):
        ShardBuffers([Source.parse(str(folder)), Source.parse(str(other))])


@pytest.mark.parametrize(("text", "message"), [("nowhere", "has no shards"), ("{folder}:x", "must be a positive")])
def test_a_source_that_is_none_is_named(folder, text, message):
    with pytest.raises(HarvestError, match=message):
        Source.parse(text.format(folder=folder))


def test_nan_in_a_shard_is_named(tmp_path):
    resid_ND = torch.randn(50, D).bfloat16()
    resid_ND[[3, 7], 2] = torch.nan
    save_file({"resid_ND": resid_ND}, tmp_path / "shard-00000.safetensors")
    with pytest.raises(HarvestError, match=r"shard-00000.safetensors.*must be finite.* 2 of 50 tokens"):
        read_shard(tmp_path / "shard-00000.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_a_shard_cut_short_is_named(folder, tmp_path, keep):
    whole = (folder / "shard-00000.safetensors").read_bytes()
    path = tmp_path / "shard-00000.safetensors"
    path.write_bytes(whole[:keep])
    with pytest.raises(HarvestError, match=r"shard-00000.safetensors is no readable shard"):
        read_shard(path)


def test_massive_activations_are_left_out(tmp_path):
    resid_ND = torch.randn(50, D).bfloat16()
    resid_ND[7] *= 1000
    save_file({"resid_ND": resid_ND}, tmp_path / "shard-00000.safetensors")
    assert len(read_shard(tmp_path / "shard-00000.safetensors")) == 49
    assert len(load_resid(tmp_path / "shard-00000.safetensors")) == 50
