"""live_stream: what the model reads now is what a harvest would have on disk, and goes on bit by bit."""

from dataclasses import replace

import pytest
import tiny
import torch
from training import settings_for

from discovery.buffers import Place, differing_data, stream_batches
from discovery.context_store import ContextStore
from discovery.corpus import Context
from discovery.dictionary_trainer import Trainer
from discovery.errors import HarvestError
from discovery.finished_dictionary import finish
from discovery.harvest import harvest
from discovery.live_stream import LiveBuffers
from discovery.shards import load_ordinary_resid, shard_paths
from sae_runtime.checkpoint import load_sae

NUM_CONTEXTS = 20


@pytest.fixture(scope="module")
def contexts():
    generator = torch.Generator().manual_seed(0)
    return [
        Context(torch.randint(3, 200, (length,), generator=generator).tolist(), 7 + index, 0, "made")
        for index, length in enumerate(torch.randint(8, 40, (NUM_CONTEXTS,), generator=generator).tolist())
    ]


def live(model, contexts, **settings):
    settings = {"contexts_per_buffer": 8, "batch_tokens": 256} | settings
    return LiveBuffers(model, tiny.HOOK_POINT, contexts, **settings)


def as_set(resid_ND):
    return sorted(map(tuple, resid_ND.float().tolist()))


def test_a_pass_is_the_harvest_of_the_corpus(model, contexts, tmp_path):
    harvest(model, tiny.HOOK_POINT, contexts, tmp_path, batch_tokens=256)
    wanted = torch.cat([load_ordinary_resid(path) for path in shard_paths(tmp_path)])
    # Five buffers of eight are two passes over twenty contexts.
    buffers = live(model, contexts)
    found = torch.cat([buffers.load(number, seed=3) for number in range(5)])
    assert len(found) == 2 * len(wanted)
    # Batches are made up differently, which rounds differently.
    for mine, theirs in zip(as_set(found)[::2], as_set(wanted), strict=True):
        assert mine == pytest.approx(theirs, abs=0.05)


def test_buffers_follow_from_seed_and_number_alone(model, contexts):
    first = live(model, contexts)
    in_order = [first.load(number, 3) for number in range(4)]
    assert torch.equal(live(model, contexts).load(2, 3), in_order[2])
    assert not torch.equal(live(model, contexts).load(2, 4)[:50], in_order[2][:50])


def test_the_stream_goes_on_from_any_place(model, contexts):
    stream = stream_batches(live(model, contexts), 32, seed=5)
    seen = [next(stream) for _ in range(12)]
    resumed = stream_batches(live(model, contexts), 32, seed=5, place=Place(seen[6][1]))
    for batch_BD, place in seen[7:]:
        again_BD, again = next(resumed)
        assert torch.equal(again_BD, batch_BD) and again == place


def test_it_trains_and_the_manifest_says_on_what(model, contexts, tmp_path):
    settings = settings_for("batchtopk", batch_size=64, num_steps=30)
    trainer = Trainer(settings, live(model, contexts))
    figures = list(trainer.steps())
    assert figures[-1].fvu < figures[0].fvu
    finish(trainer, tmp_path, name="live")
    manifest = load_sae(tmp_path).manifest
    assert manifest.model_sha256 == model.identity.weights_sha256
    assert manifest.hook_point == str(tiny.HOOK_POINT)
    (data,) = manifest.training["data"]
    assert data["on_the_fly"] and data["num_contexts"] == NUM_CONTEXTS and data["sources"] == ["made"]


def test_another_corpus_is_another_run(model, contexts):
    assert live(model, contexts).identity() != live(model, contexts[1:]).identity()
    assert live(model, contexts).identity() == live(model, ContextStore(contexts)).identity()


def renamed(contexts):
    """From a file of another name."""
    return [context._replace(source="moved") for context in contexts]


def test_names_of_model_and_files_are_not_part_of_what_is_read(model, contexts):
    moved = live(replace(model, identity=replace(model.identity, name="moved")), renamed(contexts))
    assert moved.identity() == live(model, contexts).identity()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contexts_per_buffer": 4}, "contexts_per_buffer was 8, is 4"),
        ({"batch_tokens": 128}, "batch_tokens was 256, is 128"),
    ],
)
def test_what_makes_a_buffer_is_part_of_it(model, contexts, settings, message):
    differing = differing_data(live(model, contexts).identity(), live(model, contexts, **settings).identity())
    assert differing == [f"source 1: {message}"]


def test_nothing_to_read_is_refused(model):
    with pytest.raises(HarvestError, match="nothing to harvest"):
        live(model, [])


def test_a_model_gone_wrong_is_named(contexts):
    broken = tiny.language_model()
    with torch.no_grad():
        broken.model.model.layers[0].mlp.down_proj.weight.fill_(torch.nan)
    with pytest.raises(HarvestError, match=r"must be finite.* from the model in buffer 0: at .* of document \d+"):
        live(broken, contexts).load(0, 0)
