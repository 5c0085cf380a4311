"""Buffers from harvests on disk: a few shards of each, shuffled together.

Shape suffixes: N tokens of a buffer, D model width.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from discovery.buffers import IDENTIFYING, generator_for
from discovery.errors import HarvestError
from discovery.shards import finished_shards, load_manifest, load_resid, ordinary


@dataclass(frozen=True, slots=True)
class Source:
    """One harvest and its part in every buffer."""

    shards: tuple[Path, ...]
    shards_per_buffer: int
    """The ratio between the sources of a stream; a small source is passed over more often."""

    @classmethod
    def parse(cls, text: str) -> "Source":
        """`FOLDER` or `FOLDER:SHARDS_PER_BUFFER`. HarvestError if the harvest is not finished or not whole.

        A run on the shards of an unfinished one could not go on once there were more of them.
        """
        folder, _, count = text.partition(":")
        shards = tuple(finished_shards(Path(folder)))
        if count and not (count.isdigit() and int(count)):
            raise HarvestError(f"SHARDS_PER_BUFFER of {text} must be a positive number, got {count!r}")
        return cls(shards, int(count or 4))

    @property
    def folder(self) -> Path:
        return self.shards[0].parent


class ShardBuffers:
    """The buffers of one or several harvests. All must be of the same model, quantisation and hook point."""

    def __init__(self, sources: list[Source]) -> None:
        self.sources = sources
        self.manifests = [load_manifest(source.folder) for source in sources]
        first, *others = [manifest["settings"] for manifest in self.manifests]
        for other, source in zip(others, sources[1:], strict=True):
            for field in ("model_sha256", "quantization", "hook_point", "bos_policy"):
                if other.get(field) != first.get(field):
                    raise HarvestError(
                        f"{source.folder}: {field} must be {first.get(field)}, as in {sources[0].folder}, "
                        f"got {other.get(field)}"
                    )

    def load(self, number: int, seed: int) -> Tensor:
        """[N, D] bf16 residuals of buffer `number`, shuffled. Massive activations are left out."""
        paths = [
            _shard_at(source, index, position, seed)
            for index, source in enumerate(self.sources)
            for position in range(number * source.shards_per_buffer, (number + 1) * source.shards_per_buffer)
        ]
        resid_ND = torch.cat([read_shard(path) for path in paths])
        order_N = torch.randperm(resid_ND.shape[0], generator=generator_for(seed, "buffer", number))
        return resid_ND[order_N]

    def identity(self) -> list[dict[str, Any]]:
        return [_identity(source, manifest) for source, manifest in zip(self.sources, self.manifests, strict=True)]

    def harvest_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = self.manifests[0]["settings"]
        return settings

    def record(self) -> list[dict[str, Any]]:
        return [
            {
                "sources": sorted(manifest["settings"]["sources"]),
                "shards": len(source.shards),
                "per_buffer": source.shards_per_buffer,
                "contexts_sha256": manifest["settings"].get("contexts_sha256"),
            }
            for source, manifest in zip(self.sources, self.manifests, strict=True)
        ]


def _identity(source: Source, manifest: dict[str, Any]) -> dict[str, Any]:
    settings = manifest["settings"]
    facts = {name: settings.get(name) for name in (*IDENTIFYING, "contexts_per_shard")}
    # What the settings don't say, as the size of the batches and the device, shows in sums over all residuals. Their
    # last digits depend on the number of threads.
    figures = {name: manifest.get(name) for name in ("num_ordinary_tokens", "mean_norm")}
    figures["mean_norm"] = figures["mean_norm"] and float(f"{figures['mean_norm']:.9g}")
    return facts | figures | {"shards": len(source.shards), "per_buffer": source.shards_per_buffer}


def read_shard(path: Path) -> Tensor:
    """[N, D] bf16 residuals of a shard, massive activations left out; HarvestError if it is damaged or not finite."""
    resid_ND = read_whole_shard(path)
    return resid_ND[ordinary(resid_ND)]


def read_whole_shard(path: Path) -> Tensor:
    """[N, D] bf16 residuals of a shard; HarvestError if it is damaged or not finite."""
    resid_ND = load_resid(path)
    bad = int((~resid_ND.isfinite()).any(-1).sum())
    if bad:
        raise HarvestError(f"{path}: residuals must be finite, got NaN or infinity at {bad} of {len(resid_ND)} tokens")
    return resid_ND


def _shard_at(source: Source, index: int, position: int, seed: int) -> Path:
    """The shard at `position` of the source's endless sequence: all shards, in a new order each time."""
    epoch, offset = divmod(position, len(source.shards))
    order = torch.randperm(len(source.shards), generator=generator_for(seed, f"source {index}", epoch))
    return source.shards[int(order[offset])]
