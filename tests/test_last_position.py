"""The logits of the last position alone: the same ones, and an input of the head that keeps no stride of all."""

import pytest
import tiny
import torch

from discovery.local_chat import _Pen
from discovery.steered_generation import Row, continue_prompt
from discovery.steering_bench import Bench
from sae_runtime.last_position import last_position
from sae_runtime.tap import Tap
from service.pass_output import RowInput

PROMPT = [5, 6, 7, 8, 9]


@pytest.fixture
def strides(model):
    """Of what the output matrix has been given, call by call."""
    seen: list[tuple[int, ...]] = []
    hook = model.model.get_output_embeddings().register_forward_pre_hook(
        lambda _, given: seen.append(given[0].stride())
    )
    yield seen
    hook.remove()


COMPACT = (tiny.D_MODEL, tiny.D_MODEL, 1)


def test_logits_are_those_of_the_last_position(model):
    ids_BT = torch.tensor([PROMPT, PROMPT[::-1]])
    with torch.inference_mode():
        wanted = model.model(input_ids=ids_BT).logits[:, -1:]
        torch.testing.assert_close(model.model(input_ids=ids_BT, logits_to_keep=last_position(ids_BT)).logits, wanted)


def test_a_slice_would_keep_the_stride_of_all_positions(model, strides):
    """Else this module is of no use any more."""
    with torch.inference_mode():
        model.model(input_ids=torch.tensor([PROMPT]), logits_to_keep=1)
    assert strides == [(len(PROMPT) * tiny.D_MODEL, tiny.D_MODEL, 1)]


def test_the_server_gives_the_head_a_compact_row(model, dictionary, strides):
    runner = tiny.model_runner(model, dictionary)
    runner.forward([RowInput(0, 0, PROMPT)], [])
    runner.forward([RowInput(0, len(PROMPT), [3])], [])
    assert strides == [COMPACT, COMPACT]


def test_steered_generation_does(model, dictionary, strides):
    tap = Tap(model.model, tiny.HOOK_POINT, tiny.D_MODEL)
    bench = Bench(model, tap, dictionary, tiny.limits(dictionary))
    continue_prompt(bench, PROMPT, [Row((), None)], max_tokens=2, read=lambda resid_TD: resid_TD[:, 0])
    tap.remove()
    assert strides[0] == COMPACT


def test_a_local_chat_does(model, strides):
    with torch.inference_mode():
        _Pen(model, PROMPT).choose(["yes", "no"])
    assert strides[0] == COMPACT
