"""A harvest on disk, read and written: `manifest.json` and shards of residuals, `shard-00000.safetensors`, ...

    resid_ND       bf16   residuals, context by context
    token_ids_N    int32
    positions_N    int32  position in the context, from 1
    contexts_N     int32  index of the context in the harvest
    documents_N    int64  first 63 bits of the document's sha256
    first_ids_C    int32  each context's token at position 0, whose residual is left out
    sources_C      int32  each context's source, by its place among the manifest's; older harvests have none

A file is there whole or not at all. A shard's header has a CRC-32 of each tensor, which is checked whenever it is read;
what is damaged, missing or no harvest is a HarvestError that names the file.

Shape suffixes: N harvested tokens, C contexts, D model width.
"""

import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from discovery.errors import HarvestError
from sae_runtime.errors import one_line, plain_reason
from sae_runtime.whole_files import whole_file

MANIFEST_FILE = "manifest.json"

_CHECKSUMS = "crc32"
"""In the header: name of each tensor -> its checksum, as JSON. One entry, because several come in any order."""


class Harvested(NamedTuple):
    """One shard."""

    resid_ND: Tensor
    token_ids_N: Tensor
    positions_N: Tensor
    contexts_N: Tensor
    documents_N: Tensor
    first_ids_C: Tensor
    sources_C: Tensor | None = None

    def token_ids(self) -> list[list[int]]:
        """The contexts themselves, position 0 included."""
        counts = torch.unique_consecutive(self.contexts_N, return_counts=True)[1].tolist()
        pieces = torch.split(self.token_ids_N, counts)
        return [[first, *rest.tolist()] for first, rest in zip(self.first_ids_C.tolist(), pieces, strict=True)]


_OPTIONAL = ("sources_C",)
_REQUIRED = tuple(name for name in Harvested._fields if name not in _OPTIONAL)


# --- shards ---------------------------------------------------------------------------------------------------------


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def shard_paths(folder: Path) -> list[Path]:
    """All shards there are, in order."""
    return sorted(folder.glob("shard-*.safetensors"))


def save_shard(path: Path, shard: Harvested) -> None:
    """Write a shard. HarvestError if the disk is full; then there is none."""
    tensors = {name: tensor for name, tensor in shard._asdict().items() if tensor is not None}
    try:
        with whole_file(path) as partial:
            checksums = {name: _checksum(tensor) for name, tensor in tensors.items()}
            save_file(tensors, partial, {_CHECKSUMS: json.dumps(checksums)})
    except (OSError, SafetensorError) as error:
        raise HarvestError(
            f"{path} can't be written: {plain_reason(error)}; "
            "the shards before it are kept, and the same command goes on"
        ) from error


def load_shard(path: Path) -> Harvested:
    """One shard, residuals in bf16."""
    return Harvested(**_read(path, _REQUIRED, _OPTIONAL))


def load_resid(path: Path) -> Tensor:
    """[N, D] bf16 residuals of one shard, without its other tensors."""
    return _read(path, ("resid_ND",))["resid_ND"]


def load_token_ids(path: Path) -> list[list[int]]:
    """`Harvested.token_ids` of one shard, without reading its residuals."""
    return Harvested(torch.empty(0), **_read(path, _REQUIRED[1:])).token_ids()


def has_sources(path: Path) -> bool:
    """Whether the shard says where each context is from. Reads its header alone; HarvestError if that is damaged."""
    return set(_OPTIONAL) <= check_header(path)


def check_header(path: Path) -> set[str]:
    """The tensors in a shard, by its header; HarvestError if the file is not as long as that says."""
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None


def load_ordinary_resid(path: Path) -> Tensor:
    """[N, D] bf16 residuals of one shard, massive activations left out."""
    resid_ND = load_resid(path)
    return resid_ND[ordinary(resid_ND)]


def ordinary(resid_ND: Tensor) -> Tensor:
    """Mask [N] of the tokens without a massive activation: norm at most 5 times the median.

    Position 0 is not the only place for one. SmolLM2 has it at about one token in 8,000: at <|endoftext|> inside a
    text, and at position 1 or 2 of a text that begins with one token repeated. At 100 times the usual norm these few
    make up most of the squared norm of a corpus; training on them, or measuring explained variance with them, is about
    them alone.
    """
    norm_N = resid_ND.float().norm(dim=-1)
    return norm_N <= 5 * norm_N.median()


def _read(path: Path, names: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The tensors by their names; of the `optional` ones those that there are."""
    try:
        with safe_open(path, framework="pt") as file:
            there = set(file.keys())
            wanted = (*names, *(name for name in optional if name in there))
            tensors = {name: cast(Tensor, file.get_tensor(name)) for name in wanted}
            # Shards of before there were checksums have none.
            checksums = json.loads((file.metadata() or {}).get(_CHECKSUMS, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    for name, tensor in tensors.items():
        checksum = checksums.get(name)
        if checksum is not None and _checksum(tensor) != checksum:
            raise HarvestError(
                f"{path} is damaged: checksum of {name} must be {checksum}, got {_checksum(tensor)}; {_REMEDY}"
            )
    return tensors


def _unreadable(path: Path, error: Exception) -> HarvestError:
    return HarvestError(f"{path} is no readable shard: {one_line(error)}; {_REMEDY}")


_REMEDY = "delete it and harvest again to replace it"


def _checksum(tensor: Tensor) -> str:
    return f"{zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data):08x}"


# --- the manifest ---------------------------------------------------------------------------------------------------


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest; HarvestError if there is none, or none that can be read."""
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise HarvestError(f"{folder} is no harvest: it has no {MANIFEST_FILE}") from None
    except (OSError, ValueError) as error:
        raise HarvestError(f"{path} is no readable manifest: {one_line(error)}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("settings"), dict):
        raise HarvestError(f"{path} must hold an object with settings, as a harvest's manifest has them")
    return manifest


def finished_shards(folder: Path) -> list[Path]:
    """All shards of a finished harvest. HarvestError if it is none, unfinished, or a shard is missing."""
    manifest = load_manifest(folder)
    if not manifest.get("finished"):
        raise HarvestError(
            f"{folder} must be a finished harvest, got finished: false; the same command goes on with it"
        )
    settings, paths = manifest["settings"], shard_paths(folder)
    wanted = [shard_path(folder, shard) for shard in range(num_shards(settings))]
    if missing := [path.name for path in wanted if path not in paths]:
        raise HarvestError(
            f"{folder} must have {len(wanted)} shards, got none of {', '.join(missing[:5])}; harvest again"
        )
    return paths


def num_shards(settings: dict[str, Any]) -> int:
    """How many a harvest with these settings has."""
    return -(-int(settings["num_contexts"]) // int(settings["contexts_per_shard"]))
