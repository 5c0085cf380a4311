"""splicing: what the model loses, against computations from its own logits."""

import pytest
import tiny
import torch

from discovery.splicing import measure_splicing, replacements
from sae_runtime.tap import Tap

MEAN = torch.linspace(-1, 1, tiny.D_MODEL)


@pytest.fixture
def tap(model):
    tap = Tap(model.model, tiny.HOOK_POINT, model.d_model)
    yield tap
    tap.remove()


@pytest.fixture
def perfect():
    """A dictionary that returns what it is given: one pair of latents for each axis."""
    made = tiny.sae("relu")
    with torch.no_grad():
        made.b_dec.zero_()
        made.b_enc.zero_()
        eye = torch.eye(tiny.D_MODEL)
        made.W_enc.copy_(torch.cat([eye, -eye], dim=1))
        made.W_dec.copy_(torch.cat([eye, -eye]))
    return made


def test_a_perfect_dictionary_recovers_everything(model, perfect, tap):
    ids_BT = torch.randint(3, 200, (4, 20), generator=torch.Generator().manual_seed(0))
    figures = measure_splicing(model, perfect, [ids_BT], tap).figures()
    assert figures["cross_entropy_recovered"] == pytest.approx(1, abs=1e-4)
    assert figures["cross_entropy_recovered_from_mean"] == pytest.approx(1, abs=1e-4)
    assert figures["predictions"] == 4 * 18


def test_clean_cross_entropy_is_the_models_own(model, dictionary, tap):
    ids_BT = torch.randint(3, 200, (2, 15), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits_BTV = model.model(input_ids=ids_BT).logits
    log_probs = logits_BTV.log_softmax(-1)[:, 1:-1].gather(2, ids_BT[:, 2:, None])
    sums = measure_splicing(model, dictionary, [ids_BT], tap)
    assert sums.figures()["cross_entropy_clean"] == pytest.approx(-float(log_probs.mean()), rel=1e-5)
    assert len(set(sums.cross_entropy.values())) == 4


def test_position_0_is_left_alone(dictionary):
    resid_BTD = torch.randn(2, 6, tiny.D_MODEL)
    for name, edit in replacements(dictionary, MEAN).items():
        if edit is None:
            assert name == "clean"
            continue
        edited_BTD = edit(resid_BTD)
        assert torch.equal(edited_BTD[:, 0], resid_BTD[:, 0])
        assert not torch.isclose(edited_BTD[:, 1:], resid_BTD[:, 1:]).all()
    assert torch.equal(edited_BTD[1, 3], MEAN)


def test_kl_is_torchs_own_between_the_clean_and_the_spliced_model(model, dictionary, tap):
    ids_BT = torch.randint(3, 200, (2, 15), generator=torch.Generator().manual_seed(1))
    logprobs = {}
    with torch.inference_mode():
        for name, edit in replacements(dictionary, MEAN).items():
            with tap.step(ids_BT.numel(), edit):
                logprobs[name] = model.model(input_ids=ids_BT).logits[:, 1:-1].flatten(0, 1).log_softmax(-1)
    figures = measure_splicing(model, dictionary, [ids_BT], tap, mean_D=MEAN).figures()
    for name, key in (("sae", "kl_sae"), ("zero", "kl_zero_ablated"), ("mean", "kl_mean_ablated")):
        wanted = torch.nn.functional.kl_div(logprobs[name], logprobs["clean"], log_target=True, reduction="batchmean")
        assert figures[key] == pytest.approx(float(wanted), rel=1e-4)
        assert figures[key] > 0


def slow_cross_entropy(model, ids, replace):
    """Nats over the predictions of one context, the residual replaced by a hook of torch's own, token by token."""

    def hook(_module, _args, output):
        resid_1TD = (output[0] if isinstance(output, tuple) else output).clone()
        for position in range(1, resid_1TD.shape[1]):
            resid_1TD[0, position] = replace(resid_1TD[0, position])
        return (resid_1TD, *output[1:]) if isinstance(output, tuple) else resid_1TD

    handle = model.model.model.layers[tiny.HOOK_POINT.layer].register_forward_hook(hook)
    try:
        with torch.inference_mode():
            logits_TV = model.model(input_ids=ids[None]).logits[0].double()
    finally:
        handle.remove()
    nats = [float(logits_TV[i].logsumexp(0) - logits_TV[i, ids[i + 1]]) for i in range(1, len(ids) - 1)]
    return sum(nats), len(nats)


def test_every_cross_entropy_is_that_of_a_slow_pass_of_its_own(model, dictionary, tap):
    ids_BT = torch.randint(3, 200, (3, 9), generator=torch.Generator().manual_seed(5))
    replaces = {
        "clean": lambda x_D: x_D,
        "sae": lambda x_D: dictionary.decode(dictionary.encode(x_D[None]))[0],
        "zero_ablated": torch.zeros_like,
        "mean_ablated": lambda _: MEAN,
    }
    ce = {}
    for name, replace in replaces.items():
        nats, counts = zip(*(slow_cross_entropy(model, ids, replace) for ids in ids_BT), strict=True)
        ce[name] = sum(nats) / sum(counts)
    figures = measure_splicing(model, dictionary, ids_BT.split(2), tap, mean_D=MEAN).figures()
    assert figures["predictions"] == 3 * 7
    for name, wanted in ce.items():
        assert figures[f"cross_entropy_{name}"] == pytest.approx(wanted, rel=1e-5)
    recovered = (ce["zero_ablated"] - ce["sae"]) / (ce["zero_ablated"] - ce["clean"])
    from_mean = (ce["mean_ablated"] - ce["sae"]) / (ce["mean_ablated"] - ce["clean"])
    assert figures["cross_entropy_recovered"] == pytest.approx(recovered, rel=1e-3)
    assert figures["cross_entropy_recovered_from_mean"] == pytest.approx(from_mean, rel=1e-3)


def test_sums_of_two_batches_are_the_sums_of_both(model, dictionary, tap):
    ids_BT = torch.randint(3, 200, (4, 15), generator=torch.Generator().manual_seed(1))
    whole = measure_splicing(model, dictionary, [ids_BT], tap)
    parts = [measure_splicing(model, dictionary, [part], tap) for part in (ids_BT[:1], ids_BT[1:])]
    both = parts[0] + parts[1]
    assert both.num_predictions == whole.num_predictions
    assert both.cross_entropy == pytest.approx(whole.cross_entropy, rel=1e-5)
    assert both.kl == pytest.approx(whole.kl, rel=1e-4)
