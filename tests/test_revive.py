"""revive: silent latents are found, point at what is missing, and nothing else changes."""

import json

import pytest
import tiny
import torch
from safetensors.torch import save_file

from discovery.errors import HarvestError
from discovery.harvest import load_ordinary_resid
from discovery.revive import find_silent, main, revive
from sae_runtime.checkpoint import Manifest, load_sae, save_sae

D = tiny.D_MODEL


@pytest.fixture
def dictionary():
    """With latents 3 and 7 that can't fire."""
    sae = tiny.sae("batchtopk")
    with torch.no_grad():
        sae.b_enc[[3, 7]] = -1e4
    return sae


def manifest_of(sae) -> Manifest:
    return Manifest(
        name="tiny", model_name="tiny", model_sha256="0" * 64, quantization="none", hook_point="layers.1.output",
        d_model=sae.d_model, num_latents=sae.num_latents, activation=sae.activation, k=sae.k, scale=sae.scale,
    )  # fmt: skip


@pytest.fixture
def shards(tmp_path):
    generator = torch.Generator().manual_seed(5)
    for number in range(3):
        resid_ND = torch.randn(700, D, generator=generator).bfloat16()
        save_file({"resid_ND": resid_ND}, tmp_path / f"shard-{number:05d}.safetensors")
    return sorted(tmp_path.glob("shard-*"))


def test_firings_are_counted_over_all_shards(dictionary, shards):
    silence = find_silent(dictionary, shards, 10)
    resid_ND = torch.cat([load_ordinary_resid(path).float() for path in shards])
    assert torch.equal(silence.firing_F, (dictionary.encode(resid_ND) > 0).sum(0))
    assert silence.num_tokens == len(resid_ND)
    assert (silence.firing_F == 0)[[3, 7]].all()


def test_candidates_are_drawn_where_the_error_is(dictionary, tmp_path, monkeypatch):
    """One token of 1,001 carries half of the squared error; among 40 of them drawn, it is hardly ever missing."""
    near_ND = dictionary.resid_mean + 1e-3 * torch.randn(1000, D, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        dictionary.threshold.fill_(1e6)  # nothing fires: the error is all of the residual
        dictionary.b_dec.zero_()
    far_D = near_ND[0] / near_ND[0].norm() * (near_ND.square().sum() ** 0.5)
    resid_ND = torch.cat([near_ND, far_D[None]])
    # The far token would be left out as a massive activation if it were read from a file.
    monkeypatch.setattr("discovery.revive.load_ordinary_resid", lambda _path: resid_ND)
    drawn = [
        bool((find_silent(dictionary, [tmp_path], 40, seed).candidates_ND == far_D).all(1).any()) for seed in range(30)
    ]
    # Uniform drawing would have it in 4 % of the samples; by weight, in all but 2^-40 of them.
    assert sum(drawn) >= 29


def test_a_revived_latent_fires_at_its_token_along_the_error(dictionary):
    resid_AD = torch.randn(2, D, generator=torch.Generator().manual_seed(1)) * 3
    error_AD = resid_AD - dictionary.reconstruct(resid_AD)
    others = [latent for latent in range(dictionary.num_latents) if latent not in (3, 7)]
    norm = dictionary.W_enc[:, others].norm(dim=0).mean()
    revive(dictionary, torch.tensor([3, 7]), resid_AD)
    torch.testing.assert_close(dictionary.W_dec[[3, 7]], error_AD / error_AD.norm(dim=-1, keepdim=True))
    pre_A2 = dictionary.preactivate(resid_AD)[:, [3, 7]]
    torch.testing.assert_close(pre_A2.diagonal(), error_AD.norm(dim=-1) * dictionary.scale * norm)


def test_other_latents_are_left_alone(dictionary):
    before = {name: tensor.clone() for name, tensor in dictionary.state_dict().items()}
    revive(dictionary, torch.tensor([3]), torch.randn(1, D))
    kept = [latent for latent in range(dictionary.num_latents) if latent != 3]
    after = dictionary.state_dict()
    assert torch.equal(after["W_enc"][:, kept], before["W_enc"][:, kept])
    assert torch.equal(after["W_dec"][kept], before["W_dec"][kept])
    assert torch.equal(after["b_enc"][kept], before["b_enc"][kept])
    assert torch.equal(after["b_dec"], before["b_dec"])
    assert not torch.equal(after["W_dec"][3], before["W_dec"][3])


def test_what_the_formula_does_not_cover_is_refused():
    with pytest.raises(ValueError, match="gated"):
        revive(tiny.sae("gated"), torch.tensor([0]), torch.randn(1, D))


def test_the_command_writes_a_dictionary_to_start_from(dictionary, shards, tmp_path, capsys):
    folder, output = tmp_path / "dictionary", tmp_path / "revived"
    save_sae(dictionary, manifest_of(dictionary), folder)
    argv = [str(folder), "--source", str(shards[0].parent), "--output", str(output)]
    assert main(argv) == 0
    said = json.loads(capsys.readouterr().out)
    revived = load_sae(output)
    assert said["latents"] >= 2
    assert len(revived.manifest.training["revived"]["latents"]) == said["latents"]
    assert (find_silent(revived, shards, 1).firing_F > 0).sum() > (
        find_silent(dictionary, shards, 1).firing_F > 0
    ).sum()


def test_an_empty_folder_is_named(dictionary, tmp_path):
    save_sae(dictionary, manifest_of(dictionary), tmp_path / "dictionary")
    with pytest.raises(HarvestError, match=r"no shard in .*nothing"):
        main([str(tmp_path / "dictionary"), "--source", str(tmp_path / "nothing"), "--output", str(tmp_path / "out")])
