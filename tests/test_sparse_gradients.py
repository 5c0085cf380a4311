"""sparse_gradients: gradients are autograd's, and the active set is the one asked for."""

import pytest
import tiny
import torch

from discovery.finished_dictionary import fold_trained_norms
from discovery.sparse_gradients import backpropagate, select_active, strongest


@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("over_batch", [False, True])
def test_gradients_are_those_of_autograd(over_batch, products):
    sae = tiny.sae("topk").requires_grad_(True)
    x_BD = torch.randn(50, tiny.D_MODEL, generator=torch.Generator().manual_seed(2))
    mean_D = x_BD.mean(0)
    result = backpropagate(sae, x_BD, mean_D, 5, over_batch=over_batch, products=products)
    ours = {name: parameter.grad.clone() for name, parameter in sae.named_parameters()}
    sae.zero_grad()
    with torch.no_grad():
        norm_F = sae.W_dec.norm(dim=-1)
        scaled = [tensor.to(products) for tensor in (sae.b_enc * norm_F, x_BD - sae.b_dec, sae.W_enc * norm_F)]
        contribution_BF = torch.addmm(*scaled)
    active = select_active(contribution_BF, 5, over_batch=over_batch)
    assert result.threshold == active.threshold
    kept_BF = torch.zeros(50, tiny.NUM_LATENTS)
    kept_BF[active.tokens_N, active.latents_N] = 1
    assert torch.equal(active.latents_N, result.fired_A)
    f_BF = ((x_BD - sae.b_dec) @ sae.W_enc + sae.b_enc) * kept_BF
    fvu = (x_BD - f_BF @ sae.W_dec - sae.b_dec).square().sum() / (x_BD - mean_D).square().sum()
    (tiny.D_MODEL * fvu).backward()
    # Pre-activations in bf16 are off by 2^-9 relative, so the result is by about as much.
    allowed = 0.02 if products == torch.bfloat16 else 1e-5
    assert result.fvu == pytest.approx(fvu.item(), rel=allowed / 4)
    assert result.loss == tiny.D_MODEL * result.fvu
    for name, parameter in sae.named_parameters():
        assert (ours[name] - parameter.grad).norm() <= allowed * parameter.grad.norm(), name


def test_strongest_is_topk():
    pre_BF = torch.randn(20, 512, generator=torch.Generator().manual_seed(0))
    for num in (4, 16, 64, 100):
        values_BC, indices_BC = strongest(pre_BF, num)
        assert torch.equal(values_BC.sort(descending=True).values, pre_BF.topk(num).values)
        assert torch.equal(pre_BF.gather(1, indices_BC), values_BC)


def test_active_set_per_token_and_over_the_batch():
    pre_BF = torch.randn(20, 512, generator=torch.Generator().manual_seed(0))
    each = select_active(pre_BF, 6, over_batch=False)
    assert torch.bincount(each.tokens_N).tolist() == [6] * 20
    together = select_active(pre_BF, 6, over_batch=True)
    assert len(together.values_N) == 120
    assert together.threshold == pytest.approx(float(pre_BF.flatten().topk(120).values[-1]))
    negative = select_active(-pre_BF.abs(), 6, over_batch=True)
    assert len(negative.values_N) == 0


def test_topk_is_trained_as_it_is_served():
    """The loss is that of the served module's own reconstruction, once the rows' norms are folded."""
    sae = tiny.sae("topk", scale=1.3)
    assert sae.W_dec.norm(dim=-1).std() > 0.05
    resid_BD = torch.randn(50, tiny.D_MODEL, generator=torch.Generator().manual_seed(2))
    mean_D = resid_BD.mean(0)
    result = backpropagate(sae.requires_grad_(True), resid_BD * 1.3, mean_D * 1.3, sae.k, over_batch=False)
    fold_trained_norms(sae.requires_grad_(False))
    error = (resid_BD - sae.reconstruct(resid_BD)).square().sum()
    assert result.fvu == pytest.approx(float(error / (resid_BD - mean_D).square().sum()), rel=1e-2)
    assert result.l0 == pytest.approx(float((sae.encode(resid_BD) > 0).sum(-1).float().mean()), rel=1e-2)
