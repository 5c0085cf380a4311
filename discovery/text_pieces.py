"""A long text as pieces with residuals, whether harvested before or run through the model now: the two give the same.

A *piece* is a shard of a harvest, or as many contexts run through the model and rounded as a harvest would. Pieces come
in a fixed order, any of them can be had alone, and a digest says which text it is.

Shape suffixes: N tokens (position 0 of each context left out), C contexts, D model width.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from discovery.corpus import Context, contexts_digest
from discovery.errors import ExampleError, HarvestError
from discovery.residuals import read_in_batches
from discovery.shards import (
    MANIFEST_FILE,
    Harvested,
    finished_shards,
    has_sources,
    load_manifest,
    load_shard,
    ordinary,
)
from sae_runtime.language_model import LanguageModel
from sae_runtime.tap import Tap

UNKNOWN_SOURCE = "unknown"

_SHARED = ("model_name", "model_sha256", "quantization", "hook_point")
"""What all harvests of one pass must agree in."""

Ints = NDArray[np.int64]


class Piece(NamedTuple):
    """Whole contexts with their residuals."""

    resid_ND: Tensor
    """bf16."""
    token_ids_N: Ints
    positions_N: Ints
    """From 1 in each context, without gaps."""
    documents_N: Ints
    sources_N: Ints
    """Index into the text's sources."""
    first_ids_C: Ints
    ordinary_N: NDArray[np.bool_]
    """False at massive activations, which are not read."""

    def spans(self, most: int) -> Iterator[tuple[int, int]]:
        """(first row, row behind the last) of runs of whole contexts with at most `most` tokens, or of one context."""
        borders = [*np.flatnonzero(self.positions_N == 1).tolist(), len(self.positions_N)]
        begin = 0
        for end, following in zip(borders[1:], [*borders[2:], None], strict=True):
            if following is None or following - begin > most:
                yield begin, end
                begin = end


class Text(Protocol):
    """What a pass reads."""

    @property
    def sources(self) -> Sequence[str]: ...
    @property
    def facts(self) -> dict[str, Any]:
        """Identity of the text, the model and the hook point; JSON."""

    def num_tokens(self, piece: int) -> int:
        """Tokens of a piece, position 0 of each context included; for progress."""

    def __len__(self) -> int: ...
    def piece(self, index: int) -> Piece: ...


class HarvestedText:
    """The shards of some harvests, in order."""

    def __init__(self, folders: Sequence[Path], document_sources: Mapping[int, str] | None = None) -> None:
        """`document_sources`: source of each document by its id, for harvests that don't say; it goes before what
        they say. `unknown` is among the sources where some shard does not say either.

        ExampleError if a harvest is not finished or of another model or place than the first, HarvestError if it lacks
        a shard.
        """
        self.facts = harvest_facts(folders)
        """See `Text`."""
        manifests = [load_manifest(folder) for folder in folders]
        self._folders = folders
        self._paths = [path for folder in folders for path in finished_shards(folder)]
        self._documents = document_sources or {}
        self._settings = [manifest["settings"] for manifest in manifests]
        names = (list(settings["sources"]) for settings in self._settings)
        self._names = dict(zip(folders, names, strict=True))
        self.knows_sources = all(map(has_sources, self._paths))
        """Whether all shards say where their contexts are from."""
        said = [name for path in self._paths if has_sources(path) for name in self._names[path.parent]]
        named = sorted({*self._documents.values(), *said})
        self.sources = named if self.knows_sources else [*named, UNKNOWN_SOURCE]

    def num_tokens(self, piece: int) -> int:
        """About as many in each shard."""
        total = sum(sum(settings["sources"].values()) for settings in self._settings)
        return total * (piece + 1) // len(self) - total * piece // len(self)

    def __len__(self) -> int:
        return len(self._paths)

    def piece(self, index: int) -> Piece:
        """Shard number `index`; ExampleError if it cannot be read."""
        path = self._paths[index]
        try:
            shard = load_shard(path)
        except HarvestError as error:
            raise ExampleError(str(error)) from None
        documents_N = shard.documents_N.numpy().astype(np.int64)
        return Piece(
            finite(shard.resid_ND, path),
            shard.token_ids_N.numpy().astype(np.int64),
            shard.positions_N.numpy().astype(np.int64),
            documents_N,
            self._sources_of(shard, path),
            shard.first_ids_C.numpy().astype(np.int64),
            ordinary(shard.resid_ND).numpy(),
        )

    def _sources_of(self, shard: Harvested, path: Path) -> Ints:
        """[N] index of each token's source."""
        if shard.sources_C is None:
            said_C = [UNKNOWN_SOURCE] * len(shard.first_ids_C)
        else:
            said_C = [self._names[path.parent][source] for source in shard.sources_C.tolist()]
        first_C = (shard.positions_N == 1).nonzero()[:, 0]
        documents_C = shard.documents_N[first_C].tolist()
        pairs = zip(documents_C, said_C, strict=True)
        sources_C = [self.sources.index(self._documents.get(document, said)) for document, said in pairs]
        counts_C = torch.diff(first_C, append=torch.tensor([len(shard.positions_N)]))
        return np.repeat(np.array(sources_C, np.int64), counts_C.numpy())


