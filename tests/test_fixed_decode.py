"""Decode passes of fixed shapes give what passes of any shape give: tokens, readings, steered rows, probes."""

from dataclasses import replace

import pytest
import tiny
import torch
from test_engine import Reply, request, submit

from sae_runtime.errors import TapError
from sae_runtime.language_model import LanguageModel, wrap_model
from sae_runtime.latent_reader import NoDictionary
from sae_runtime.static_reading import StaticReading
from sae_runtime.steering import Steering, steer_rows
from sae_runtime.steering_spec import PositionScope, SteeringOp, SteeringSpec
from service.fixed_decode import FixedDecode
from service.pass_output import RowInput

PROBES = (tiny.probe("early", "layers.0.output", seed=1), tiny.probe("at_the_dictionary", "layers.1.output", seed=4))
ADD = (SteeringSpec(3, SteeringOp.ADD, 6.0, scope=PositionScope.GENERATED),)
ALWAYS = (SteeringSpec(17, SteeringOp.ADD, -4.0), SteeringSpec(40, SteeringOp.PROJECT_OUT))


def model_on(device: str = "cpu", **settings) -> LanguageModel:
    """A model of its own, since taps stay on it."""
    made = tiny.language_model(**settings)
    return wrap_model(
        made.model.to(device),
        made.tokenizer,
        name="tiny",
        sha256="0" * 64,
        quantization="none",
        dtype=torch.float32,
        device=device,
    )


def requests(model):
    """Of every kind, of different lengths, so that rows join and leave."""
    return [
        request(model, "The sea was calm.", request_id="plain", max_tokens=14, top_features=3),
        request(model, "A", request_id="short", max_tokens=5, include_logprobs=True),
        request(model, "It rained.", request_id="steered", max_tokens=9, steering=ADD),
        request(model, "She said that she was", request_id="always", max_tokens=11, steering=ALWAYS),
        request(model, "Many a day", request_id="sampled", max_tokens=12, sampling={"temperature": 0.8, "seed": 5}),
        request(model, "Late.", request_id="late", max_tokens=20),
        request(model, "Again", request_id="penalised", max_tokens=8, sampling={"repetition_penalty": 1.3}),
    ]


def replies(model, dictionary, made_requests=None, **settings) -> list[Reply]:
    engine = tiny.engine(model, dictionary, probes=PROBES, **settings)
    submissions = submit(engine, *(made_requests or requests(model)))
    while engine.num_active:
        engine.step()
    return [Reply(submission) for submission in submissions]


def assert_same(found: list[Reply], wanted: list[Reply], tolerance=1e-4) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.failure is None and theirs.failure is None
        assert [t.id for t in ours.tokens] == [t.id for t in theirs.tokens]
        for one, other in zip(ours.tokens, theirs.tokens, strict=True):
            close = dict(rel=tolerance, abs=tolerance)
            assert one.readings == pytest.approx(other.readings, **close)
            assert one.steered_readings == pytest.approx(other.steered_readings, **close)
            assert [i for i, _ in one.top_features] == [i for i, _ in other.top_features]
            assert [v for _, v in one.top_features] == pytest.approx([v for _, v in other.top_features], **close)
            assert (one.l0, one.off_scale, one.text) == (other.l0, other.off_scale, other.text)
            assert one.fvu == pytest.approx(other.fvu, **close)
            assert (one.logprob is None) == (other.logprob is None)
            assert (one.logprob or 0) == pytest.approx(other.logprob or 0, **close)
        ours, theirs = ours.events[-1], theirs.events[-1]
        assert ours.tapped_tokens == theirs.tapped_tokens
        assert (ours.steering is None) == (theirs.steering is None)
        if ours.steering is not None:
            assert tuple(ours.steering) == pytest.approx(tuple(theirs.steering), rel=1e-3)


def assert_replies_are_those_of_eager_passes(activation: str, device: str, *, architecture="llama", **settings) -> None:
    dictionary = tiny.sae(activation).to(device)
    wanted = replies(model_on(device, architecture=architecture), dictionary)
    assert_same(replies(model_on(device, architecture=architecture), dictionary, with_fixed=True, **settings), wanted)
    # Not for want of difference: steering and sampling change what is written.
    assert len({tuple(reply.ids) for reply in wanted}) == len(wanted)


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk", "batchtopk", "gated"])
def test_replies_are_those_of_passes_of_any_shape(activation):
    assert_replies_are_those_of_eager_passes(activation, "cpu")


