"""Residuals at the hook point, written to disk for training a dictionary.

Runs only the blocks up to the hook point. Position 0 is left out: it carries a massive activation in every context.
A harvest is a folder: `manifest.json` (model, hook point, settings, and when done the mean and norms) and shards
`shard-00000.safetensors`, each of which covers a fixed range of contexts:

    resid_ND       bf16   residuals, context by context
    token_ids_N    int32
    positions_N    int32  position in the context, from 1
    contexts_N     int32  index of the context in the harvest
    documents_N    int64  first 63 bits of the document's sha256
    first_ids_C    int32  each context's token at position 0, whose residual is left out

A shard appears whole or not at all, so a killed harvest goes on at the first missing shard, with nothing lost or
doubled. Going on with other settings is refused.

    python -m discovery.harvest corpus/*.jsonl.gz --output runs/harvest/train --split train --max-tokens 4000000

Shape suffixes: N harvested tokens, C contexts, D model width, B rows, T positions.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from discovery.corpus import (
    DEFAULTS,
    Context,
    CorpusSettings,
    contexts_digest,
    read_contexts,
    shuffle_contexts,
    take_tokens,
)
from discovery.errors import HarvestError
from sae_runtime.checkpoint import write_atomically
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import EMBEDDED, LanguageModel, load_language_model
from sae_runtime.tap import Tap, decoder_layers

MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True, slots=True)
class HarvestSettings:
    """What identifies a harvest. All of it must agree for an unfinished one to be continued."""

    model_name: str
    model_sha256: str
    quantization: str
    dtype: str
    """Of the computation; residuals are stored in bf16."""
    hook_point: str
    bos_policy: str
    """`tokenizer`: contexts begin as the tokenizer makes them."""
    d_model: int
    num_contexts: int
    contexts_sha256: str
    """Over all token ids in order."""
    contexts_per_shard: int
    sources: dict[str, int]
    """Tokens by source, position 0 of each context included."""


class Harvested(NamedTuple):
    """One shard."""

    resid_ND: Tensor
    token_ids_N: Tensor
    positions_N: Tensor
    contexts_N: Tensor
    documents_N: Tensor
    first_ids_C: Tensor

    def token_ids(self) -> list[list[int]]:
        """The contexts themselves, position 0 included."""
        counts = torch.unique_consecutive(self.contexts_N, return_counts=True)[1].tolist()
        pieces = torch.split(self.token_ids_N, counts)
        return [[first, *rest.tolist()] for first, rest in zip(self.first_ids_C.tolist(), pieces, strict=True)]


class ResidualMoments(NamedTuple):
    """Sums over harvested residuals from which the mean and the scale follow; all float64."""

    num_tokens: int
    sum_D: Tensor
    sum_norm: float

    def __add__(self, other: object) -> "ResidualMoments":
        assert isinstance(other, ResidualMoments)
        return ResidualMoments(
            self.num_tokens + other.num_tokens, self.sum_D + other.sum_D, self.sum_norm + other.sum_norm
        )


# --- reading the model ----------------------------------------------------------------------------------------------


@contextmanager
def blocks_up_to(model: nn.Module, hook_point: HookPoint) -> Iterator[nn.Module]:
    """The model's decoder without the blocks behind `hook_point` and without lm_head, for the time of the block."""
    decoder = cast(Any, model).model
    layers = decoder_layers(model)
    decoder.layers = layers[: hook_point.layer + 1]
    try:
        yield decoder
    finally:
        decoder.layers = layers


@torch.inference_mode()
def read_residuals(lm: LanguageModel, tap: Tap, contexts: list[Context]) -> list[Tensor]:
    """[T, D] residuals of each context, position 0 included. One forward pass for all of `contexts`.

    Rows are padded on the right: attention is causal, so padding changes nothing before it.
    """
    length = max(len(context.tokens) for context in contexts)
    token_ids_BT = torch.zeros(len(contexts), length, dtype=torch.long)
    for row, context in enumerate(contexts):
        token_ids_BT[row, : len(context.tokens)] = torch.tensor(context.tokens)
    with blocks_up_to(lm.model, tap.hook_point) as decoder, tap.step(token_ids_BT.numel()) as record:
        decoder(input_ids=token_ids_BT.to(lm.device), use_cache=False)
    resid_BTD = record.resid_BTD
    assert resid_BTD is not None
    return [resid_BTD[row, : len(context.tokens)] for row, context in enumerate(contexts)]


