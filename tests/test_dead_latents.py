"""dead_latents: AuxK moves the dead alone, resampling starts them anew where the loss is."""

import pytest
import tiny
import torch
from training import F, buffers_of, changed, settings_for, write_harvest

from discovery.dead_latents import add_aux_gradients, forget, resample
from discovery.dictionary_trainer import Trainer
from discovery.train_settings import TrainSettings

ACTIVATIONS = ["relu", "topk", "batchtopk", "jumprelu", "gated"]


@pytest.fixture(scope="module")
def buffers(tmp_path_factory):
    return buffers_of(write_harvest(tmp_path_factory.mktemp("harvest")))


def settings(**fields: object) -> TrainSettings:
    return changed(num_latents=tiny.NUM_LATENTS, **fields)


def dead(*latents: int) -> torch.Tensor:
    dead_F = torch.zeros(F, dtype=torch.bool)
    dead_F[list(latents)] = True
    return dead_F


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_aux_loss_moves_only_dead_latents(buffers, activation):
    trainer = Trainer(settings_for(activation), buffers)
    resid_BD = buffers.load(0, 0)[:128]
    result = trainer.compute_gradients(resid_BD)
    before = {name: weight.grad.clone() for name, weight in trainer.sae.named_parameters() if weight.grad is not None}
    x_BD = resid_BD.float() * trainer.sae.scale
    add_aux_gradients(trainer.sae, x_BD, result.error_BD, dead(3, 9), trainer.settings, result.loss_unit)
    changed_F = (trainer.sae.W_dec.grad != before["W_dec"]).any(1)
    assert changed_F.nonzero()[:, 0].tolist() == [3, 9]
    assert torch.equal(trainer.sae.b_dec.grad, before["b_dec"])


@pytest.mark.parametrize("aux_k", [2, 8])
def test_aux_gradients_are_autograds(aux_k):
    sae = tiny.sae("topk").requires_grad_(True)
    generator = torch.Generator().manual_seed(4)
    x_BD, error_BD = torch.randn(2, 40, tiny.D_MODEL, generator=generator)
    for parameter in sae.parameters():
        parameter.grad = torch.zeros_like(parameter)
    dead_F, weight = dead(1, 5, 6, 30), 0.5
    add_aux_gradients(sae, x_BD, error_BD, dead_F, settings(aux_k=aux_k, aux_weight=weight), loss_unit=3.0)
    ours = {name: parameter.grad for name, parameter in sae.named_parameters()}
    sae.zero_grad()
    pre_BA = ((x_BD - sae.b_dec.detach()) @ sae.W_enc + sae.b_enc)[:, dead_F]
    strongest = (pre_BA * sae.W_dec[dead_F].norm(dim=-1)).topk(min(aux_k, 4)).indices
    f_BA = pre_BA.relu() * torch.zeros_like(pre_BA).scatter_(1, strongest, 1)
    (weight * 3.0 * (error_BD - f_BA @ sae.W_dec[dead_F]).square().sum() / error_BD.square().sum()).backward()
    for name in ("W_enc", "W_dec", "b_enc"):
        wanted = dict(sae.named_parameters())[name].grad
        assert (ours[name] - wanted).norm() <= 0.03 * wanted.norm(), name


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_resampled_latent_is_as_bricken_et_al_have_it(activation):
    sae = tiny.sae(activation, apply_b_dec=activation != "relu")
    resid_BD = torch.randn(30, tiny.D_MODEL, generator=torch.Generator().manual_seed(1)) + 2
    error_BD = torch.zeros_like(resid_BD)
    error_BD[[7, 21]] = 1.0  # the loss of all other tokens is 0: only these can be drawn
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    dead_F, made = dead(3, 9, 12), settings_for(activation, num_latents=tiny.NUM_LATENTS)
    latents_A = resample(sae, resid_BD, error_BD, dead_F, made, torch.Generator().manual_seed(0))
    assert latents_A.tolist() == [3, 9]  # two tokens with a loss: two latents; the third waits
    seen_BD = torch.nn.functional.normalize(sae.centre(sae.normalize(resid_BD)), dim=-1)
    rows_AD = torch.nn.functional.normalize(sae.W_dec[latents_A], dim=-1)
    found = sorted((rows_AD @ seen_BD.T).argmax(-1).tolist())
    assert found == [7, 21]
    torch.testing.assert_close((rows_AD @ seen_BD.T).max(-1).values, torch.ones(2))
    alive = before["W_enc"][:, ~dead_F].norm(dim=0).mean()
    share = 1.0 if activation in ("topk", "batchtopk") else 0.2
    torch.testing.assert_close(sae.W_enc[:, latents_A], (rows_AD * share * alive).T)
    for name in {"b_enc", "b_gate", "b_mag", "r_mag"} & set(before):
        assert getattr(sae, name)[latents_A].abs().max() == 0, name
    kept = [latent for latent in range(tiny.NUM_LATENTS) if latent not in (3, 9)]
    assert torch.equal(sae.W_enc[:, kept], before["W_enc"][:, kept])
    assert torch.equal(sae.W_dec[kept], before["W_dec"][kept])


def test_inputs_are_drawn_by_the_square_of_their_loss():
    sae = tiny.sae("relu")
    resid_BD = torch.eye(tiny.D_MODEL)[:2] * 5
    error_BD = torch.zeros_like(resid_BD)
    error_BD[0, 0], error_BD[1, 0] = 1.0, 3.0**0.5  # losses 1 and 3, squared 1 and 9
    drawn = []
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        resample(sae, resid_BD, error_BD, dead(3), settings_for("relu", num_latents=F), generator)
        drawn.append(int(sae.W_dec[3].argmax()))
    # 0.9 of 400 with a standard deviation of 0.015.
    assert sum(drawn) / 400 == pytest.approx(0.9, abs=0.06)


def test_the_optimiser_forgets_resampled_latents(buffers):
    trainer = Trainer(settings_for("jumprelu"), buffers)
    for _ in range(3):
        next(trainer.steps())
    state = trainer.optimizer.state
    forget(trainer.optimizer, trainer.sae, torch.tensor([3, 9]))
    for moment in ("exp_avg", "exp_avg_sq"):
        assert state[trainer.sae.W_enc][moment][:, [3, 9]].abs().max() == 0
        assert state[trainer.sae.W_dec][moment][[3, 9]].abs().max() == 0
        assert state[trainer.sae.b_enc][moment][[3, 9]].abs().max() == 0
        assert state[trainer.log_threshold][moment][[3, 9]].abs().max() == 0
    assert state[trainer.sae.W_enc]["exp_avg_sq"][:, 4].abs().max() > 0
    assert state[trainer.sae.b_dec]["exp_avg_sq"].min() > 0


@pytest.mark.parametrize(("revival", "at_most"), [("none", 32), ("auxk", 28), ("resample", 8)])
def test_dead_latents_come_back(buffers, revival, at_most):
    """Half of the latents begin where they are never among the k largest; without help they stay there."""
    made = settings_for("batchtopk", revival=revival, resample_every=10, num_steps=120, decay_share=0.3)
    trainer = Trainer(made, buffers)
    with torch.no_grad():
        trainer.sae.b_enc[: F // 2] = -0.6
    for _ in trainer.steps():
        pass
    assert trainer.num_dead <= at_most
    assert revival != "none" or trainer.num_dead == at_most