@pytest.mark.parametrize("settings", [{"normalization": "layer_norm"}, {"apply_b_dec": False, "scale": 3.0}])
def test_readings_follow_the_dictionarys_maths(settings):
    for activation in ("topk", "jumprelu", "gated"):
        sae = tiny.sae(activation, **settings)
        x_TD = torch.randn(5, tiny.D_MODEL, generator=torch.Generator().manual_seed(3))
        watched = torch.tensor([9, 3, 3])
        for one, other in zip(
            StaticReading(sae).read_tokens(x_TD, watched, 4), sae.read_tokens(x_TD, watched, 4), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def runner(**settings):
    return tiny.model_runner(model_on(), tiny.sae(), with_fixed=True, probes=PROBES, **settings)


IDS = [0, 5, 9, 70, 31]
OTHER_IDS = [0, 44, 3, 8, 120, 9]


def after_prompts(made, slots=(0, 1)):
    for slot, ids in zip(slots, (IDS, OTHER_IDS), strict=True):
        made.forward([RowInput(slot, 0, ids)], [0])
    return [RowInput(slots[0], len(IDS), [12]), RowInput(slots[1], len(OTHER_IDS), [201])]


@pytest.mark.parametrize("slots", [(0, 1), (3, 1)])
def test_readings_probes_and_logits_are_those_of_the_usual_pass(slots):
    made = runner()
    rows = after_prompts(made, slots)
    found = made.decode(rows, [3, 17, 40], num_top=5, with_probes=True)
    wanted = made.forward(rows, [3, 17, 40], num_top=5, with_probes=True)  # writes the same keys and values again
    on_host = made.fetch(wanted, ())
    torch.testing.assert_close(found.logits_BTV, wanted.logits_BTV, rtol=1e-4, atol=1e-4)
    for name, one, other in zip(on_host.stats._fields, found.stats, on_host.stats, strict=True):
        one, other = torch.tensor(one), torch.tensor(other)
        torch.testing.assert_close(one[:, :5] if "top" in name else one, other, rtol=1e-4, atol=1e-4)
    assert found.greedy.tokens_B.tolist() == wanted.logits_BTV[:, 0].argmax(-1).tolist()
    assert found.num_tapped == 2


def test_probes_that_nobody_asked_for_are_not_shown_and_fail_nobody():
    made = tiny.model_runner(
        model_on(), tiny.sae(), with_fixed=True, probes=[tiny.probe("huge", "layers.0.output", bias=3.4e38)]
    )
    made.probes._groups[0].biases_P.fill_(torch.inf)
    rows = after_prompts(made)
    assert made.decode(rows, [0]).stats.probes_NP.shape == (2, 0)
    assert made.decode(rows, [0]).stats.finite_N.all()
    assert not made.decode(rows, [0], with_probes=True).stats.finite_N.any()


def test_padding_and_other_slots_are_left_alone():
    """Three rows in a pass made for four: neither a slot that is free nor one that another row has is written to."""
    made = runner()
    rows = after_prompts(made)
    made.forward([RowInput(3, 0, IDS)], [0])
    rows.append(RowInput(3, len(IDS), [9]))
    before = [tensor.clone() for tensor in (*made.cache.keys, *made.cache.values)]
    made.decode(rows, [0])
    last = made.cache.num_positions
    for old, new in zip(before, (*made.cache.keys, *made.cache.values), strict=True):
        changed = (old != new).any(1).any(-1)  # [S, L]
        assert changed[:, :last].nonzero().tolist() == [[0, 5], [1, 6], [3, 5]]
        assert new.isfinite().all()


def test_a_row_that_is_not_finite_stays_alone():
    made = runner()
    rows = after_prompts(made)
    alone = made.decode(rows[1:], [3]).logits_BTV.clone()
    made.cache.values[0][0, :, 2] = torch.nan
    output = made.decode(rows, [3])
    assert output.stats.finite_N.tolist() == [0, 1]
    assert output.greedy.finite_B.tolist() == [0, 1]
    torch.testing.assert_close(output.logits_BTV[1:], alone, rtol=1e-4, atol=1e-4)


def test_a_steered_row_is_changed_by_the_same_amount_and_its_neighbour_not_at_all():
    made = runner()
    rows = after_prompts(made)
    plain = made.decode(rows, [3]).logits_BTV.clone()
    steering = Steering(made.sae, len(IDS), tiny.limits(made.sae))
    steering.add(ADD)
    rows[0] = replace(rows[0], steering=steering)
    found = made.decode(rows, [3])
    ours = made.fetch(found, ())
    wanted = made.fetch(made.forward(rows, [3]), ())
    for one, other in zip(ours.steered[0], wanted.steered[0], strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-4, atol=1e-4)
    assert list(ours.steered) == [0] and ours.steered[0].relative_T[0] > 0.1
    assert not torch.allclose(found.logits_BTV[0], plain[0], atol=0.1)
    torch.testing.assert_close(found.logits_BTV[1], plain[1], rtol=1e-4, atol=1e-4)
    # Nothing of it is left in the next pass.
    rows[0] = replace(rows[0], steering=None)
    torch.testing.assert_close(made.decode(rows, [3]).logits_BTV, plain, rtol=1e-4, atol=1e-4)


def test_steered_rows_of_several_tokens_are_each_what_it_is_alone():
    def row(slot, *window):
        steering = Steering(made.sae, len(IDS), tiny.limits(made.sae))
        steering.add([SteeringSpec(3, SteeringOp.ADD, 6.0 + slot, window=window)])
        return RowInput(slot, 0, IDS, steering)

    made = runner()
    rows = [row(0, 1, 3), RowInput(1, 0, IDS), row(2, 2, 5)]
    found = made.forward(rows, [3, 17])
    assert list(found.steered) == [0, 2]
    assert [found.steered[b].covered_T.tolist() for b in (0, 2)] == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]]
    for b in (0, 2):
        alone = made.forward(rows[b : b + 1], [3, 17])
        for one, other in zip(found.steered[b], alone.steered[0], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.logits_BTV[b], alone.logits_BTV[0], rtol=1e-4, atol=1e-4)


