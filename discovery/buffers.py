"""Batches of residuals in random order, from more of them than can be shuffled at once.

A *buffer* is what is shuffled together: a few shards of each harvest (`shard_stream`), or what the model made of a few
hundred contexts a moment ago (`live_stream`). What buffer number n holds, and in which order, follows from the seed and
n alone, so that a run that goes on after a kill reads on exactly where it was.

Shape suffixes: N tokens of a buffer, B tokens of a batch, D model width.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from discovery.errors import HarvestError


class Buffers(Protocol):
    """An endless sequence of shuffled buffers."""

    def load(self, number: int, seed: int) -> Tensor:
        """[N, D] bf16 residuals of buffer `number`, shuffled, finite, without massive activations."""
        ...

    def identity(self) -> list[dict[str, Any]]:
        """What must be the same for a run to go on, source by source: all that decides residuals and their order.

        Plain strings and numbers, and none that says only where something lies or what it is called.
        """
        ...

    def harvest_settings(self) -> dict[str, Any]:
        """Model, weights, hook point: the `settings` of a harvest's manifest."""
        ...

    def record(self) -> list[dict[str, Any]]:
        """What a dictionary's manifest says of its training data."""
        ...


IDENTIFYING = (
    "model_sha256",
    "quantization",
    "dtype",
    "hook_point",
    "bos_policy",
    "num_contexts",
    "contexts_sha256",
)
"""What a harvest's settings say of its residuals, whatever they are called and wherever they lie."""


def differing_data(before: Any, now: list[dict[str, Any]]) -> list[str]:
    """What differs between two `Buffers.identity()`, in words; empty if they are the same data.

    `before` comes out of a checkpoint, and may be of a version that knew its data by paths.
    """
    if not isinstance(before, list) or not all(isinstance(part, dict) for part in before):
        return ["it must say what its data were, but was written by an older version, which kept their paths alone"]
    if len(before) != len(now):
        return [f"sources were {len(before)}, are {len(now)}"]
    return [
        f"source {number}: {name} was {one.get(name)}, is {other.get(name)}"
        for number, (one, other) in enumerate(zip(before, now, strict=True), start=1)
        for name in {**one, **other}
        if one.get(name) != other.get(name)
    ]


class Place(tuple[int, int]):
    """Where a stream is: (number of the buffer, number of the next batch in it)."""


START = Place((0, 0))


def stream_batches(
    buffers: Buffers, batch_size: int, seed: int, place: Place = START
) -> Iterator[tuple[Tensor, Place]]:
    """Endless [B, D] bf16 batches, each with the place from which to go on after it."""
    buffer, first = place
    while True:
        resid_ND = buffers.load(buffer, seed)
        num_batches = resid_ND.shape[0] // batch_size
        if num_batches == 0:
            raise HarvestError(f"a buffer must hold at least one batch of {batch_size}, got {resid_ND.shape[0]} tokens")
        for batch in range(first, num_batches):
            after = (buffer, batch + 1) if batch + 1 < num_batches else (buffer + 1, 0)
            yield resid_ND[batch * batch_size : (batch + 1) * batch_size], Place(after)
        buffer, first = buffer + 1, 0


def generator_for(seed: int, purpose: str, number: int) -> torch.Generator:
    """A generator that depends on nothing else: no state has to be kept to go on."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6], "little"))
