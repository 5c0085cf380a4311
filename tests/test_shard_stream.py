"""shard_stream: every token once per pass, from any place, and damaged shards by name."""

import json

import pytest
import torch
from safetensors.torch import save_file
from training import HARVEST_SETTINGS, D, N, buffers_of, write_harvest

from discovery.buffers import START, Place, differing_data, stream_batches
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


def test_the_order_depends_on_the_seed(folder):
    buffers = buffers_of(folder)
    assert torch.equal(buffers.load(1, 0), buffers_of(folder).load(1, 0))
    assert not torch.equal(buffers.load(1, 0), buffers.load(1, 1))


def test_a_buffer_too_small_for_a_batch_is_refused(folder):
    with pytest.raises(HarvestError, match="at least one batch of 5000, got 1200 tokens"):
        next(stream_batches(buffers_of(folder), 5000, seed=0))


@pytest.mark.parametrize(
    ("field", "value"),
    [("model_sha256", "1" * 64), ("quantization", "nf4"), ("hook_point", "layers.2.output"), ("bos_policy", "always")],
)
def test_sources_must_be_of_one_model_quantisation_and_place(folder, tmp_path, field, value):
    other = write_harvest(tmp_path, **{field: value})
    with pytest.raises(HarvestError, match=rf"{tmp_path}: {field} must be {HARVEST_SETTINGS[field]}, .*got {value}"):
        ShardBuffers([Source.parse(str(folder)), Source.parse(str(other))])


def test_a_harvest_that_is_not_finished_or_not_whole_is_refused(tmp_path):
    folder = write_harvest(tmp_path)
    (folder / "shard-00002.safetensors").unlink()
    with pytest.raises(HarvestError, match=r"must have 5 shards, got none of shard-00002.safetensors"):
        Source.parse(str(folder))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"finished": False}))
    with pytest.raises(HarvestError, match="must be a finished harvest"):
        Source.parse(str(folder))


def figures_in(folder, **figures):
    """The harvest with these figures in its manifest, as a harvest's end puts them there."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | figures))
    return ShardBuffers([Source.parse(f"{folder}:2")]).identity()


def test_the_residuals_own_figures_are_part_of_what_they_are(tmp_path):
    """Batches of another size, or another device, round otherwise; the settings don't say so."""
    one, other = write_harvest(tmp_path / "one"), write_harvest(tmp_path / "other")
    assert figures_in(one, mean_norm=1.25) == figures_in(other, mean_norm=1.25 + 1e-15)
    before, now = figures_in(one, mean_norm=1.25), figures_in(other, mean_norm=1.2500001)
    assert differing_data(before, now) == ["source 1: mean_norm was 1.25, is 1.2500001"]


def test_what_differs_is_named_by_source(folder, tmp_path):
    other = write_harvest(tmp_path / "other", seed=1)
    (one,), (two,) = buffers_of(folder).identity(), buffers_of(other).identity()
    assert differing_data([one, two], [one, two]) == []
    changes = [f"source 2: contexts_sha256 was {two['contexts_sha256']}, is {one['contexts_sha256']}"]
    assert differing_data([one, two], [one, one]) == changes
    assert differing_data([one], [one, two]) == ["sources were 1, are 2"]
    # Checkpoints of before there was more to go by have paths.
    assert "must say what its data were" in differing_data([[str(folder)]], [one])[0]


@pytest.fixture
def distinct(tmp_path):
    """A harvest in which the rows tell all tokens apart."""
    folder = write_harvest(tmp_path / "distinct")
    for shard in range(5):
        resid_ND = torch.randn(N, D, generator=torch.Generator().manual_seed(shard))
        save_file({"resid_ND": resid_ND.bfloat16()}, folder / f"shard-{shard:05d}.safetensors")
    return folder


def test_a_pass_reads_every_token_once(distinct):
    """Five buffers of one shard: each row of the harvest once, and in another order than on disk."""
    on_disk = torch.cat([load_resid(distinct / f"shard-{shard:05d}.safetensors") for shard in range(5)])
    buffers = ShardBuffers([Source.parse(f"{distinct}:1")])
    read = torch.cat([buffers.load(number, 3) for number in range(5)])
    assert not torch.equal(read, on_disk)
    assert sorted(map(tuple, read.float().tolist())) == sorted(map(tuple, on_disk.float().tolist()))


def test_a_buffer_is_shuffled_evenly(distinct):
    """Of each shard, as many tokens in every tenth of the buffer, to within chance."""
    buffers = buffers_of(distinct, 5)
    shards = [load_resid(distinct / f"shard-{shard:05d}.safetensors") for shard in range(5)]
    of_row = {tuple(row): shard for shard, rows in enumerate(shards) for row in rows.float().tolist()}
    counts = torch.zeros(10, 5)
    for seed in range(5):
        for place, row in enumerate(buffers.load(0, seed).float().tolist()):
            counts[place * 10 // (5 * N), of_row[tuple(row)]] += 1
    # 300 expected in each; chi-squared with 36 degrees of freedom is above 74 once in 5,000 times.
    assert float(((counts - 300) ** 2 / 300).sum()) < 74


@pytest.mark.parametrize(
    ("text", "message"), [("nowhere", "nowhere is no harvest"), ("{folder}:x", "must be a positive")]
)
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
