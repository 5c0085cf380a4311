"""What the server is measured against: `generate`, plain passes over a prompt, and how fast memory is read."""

import statistics
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sae_runtime.language_model import LanguageModel, load_language_model
from sae_runtime.large_pages import zeros
from service.slot_cache import SlotCache

_SUMS = 5


def generate_rate(model: Any, ids: Sequence[int], num_streams: int, num_tokens: int) -> float:
    """Tokens per second of `generate` over equal prompts together, its prefill left out."""
    prompts_BT = torch.tensor([list(ids)] * num_streams)
    options = {"attention_mask": torch.ones_like(prompts_BT), "do_sample": False, "eos_token_id": None}
    times = []
    for length in (1, num_tokens):
        started = time.perf_counter()
        model.generate(prompts_BT, max_new_tokens=length, pad_token_id=0, **options)
        times.append(time.perf_counter() - started)
    return num_streams * (num_tokens - 1) / (times[1] - times[0])


def prefill_seconds(model: Any, ids: Sequence[int]) -> float:
    """Of one pass of transformers over a prompt that keeps its keys and values and gives the last token's logits."""
    ids_BT = torch.tensor([list(ids)])
    started = time.perf_counter()
    with torch.inference_mode():
        model(ids_BT, use_cache=True, logits_to_keep=1)
    return time.perf_counter() - started


class PlainPass:
    """The embedded model in native kernels, in this process: what a server adds to it is the rest of its time."""

    def __init__(self, num_positions: int) -> None:
        model = native_model()
        assert model.blocks is not None
        self.blocks, self.cache = model.blocks, slots(model, 1, num_positions)

    def seconds(self, ids: Sequence[int]) -> float:
        """Of one pass over a prompt that keeps its keys and values and gives the last token's logits."""
        ids_BT = torch.tensor([list(ids)])
        started = time.perf_counter()
        with torch.inference_mode():
            self.blocks.logits(ids_BT, self.cache, [0], [0])
        return time.perf_counter() - started


def native_model() -> LanguageModel:
    """The embedded model as the server computes with it.

    Raises:
        RuntimeError: this processor has no native kernels, and there is nothing to measure.
    """
    model = load_language_model(native_kernels=True)
    if model.blocks is None:
        raise RuntimeError("the embedded model must be computed by native kernels, which this processor can't run")
    return model


def slots(model: LanguageModel, num_slots: int, num_positions: int) -> SlotCache:
    """Keys and values for so many rows, in bf16."""
    config = model.model.config
    return SlotCache(
        num_layers=config.num_hidden_layers, num_slots=num_slots, num_heads=config.num_key_value_heads,
        num_positions=num_positions, head_dim=config.hidden_size // config.num_attention_heads, dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )  # fmt: skip


def read_bandwidth(num_bytes: int = 2**30) -> float:
    """Bytes per second that a sum over memory far larger than any cache reads, with torch's threads; median of some.

    The memory is in large pages, as the weights are.
    """
    numbers, seconds = _numbers(num_bytes), []
    for _ in range(_SUMS):
        started = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - started)
    return num_bytes / statistics.median(seconds)


@cache
def _numbers(num_bytes: int) -> Tensor:
    return zeros((num_bytes // 4,), torch.float32).fill_(1.0)  # written to: what never was is all one page