def read_in_batches(
    lm: LanguageModel, tap: Tap, contexts: list[Context], batch_tokens: int
) -> Iterator[tuple[int, Tensor]]:
    """(index into `contexts`, [T, D] residuals), contexts of like length together so that little is padding."""
    by_length = sorted(range(len(contexts)), key=lambda index: len(contexts[index].tokens), reverse=True)
    while by_length:
        rows = max(1, batch_tokens // len(contexts[by_length[0]].tokens))
        batch, by_length = by_length[:rows], by_length[rows:]
        yield from zip(batch, read_residuals(lm, tap, [contexts[index] for index in batch]), strict=True)


# --- writing --------------------------------------------------------------------------------------------------------


def harvest(
    lm: LanguageModel,
    hook_point: HookPoint,
    contexts: list[Context],
    folder: Path,
    *,
    contexts_per_shard: int = 128,
    batch_tokens: int = 8192,
    progress: bool = False,
) -> dict[str, Any]:
    """Harvest `contexts` into `folder`, or finish what is there. Returns the manifest.

    Raises HarvestError if the folder holds a harvest with other settings.
    """
    settings = harvest_settings(lm, hook_point, contexts, contexts_per_shard)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, settings)
    tap = Tap(lm.model, hook_point, lm.d_model)
    try:
        with tqdm(
            total=sum(len(context.tokens) for context in contexts),
            desc=f"harvest {folder.name}",
            unit="tok",
            unit_scale=True,
            mininterval=5 if not sys.stderr.isatty() else 0.1,
            disable=not progress,
        ) as bar:
            for shard, first in enumerate(range(0, len(contexts), contexts_per_shard)):
                part = contexts[first : first + contexts_per_shard]
                if not shard_path(folder, shard).exists():
                    _write_shard(shard_path(folder, shard), first, part, read_in_batches(lm, tap, part, batch_tokens))
                bar.update(sum(len(context.tokens) for context in part))
    finally:
        tap.remove()
    return _finish(folder, settings)


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def harvest_settings(
    lm: LanguageModel, hook_point: HookPoint, contexts: Sequence[Context], contexts_per_shard: int
) -> HarvestSettings:
    """What a harvest of `contexts` is. HarvestError if there are none."""
    if not contexts:
        raise HarvestError("there is nothing to harvest: no context in the files and split asked for")
    sources: dict[str, int] = {}
    for context in contexts:
        sources[context.source] = sources.get(context.source, 0) + len(context.tokens)
    return HarvestSettings(
        model_name=lm.identity.name,
        model_sha256=lm.identity.weights_sha256,
        quantization=lm.identity.quantization,
        dtype=lm.identity.dtype,
        hook_point=str(hook_point),
        bos_policy="tokenizer",
        d_model=lm.d_model,
        num_contexts=len(contexts),
        contexts_sha256=contexts_digest(contexts),
        contexts_per_shard=contexts_per_shard,
        sources=dict(sorted(sources.items())),
    )


def _claim(folder: Path, settings: HarvestSettings) -> None:
    """Write the settings of a new harvest, or check them against those of the one that is there."""
    path = folder / MANIFEST_FILE
    if not path.exists():
        write_atomically(path, json.dumps({"settings": asdict(settings), "finished": False}, indent=1))
        return
    before = json.loads(path.read_text())["settings"]
    differing = [name for name, value in asdict(settings).items() if before.get(name) != value]
    if differing:
        changes = "; ".join(f"{name} was {before.get(name)}, is {asdict(settings)[name]}" for name in differing)
        raise HarvestError(f"{folder} holds a harvest with other settings: {changes}")


def _write_shard(path: Path, first: int, contexts: list[Context], residuals: Iterator[tuple[int, Tensor]]) -> None:
    # Position 0 is dropped here, once and for all.
    resid = {index: resid_TD[1:].to("cpu", torch.bfloat16) for index, resid_TD in residuals}
    resid_ND = torch.cat([resid[index] for index in range(len(contexts))])
    if not resid_ND.isfinite().all():
        raise HarvestError(f"residuals must be finite, got NaN or infinity in {path.name}")
    lengths = torch.tensor([len(context.tokens) - 1 for context in contexts])
    tensors = {
        "resid_ND": resid_ND,
        "token_ids_N": torch.tensor([t for c in contexts for t in c.tokens[1:]], dtype=torch.int32),
        "positions_N": torch.cat([torch.arange(1, n + 1, dtype=torch.int32) for n in lengths.tolist()]),
        "contexts_N": torch.arange(first, first + len(contexts), dtype=torch.int32).repeat_interleave(lengths),
        "documents_N": torch.tensor([c.document for c in contexts]).repeat_interleave(lengths),
        "first_ids_C": torch.tensor([c.tokens[0] for c in contexts], dtype=torch.int32),
    }
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(path)


