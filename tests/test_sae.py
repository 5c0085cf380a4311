"""The dictionary's maths against a plain-Python reference, latent by latent; then each property by itself."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_runtime.sae import ACTIVATIONS, NORMALIZATIONS, SAE

D, F, T, K = 6, 10, 5, 3

every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
every_normalization = pytest.mark.parametrize("normalization", NORMALIZATIONS)


def random_sae(activation="relu", *, seed=0, d_model=D, num_latents=F, k=K, **settings) -> SAE:
    """Random in every tensor, about half of the latents firing."""
    generator = torch.Generator().manual_seed(seed)
    sae = SAE(d_model=d_model, num_latents=num_latents, activation=activation, k=k, **settings)
    for name, tensor in sae.state_dict().items():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
        if name == "threshold":
            tensor.abs_()
    return sae.requires_grad_(False)


def identity_sae(activation="relu", *, width=4, **settings) -> SAE:
    """Each latent is one coordinate of the residual."""
    sae = SAE(d_model=width, num_latents=width, activation=activation, **settings).requires_grad_(False)
    sae.W_enc.copy_(torch.eye(width))
    sae.W_dec.copy_(torch.eye(width))
    return sae


def residuals(num_tokens=T, *, seed=7, d_model=D) -> torch.Tensor:
    return torch.randn(num_tokens, d_model, generator=torch.Generator().manual_seed(seed)) * 2 + 0.3


@dataclass
class Reference:
    """One token, in Python's 64-bit floats, after the equations of the class's docstring."""

    sae: SAE
    x: list[float]

    def __post_init__(self) -> None:
        x, sae = self.x, self.sae
        self.mean, mean = 0.0, sum(x) / len(x)
        match sae.normalization:
            case "scalar":
                self.s_in = self.s_out = sae.scale
            case "constant_norm_rescale":
                self.s_in = self.s_out = math.sqrt(len(x)) / math.sqrt(sum(v * v for v in x))
            case "layer_norm":
                self.mean = mean
                std = math.sqrt(sum((v - mean) ** 2 for v in x) / (len(x) - 1))
                self.s_in, self.s_out = 1 / (std + 1e-5), 1 / std
        self.w = {name: tensor.tolist() for name, tensor in sae.state_dict().items()}

    def latents(self) -> list[float]:
        w, a = self.w, int(self.sae.apply_b_dec)
        z = [self.s_in * (v - self.mean) - a * b for v, b in zip(self.x, w["b_dec"], strict=True)]
        pre = [sum(z[i] * w["W_enc"][i][j] for i in range(len(z))) for j in range(self.sae.num_latents)]
        if self.sae.activation == "gated":
            gate = [p + b > 0 for p, b in zip(pre, w["b_gate"], strict=True)]
            rows = zip(pre, w["r_mag"], w["b_mag"], gate, strict=True)
            return [max(p * math.exp(r) + b, 0.0) if opened else 0.0 for p, r, b, opened in rows]
        pre = [p + b for p, b in zip(pre, w["b_enc"], strict=True)]
        match self.sae.activation:
            case "relu":
                return [max(p, 0.0) for p in pre]
            case "jumprelu":
                return [p if p > max(t, 0.0) else 0.0 for p, t in zip(pre, w["threshold"], strict=True)]
            case "batchtopk":
                return [p if p > max(w["threshold"], 0.0) else 0.0 for p in pre]
            case "topk":
                kept = sorted(range(len(pre)), key=lambda j: -pre[j])[: self.sae.k]
                return [max(p, 0.0) if j in kept else 0.0 for j, p in enumerate(pre)]
        raise AssertionError(self.sae.activation)

    def decoded(self, f: list[float]) -> list[float]:
        rows, bias = self.w["W_dec"], self.w["b_dec"]
        return [
            (sum(f[j] * rows[j][i] for j in range(len(f))) + bias[i]) / self.s_out + self.mean
            for i in range(len(self.x))
        ]


def references(sae: SAE, x_TD: torch.Tensor) -> list[Reference]:
    return [Reference(sae, row) for row in x_TD.tolist()]


def reference_latents(sae: SAE, x_TD: torch.Tensor) -> torch.Tensor:
    return torch.tensor([reference.latents() for reference in references(sae, x_TD)])


def reference_reconstruction(sae: SAE, x_TD: torch.Tensor) -> torch.Tensor:
    return torch.tensor([reference.decoded(reference.latents()) for reference in references(sae, x_TD)])


# --- against the reference ------------------------------------------------------------------------------------------


@every_activation
@every_normalization
@pytest.mark.parametrize("apply_b_dec", [False, True])
def test_equals_the_reference(activation, normalization, apply_b_dec):
    sae = random_sae(activation, normalization=normalization, apply_b_dec=apply_b_dec, scale=0.7)
    x_TD = residuals()
    wanted = reference_latents(sae, x_TD)
    assert 0 < (wanted > 0).sum() < wanted.numel()
    torch.testing.assert_close(sae.encode(x_TD), wanted)
    torch.testing.assert_close(sae.reconstruct(x_TD), reference_reconstruction(sae, x_TD))
    torch.testing.assert_close(sae(x_TD), reference_reconstruction(sae, x_TD))


@every_activation
@every_normalization
def test_read_tokens_equals_the_reference(activation, normalization):
    sae, x_TD = random_sae(activation, normalization=normalization), residuals()
    f = reference_latents(sae, x_TD)
    error = (x_TD - reference_reconstruction(sae, x_TD)).square().sum(-1)
    got = sae.read_tokens(x_TD, torch.tensor([4, 0, 9]), num_top=4)
    torch.testing.assert_close(got.readings_TW, f[:, [4, 0, 9]])
    torch.testing.assert_close(got.top_values_TN, f.sort(dim=-1, descending=True).values[:, :4])
    torch.testing.assert_close(f.gather(-1, got.top_indices_TN), got.top_values_TN)
    assert got.l0_T.tolist() == [sum(value > 0 for value in row) for row in f.tolist()]
    torch.testing.assert_close(got.fvu_T, error / (x_TD - sae.resid_mean).square().sum(-1))


def test_scale_and_decoder_bias_by_hand():
    sae = identity_sae(width=2, scale=0.5)
    sae.b_dec.copy_(torch.tensor([1.0, -1.0]))
    sae.b_enc.copy_(torch.tensor([0.25, 0.0]))
    # (0.5 * [8, 2] - [1, -1]) + [0.25, 0] = [3.25, 2]; ([3.25, 2] + [1, -1]) / 0.5 = [8.5, 2]
    x = torch.tensor([[8.0, 2.0]])
    assert sae.encode(x).tolist() == [[3.25, 2.0]]
    assert sae.reconstruct(x).tolist() == [[8.5, 2.0]]
    sae.apply_b_dec = False
    assert sae.encode(x).tolist() == [[4.25, 1.0]]
    assert sae.reconstruct(x).tolist() == [[10.5, 0.0]]


def test_residuals_of_half_width_are_read_in_32_bits():
    sae, x_TD = random_sae(), residuals().to(torch.bfloat16)
    assert sae.encode(x_TD).dtype == torch.float32
    assert torch.equal(sae.encode(x_TD), sae.encode(x_TD.to(torch.float32)))
    assert torch.equal(sae.reconstruct(x_TD), sae.reconstruct(x_TD.to(torch.float32)))
    halves = sae.read_tokens(x_TD, torch.tensor([0]), num_top=1)
    wholes = sae.read_tokens(x_TD.to(torch.float32), torch.tensor([0]), num_top=1)
    assert torch.equal(halves.fvu_T, wholes.fvu_T)


# --- activations at their edges -------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["jumprelu", "batchtopk"])
def test_threshold_is_strict(activation):
    sae = identity_sae(activation, width=3)
    sae.threshold.fill_(0.5)
    above = float(torch.nextafter(torch.tensor(0.5), torch.tensor(1.0)))
    assert sae.encode(torch.tensor([[0.49, 0.5, above]])).tolist() == [[0.0, 0.0, above]]


@pytest.mark.parametrize("activation", ["jumprelu", "batchtopk"])
def test_negative_threshold_lets_no_negative_latent_through(activation):
    sae = identity_sae(activation, width=3)
    sae.threshold.fill_(-1.0)
    assert sae.encode(torch.tensor([[-0.5, 0.0, 0.25]])).tolist() == [[0.0, 0.0, 0.25]]


def test_jumprelu_has_a_threshold_for_each_latent_and_batchtopk_one_for_all():
    jumprelu, batchtopk = identity_sae("jumprelu", width=3), identity_sae("batchtopk", width=3)
    jumprelu.threshold.copy_(torch.tensor([0.0, 1.0, 3.0]))
    batchtopk.threshold.fill_(1.5)
    x = torch.tensor([[2.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
    assert jumprelu.encode(x).tolist() == [[2.0, 2.0, 0.0], [1.0, 0.0, 0.0]]
    assert batchtopk.encode(x).tolist() == [[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]


def test_topk_keeps_the_k_largest_of_each_token():
    sae = identity_sae("topk", k=2)
    x = torch.tensor([[1.0, 4.0, 3.0, 2.0], [5.0, 0.5, -9.0, 1.0]])
    assert sae.encode(x).tolist() == [[0.0, 4.0, 3.0, 0.0], [5.0, 0.0, 0.0, 1.0]]


def test_topk_with_fewer_than_k_positive_keeps_only_those():
    sae = identity_sae("topk", k=3)
    x = torch.tensor([[-1.0, 4.0, -3.0, -2.0], [-1.0, -2.0, -3.0, -4.0]])
    assert sae.encode(x).tolist() == [[0.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    assert sae.read_tokens(x, torch.tensor([1]), num_top=2).l0_T.tolist() == [1, 0]


def test_topk_of_all_latents_is_relu():
    topk, relu = random_sae("topk", k=F), random_sae("relu")
    assert torch.equal(topk.encode(residuals()), relu.encode(residuals()))


def test_gated_by_hand():
    sae = identity_sae("gated")
    sae.b_gate.copy_(torch.tensor([0.0, 1.0, -2.0, -1.0]))
    sae.b_mag.copy_(torch.tensor([0.5, 3.0, 0.0, 0.0]))
    sae.r_mag.copy_(torch.tensor([math.log(2), 0.0, 0.0, 0.0]))
    # open: 1 * 2 + 0.5; open though z < 0: -0.5 + 3; closed: 2 - 2 is not above 0; open, but the magnitude is below 0
    sae.b_mag[3] = -5.0
    assert sae.encode(torch.tensor([[1.0, -0.5, 2.0, 4.0]])).tolist() == [[2.5, 2.5, 0.0, 0.0]]


# --- reading some latents -------------------------------------------------------------------------------------------


@st.composite
def whole_number_cases(draw: st.DrawFn) -> tuple[SAE, torch.Tensor, list[int]]:
    """Small whole numbers, so that sums are exact in any order and pre-activations often lie on a threshold."""
    d_model, num_latents = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    sae = SAE(
        d_model=d_model,
        num_latents=num_latents,
        activation=draw(st.sampled_from(ACTIVATIONS)),
        k=draw(st.integers(1, num_latents)),
        scale=draw(st.sampled_from([0.5, 1.0, 4.0])),
        apply_b_dec=draw(st.booleans()),
    ).requires_grad_(False)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    for tensor in sae.state_dict().values():
        tensor.copy_(torch.randint(-2, 3, tensor.shape, generator=generator))
    x_TD = torch.randint(-3, 4, (draw(st.integers(0, 4)), d_model), generator=generator).float()
    return sae, x_TD, draw(st.lists(st.integers(0, num_latents - 1), max_size=6))


@settings(deadline=None)
@given(whole_number_cases())
def test_read_equals_the_columns_of_encode(case):
    sae, x_TD, watched = case
    wanted = sae.encode(x_TD)[:, watched]
    assert wanted.shape == (x_TD.shape[0], len(watched))
    assert torch.equal(sae.read(x_TD, watched), wanted)
    assert torch.equal(sae.read(x_TD, torch.tensor(watched, dtype=torch.long)), wanted)
    assert torch.equal(sae.read_tokens(x_TD, torch.tensor(watched, dtype=torch.long), 1).readings_TW, wanted)


@settings(deadline=None)
@given(whole_number_cases())
def test_encode_equals_the_reference_on_whole_numbers(case):
    sae, x_TD, _ = case
    if sae.activation == "topk":  # ties may be broken either way: only the values are determined
        got, wanted = sae.encode(x_TD).sort().values, reference_latents(sae, x_TD)
        assert got.tolist() == (wanted.sort().values.tolist() if len(x_TD) else [])
    else:
        torch.testing.assert_close(sae.encode(x_TD), reference_latents(sae, x_TD).reshape(-1, sae.num_latents))


@every_activation
@every_normalization
def test_read_equals_encode_under_every_normalization(activation, normalization):
    sae, x_TD, watched = random_sae(activation, normalization=normalization), residuals(), [3, 3, 0, 9]
    torch.testing.assert_close(sae.read(x_TD, watched), sae.encode(x_TD)[:, watched])


def test_a_watched_latent_is_read_though_it_is_not_among_the_top():
    sae = identity_sae()
    got = sae.read_tokens(torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.tensor([3]), num_top=2)
    assert got.readings_TW.tolist() == [[1.0]]
    assert got.top_indices_TN.tolist() == [[0, 1]]
    assert got.top_values_TN.tolist() == [[4.0, 3.0]]


def test_top_values_are_zero_where_fewer_are_active():
    got = identity_sae().read_tokens(torch.tensor([[-1.0, 3.0, -2.0, -1.0]]), torch.tensor([0]), num_top=3)
    assert got.top_values_TN.tolist() == [[3.0, 0.0, 0.0]]
    assert got.l0_T.tolist() == [1]


def test_fvu_is_measured_against_the_mean_residual():
    sae = identity_sae(width=2)
    sae.resid_mean.copy_(torch.tensor([1.0, 0.0]))
    # x_hat = [3, 0], so the error is 4^2; the distance from the mean is 2^2 + 4^2.
    assert sae.read_tokens(torch.tensor([[3.0, -4.0]]), torch.tensor([0]), 1).fvu_T.tolist() == pytest.approx([0.8])


# --- decoding -------------------------------------------------------------------------------------------------------


@every_activation
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_sparse_decode_equals_dense_decode(activation, scale):
    sae, x_TD = random_sae(activation, scale=scale), residuals(9)
    torch.testing.assert_close(sae.reconstruct(x_TD), sae.decode(sae.encode(x_TD)))


@pytest.mark.parametrize("active", [[], [0], [F - 1], list(range(F))])
def test_sparse_decode_equals_dense_decode_with_empty_rows_between(active):
    sae = random_sae(scale=2.0)
    f_TF = torch.zeros(4, F)
    f_TF[1, active] = 1.5
    f_TF[3, active] = torch.arange(1.0, len(active) + 1)
    torch.testing.assert_close(sae.reconstruct(residuals(4), f_TF), sae.decode(f_TF))


def test_no_tokens_are_no_tokens():
    sae, x_TD = random_sae(), torch.zeros(0, D)
    assert sae.encode(x_TD).shape == (0, F)
    assert sae.reconstruct(x_TD).shape == (0, D)
    assert sae.read_tokens(x_TD, torch.tensor([1]), 2).top_values_TN.shape == (0, 2)


def test_reconstruct_takes_given_latents():
    sae, x_TD = random_sae(), residuals()
    f_TF = torch.rand(T, F, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(sae.reconstruct(x_TD, f_TF), sae.decode(f_TF))


@pytest.mark.parametrize("normalization", ["constant_norm_rescale", "layer_norm"])
def test_decode_refuses_to_guess_a_tokens_scale(normalization):
    sae = random_sae(normalization=normalization)
    with pytest.raises(ValueError, match=f"{normalization}; use reconstruct"):
        sae.decode(torch.zeros(1, F))


@every_normalization
@pytest.mark.parametrize("amount", [1.0, -2.5])
def test_direction_times_activation_is_the_change_of_the_reconstruction(normalization, amount):
    sae, x_TD, latent = random_sae(normalization=normalization, scale=0.4), residuals(), 6
    f_TF = sae.encode(x_TD)
    more_TF = f_TF.clone()
    more_TF[:, latent] += amount
    change_TD = sae.reconstruct(x_TD, more_TF) - sae.reconstruct(x_TD, f_TF)
    wanted_TD = (amount * sae.directions(torch.tensor([latent]), x_TD)).expand(T, D)
    torch.testing.assert_close(change_TD, wanted_TD, rtol=1e-4, atol=1e-5)


def test_direction_is_the_decoder_row_over_the_scale_without_the_bias():
    sae, x_TD = random_sae(scale=0.25), residuals()
    direction = sae.directions(torch.tensor([2]), x_TD)
    assert torch.equal(direction, sae.W_dec[2][None] * 4)
    sae.b_dec.add_(100.0)
    assert torch.equal(sae.directions(torch.tensor([2]), x_TD), direction)


@pytest.mark.parametrize("normalization", ["constant_norm_rescale", "layer_norm"])
def test_direction_follows_each_tokens_scale(normalization):
    sae, x_TD = random_sae(normalization=normalization), residuals()
    wanted = [[w / token.s_out for w in sae.W_dec[1].tolist()] for token in references(sae, x_TD)]
    torch.testing.assert_close(sae.directions(torch.tensor([1]), x_TD), torch.tensor(wanted))


# --- rounding and training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ["jumprelu", "batchtopk", "gated"])
def test_rounding_changes_the_weights_and_neither_thresholds_nor_the_mean(activation, dtype):
    sae = random_sae(activation)
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    assert sae.to_weights_dtype(dtype) is sae
    for name, tensor in sae.state_dict().items():
        assert tensor.dtype == torch.float32
        rounded = before[name].to(dtype).to(torch.float32)
        assert not torch.equal(rounded, before[name]), name
        assert torch.equal(tensor, before[name] if name in ("threshold", "resid_mean") else rounded), name


def test_rounding_keeps_parameters_trainable():
    sae = SAE(d_model=D, num_latents=F, activation="relu").to_weights_dtype(torch.bfloat16)
    assert all(parameter.requires_grad for parameter in sae.parameters())


@every_activation
@every_normalization
def test_gradients_equal_those_of_the_dense_formula(activation, normalization):
    sae = random_sae(activation, normalization=normalization, scale=0.7).requires_grad_(True)
    x_TD = residuals(8)
    trained = [parameter for name, parameter in sae.named_parameters() if name not in ("threshold", "b_gate")]

    def gradients(x_hat_TD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad((x_TD - x_hat_TD).square().mean(), trained)

    normed = sae.normalize(x_TD)
    z_TD = normed.x_TD - sae.b_dec
    pre_TF = z_TD @ sae.W_enc + (0 if activation == "gated" else sae.b_enc)
    magnitude_TF = pre_TF * sae.r_mag.exp() + sae.b_mag if activation == "gated" else pre_TF
    active_TF = (sae.encode(x_TD) > 0).detach()
    x_hat_TD = (torch.where(active_TF, magnitude_TF, 0.0) @ sae.W_dec + sae.b_dec) / normed.scale_T1 + normed.shift_T1
    for got, wanted in zip(gradients(sae(x_TD)), gradients(x_hat_TD), strict=True):
        assert wanted.abs().sum() > 0
        torch.testing.assert_close(got, wanted)


def test_a_step_of_training_lowers_the_error():
    sae, x_TD = random_sae("topk").requires_grad_(True), residuals(16)
    before = (x_TD - sae(x_TD)).square().mean()
    before.backward()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter -= 0.01 * parameter.grad
    assert (x_TD - sae(x_TD)).square().mean() < before


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "tanh"}, "activation must be one of relu, .*, got 'tanh'"),
        ({"normalization": "batch"}, "normalization must be one of scalar, .*, got 'batch'"),
        ({"activation": "topk"}, r"k must lie in 1\.\.10 for activation topk, got None"),
        ({"activation": "topk", "k": 0}, r"k must lie in 1\.\.10 .* got 0"),
        ({"activation": "topk", "k": F + 1}, r"k must lie in 1\.\.10 .* got 11"),
        ({"scale": 0.0}, "scale must be positive and finite, got 0.0"),
        ({"scale": -1.0}, "scale must be positive and finite, got -1.0"),
        ({"scale": math.nan}, "scale must be positive and finite, got nan"),
        ({"scale": math.inf}, "scale must be positive and finite, got inf"),
    ],
)
def test_refuses_settings_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        SAE(**{"d_model": D, "num_latents": F, "activation": "relu"} | arguments)
