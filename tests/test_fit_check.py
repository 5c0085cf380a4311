"""Checking a dictionary on a harvest: figures equal their definitions, and a wrong scale or place is found out."""

import json

import pytest
import tiny
import torch
from serving import manifest

from discovery.corpus import Context
from discovery.errors import FitError, HarvestError
from discovery.fit_check import check_fit
from discovery.harvest import harvest
from discovery.shards import load_resid, shard_paths
from sae_runtime.checkpoint import LoadedSAE, load_sae, save_sae
from sae_runtime.formats import UNKNOWN
from sae_runtime.hook_point import HookPoint
from sae_runtime.sae import SAE

THRESHOLD = 0.05
CONTEXTS = [
    Context(torch.randint(3, 200, (30,), generator=torch.Generator().manual_seed(n)).tolist(), n, 0, "made")
    for n in range(6)
]


@pytest.fixture(scope="module")
def harvested(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("harvests") / "held-out"
    harvest(model, tiny.HOOK_POINT, CONTEXTS, folder, contexts_per_shard=2)
    return folder


def axes(folder, *, scale=1.0, expected_l0=None, hook_point=str(tiny.HOOK_POINT)) -> LoadedSAE:
    """A pair of latents for each axis: it returns what it is given, but for what is below the threshold."""
    sae = SAE(d_model=tiny.D_MODEL, num_latents=tiny.NUM_LATENTS, activation="batchtopk", scale=scale)
    eye = torch.eye(tiny.D_MODEL)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([eye, -eye], dim=1))
        sae.W_dec.copy_(torch.cat([eye, -eye]))
        sae.threshold.fill_(THRESHOLD)
    record = {"import": {"expected_l0": expected_l0}}
    made = manifest(activation="batchtopk", k=None, scale=scale, hook_point=hook_point, training=record)
    save_sae(sae, made, folder)
    return load_sae(folder)


def test_figures_equal_their_definitions(harvested, tmp_path):
    sae = axes(tmp_path)
    x_ND = torch.cat([load_resid(path) for path in shard_paths(harvested)]).float()
    fit = check_fit(sae, harvested)
    mean_D = x_ND.mean(0)
    error = (x_ND - sae.reconstruct(x_ND)).square().sum()
    assert fit.fvu == pytest.approx(float(error / (x_ND - mean_D).square().sum()), rel=1e-4)
    assert fit.l0 == pytest.approx(float((x_ND.abs() > THRESHOLD).sum(-1).float().mean()))
    assert fit.tokens == len(x_ND) == 6 * 29
    assert fit.mean_norm == pytest.approx(float(x_ND.norm(dim=-1).mean()), rel=1e-4)
    torch.testing.assert_close(sae.resid_mean, mean_D, rtol=1e-3, atol=1e-4)


def test_no_more_tokens_than_asked_for(harvested, tmp_path):
    assert check_fit(axes(tmp_path), harvested, max_tokens=70).tokens == 70


def test_a_wrong_scale_is_found_out(harvested, tmp_path):
    check_fit(axes(tmp_path / "right", scale=1.0), harvested)
    with pytest.raises(FitError, match=r"unexplained of tiny-sae on .* must be below 0.5, got 1.* normalisation"):
        check_fit(axes(tmp_path / "wrong", scale=1e-4), harvested)


@pytest.mark.parametrize(("expected", "fits"), [(None, True), (20, True), (2, False), (1000, False)])
def test_other_numbers_of_active_latents_are_found_out(harvested, tmp_path, expected, fits):
    sae = axes(tmp_path, expected_l0=expected)
    if fits:
        assert check_fit(sae, harvested).expected_l0 == expected
        return
    with pytest.raises(FitError, match=rf"must be about {expected}, as its files say, got \d+\.\d: wrong"):
        check_fit(sae, harvested)


def test_the_input_of_the_next_block_is_the_same_place(harvested, tmp_path):
    check_fit(axes(tmp_path, hook_point="layers.2.input"), harvested)


@pytest.mark.parametrize("hook_point", ["layers.2.output", "layers.1.input"])
def test_another_hook_point_is_refused(harvested, tmp_path, hook_point):
    with pytest.raises(FitError, match=f"must have residuals of {hook_point}, got layers.1.output"):
        check_fit(axes(tmp_path, hook_point=hook_point), harvested)


def test_an_unknown_hook_point_is_refused(harvested, tmp_path):
    sae = axes(tmp_path)
    sae.manifest = sae.manifest.model_copy(update={"hook_point": "unknown"})
    with pytest.raises(FitError, match="--hook-point"):
        check_fit(sae, harvested)


def test_another_width_is_refused(harvested, tmp_path):
    content = json.loads((harvested / "manifest.json").read_text())
    content["settings"]["d_model"] = 33
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(FitError, match="must have residuals of width 32, got 33"):
        check_fit(axes(tmp_path), tmp_path / "other")


@pytest.mark.parametrize(("name", "bound_to"), [("model_sha256", "1" * 64), ("quantization", "nf4")])
def test_another_model_is_refused_once_it_is_bound_to_one(harvested, tmp_path, name, bound_to):
    sae = axes(tmp_path)
    sae.manifest = sae.manifest.model_copy(update={name: bound_to})
    with pytest.raises(FitError, match=f"must have {name} {bound_to}, which the dictionary is bound to, got"):
        check_fit(sae, harvested)
    sae.manifest = sae.manifest.model_copy(update={name: UNKNOWN})
    check_fit(sae, harvested)


def test_a_missing_shard_is_named(model, tmp_path):
    harvest(model, HookPoint(1), CONTEXTS, tmp_path / "harvest", contexts_per_shard=2)
    shard_paths(tmp_path / "harvest")[1].unlink()
    with pytest.raises(HarvestError, match=r"got none of shard-00001.safetensors"):
        check_fit(axes(tmp_path / "sae"), tmp_path / "harvest")


def test_an_unfinished_harvest_is_refused(model, tmp_path):
    folder = tmp_path / "harvest"
    harvest(model, HookPoint(1), CONTEXTS, folder, contexts_per_shard=2)
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(content | {"finished": False}))
    with pytest.raises(FitError, match="must be a finished harvest"):
        check_fit(axes(tmp_path / "sae"), folder)


def test_no_harvest(tmp_path):
    with pytest.raises(HarvestError, match="is no harvest"):
        check_fit(axes(tmp_path), tmp_path / "none")