def harvest_facts(folders: Sequence[Path]) -> dict[str, Any]:
    """Identity of the text, the model and the hook point of finished harvests together; JSON. Reads manifests alone.

    ExampleError, which names the folder, for one that is not finished, of another model or place than the first, or of
    the very contexts of one before it: they would count twice. How many contexts each keeps in a shard is its own
    affair. Harvests that have only some contexts in common are not told by their digests.
    """
    first: dict[str, Any] = {}
    sizes: list[int] = []
    digests: list[str] = []
    for folder in folders:
        manifest = load_manifest(folder)
        if not manifest["finished"]:
            raise ExampleError(f"harvest {folder} must be finished, got finished: false in its {MANIFEST_FILE}")
        settings = manifest["settings"]
        first = first or settings
        for name in _SHARED:
            if settings[name] != first[name]:
                raise ExampleError(
                    f"{name} of harvest {folder} must be {first[name]}, as of {folders[0]}, got {settings[name]}; "
                    "harvest it anew, or collect its examples into a file of its own"
                )
        if settings["contexts_sha256"] in digests:
            earlier = folders[digests.index(settings["contexts_sha256"])]
            raise ExampleError(f"harvest {folder} must hold other text than those before it, got that of {earlier}")
        sizes.append(settings["contexts_per_shard"])
        digests.append(settings["contexts_sha256"])
    size = sizes[0] if len(set(sizes)) == 1 else sizes
    return {name: first[name] for name in _SHARED} | {"contexts_per_shard": size, "contexts_sha256": digests}


class ModelText:
    """Contexts that the model reads when they are asked for."""

    def __init__(
        self,
        lm: LanguageModel,
        tap: Tap,
        contexts: Sequence[Context],
        *,
        contexts_per_piece: int = 128,
        batch_tokens: int = 8192,
    ) -> None:
        if not contexts:
            raise ExampleError("there must be a context to read in the files and split asked for, got none")
        self._lm, self._tap, self._contexts = lm, tap, contexts
        self._size, self._batch_tokens = contexts_per_piece, batch_tokens
        self.sources = sorted({context.source for context in contexts})

    @property
    def facts(self) -> dict[str, Any]:
        """See `Text`."""
        identity = self._lm.identity
        return {
            "model_name": identity.name,
            "model_sha256": identity.weights_sha256,
            "quantization": identity.quantization,
            "hook_point": str(self._tap.hook_point),
            "contexts_per_shard": self._size,
            "contexts_sha256": [contexts_digest(list(self._contexts))],
        }

    def _part(self, index: int) -> Sequence[Context]:
        return self._contexts[index * self._size : (index + 1) * self._size]

    def num_tokens(self, piece: int) -> int:
        """See `Text`."""
        return sum(len(context.tokens) for context in self._part(piece))

    def __len__(self) -> int:
        return -(-len(self._contexts) // self._size)

    def piece(self, index: int) -> Piece:
        """As a harvest's shard of the same contexts would be."""
        part = list(self._part(index))
        resid = dict(read_in_batches(self._lm, self._tap, part, self._batch_tokens))
        # Rounded as shards are.
        resid_ND = torch.cat([resid[i][1:].to("cpu", torch.bfloat16) for i in range(len(part))])
        counts = [len(context.tokens) - 1 for context in part]
        return Piece(
            finite(resid_ND, f"piece {index}"),
            np.array([token for context in part for token in context.tokens[1:]], np.int64),
            np.concatenate([np.arange(1, count + 1) for count in counts]),
            np.repeat(np.array([context.document for context in part], np.int64), counts),
            np.repeat([self.sources.index(context.source) for context in part], counts),
            np.array([context.tokens[0] for context in part], np.int64),
            ordinary(resid_ND).numpy(),
        )


def finite(resid_ND: Tensor, name: object) -> Tensor:
    """The residuals; ExampleError if one of them is NaN or infinite."""
    bad = int((~resid_ND.isfinite()).any(-1).sum())
    if bad:
        raise ExampleError(
            f"residuals of {name} must be finite, got NaN or infinity at {bad} of {len(resid_ND)} tokens"
        )
    return resid_ND
