"""What can be rewritten without changing a dictionary, for every kind of it."""

import pytest
import tiny
import torch

from sae_runtime.errors import CheckpointError
from sae_runtime.sae import ACTIVATIONS, NORMALIZATIONS, SAE
from sae_runtime.sae_parts import SAEParts

every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


def rebuilt(parts: SAEParts) -> SAE:
    sae = SAE(
        d_model=parts.d_model,
        num_latents=parts.num_latents,
        activation=parts.activation,
        k=parts.k,
        scale=parts.scale,
        apply_b_dec=parts.apply_b_dec,
        normalization=parts.normalization,
    )
    sae.load_state_dict(parts.tensors | {"resid_mean": torch.zeros(parts.d_model)})
    return sae.requires_grad_(False)


def residuals() -> torch.Tensor:
    return torch.randn(9, tiny.D_MODEL, generator=torch.Generator().manual_seed(5)) * 2 + 0.3


def assert_same(one: SAE, other: SAE, factor_F: torch.Tensor | float = 1.0) -> None:
    x_TD = residuals()
    latents_TF = one.encode(x_TD)
    assert 0 < (latents_TF > 0).float().mean() < 1
    torch.testing.assert_close(other.encode(x_TD), latents_TF * factor_F, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.reconstruct(x_TD), one.reconstruct(x_TD), rtol=1e-4, atol=1e-5)


@every_activation
def test_taken_apart_and_put_together(activation):
    sae = tiny.sae(activation, scale=0.4)
    assert_same(sae, rebuilt(SAEParts.of(sae)))


@every_activation
@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_folding_the_scale_changes_nothing(activation, apply_b_dec):
    sae = tiny.sae(activation, scale=0.4, apply_b_dec=apply_b_dec)
    folded = SAEParts.of(sae).fold_scale()
    assert folded.scale == 1
    assert_same(sae, rebuilt(folded))


@every_activation
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_moving_the_decoder_bias_changes_nothing(activation, normalization, apply_b_dec):
    sae = tiny.sae(activation, apply_b_dec=apply_b_dec, normalization=normalization)
    moved = SAEParts.of(sae).with_b_dec(not apply_b_dec)
    assert moved.apply_b_dec is not apply_b_dec
    assert_same(sae, rebuilt(moved))
    assert_same(sae, rebuilt(moved.with_b_dec(apply_b_dec)))


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "topk"])
def test_rescaling_latents_changes_them_alone(activation):
    sae = tiny.sae(activation, scale=0.4)
    factor_F = torch.linspace(0.2, 5, tiny.NUM_LATENTS)
    rescaled = SAEParts.of(sae).scale_latents(factor_F)
    assert rescaled.activation == ("jumprelu" if activation == "batchtopk" else activation)
    assert_same(sae, rebuilt(rescaled), factor_F)


def test_topk_latents_can_not_be_rescaled():
    with pytest.raises(CheckpointError, match="topk"):
        SAEParts.of(tiny.sae("topk")).fold_decoder_norms()


def test_a_decoder_row_of_zeros_stays_one():
    sae = tiny.sae("relu")
    sae.W_dec[7] = 0
    folded = SAEParts.of(sae).fold_decoder_norms()
    assert torch.equal(folded.tensors["W_dec"][7], torch.zeros(tiny.D_MODEL))
    assert all(tensor.isfinite().all() for tensor in folded.tensors.values())


def test_the_dictionary_taken_apart_is_left_alone():
    sae = tiny.sae("jumprelu", scale=0.4)
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    SAEParts.of(sae).fold_scale().with_b_dec(False).fold_decoder_norms()
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())