def _finish(folder: Path, settings: HarvestSettings) -> dict[str, Any]:
    """Add what can only be known at the end: token count, mean, norms."""
    path = folder / MANIFEST_FILE
    manifest: dict[str, Any] = json.loads(path.read_text())
    if manifest["finished"]:
        return manifest
    moments = residual_moments(folder)
    mean_D = moments.sum_D / moments.num_tokens
    manifest |= {
        "finished": True,
        "first_position": "excluded",
        "stored_dtype": "bfloat16",
        "num_ordinary_tokens": moments.num_tokens,
        "mean": mean_D.tolist(),
        "mean_norm": moments.sum_norm / moments.num_tokens,
        "mean_centred_norm": mean_centred_norm(folder, mean_D),
    }
    manifest["norm_scale"] = settings.d_model**0.5 / manifest["mean_centred_norm"]
    write_atomically(path, json.dumps(manifest, indent=1))
    return manifest


# --- reading back ---------------------------------------------------------------------------------------------------


def shard_paths(folder: Path) -> list[Path]:
    """All shards there are, in order."""
    return sorted(folder.glob("shard-*.safetensors"))


def load_shard(path: Path) -> Harvested:
    """One shard, residuals in bf16."""
    return Harvested(**load_file(path))


def load_resid(path: Path) -> Tensor:
    """[N, D] bf16 residuals of one shard, without its other tensors."""
    with safe_open(path, framework="pt") as file:
        return cast(Tensor, file.get_tensor("resid_ND"))


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


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest; HarvestError if there is none."""
    path = folder / MANIFEST_FILE
    if not path.exists():
        raise HarvestError(f"{folder} is no harvest: it has no {MANIFEST_FILE}")
    manifest: dict[str, Any] = json.loads(path.read_text())
    return manifest


def residual_moments(folder: Path) -> ResidualMoments:
    """Sums over the ordinary tokens of all shards, taken shard by shard in fp32 and added up in fp64."""
    total: ResidualMoments | None = None
    for path in shard_paths(folder):
        resid_ND = load_ordinary_resid(path).float()
        part = ResidualMoments(resid_ND.shape[0], resid_ND.double().sum(0), float(resid_ND.norm(dim=-1).double().sum()))
        total = part if total is None else total + part
    if total is None:
        raise HarvestError(f"{folder} has no shards")
    return total


def mean_centred_norm(folder: Path, mean_D: Tensor) -> float:
    """Mean of ||x - mean|| over all ordinary tokens."""
    total, count = 0.0, 0
    for path in shard_paths(folder):
        resid_ND = load_ordinary_resid(path).float()
        total += float((resid_ND - mean_D.float()).norm(dim=-1).double().sum())
        count += resid_ND.shape[0]
    return total / count


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the residuals at a hook point to disk.")
    parser.add_argument(
        "corpus", type=Path, nargs="+", help=".jsonl, .jsonl.gz, text files, or hf:PATH_OR_NAME[:SPLIT[:COLUMN]]"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder; continued if it exists")
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--hook-point", type=HookPoint.parse, default=HookPoint(15))
    parser.add_argument("--split", default="train", choices=["train", "held_out", "all"])
    parser.add_argument("--held-out-share", type=float, default=DEFAULTS.held_out_share)
    parser.add_argument("--context-tokens", type=int, default=DEFAULTS.context_tokens)
    parser.add_argument("--max-tokens", type=int, help="stop after this many; contexts are shuffled first")
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--contexts-per-shard", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0, help="of the order of contexts")
    args = parser.parse_args(argv)
    lm = load_language_model(args.model, dtype=args.dtype, progress=True)
    settings = CorpusSettings(context_tokens=args.context_tokens, held_out_share=args.held_out_share)
    read = read_contexts(args.corpus, lm.tokenizer, settings, args.split)
    contexts = list(tqdm(read, desc="tokenising", unit="ctx", unit_scale=True, mininterval=5))
    contexts = take_tokens(shuffle_contexts(contexts, args.seed), args.max_tokens)
    manifest = harvest(
        lm,
        args.hook_point,
        contexts,
        args.output,
        contexts_per_shard=args.contexts_per_shard,
        batch_tokens=args.batch_tokens,
        progress=True,
    )
    print(json.dumps({key: manifest[key] for key in ("num_ordinary_tokens", "mean_norm", "norm_scale", "finished")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
