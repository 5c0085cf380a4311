"""Drawing against transformers' own `generate`, a row at a time with its own generator."""

import numpy as np
import pytest
import torch

from service.request import SamplingParams
from service.sampling import Draw, Sampler, draw_besides, draw_rows, token_logprobs

CPU = torch.device("cpu")
SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.4},
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 1.3, "top_k": 5},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_p": 0.5},
    {"temperature": 2.0, "min_p": 0.2},
    {"temperature": 1.5, "repetition_penalty": 1.2, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 5.0, "top_k": 100, "top_p": 0.3},
]


def sampler(**params):
    return Sampler.build(SamplingParams(**params), CPU)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_tokens_equal_generates(model, settings):
    """The same filters in the same order, drawn with the same seed, token after token."""
    prompt = torch.tensor([model.tokenizer("The sea was calm.").input_ids])
    drawn = {"do_sample": True, "top_k": 0} if settings["temperature"] else {"do_sample": False}
    filters = {name: value for name, value in settings.items() if value}
    torch.manual_seed(11)
    wanted = model.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=25,
        eos_token_id=None,
        pad_token_id=2,
        **(drawn | filters),
    )[0].tolist()
    ours, ids = sampler(seed=11, **settings), prompt[0].tolist()
    with torch.inference_mode():
        for _ in range(25):
            logits_V = model.model(torch.tensor([ids])).logits[0, -1]
            ids.append(int(draw_rows([ours], [ids], logits_V[None], False).tokens_B[0]))
    assert ids == wanted


def logits(rows=6, seed=3):
    return torch.randn(rows, 50, generator=torch.Generator().manual_seed(seed))


def draws(samplers, logits_BV, steps=8):
    ids = [[1, 2, 3 + b] for b in range(len(samplers))]
    for _ in range(steps):
        for row, token in zip(ids, draw_rows(samplers, ids, logits_BV, False).tokens_B.tolist(), strict=True):
            row.append(token)
    return ids


PARAMS = [
    {"temperature": 1.0, "seed": 7},
    {"temperature": 1.0, "seed": 7, "repetition_penalty": 1.3},
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 1.5, "seed": 7, "top_k": 3},
    {"temperature": 1.0, "seed": 2**64 - 1, "top_p": 0.6},
]


def test_a_row_draws_the_same_whoever_is_beside_it():
    logits_BV = logits()
    together = draws([sampler(**p) for p in PARAMS], logits_BV)
    for b, params in enumerate(PARAMS):
        ids = [[1, 2, 3 + b]]
        one = sampler(**params)
        for _ in range(8):
            ids[0].append(int(draw_rows([one], ids, logits_BV[b : b + 1], False).tokens_B[0]))
        assert ids[0] == together[b]


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    logits_BV = logits(2)
    params = {"temperature": 1.0}
    before = torch.get_rng_state()
    first = draws([sampler(seed=s, **params) for s in (1, 2)], logits_BV[:1].expand(2, -1), steps=20)
    torch.manual_seed(99)
    again = draws([sampler(seed=s, **params) for s in (1, 2)], logits_BV[:1].expand(2, -1), steps=20)
    torch.set_rng_state(before)
    assert first == again
    # 20 draws out of 50 tokens: equal by luck once in more than 10^20.
    assert first[0][3:] != first[1][3:]


def test_what_is_filtered_out_is_never_drawn():
    logits_BV = logits(1)
    allowed = {
        "top_k": set(logits_BV[0].topk(4).indices.tolist()),
        "min_p": set((logits_BV[0].softmax(-1) >= 0.3 * logits_BV[0].softmax(-1).max()).nonzero().flatten().tolist()),
    }
    for name, value in (("top_k", 4), ("min_p", 0.3)):
        ids = draws([sampler(temperature=1.0, seed=5, **{name: value})], logits_BV, steps=200)
        assert set(ids[0][3:]) == allowed[name]


