"""Residuals at the hook point, written to disk for training a dictionary.

A harvest is a folder: `manifest.json` (model, hook point, settings, and when done the mean and norms) and shards, each
of which covers a fixed range of contexts (`shards` has the layout). Position 0 is left out: it carries a massive
activation in every context. A shard appears whole or not at all, so a killed harvest goes on at the first missing one,
with nothing lost or doubled. Going on with other settings is refused.

    telltale lab harvest corpus/*.jsonl.gz --output runs/harvest/train --split train --max-tokens 4000000

Shape suffixes: N harvested tokens, D model width, T positions.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from discovery.argument_checks import check_reading
from discovery.command_parser import command_parser
from discovery.corpus import BosPolicy, Context, contexts_digest
from discovery.errors import HarvestError
from discovery.file_lock import locked
from discovery.input_arguments import (
    CORPUS_HELP,
    DEVICE_HELP,
    add_corpus_arguments,
    add_limit_arguments,
    add_model_arguments,
    chosen_contexts,
    load_model,
)
from discovery.output_places import check_output
from discovery.residuals import as_stored, read_in_batches, tapped
from discovery.shards import (
    MANIFEST_FILE,
    Harvested,
    check_header,
    load_manifest,
    load_ordinary_resid,
    save_shard,
    shard_path,
    shard_paths,
)
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import LanguageModel
from sae_runtime.whole_files import whole_file


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
    """Whether contexts begin with BOS: see `corpus.CorpusSettings.bos`."""
    d_model: int
    num_contexts: int
    contexts_sha256: str
    """Over all token ids in order."""
    contexts_per_shard: int
    sources: dict[str, int]
    """Tokens by source, position 0 of each context included."""


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


# --- writing --------------------------------------------------------------------------------------------------------


def harvest(
    lm: LanguageModel,
    hook_point: HookPoint,
    contexts: Sequence[Context],
    folder: Path,
    *,
    contexts_per_shard: int = 128,
    batch_tokens: int = 8192,
    bos_policy: BosPolicy = "tokenizer",
    progress: bool = False,
) -> dict[str, Any]:
    """Harvest `contexts` into `folder`, or finish what is there. Returns the manifest.

    Raises HarvestError if the folder holds a harvest with other settings, a residual is not finite, a shard that is
    there is damaged, or the disk is full. Whatever was written stays, and the same call goes on.
    """
    with tapped(lm, hook_point) as tap:
        settings = harvest_settings(lm, hook_point, contexts, contexts_per_shard, bos_policy)
        starts = range(0, len(contexts), contexts_per_shard)
        _claim(folder, settings)
        missing = [(shard, first) for shard, first in enumerate(starts) if not shard_path(folder, shard).exists()]
        for path in shard_paths(folder):
            check_header(path)
        with _bar(settings, contexts, missing, folder.name, progress) as bar:
            for shard, first in missing:
                part = contexts[first : first + contexts_per_shard]
                path, resid = shard_path(folder, shard), dict[int, Tensor]()
                for index, resid_TD in read_in_batches(lm, tap, part, batch_tokens):
                    resid[index] = as_stored(resid_TD, part[index], f"for {path.name}")
                    bar.update(len(resid_TD))
                sources = list(settings.sources)
                save_shard(path, _shard_of(first, part, [resid[index] for index in range(len(part))], sources))
    return _finish(folder, settings)


def _bar(
    settings: HarvestSettings, contexts: Sequence[Context], missing: list[tuple[int, int]], name: str, progress: bool
) -> "tqdm[Any]":
    """A bar of tokens that begins where the harvest does, so that the time left is that of what is to be done."""
    total, size = sum(settings.sources.values()), settings.contexts_per_shard
    to_do = sum(len(context.tokens) for _, first in missing for context in contexts[first : first + size])
    return tqdm(
        total=total,
        initial=total - to_do,
        desc=f"harvest {name}",
        unit="tok",
        unit_scale=True,
        mininterval=5 if not sys.stderr.isatty() else 0.1,
        disable=not progress,
    )


def harvest_settings(
    lm: LanguageModel,
    hook_point: HookPoint,
    contexts: Sequence[Context],
    contexts_per_shard: int,
    bos_policy: BosPolicy = "tokenizer",
) -> HarvestSettings:
    """What a harvest of `contexts` is. HarvestError if there are none, or the model can't read one."""
    if not contexts:
        raise HarvestError("there is nothing to harvest: no context in the files and split asked for")
    sources: dict[str, int] = {}
    for context in contexts:
        _check_readable(context, lm)
        sources[context.source] = sources.get(context.source, 0) + len(context.tokens)
    return HarvestSettings(
        model_name=lm.identity.name,
        model_sha256=lm.identity.weights_sha256,
        quantization=lm.identity.quantization,
        dtype=lm.identity.dtype,
        hook_point=str(hook_point),
        bos_policy=bos_policy,
        d_model=lm.d_model,
        num_contexts=len(contexts),
        contexts_sha256=contexts_digest(contexts),
        contexts_per_shard=contexts_per_shard,
        sources=dict(sorted(sources.items())),
    )


