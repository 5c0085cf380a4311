"""A dictionary in the C kernel against torch: what it reads, and that screening in 8 bits leaves nothing out."""

import math

import native_models as parts
import pytest
import torch

from sae_runtime.encoder_screen import EncoderScreen
from sae_runtime.native_blocks import MOST_TOKENS
from sae_runtime.native_sae import NativeSAE
from sae_runtime.sae import SAE


def residuals(num_tokens: int, width: int = 96, seed: int = 3) -> torch.Tensor:
    return torch.randn(num_tokens, width, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def sae(activation: str, **settings) -> SAE:
    """A random one with weights of bf16, of which a fair part fires."""
    generator = torch.Generator().manual_seed(1)
    made = SAE(d_model=96, num_latents=160, activation=activation, k=12, scale=0.7, **settings)
    for name, tensor in made.state_dict().items():
        values = torch.randn(tensor.shape, generator=generator) * 0.2
        tensor.copy_(values.abs() if name == "threshold" else values.to(torch.bfloat16))
    return made.requires_grad_(False)


@pytest.mark.parametrize("apply_b_dec", [True, False])
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "batchtopk", "topk"])
def test_a_dictionary_reads_what_torch_reads(activation, apply_b_dec):
    theirs = sae(activation, apply_b_dec=apply_b_dec)
    ours = NativeSAE.of(theirs, parts.library())
    assert isinstance(ours, NativeSAE)
    x_TD, watched = residuals(MOST_TOKENS + 3, width=96), torch.tensor([159, 0, 33])
    found, wanted = ours.read_tokens(x_TD, watched, 5), theirs.read_tokens(x_TD, watched, 5)
    assert 0 < wanted.l0_T.min() < 160
    assert torch.equal(found.l0_T, wanted.l0_T)
    assert torch.equal(found.top_indices_TN, wanted.top_indices_TN)
    for one, other in ((found.readings_TW, wanted.readings_TW), (found.top_values_TN, wanted.top_values_TN)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.fvu_T, wanted.fvu_T, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.encode(x_TD), theirs.encode(x_TD), rtol=1e-4, atol=1e-5)
    if activation != "topk":
        norms_T = ours.read_on_host(x_TD, watched.numpy(), 0).norms_T
        torch.testing.assert_close(torch.from_numpy(norms_T), x_TD.double().norm(dim=-1))
    # Single latents are those that are read of all.
    assert torch.equal(ours.read(x_TD, watched), ours.encode(x_TD)[:, watched])
    assert ours.read_tokens(x_TD, watched, 0).top_values_TN.shape == (len(x_TD), 0)


@pytest.mark.parametrize("activation", ["relu", "batchtopk"])
def test_a_reading_does_not_depend_on_what_else_is_read(activation):
    ours = NativeSAE.of(sae(activation), parts.library())
    x_TD, watched = residuals(MOST_TOKENS + 3, width=96), torch.arange(160)
    together = ours.read_tokens(x_TD, watched, 0)
    alone = [ours.read_tokens(x_1D, watched, 0) for x_1D in torch.split(x_TD, 1)]
    assert torch.equal(together.readings_TW, torch.cat([one.readings_TW for one in alone]))
    assert torch.equal(together.fvu_T, torch.cat([one.fvu_T for one in alone]))


def test_a_token_that_is_not_finite_shows_it_and_is_alone_in_it():
    ours = NativeSAE.of(sae("batchtopk"), parts.library())
    x_TD, watched = residuals(3, width=96), torch.arange(160)
    clean = ours.read_tokens(x_TD, watched, 0)
    x_TD[1, 5] = math.nan
    spoilt = ours.read_tokens(x_TD, watched, 0)
    assert spoilt.fvu_T.isfinite().tolist() == [True, False, True]
    assert torch.equal(spoilt.readings_TW[[0, 2]], clean.readings_TW[[0, 2]])


def test_a_latent_on_its_threshold_is_off():
    """A bare identity, so that pre-activations are the residual itself."""
    plain = SAE(d_model=32, num_latents=32, activation="jumprelu").requires_grad_(False)
    plain.W_enc.copy_(torch.eye(32))
    plain.threshold.fill_(0.5)
    plain.threshold[3] = -1.0  # as 0
    x_TD = torch.zeros(1, 32, dtype=torch.bfloat16)
    x_TD[0, :5] = torch.tensor([0.5, 0.50390625, 0.25, 0.0078125, -0.5])
    latents = NativeSAE.of(plain, parts.library()).encode(x_TD)[0]
    assert latents[:5].tolist() == [0, 0.50390625, 0, 0.0078125, 0]


def change_weight(made: SAE) -> None:
    made.W_enc[3, 4] = 0.1  # no bf16 number


@pytest.mark.parametrize(
    ("made", "change"),
    [
        (sae("gated"), lambda _: None),
        (sae("relu", normalization="layer_norm"), lambda _: None),
        (sae("relu"), change_weight),
        (SAE(d_model=48, num_latents=32, activation="relu"), lambda _: None),
        (SAE(d_model=32, num_latents=40, activation="relu"), lambda _: None),
    ],
    ids=["gated", "normalised", "no bf16", "narrow", "few"],
)
def test_what_the_kernel_can_not_read_is_read_as_ever(made, change):
    with torch.no_grad():
        change(made)
    assert NativeSAE.of(made, parts.library()) is made