def test_the_logits_are_not_written_to():
    logits_BV = logits()
    kept = logits_BV.clone()
    draws([sampler(**p) for p in PARAMS], logits_BV, steps=1)
    assert torch.equal(logits_BV, kept)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_a_row_that_is_not_finite_is_marked_and_disturbs_nobody(bad, params):
    logits_BV = logits(3)
    healthy = [sampler(temperature=1.0, seed=1), sampler(temperature=0.0)]
    wanted = draw_rows(healthy, [[1], [2]], logits_BV[[0, 2]], True)
    logits_BV[1, 7] = bad
    rows = [sampler(temperature=1.0, seed=1), sampler(**params), sampler(temperature=0.0)]
    got = draw_rows(rows, [[1], [9], [2]], logits_BV, True)
    assert got.finite_B.tolist() == [True, False, True]
    assert got.tokens_B[[0, 2]].tolist() == wanted.tokens_B.tolist()
    torch.testing.assert_close(got.logprobs_B[[0, 2]], wanted.logprobs_B)


def test_log_probabilities_are_of_the_raw_logits():
    logits_BV = logits()
    drawn = draw_rows([sampler(**p) for p in PARAMS], [[b] for b in range(6)], logits_BV, True)
    wanted = logits_BV.log_softmax(-1).gather(-1, drawn.tokens_B[:, None])[:, 0]
    torch.testing.assert_close(drawn.logprobs_B, wanted)
    torch.testing.assert_close(token_logprobs(logits_BV, drawn.tokens_B), wanted)
    assert not draw_rows([sampler(**p) for p in PARAMS], [[b] for b in range(6)], logits_BV, False).logprobs_B.any()


def test_rows_of_a_whole_batch_may_all_be_greedy():
    logits_BV = logits()
    drawn = draw_rows([sampler()] * 6, [[0]] * 6, logits_BV, False)
    assert drawn.tokens_B.tolist() == logits_BV.argmax(-1).tolist()
    assert drawn.finite_B.all()


def test_rows_that_take_another_token_get_what_they_would_in_a_batch():
    """Where the pass has found the most likely ones itself."""
    logits_BV, ids = logits(), [[b] for b in range(6)]
    logits_BV[4, 7] = float("nan")
    greedy = Draw(*(part.numpy() for part in draw_rows([sampler()] * 6, ids, logits_BV, True)))
    kept = [part.copy() for part in greedy]
    found = draw_besides(greedy, [sampler(**p) for p in PARAMS], ids, logits_BV)
    wanted = draw_rows([sampler(**p) for p in PARAMS], ids, logits_BV, True)
    healthy = [0, 1, 2, 3, 5]
    assert found.tokens_B[healthy].tolist() == wanted.tokens_B[healthy].tolist() != kept[0][healthy].tolist()
    assert found.finite_B.tolist() == wanted.finite_B.tolist() == [True] * 4 + [False, True]
    assert found.logprobs_B[healthy] == pytest.approx(wanted.logprobs_B[healthy].numpy(), abs=1e-5)
    assert all((part == before)[healthy].all() for part, before in zip(greedy, kept, strict=True))


def test_torchs_threads_sleep_while_rows_are_drawn_for_and_are_back_whatever_happens(monkeypatch):
    """They would stand in the way of the native kernels', which are as many as torch has."""
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "set_num_threads", lambda number: seen.append(number))
    logits_BV = torch.randn(1, 50, generator=torch.Generator().manual_seed(2))
    greedy = Draw(np.array([3]), np.zeros(1, np.float32), np.array([True]))
    draw_besides(greedy, [sampler(temperature=1.0, seed=1)], [[4]], logits_BV)
    assert seen == [1, before]
    monkeypatch.setattr(Sampler, "draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        draw_besides(greedy, [sampler(temperature=1.0, seed=1)], [[4]], logits_BV)
    assert seen == [1, before] * 2
