"""harvest: the residuals are the model's own, and a kill loses and doubles nothing."""

import json

import pytest
import tiny
import torch

from discovery.corpus import Context
from discovery.harvest import (
    HarvestError,
    harvest,
    load_manifest,
    load_shard,
    ordinary,
    read_residuals,
    shard_path,
    shard_paths,
)
from sae_runtime.hook_point import HookPoint
from sae_runtime.tap import Tap

CONTEXTS = [
    Context(torch.randint(3, 200, (length,), generator=torch.Generator().manual_seed(n)).tolist(), n, 0, "made")
    for n, length in enumerate([5, 12, 3, 9, 12, 7, 2])
]


def run(model, folder, contexts=CONTEXTS, **settings):
    return harvest(model, tiny.HOOK_POINT, contexts, folder, contexts_per_shard=3, batch_tokens=24, **settings)


@pytest.mark.parametrize("hook_point", [HookPoint(1, "output"), HookPoint(2, "input"), HookPoint(0, "output")])
def test_residuals_equal_hidden_states(model, hook_point):
    tap = Tap(model.model, hook_point, model.d_model)
    try:
        found = read_residuals(model, tap, CONTEXTS)
    finally:
        tap.remove()
    for context, resid_TD in zip(CONTEXTS, found, strict=True):
        with torch.inference_mode():
            states = model.model(input_ids=torch.tensor([context.tokens]), output_hidden_states=True).hidden_states
        assert torch.allclose(resid_TD, states[hook_point.hidden_state_index][0], atol=1e-5)
    assert len(model.model.model.layers) == tiny.NUM_LAYERS


def test_shards_hold_every_token_but_the_first_of_each_context(model, tmp_path):
    run(model, tmp_path)
    contexts = [tokens for path in shard_paths(tmp_path) for tokens in load_shard(path).token_ids()]
    assert contexts == [context.tokens for context in CONTEXTS]
    shard = load_shard(shard_path(tmp_path, 1))
    assert shard.positions_N.tolist() == [*range(1, 9), *range(1, 12), *range(1, 7)]
    assert shard.contexts_N.unique().tolist() == [3, 4, 5]
    assert shard.documents_N.unique().tolist() == [3, 4, 5]
    tap = Tap(model.model, tiny.HOOK_POINT, model.d_model)
    (resid_TD,) = read_residuals(model, tap, [CONTEXTS[4]])
    tap.remove()
    assert torch.equal(shard.resid_ND[8:19], resid_TD[1:].bfloat16())


def test_manifest_says_what_was_harvested(model, tmp_path):
    manifest = run(model, tmp_path)
    resid_ND = torch.cat([load_shard(path).resid_ND for path in shard_paths(tmp_path)]).float()
    assert ordinary(resid_ND).all()
    assert manifest == load_manifest(tmp_path)
    assert manifest["finished"] and manifest["num_ordinary_tokens"] == len(resid_ND) == 50 - 7
    assert manifest["settings"]["hook_point"] == "layers.1.output"
    assert manifest["settings"]["model_sha256"] == model.identity.weights_sha256
    mean_D = resid_ND.mean(0)
    assert torch.allclose(torch.tensor(manifest["mean"]), mean_D, atol=1e-4)
    norm = (resid_ND - mean_D).norm(dim=-1).mean()
    assert manifest["norm_scale"] == pytest.approx(float(tiny.D_MODEL**0.5 / norm), rel=1e-4)


def test_killed_harvest_goes_on_where_it_was(model, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(model, whole)
    from discovery import harvest as module

    write = module._write_shard

    def write_one_then_die(path, *args):
        if path.name == "shard-00001.safetensors":
            path.with_suffix(".partial").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        write(path, *args)

    monkeypatch.setattr(module, "_write_shard", write_one_then_die)
    with pytest.raises(KeyboardInterrupt):
        run(model, killed)
    monkeypatch.undo()
    assert not load_manifest(killed)["finished"]
    first = shard_path(killed, 0).stat().st_mtime_ns
    run(model, killed)
    assert shard_path(killed, 0).stat().st_mtime_ns == first
    assert [path.name for path in shard_paths(killed)] == [path.name for path in shard_paths(whole)]
    for one, other in zip(shard_paths(killed), shard_paths(whole), strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert load_manifest(killed) == load_manifest(whole)


def test_other_settings_are_refused(model, tmp_path):
    run(model, tmp_path)
    with pytest.raises(HarvestError, match="contexts_sha256"):
        run(model, tmp_path, contexts=CONTEXTS[:5])
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"]["dtype"] = "bfloat16"
    path.write_text(json.dumps(manifest))
    with pytest.raises(HarvestError, match="dtype was bfloat16, is float32"):
        run(model, tmp_path)


def test_nothing_to_harvest_is_an_error(model, tmp_path):
    with pytest.raises(HarvestError, match="nothing"):
        run(model, tmp_path, contexts=[])


def test_massive_activations_are_told_apart():
    resid_ND = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    resid_ND[17] *= 100
    assert (~ordinary(resid_ND)).nonzero()[:, 0].tolist() == [17]