def test_a_row_that_steering_makes_infinite_in_one_place_is_told(monkeypatch):
    def overflowing(rows, resid_BTD):
        edited_BTD = steer_rows(rows, resid_BTD)
        edited_BTD[0, 0, 5] = torch.inf
        return edited_BTD

    monkeypatch.setattr("service.pass_readers.steer_rows", overflowing)
    made = runner()
    rows = after_prompts(made)
    steering = Steering(made.sae, len(IDS), tiny.limits(made.sae))
    steering.add(ADD)
    rows[1] = replace(rows[1], steering=steering)
    assert made.decode(rows, [3]).stats.finite_N.tolist() == [1, 0]


def test_a_pass_that_the_hook_did_not_count_is_refused():
    made = runner()
    rows = after_prompts(made)
    made.decode(rows, [0])
    ((shape, (step, _)),) = made.fixed._steps.items()
    with torch.inference_mode():
        step._received_BW[:, -1] = 0  # what comes back from a pass that was recorded without the hook
    made.fixed._steps[shape] = step, lambda _between: None
    with pytest.raises(TapError, match="must count 2 tokens, got 0"):
        made.decode(rows, [0])


def test_a_model_without_a_dictionary_is_decoded_too():
    nothing = NoDictionary(torch.device("cpu"))
    made = tiny.model_runner(model_on(), nothing, with_fixed=True, probes=PROBES)
    rows = after_prompts_without(made)
    found, wanted = made.decode(rows, [], with_probes=True), made.forward(rows, [], with_probes=True)
    assert found.greedy is not None and found.stats.readings_NU.shape == (2, 0)
    torch.testing.assert_close(torch.tensor(found.stats.probes_NP), wanted.stats.probes_NP, rtol=1e-4, atol=1e-4)


def after_prompts_without(made):
    for slot, ids in enumerate((IDS, OTHER_IDS)):
        made.forward([RowInput(slot, 0, ids)], [])
    return [RowInput(0, len(IDS), [12]), RowInput(1, len(OTHER_IDS), [201])]


def test_few_shapes_serve_all_passes_and_too_much_takes_the_usual_way():
    assert FixedDecode.row_counts(1) == [1] and FixedDecode.row_counts(12) == [1, 2, 4, 8, 16]
    made = runner()
    rows = after_prompts(made)
    for latents in ([0], list(range(64)), [5, 6]):
        made.decode(rows, latents)
    assert len(made.fixed._steps) == 1
    made.decode(rows, [0], num_top=2)
    made.decode(rows[:1], [0])
    assert len(made.fixed._steps) == 3
    assert made.decode(rows, [0] * 5000).greedy is None


def test_where_recording_fails_passes_are_run_eagerly_from_then_on(caplog):
    def record(_step):
        raise RuntimeError("no such device")

    made = runner()
    made.fixed = FixedDecode(made.fixed.machinery, torch.device("cpu"), record=record)
    assert made.passes == "CUDA graphs"
    rows = after_prompts(made)
    assert made.decode(rows, [0]).greedy is None
    assert made.passes == "transformers (recording CUDA graphs failed, see the log)"
    assert "no such device" in caplog.text


def test_what_is_warmed_up_is_what_ordinary_passes_take():
    made = runner()
    made.warm_up()
    prepared = set(made.fixed._steps)
    assert {shape.num_rows for shape in prepared} == {1, 2, 4}
    made.decode(after_prompts(made), list(range(20)))
    assert set(made.fixed._steps) == prepared
