"""Figures of a text against the same computed the slow way."""

import math

import pytest
import tiny
import torch

from discovery.continuation_figures import distinct, perplexity, repetition, reread
from discovery.steered_generation import Row, continue_prompt
from discovery.steering_bench import Bench
from sae_runtime.tap import Tap


@pytest.fixture
def bench(model, dictionary):
    tap = Tap(model.model, tiny.HOOK_POINT, tiny.D_MODEL)
    yield Bench(model, tap, dictionary, tiny.limits(dictionary))
    tap.remove()


def read(bench):
    return lambda resid_TD: bench.sae.read(resid_TD, [3])[:, 0]


def test_texts_of_all_lengths_are_reread_as_one_by_one(bench):
    prompt = bench.text_ids("The sea")
    texts = [list(range(20, 20 + n)) for n in (5, 0, 30, 1, 9, 12, 2, 7, 8, 40)]
    found = reread(bench, prompt, texts, read(bench))
    for text, this in zip(texts, found, strict=True):
        ids = [*prompt, *text]
        with torch.inference_mode():
            output = bench.lm.model(torch.tensor([ids]), output_hidden_states=True)
        logprobs_TV = output.logits[0].log_softmax(-1)
        wanted = [float(logprobs_TV[i - 1, ids[i]]) for i in range(len(prompt), len(ids))]
        assert this.logprobs == pytest.approx(wanted, abs=1e-4)
        resid_TD = output.hidden_states[tiny.HOOK_POINT.hidden_state_index][0, len(prompt) :]
        assert this.readings == pytest.approx(read(bench)(resid_TD).tolist(), abs=1e-3)
        if text:
            assert this.perplexity == pytest.approx(math.exp(-sum(wanted) / len(wanted)), rel=1e-3)
    assert found[1].perplexity is None


def test_an_unsteered_text_is_as_likely_as_it_was_when_written(bench):
    prompt = bench.text_ids("The sea")
    (written,) = continue_prompt(bench, prompt, [Row(seed=1)], max_tokens=15, read=read(bench))
    (again,) = reread(bench, prompt, [written.ids], read(bench))
    assert again.perplexity == pytest.approx(perplexity(written.logprobs), rel=1e-3)


def test_repetition():
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(1 / 4)  # 123 231 312 123
    assert repetition([7] * 10) == pytest.approx(7 / 8)
    assert repetition([1, 2]) == 0
    assert distinct([1, 2, 1, 2], 1) == 0.5
    assert distinct([1, 2, 1, 2], 2) == pytest.approx(2 / 3)
    assert distinct([], 1) is None
