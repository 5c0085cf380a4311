"""From contrasts to named features: candidates to choose from, and the evidence for those that were chosen.

    candidates   the best latents of each contrast, by held-out AUROC, each with the texts it is largest on
    evidence     density and reference scale on held-out text, what it fires on, what it fires on wrongly

Quotes come from public-domain corpus files and from the model's own chat alone; other text is counted, not quoted.

Shape suffixes: N harvested tokens, W candidate latents, I passages, F latents.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from discovery.corpus import read_documents
from discovery.reading_scale import REFERENCE_QUANTILE
from discovery.shards import finished_shards, load_shard, ordinary
from sae_runtime.sae import SAE

QUOTABLE = frozenset(
    {
        "novels_100english",
        "npm_moby_dick",
        "npm_sotu",
        "nltk_state_union",
        "nltk_inaugural",
        "nltk_genesis_en",
        "tinyshakespeare",
        "deb_sqlite_doc",
        "deb_jargon",
        "chat_self",
        "chat_prompted",
    }
)

_CONTEXT_TOKENS = 12


class Hit(NamedTuple):
    """One token at which a latent is large."""

    value: float
    source: str
    text: str
    """The tokens before it, and itself between » and «."""


@dataclass(frozen=True, slots=True)
class HeldOutReadings:
    """Readings of some latents at all ordinary held-out tokens."""

    values_NW: Tensor
    token_ids_N: Tensor
    contexts_N: Tensor
    """Tokens with one number belong to one context."""
    documents_N: Tensor
    latents: list[int]

    def column(self, latent: int) -> Tensor:
        """[N] readings of one latent."""
        return self.values_NW[:, self.latents.index(latent)]


@torch.inference_mode()
def read_held_out(sae: SAE, folders: Iterable[Path], latents: list[int]) -> HeldOutReadings:
    """Read `latents` over harvested residuals, massive activations left out. HarvestError for a harvest in part."""
    values, token_ids, contexts, documents = [], [], [], []
    offset = 0
    for folder in folders:
        for path in finished_shards(folder):
            shard = load_shard(path)
            kept_N = ordinary(shard.resid_ND)
            pieces = torch.split(shard.resid_ND[kept_N], 4096)
            device = sae.W_dec.device
            values.append(torch.cat([sae.read(piece.to(device).float(), latents).cpu() for piece in pieces]))
            token_ids.append(shard.token_ids_N[kept_N])
            contexts.append(shard.contexts_N[kept_N] + offset)
            documents.append(shard.documents_N[kept_N])
        offset = int(contexts[-1].max()) + 1
    return HeldOutReadings(torch.cat(values), torch.cat(token_ids), torch.cat(contexts), torch.cat(documents), latents)


def document_sources(paths: Iterable[Path | str]) -> dict[int, str]:
    """Source of each document by the id it has in shards."""
    return {int.from_bytes(document.digest[:8], "little") >> 1: document.source for document in read_documents(paths)}


def density(readings_N: Tensor) -> float:
    """Share of tokens at which a latent is active."""
    return float((readings_N > 0).float().mean())


def reference_scale(readings_N: Tensor) -> float:
    """99.9th percentile of all readings, or the maximum where a latent is active at fewer tokens than that."""
    scale = float(readings_N.kthvalue(max(1, int(REFERENCE_QUANTILE * len(readings_N)))).values)
    return scale if scale > 0 else float(readings_N.max())


def largest_hits(
    readings: HeldOutReadings,
    latent: int,
    sources: dict[int, str],
    decode: Callable[[list[int]], str],
    *,
    num: int = 5,
    wanted: Callable[[str], bool] = QUOTABLE.__contains__,
) -> list[Hit]:
    """The largest readings in documents whose source is `wanted`, at most one per context."""
    column_N = readings.column(latent)
    hits: list[Hit] = []
    seen: set[int] = set()
    for index in column_N.topk(min(4000, len(column_N))).indices.tolist():
        source = sources.get(int(readings.documents_N[index]), "unknown")
        context = int(readings.contexts_N[index])
        if column_N[index] <= 0 or len(hits) == num:
            break
        if context in seen or not wanted(source):
            continue
        seen.add(context)
        hits.append(Hit(round(float(column_N[index]), 3), source, _quote(readings, index, decode)))
    return hits


def _quote(readings: HeldOutReadings, index: int, decode: Callable[[list[int]], str]) -> str:
    context = readings.contexts_N[index]
    first = index
    while first > max(0, index - _CONTEXT_TOKENS) and readings.contexts_N[first - 1] == context:
        first -= 1
    last = index + 1
    while last < min(len(readings.contexts_N), index + 4) and readings.contexts_N[last] == context:
        last += 1
    ids = readings.token_ids_N
    before, here, after = (
        decode(ids[a:b].tolist()) for a, b in ((first, index), (index, index + 1), (index + 1, last))
    )
    return f"{before}»{here}«{after}".replace("\n", "⏎")


def source_shares(readings: HeldOutReadings, latent: int, sources: dict[int, str], num: int = 200) -> dict[str, float]:
    """Where the `num` largest readings lie: share by source, largest first."""
    column_N = readings.column(latent)
    counts: dict[str, int] = {}
    for index in column_N.topk(min(num, len(column_N))).indices.tolist():
        if column_N[index] > 0:
            source = sources.get(int(readings.documents_N[index]), "unknown")
            counts[source] = counts.get(source, 0) + 1
    total = max(sum(counts.values()), 1)
    return {name: round(count / total, 3) for name, count in sorted(counts.items(), key=lambda item: -item[1])}


def evidence_of(
    readings: HeldOutReadings, latent: int, sources: dict[int, str], decode: Callable[[list[int]], str]
) -> dict[str, Any]:
    """What held-out text says of a latent, under the keys it has in feature files."""
    column_N = readings.column(latent)
    return {
        "density": round(density(column_N), 6),
        "density_tokens": len(column_N),
        "reference_scale_source": "99.9th percentile over held-out corpus and chat, position 0 left out",
        "max_held_out": round(float(column_N.max()), 3),
        "fires_on": [hit._asdict() for hit in largest_hits(readings, latent, sources, decode)],
        "top_200_by_source": dict(list(source_shares(readings, latent, sources).items())[:6]),
    }
