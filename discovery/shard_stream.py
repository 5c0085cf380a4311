"""Batches of residuals in random order, from harvests too large to shuffle at once.

A *buffer* is a few shards of each source, shuffled together. Which shards, and in what order their tokens come, follows
from the seed and the buffer's number alone, so that a run that goes on after a kill reads on exactly where it was.

Shape suffixes: N tokens of a buffer, B tokens of a batch, D model width.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from discovery.errors import HarvestError
from discovery.harvest import load_ordinary_resid, shard_paths


@dataclass(frozen=True, slots=True)
class Source:
    """One harvest and its part in every buffer."""

    shards: tuple[Path, ...]
    shards_per_buffer: int
    """The ratio between the sources of a stream; a small source is passed over more often."""

    @classmethod
    def parse(cls, text: str) -> "Source":
        """`FOLDER` or `FOLDER:SHARDS_PER_BUFFER`."""
        folder, _, count = text.partition(":")
        shards = tuple(shard_paths(Path(folder)))
        if not shards:
            raise HarvestError(f"{folder} has no shards")
        return cls(shards, int(count or 4))


class Place(tuple[int, int]):
    """Where a stream is: (number of the buffer, number of the next batch in it)."""


START = Place((0, 0))


def stream_batches(
    sources: list[Source], batch_size: int, seed: int, place: Place = START
) -> Iterator[tuple[Tensor, Place]]:
    """Endless [B, D] bf16 batches, each with the place from which to go on after it."""
    buffer, first = place
    while True:
        resid_ND = load_buffer(sources, buffer, seed)
        num_batches = resid_ND.shape[0] // batch_size
        if num_batches == 0:
            raise HarvestError(f"a buffer must hold at least one batch of {batch_size}, got {resid_ND.shape[0]} tokens")
        for batch in range(first, num_batches):
            after = (buffer, batch + 1) if batch + 1 < num_batches else (buffer + 1, 0)
            yield resid_ND[batch * batch_size : (batch + 1) * batch_size], Place(after)
        buffer, first = buffer + 1, 0


def load_buffer(sources: list[Source], buffer: int, seed: int) -> Tensor:
    """[N, D] bf16 residuals of buffer number `buffer`, shuffled. Massive activations are left out."""
    paths = [
        _shard_at(source, index, position, seed)
        for index, source in enumerate(sources)
        for position in range(buffer * source.shards_per_buffer, (buffer + 1) * source.shards_per_buffer)
    ]
    resid_ND = torch.cat([load_ordinary_resid(path) for path in paths])
    order_N = torch.randperm(resid_ND.shape[0], generator=_generator(seed, "buffer", buffer))
    return resid_ND[order_N]


def _shard_at(source: Source, index: int, position: int, seed: int) -> Path:
    """The shard at `position` of the source's endless sequence: all shards, in a new order each time."""
    epoch, offset = divmod(position, len(source.shards))
    order = torch.randperm(len(source.shards), generator=_generator(seed, f"source {index}", epoch))
    return source.shards[int(order[offset])]


def _generator(seed: int, purpose: str, number: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6], "little"))
