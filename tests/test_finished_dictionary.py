"""finished_dictionary: what is written is what was trained, threshold and folded norms included."""

import pytest
import tiny
import torch
from training import buffers_of, changed, settings_for, write_harvest

from discovery.dictionary_trainer import Trainer
from discovery.errors import TrainError
from discovery.finished_dictionary import calibrate_threshold, finish, fold_trained_norms
from sae_runtime.checkpoint import load_sae


@pytest.fixture(scope="module")
def buffers(tmp_path_factory):
    return buffers_of(write_harvest(tmp_path_factory.mktemp("harvest")))


def trained(settings, buffers):
    trainer = Trainer(settings, buffers)
    for _ in trainer.steps():
        pass
    return trainer


def explained(sae, x_ND):
    return 1 - (x_ND - sae.reconstruct(x_ND)).square().sum() / (x_ND - sae.resid_mean).square().sum()


def test_threshold_gives_the_l0_asked_for(buffers):
    sae = trained(changed(), buffers).sae.requires_grad_(False)
    calibrate_threshold(sae, buffers, target_l0=3.5)
    resid_ND = buffers.load(0, seed=1)
    assert float((sae.encode(resid_ND) > 0).sum(-1).float().mean()) == pytest.approx(3.5, abs=0.05)
    with pytest.raises(TrainError, match="mean L0 can't be 64"):
        calibrate_threshold(sae, buffers, target_l0=64)


@pytest.mark.parametrize("activation", ["relu", "topk", "batchtopk", "jumprelu", "gated"])
def test_finished_dictionary_loads_as_it_was_trained(buffers, tmp_path, activation):
    settings = settings_for(activation, **({"sparsity_weight": 0.5} if activation == "relu" else {}))
    trainer = trained(settings, buffers)
    x_ND = buffers.load(3, 0).float()
    with torch.no_grad():
        before = explained(trainer.sae, x_ND)
    manifest = finish(trainer, tmp_path, name="tiny-sae", target_l0=4)
    sae = load_sae(tmp_path)
    assert manifest.hook_point == "layers.1.output" and manifest.training["tokens_seen"] == 60 * 128
    assert manifest.apply_b_dec == (activation != "relu")
    if activation != "batchtopk":  # its threshold is set at the end only
        assert explained(sae, x_ND) == pytest.approx(before.item(), abs=0.03)
    assert explained(sae, x_ND) > 0.5
    assert sae.manifest.dtype == "bfloat16" and sae.manifest.decoder_norms_folded
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(64), atol=5e-3, rtol=0)
    (data,) = manifest.training["data"]
    assert len(data.pop("contexts_sha256")) == 64
    assert data == {"sources": ["made"], "shards": 5, "per_buffer": 2}
    assert manifest.training["recipe"]["activation"] == activation


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "gated"])
def test_folding_changes_latents_and_not_reconstructions(activation):
    sae = tiny.sae(activation)
    x_ND = torch.randn(40, tiny.D_MODEL, generator=torch.Generator().manual_seed(0))
    norm_F, f_NF, x_hat_ND = sae.W_dec.norm(dim=-1), sae.encode(x_ND), sae.reconstruct(x_ND)
    fold_trained_norms(sae)
    torch.testing.assert_close(sae.encode(x_ND), f_NF * norm_F, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae.reconstruct(x_ND), x_hat_ND, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(tiny.NUM_LATENTS))


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_folding_keeps_the_latents_that_contribute_most(activation):
    """In training these rank by pre * norm, and their threshold is of it."""
    sae = tiny.sae(activation)
    x_ND = torch.randn(40, tiny.D_MODEL, generator=torch.Generator().manual_seed(0))
    norm_F = sae.W_dec.norm(dim=-1)
    assert norm_F.std() > 0.05
    contribution_NF = sae.preactivate(x_ND) * norm_F
    if activation == "topk":
        kept_NF = contribution_NF >= contribution_NF.topk(sae.k).values[:, -1:]
        f_NF = contribution_NF.relu() * kept_NF
    else:
        f_NF = contribution_NF * (contribution_NF > sae.threshold)
    assert 0 < (f_NF > 0).sum() < f_NF.numel() / 2
    x_hat_ND = (f_NF / norm_F @ sae.W_dec + sae.b_dec) / sae.scale
    fold_trained_norms(sae)
    torch.testing.assert_close(sae.encode(x_ND), f_NF, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae.reconstruct(x_ND), x_hat_ND, rtol=1e-4, atol=1e-5)
