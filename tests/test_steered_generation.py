"""Steering offline is steering in the server: the same tokens, readings and report for the same request."""

from dataclasses import replace

import pytest
import tiny
import torch
from test_engine import WATCHED, Reply, request, run_one

from discovery.errors import SteerError
from discovery.steered_generation import Continuation, Row, continue_prompt
from discovery.steering_bench import Bench, edit_rows
from discovery.steering_trial import try_steering
from sae_runtime.errors import SteeringError
from sae_runtime.steering_spec import PositionScope, SteeringOp, SteeringSpec, StrengthUnit
from sae_runtime.tap import Tap

TEXT, NUM = "The sea was calm.", 12
LATENT = WATCHED[0]
VECTOR = tuple(torch.randn(tiny.D_MODEL, generator=torch.Generator().manual_seed(2)).tolist())
SPECS = {
    "plain": (),
    "add": (SteeringSpec(LATENT, SteeringOp.ADD, 6.0),),
    "set, generated": (SteeringSpec(LATENT, SteeringOp.SET, 9.0, scope=PositionScope.GENERATED),),
    "scale, not at 0": (SteeringSpec(LATENT, SteeringOp.SCALE, 30.0, window=(1, 2**31 - 1)),),
    "relative vector": (SteeringSpec(VECTOR, SteeringOp.ADD, 0.6, StrengthUnit.RELATIVE),),
    "two": (SteeringSpec(LATENT, SteeringOp.ADD, -4.0), SteeringSpec(17, SteeringOp.PROJECT_OUT)),
}


@pytest.fixture
def bench(model, dictionary):
    tap = Tap(model.model, tiny.HOOK_POINT, tiny.D_MODEL)
    yield Bench(replace(model, eos_token_ids=frozenset()), tap, dictionary, tiny.limits(dictionary))
    tap.remove()


def read(bench):
    return lambda resid_TD: bench.sae.read(resid_TD, [LATENT])[:, 0]


def write(bench, *rows: Row, **settings) -> list[Continuation]:
    ids = bench.text_ids(TEXT)
    return continue_prompt(bench, ids, rows, **({"max_tokens": NUM, "read": read(bench)} | settings))


def served(model, dictionary, specs, **sampling) -> Reply:
    req = request(model, TEXT, max_tokens=NUM, include_prompt=True, steering=specs, sampling=sampling)
    return run_one(model, dictionary, req)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 5}], ids=["greedy", "sampled"])
def test_every_row_is_what_the_server_writes_and_reads(bench, model, dictionary, sampling):
    rows = [Row(specs, sampling.get("seed")) for specs in SPECS.values()]
    written = write(bench, *rows, temperature=sampling.get("temperature", 1.0))
    for specs, found in zip(SPECS.values(), written, strict=True):
        reply = served(model, dictionary, specs, **sampling)
        assert found.ids == reply.ids
        readings = [token.readings[0] for token in reply.tokens]
        assert found.readings == pytest.approx(readings, rel=1e-4, abs=1e-4)
        steered = [(token.steered_readings or token.readings)[0] for token in reply.tokens]
        assert found.steered_readings == pytest.approx(steered, rel=1e-4, abs=1e-4)
        if specs:
            assert found.report == pytest.approx(reply.finished.steering, rel=1e-4)
    assert len({tuple(found.ids) for found in written}) > 3


def test_a_row_is_what_it_is_alone(bench):
    rows = [Row(specs, seed) for specs in SPECS.values() for seed in (None, 1)]
    for row, together in zip(rows, write(bench, *rows), strict=True):
        (alone,) = write(bench, row)
        assert alone.ids == together.ids
        assert alone.logprobs == pytest.approx(together.logprobs, abs=1e-4)


def test_logprobs_are_those_of_the_model_that_wrote(bench):
    (found,) = write(bench, Row(SPECS["add"]))
    ids = [*bench.text_ids(TEXT), *found.ids]
    steering = bench.steering(SPECS["add"], len(bench.text_ids(TEXT)))
    with torch.inference_mode(), bench.tap.step(len(ids), edit_rows([lambda h: steering.apply(h, 0)])):
        logits_TV = bench.lm.model(torch.tensor([ids])).logits[0]
    wanted = [float(logits_TV[i - 1].log_softmax(-1)[ids[i]]) for i in range(len(ids) - NUM, len(ids))]
    assert found.logprobs == pytest.approx(wanted, abs=1e-4)


def test_an_end_of_sequence_token_is_neither_read_nor_counted(bench):
    plain, pushed = write(bench, Row(), Row(SPECS["add"]))
    end = next(i for i, token in enumerate(plain.ids) if i and token not in plain.ids[:i] and token not in pushed.ids)
    ending = replace(bench, lm=replace(bench.lm, eos_token_ids=frozenset({plain.ids[end]})))
    ended, going_on = write(ending, Row(), Row(SPECS["add"]))
    assert ended.ids == plain.ids[:end] and ended.is_ended
    assert len(ended.readings) == len(bench.text_ids(TEXT)) + end
    assert going_on.ids == pushed.ids and not going_on.is_ended


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, r"tokens must lie in 1\.\.\d+"),
        ({"max_tokens": tiny.NUM_POSITIONS}, "got 256"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0"),
    ],
)
def test_what_cannot_be_written_is_refused(bench, settings, message):
    with pytest.raises(SteerError, match=message):
        write(bench, Row(), **settings)


def test_what_the_server_refuses_is_refused(bench):
    with pytest.raises(SteeringError, match=r"strength must move the residual by at most 20 times"):
        write(bench, Row((SteeringSpec(LATENT, SteeringOp.ADD, 1e5),)))


def test_logits_that_are_no_numbers_end_it(bench):
    def nonsense(resid_BTD):
        return torch.full_like(resid_BTD, torch.nan)

    handle = bench.lm.model.model.layers[-1].register_forward_hook(lambda *args: nonsense(args[-1]))
    try:
        with pytest.raises(SteerError, match="logits must be finite"):
            write(bench, Row())
    finally:
        handle.remove()


def test_a_trial_steers_from_the_last_prompt_token_on(bench):
    ids = bench.chat_ids("Hello.")
    trial = try_steering(bench, LATENT, 30.0, "Hello.", num_tokens=NUM)
    plain, steered = continue_prompt(
        bench,
        ids,
        [Row(), Row((SteeringSpec(LATENT, SteeringOp.ADD, 30.0, window=(len(ids) - 1, len(ids) + NUM)),))],
        max_tokens=NUM,
        read=read(bench),
    )
    decode = bench.lm.tokenizer.decode
    assert (trial.plain, trial.steered) == (decode(plain.ids), decode(steered.ids))
    assert trial.plain != trial.steered
