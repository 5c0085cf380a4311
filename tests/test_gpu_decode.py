"""Decode passes played as CUDA graphs over fused blocks: what eager passes give, and the tap is in the graph."""

import pytest
import tiny
import torch
from test_fixed_decode import ADD, PROBES, after_prompts, assert_replies_are_those_of_eager_passes, model_on

from sae_runtime.errors import TapError
from sae_runtime.static_reading import StaticReading
from sae_runtime.steering import Steering

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("activation", ["topk", "jumprelu", "gated"])
def test_replies_are_those_of_eager_passes(activation, architecture):
    assert_replies_are_those_of_eager_passes(activation, "cuda", architecture=architecture, recorded=True)


def recorded_runner(**settings):
    dictionary = tiny.sae().to("cuda")
    return tiny.model_runner(
        model_on("cuda"), dictionary, with_fixed=True, recorded=True, probes=PROBES, num_slots=8, **settings
    )


def test_readings_probes_and_logits_are_those_of_the_eager_pass():
    made = recorded_runner()
    rows = after_prompts(made, (3, 1))
    for _ in range(3):  # recorded, then played
        found = made.decode(rows, [3, 17, 40], num_top=5, with_probes=True)
        wanted = made.forward(rows, [3, 17, 40], num_top=5, with_probes=True)
        on_host = made.fetch(wanted, ())
        torch.testing.assert_close(found.logits_BTV, wanted.logits_BTV, rtol=1e-3, atol=1e-3)
        for name, one, other in zip(on_host.stats._fields, found.stats, on_host.stats, strict=True):
            one, other = torch.tensor(one), torch.tensor(other)
            torch.testing.assert_close(one[:, :5] if "top" in name else one, other, rtol=1e-3, atol=1e-3, msg=name)


def test_the_graph_itself_counts_the_rows_that_pass_the_tap():
    made = recorded_runner()
    rows = after_prompts(made)
    rows += [type(rows[0])(slot, 4, [7 + slot]) for slot in (2, 3, 4)]
    made.decode(rows, [0])
    ((step, play),) = made.fixed._steps.values()
    for number in (5, 1, 3):
        step.fill([3] * number, list(range(number)), [4] * number, [0])
        with torch.inference_mode():
            step._received_BW.zero_()
            play(None)
        # No Python of the model or of its hooks has run since it was recorded.
        assert step.result(number).num_tapped == number


def test_a_hook_that_is_not_there_when_a_pass_is_recorded_is_missed():
    made = recorded_runner()
    rows = after_prompts(made)
    made.tap.remove()
    with pytest.raises(TapError, match="must see 2 tokens, got 0"):  # from the eager pass that is tried then
        made.decode(rows, [0])
    assert made.passes.startswith("transformers")


def test_a_steered_row_is_that_of_the_eager_pass():
    made = recorded_runner()
    rows = after_prompts(made)
    plain = made.decode(rows, [3]).logits_BTV.clone()
    rows[0].steering = Steering(made.sae, 5, tiny.limits(made.sae))
    rows[0].steering.add(ADD)
    found = made.decode(rows, [3])
    ours, logits = made.fetch(found, ()), found.logits_BTV.clone()
    wanted = made.forward(rows, [3])
    theirs = made.fetch(wanted, ())
    for one, other in zip(ours.steered[0], theirs.steered[0], strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits, wanted.logits_BTV, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(logits[0], plain[0], atol=0.1)
    rows[0].steering = None
    torch.testing.assert_close(made.decode(rows, [3]).logits_BTV, plain)


@pytest.mark.parametrize("num_rows", [1, 2, 8, 33, 100])
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(64, 96), (3072, 1024), (8192, 320)])
def test_nf4_products_are_those_of_the_dequantised_weights(num_rows, num_inputs, num_outputs):
    """In fp64 the difference is the rounding of the result, and of the weights where there is one row."""
    functional = pytest.importorskip("bitsandbytes.functional")
    from sae_runtime.kernels import nf4

    generator = torch.Generator("cuda").manual_seed(1)
    weight = torch.randn(num_outputs, num_inputs, device="cuda", generator=generator).to(torch.bfloat16)
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    absmax = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    x = torch.randn(num_rows, num_inputs, device="cuda", generator=generator).to(torch.bfloat16)
    bias = torch.randn(num_outputs, device="cuda", generator=generator).to(torch.bfloat16)
    arrived = torch.zeros(1024, dtype=torch.int32, device="cuda")
    dequantised = functional.dequantize_4bit(packed, state).double()
    for its_bias in (None, bias):
        wanted = x.double() @ dequantised.T + (0 if its_bias is None else its_bias.double())
        args = (x, packed.view(-1), absmax.view(num_outputs, -1), state.code, its_bias, arrived)
        found = nf4.multiply(*args)
        assert (found.double() - wanted).norm() / wanted.norm() < 4e-3
        assert torch.equal(found, nf4.multiply(*args))  # the same sums in the same order
        assert not arrived.any()


def test_pre_activations_with_weights_in_bf16_are_those_of_fp32():
    dictionary = tiny.sae("topk", d_model=1024).to("cuda")
    dictionary.W_enc.data = dictionary.W_enc.to(torch.bfloat16).to(torch.float32)
    reading = StaticReading(dictionary)
    assert reading.num_bytes
    x_TD = 50 * torch.randn(40, 1024, device="cuda", generator=torch.Generator("cuda").manual_seed(2))
    found = reading._preactivate(dictionary, x_TD).double()
    centred_TD, weight = dictionary.centre(dictionary.normalize(x_TD)), dictionary.W_enc.double()
    wanted = centred_TD.double() @ weight + dictionary.b_enc.double()
    rounded = centred_TD.to(torch.bfloat16).double() @ weight + dictionary.b_enc.double()
    error, error_of_bf16 = ((pre - wanted).norm() / wanted.norm() for pre in (found, rounded))
    assert error < 2e-5 and error < error_of_bf16 / 50