def _check_readable(context: Context, lm: LanguageModel) -> None:
    if len(context.tokens) > lm.context_length:
        raise HarvestError(
            f"contexts must have at most {lm.context_length} tokens, as {lm.identity.name} was made for, "
            f"got {len(context.tokens)} (--context-tokens)"
        )
    if max(context.tokens) >= lm.vocab_size:
        raise HarvestError(
            f"token ids must be below {lm.vocab_size}, the vocabulary of {lm.identity.name}, got {max(context.tokens)} "
            f"in document {context.document} ({context.source})"
        )


def _claim(folder: Path, settings: HarvestSettings) -> None:
    """Write the settings of a new harvest, or check them against those of the one that is there."""
    if not (folder / MANIFEST_FILE).exists():
        _write_manifest(folder, {"settings": asdict(settings), "finished": False})
        return
    before = load_manifest(folder)["settings"]
    differing = [name for name, value in asdict(settings).items() if before.get(name) != value]
    if differing:
        changes = "; ".join(f"{name} was {before.get(name)}, is {asdict(settings)[name]}" for name in differing)
        raise HarvestError(f"{folder} holds a harvest with other settings: {changes}")


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / MANIFEST_FILE) as partial:
            partial.write_text(json.dumps(manifest, indent=1))
    except OSError as error:
        raise HarvestError(
            f"{folder / MANIFEST_FILE} can't be written: {error.strerror}; the same command goes on"
        ) from error


def _shard_of(first: int, contexts: Sequence[Context], residuals: list[Tensor], sources: list[str]) -> Harvested:
    """The shard of `contexts`, the first of which is number `first` of the harvest; `sources` are the harvest's."""
    lengths = torch.tensor([len(context.tokens) - 1 for context in contexts])
    return Harvested(
        resid_ND=torch.cat(residuals),
        token_ids_N=torch.tensor([t for c in contexts for t in c.tokens[1:]], dtype=torch.int32),
        positions_N=torch.cat([torch.arange(1, n + 1, dtype=torch.int32) for n in lengths.tolist()]),
        contexts_N=torch.arange(first, first + len(contexts), dtype=torch.int32).repeat_interleave(lengths),
        documents_N=torch.tensor([c.document for c in contexts]).repeat_interleave(lengths),
        first_ids_C=torch.tensor([c.tokens[0] for c in contexts], dtype=torch.int32),
        sources_C=torch.tensor([sources.index(c.source) for c in contexts], dtype=torch.int32),
    )


def _finish(folder: Path, settings: HarvestSettings) -> dict[str, Any]:
    """Add what can only be known at the end: token count, mean, norms."""
    manifest = load_manifest(folder)
    if manifest["finished"]:
        return manifest
    moments = residual_moments(folder)
    mean_D = moments.sum_D / moments.num_tokens
    centred_norm = mean_centred_norm(folder, mean_D)
    manifest |= {
        "finished": True,
        "first_position": "excluded",
        "stored_dtype": "bfloat16",
        "num_ordinary_tokens": moments.num_tokens,
        "mean": mean_D.tolist(),
        "mean_norm": moments.sum_norm / moments.num_tokens,
        "mean_centred_norm": centred_norm,
        "norm_scale": settings.d_model**0.5 / centred_norm,
    }
    _write_manifest(folder, manifest)
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
    parser = command_parser("Write the residuals at a hook point to disk.")
    parser.add_argument("corpus", nargs="+", help=CORPUS_HELP)
    parser.add_argument("--output", type=Path, required=True, help="folder; continued if it exists")
    add_model_arguments(parser)
    parser.add_argument("--device", default="auto", help=DEVICE_HELP)
    add_corpus_arguments(parser)
    add_limit_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the order of contexts")
    parser.add_argument("--contexts-per-shard", type=int, default=128, help="contexts to a file")
    args = parser.parse_args(argv)
    check_reading(args)
    check_output("--output", args.output, is_folder=True)
    lm = load_model(args)
    with tapped(lm, args.hook_point):  # a place that the model has not got is refused before the text is read
        pass
    with locked(args.output / "lock", wait=False):
        manifest = harvest(
            lm,
            args.hook_point,
            chosen_contexts(args, lm),
            args.output,
            contexts_per_shard=args.contexts_per_shard,
            batch_tokens=args.batch_tokens,
            bos_policy=args.bos,
            progress=True,
        )
    print(json.dumps({key: manifest[key] for key in ("num_ordinary_tokens", "mean_norm", "norm_scale", "finished")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