def test_residuals_that_are_not_bf16_are_read_as_ever():
    theirs = sae("relu")
    x_TD = torch.randn(4, 96, generator=torch.Generator().manual_seed(2))
    ours, watched = NativeSAE.of(theirs, parts.library()), torch.tensor([1, 2])
    for one, other in zip(ours.read_tokens(x_TD, watched, 2), theirs.read_tokens(x_TD, watched, 2), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(ours.read(x_TD, watched), theirs.read(x_TD, watched))


# --- screening ---


def rough(num_latents: int = 160, seed: int = 5) -> torch.Tensor:
    """Weights [F, D] in bf16 with groups in which one is far larger than the others, so that 8 bits lose much."""
    generator = torch.Generator().manual_seed(seed)
    weights_FD = torch.randn(num_latents, 96, generator=generator) * 0.2
    weights_FD[:, ::32] *= 50
    return weights_FD.to(torch.bfloat16)


def even(num_latents: int = 160) -> torch.Tensor:
    """Weights that are all of one size, so that 8 bits hold them."""
    return rough(num_latents).sign() * 0.25


def exact() -> torch.Tensor:
    """Weights of which 8 bits lose nothing, with groups so far apart that sums of their products are rounded."""
    generator = torch.Generator().manual_seed(6)
    numbers = torch.randint(-127, 128, (160, 3, 32), generator=generator).float()
    numbers[..., 0] = 127
    return (numbers * torch.tensor([1.0, 2.0**-7, 2.0**-13])[:, None]).flatten(1).to(torch.bfloat16)


def with_thresholds(encoder_FD: torch.Tensor, threshold_F: torch.Tensor, bias: float = 0.125) -> SAE:
    made = SAE(d_model=96, num_latents=len(encoder_FD), activation="jumprelu").requires_grad_(False)
    made.W_enc.copy_(encoder_FD.T.float())
    made.b_enc.fill_(bias)
    made.threshold.copy_(threshold_F)
    return NativeSAE.of(made, parts.library())


def screened(encoder_FD: torch.Tensor) -> torch.Tensor:
    """The weights that a screen's blocks hold, fp64 [F, D]."""
    blocks = EncoderScreen.of(encoder_FD).blocks
    numbers = blocks[..., :512].view(*blocks.shape[:2], 8, 16, 4).permute(0, 3, 1, 2, 4).double() - 128
    scales = blocks[..., 512:].contiguous().view(torch.float16).double().transpose(1, 2)
    return (numbers.flatten(3) * scales[..., None]).reshape(encoder_FD.shape)


def in_bytes(x_TD: torch.Tensor) -> torch.Tensor:
    """Residuals as screens take them, fp64."""
    groups = x_TD.float().unflatten(-1, (-1, 32))
    largest = groups.abs().amax(-1, keepdim=True)
    return ((groups * (127 / largest)).round().double() * (largest / 127).double()).view(x_TD.shape)


def along_lost_weights(encoder_FD: torch.Tensor) -> torch.Tensor:
    """For each latent a residual that points to what 8 bits lost of it: screened, it is lower by all that it can be."""
    lost_FD = encoder_FD.double() - screened(encoder_FD)
    aligned_FD = lost_FD / lost_FD.norm(dim=1, keepdim=True) * 300
    # And to the latent itself somewhat, so that it is on.
    return (aligned_FD + encoder_FD.double() * 0.1).to(torch.bfloat16)


def along_lost_residuals(encoder_FD: torch.Tensor) -> torch.Tensor:
    """For each latent a residual of which 8 bits lose most of what points to it: numbers just below half a step."""
    x_FD = encoder_FD.double().sign() * (7 / 1024)
    x_FD[:, 5::32] = 127 / 64 * torch.tensor([1.0, -1.0, 1.0]) * encoder_FD[:, 5::32].double().sign()
    assert not in_bytes(x_FD.to(torch.bfloat16))[:, 6:32].any()
    return x_FD.to(torch.bfloat16)


def small(others: float, first: float) -> torch.Tensor:
    """[160, 96] in bf16 with another number at the beginning of each group."""
    made = torch.full((160, 96), others)
    made[:, ::32] = first
    return made.to(torch.bfloat16)


@pytest.mark.parametrize(
    ("encoder_FD", "x_TD", "bias"),
    [
        (rough(), along_lost_weights(rough()), 0.125),
        (even(), along_lost_residuals(even()), 0.125),
        (exact(), exact(), 0.125),
        (rough(), residuals(160), 0.125),
        (rough(), along_lost_weights(rough()) * 1e-6, 1000.0),
        (-small(0.25, 0.0), small(1e-38, 4e-37), 2e-38),
        (-small(0.25, 0.0), small(1e-38, 1e-37), 2e-38),
    ],
    ids=[
        "what weights lost",
        "what residuals lost",
        "nothing lost but in sums",
        "any",
        "rounded by a large bias",
        "too small for products of bf16",
        "too small for a scale",
    ],
)
def test_a_latent_that_is_just_above_its_threshold_is_never_screened_out(encoder_FD, x_TD, bias):
    free = with_thresholds(encoder_FD, torch.zeros(160), bias)
    pre_F = free.read(x_TD, torch.arange(160)).diagonal()
    on = pre_F > 0
    assert on.sum() > 50
    below_F = torch.where(on, torch.nextafter(pre_F, torch.zeros(160)), torch.zeros(160))
    assert torch.equal(with_thresholds(encoder_FD, below_F, bias).encode(x_TD).diagonal(), pre_F)
    assert not with_thresholds(encoder_FD, pre_F, bias).encode(x_TD).diagonal().any()


@pytest.mark.parametrize(
    ("encoder_FD", "x_FD"),
    [(rough(), along_lost_weights(rough())), (even(), along_lost_residuals(even()))],
    ids=["weights", "residuals"],
)
def test_a_screened_product_is_off_by_less_than_is_said_and_not_by_far_less(encoder_FD, x_FD):
    screen, kept_FD, exact_FD = EncoderScreen.of(encoder_FD), in_bytes(x_FD), x_FD.double()
    apart_F = ((encoder_FD.double() * exact_FD).sum(-1) - (screened(encoder_FD) * kept_FD).sum(-1)).abs()
    lost_F = (exact_FD - kept_FD).norm(dim=-1)
    said_F = screen.slack_F.double() * exact_FD.norm(dim=-1) + screen.spread_F.double() * lost_F
    assert (apart_F <= said_F).all()
    assert (apart_F > 0.5 * said_F).any()


def test_what_is_read_of_all_is_what_each_latent_is_by_itself():
    encoder_FD, x_TD = rough(), residuals(MOST_TOKENS + 3) * 2
    made = with_thresholds(encoder_FD, torch.full((160,), 3.0))
    found = made.encode(x_TD)
    assert 0 < (found > 0).sum() < 0.5 * found.numel()
    assert torch.equal(found, made.read(x_TD, torch.arange(160)))
    exact_TF = x_TD.double() @ encoder_FD.double().T + 0.125
    torch.testing.assert_close(found.double(), exact_TF * (exact_TF > 3.0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("encoder_FD", [rough(528), rough() * 1e-9, rough() * 1e8], ids=["many", "small", "large"])
def test_all_that_is_on_is_found_with_more_latents_and_other_scales(encoder_FD):
    """Scales of small weights are 0 in fp16, of large ones infinite."""
    x_TD = residuals(MOST_TOKENS + 3)
    found = with_thresholds(encoder_FD, torch.zeros(len(encoder_FD))).encode(x_TD)
    exact_TF = x_TD.double() @ encoder_FD.double().T + 0.125
    torch.testing.assert_close(found.double(), exact_TF.clamp(min=0), rtol=1e-4, atol=1e-5 * float(exact_TF.max()))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_residual_that_is_not_finite_is_read_in_full(value):
    made, x_TD = with_thresholds(rough(), torch.full((160,), 3.0)), residuals(2)
    x_TD[0, 7] = value
    latents_F = made.encode(x_TD)[0]
    assert (latents_F != 0).any()
    assert torch.equal(latents_F.isnan(), made.read(x_TD, torch.arange(160))[0].isnan())
    assert not latents_F[latents_F != 0].isfinite().any()
    assert made.encode(x_TD)[1].isfinite().all()


# --- what C would not notice ---


def test_latents_are_those_that_were_asked_for_however_they_lie():
    made, x_TD = NativeSAE.of(sae("relu"), parts.library()), residuals(3)
    every = made.encode(x_TD)
    for watched in (torch.arange(10)[::2], torch.tensor([7]).expand(4), [5, 5, 0], torch.empty(0, dtype=torch.long)):
        assert torch.equal(made.read(x_TD, watched), every[:, torch.as_tensor(watched, dtype=torch.long)])
    assert torch.equal(made.read(residuals(6)[::2], [1]), made.encode(residuals(6))[::2, [1]])


@pytest.mark.parametrize("watched", [[-1], [160], [3, 2**40]])
def test_latents_that_are_not_there_are_refused(watched):
    made = NativeSAE.of(sae("relu"), parts.library())
    with pytest.raises(IndexError, match=r"watched must lie in 0\.\.159, got \["):
        made.read(residuals(3), watched)


@pytest.mark.parametrize("read", [lambda made, x: made.encode(x), lambda made, x: made.read(x, [1])])
@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_residuals_of_another_width_are_refused(activation, read):
    made = NativeSAE.of(sae(activation), parts.library())
    with pytest.raises(ValueError, match=r"must have shape \[[TM], 96\], got \[2, 64\]"):
        read(made, residuals(2, width=64))


def test_memory_is_counted():
    wide = NativeSAE.of(sae("relu"), parts.library())
    assert wide.num_bytes == 160 * 96 * (1 + 2) + 160 * 3 * 2  # numbers, weights, and scales of groups
    assert NativeSAE.of(sae("topk"), parts.library()).num_bytes == 160 * 96 * 2
