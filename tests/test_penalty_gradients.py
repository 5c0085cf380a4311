"""The penalised recipes: the served maths is the trained maths, and both ways to the gradients agree."""

import pytest
import tiny
import torch

from discovery import penalty_gradients
from discovery.activations import activate
from discovery.penalty_gradients import Penalty

RECIPES = ["relu", "jumprelu", "gated"]
PENALTY = Penalty(weight=0.3, bandwidth=0.2)


def make(activation, **settings):
    settings = {"apply_b_dec": activation != "relu", "scale": 1.7} | settings
    sae = tiny.sae(activation, **settings)
    sae.resid_mean.normal_(generator=torch.Generator().manual_seed(9))
    if activation == "jumprelu":
        sae.threshold.add_(0.01)
    return sae.requires_grad_(True)


@pytest.fixture
def resid_BD():
    return torch.randn(50, tiny.D_MODEL, generator=torch.Generator().manual_seed(2)).bfloat16()


def gradients(sae):
    return {name: parameter.grad.clone() for name, parameter in sae.named_parameters()}


def loss_by_definition(sae, resid_BD, weight):
    """The papers' formulas on the served encode and decode; jumprelu's L0 is a constant to autograd."""
    x_BD = resid_BD.float()
    f_BF = sae.encode(x_BD)
    loss = ((x_BD - sae.decode(f_BF)) * sae.scale).square().sum(-1)
    if sae.activation == "relu":
        loss = loss + weight * (f_BF * sae.W_dec.norm(dim=-1)).sum(-1)
    elif sae.activation == "jumprelu":
        loss = loss + weight * (f_BF > 0).sum(-1)
    else:
        gate_BF = (sae.preactivate(x_BD) + sae.b_gate).relu()
        x_hat_BD = (gate_BF @ sae.W_dec.detach() + sae.b_dec.detach()) / sae.scale
        loss = loss + weight * gate_BF.sum(-1) + ((x_BD - x_hat_BD) * sae.scale).square().sum(-1)
    return loss.mean()


@pytest.mark.parametrize("activation", RECIPES)
def test_dense_gradients_are_those_of_the_definition(activation, resid_BD):
    sae = make(activation)
    result = penalty_gradients.dense(sae, resid_BD, PENALTY)
    ours = gradients(sae)
    sae.zero_grad()
    loss = loss_by_definition(sae, resid_BD, PENALTY.weight)
    loss.backward()
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in sae.named_parameters():
        if name != "threshold":  # has none but the straight-through estimate
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("activation", RECIPES)
def test_latents_are_the_served_ones(activation, resid_BD):
    sae = make(activation).requires_grad_(False)
    z_BF = sae.preactivate(resid_BD)
    act = activate(sae, z_BF, slice(None), norm_F=sae.W_dec.norm(dim=-1), bandwidth=0.2)
    assert torch.equal(act.f, sae.encode(resid_BD))
    assert 0 < (act.f > 0).float().mean() < 1
    if activation == "jumprelu":
        assert torch.equal(act.penalty > 0, act.f > 0)


@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", RECIPES)
def test_sparse_gradients_are_the_dense_ones(activation, products, resid_BD):
    sae = make(activation)
    with torch.no_grad():
        # What both compute with: pre-activations in bf16 rank alike only if they are the same numbers.
        for parameter in sae.parameters():
            parameter.copy_(parameter.bfloat16())
    dense = penalty_gradients.dense(sae, resid_BD, PENALTY, products=products)
    wanted = gradients(sae)
    sparse = penalty_gradients.sparse(sae, resid_BD, PENALTY, products=products)
    assert sparse.fvu == pytest.approx(dense.fvu, rel=1e-2)
    assert sparse.l0 == pytest.approx(dense.l0, rel=2e-2)
    assert sparse.loss == pytest.approx(dense.loss, rel=1e-2)
    assert sparse.loss_unit == pytest.approx(dense.loss_unit)
    assert (sparse.error_BD - dense.error_BD).norm() <= 0.02 * dense.error_BD.norm()
    assert set(sparse.fired_A.tolist()) == set(dense.fired_A.tolist())
    for name, parameter in sae.named_parameters():
        # bf16 is 2^-9 relative; the threshold's gradient sums few terms, each of which is in the kernel or not.
        allowed = (0.3 if name == "threshold" else 0.03) if products == torch.bfloat16 else 1e-4
        assert (parameter.grad - wanted[name]).norm() <= allowed * wanted[name].norm(), name


@pytest.mark.parametrize("activation", RECIPES)
def test_chunks_add_up(activation, resid_BD, monkeypatch):
    sae = make(activation)
    many_BD = resid_BD.repeat(5, 1)
    whole = penalty_gradients.dense(sae, many_BD, PENALTY)
    wanted = gradients(sae)
    monkeypatch.setitem(penalty_gradients._CHUNK_ENTRIES, "cpu", 64 * tiny.NUM_LATENTS)
    parts = penalty_gradients.dense(sae, many_BD, PENALTY)
    assert parts.loss == pytest.approx(whole.loss) and parts.l0 == whole.l0
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-5, msg=name)


def test_threshold_gradient_is_that_of_the_loss_over_its_window():
    """(L(theta_i + eps/2) - L(theta_i - eps/2)) / eps is the loss's mean derivative there: L itself jumps."""
    sae = make("jumprelu", apply_b_dec=False, scale=1.0)
    width, weight, latents = 0.02, 0.7, range(8)
    resid_BD = torch.randn(40_000, tiny.D_MODEL, generator=torch.Generator().manual_seed(3))
    penalty_gradients.dense(sae, resid_BD, Penalty(weight, width))
    estimate = sae.threshold.grad[:8].clone()

    def loss_with(latent, shift):
        before = float(sae.threshold[latent])
        sae.threshold[latent] = before + shift
        loss = float(loss_by_definition(sae, resid_BD, weight).double())
        sae.threshold[latent] = before
        return loss

    with torch.no_grad():
        slopes = [(loss_with(latent, width / 2) - loss_with(latent, -width / 2)) / width for latent in latents]
    assert (estimate - torch.tensor(slopes)).norm() <= 0.1 * estimate.norm()


def test_no_active_latent_is_a_step_like_any_other(resid_BD):
    sae = make("relu")
    with torch.no_grad():
        sae.b_enc.fill_(-100)
    result = penalty_gradients.sparse(sae, resid_BD, PENALTY)
    assert result.l0 == 0 and len(result.fired_A) == 0
    assert sae.W_enc.grad.abs().max() == 0 and sae.b_dec.grad.abs().max() > 0
