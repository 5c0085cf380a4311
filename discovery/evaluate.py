"""Held-out figures of a dictionary, on the weights as they are served.

For each set of harvested residuals that the dictionary was not trained on, and for all together: the figures of
`reconstruction` and, from passes over the whole model, those of `splicing`; for the dictionary, those of
`decoder_geometry`. "The mean" is that of each set's own ordinary tokens, so that a dictionary of another library, which
knows no mean, is measured like ours.

    telltale lab evaluate DICTIONARY --set corpus=runs/harvest/corpus-held-out --set chat=runs/... --report report.html

Harvests and a model of other weights, quantisation or place than the dictionary's are refused, and so is a harvest that
it was trained on, as far as its manifest says.
"""

import argparse
import json
import re
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from discovery.argument_checks import check_counts
from discovery.command_parser import command_parser
from discovery.decoder_geometry import geometry_figures
from discovery.errors import FitError, HarvestError, LabError
from discovery.output_places import check_output, made_for
from discovery.provenance import check_harvest, check_model, check_unseen
from discovery.reconstruction import ReconstructionSums, measure_reconstruction
from discovery.residuals import tapped
from discovery.shard_stream import read_shard, read_whole_shard
from discovery.shards import finished_shards, shard_paths
from discovery.shards import load_manifest as load_harvest_manifest
from discovery.splicing import SplicingSums, measure_splicing
from discovery.splicing_contexts import choose_contexts, even_batches, usual_batch_tokens
from sae_runtime.checkpoint import (
    MANIFEST_FILE,
    LoadedSAE,
    Manifest,
    load_manifest,
    load_sae,
    write_atomically,
)
from sae_runtime.language_model import (
    EMBEDDED,
    DTypeName,
    LanguageModel,
    Quantization,
    load_language_model,
    resolve_device,
)
from sae_runtime.sae import SAE
from sae_runtime.tap import Tap
from sae_runtime.usual_fvu import KEY as TOKEN_FVU
from sae_runtime.usual_fvu import MIN_TOKENS

TOTAL = "all"
_TAKEN = (TOTAL, "decoder", "density", "fidelity", "fit", TOKEN_FVU)
"""Keys of the JSON and of manifests that are no names of sets."""
_KEPT = ("fidelity", "fit")
"""What other commands put into a manifest's metrics."""


class Evaluation(NamedTuple):
    """Sums per set, and over all sets under `all` if there is more than one."""

    reconstruction: dict[str, ReconstructionSums]
    splicing: dict[str, SplicingSums]
    """Empty if no model was run."""

    def figures(self) -> dict[str, dict[str, float]]:
        """Set -> figures, by the names they have in manifests."""
        return {
            name: sums.figures() | (self.splicing[name].figures() if name in self.splicing else {})
            for name, sums in self.reconstruction.items()
        }

    def token_fvu(self) -> dict[str, Any]:
        """What a token's FVU usually is, over all sets, for the server's guard; {} if there are too few tokens."""
        usual = list(self.reconstruction.values())[-1].usual_fvu()
        return {TOKEN_FVU: usual.as_json()} if usual.tokens >= MIN_TOKENS else {}


def mean_residual(shards: list[Path]) -> Tensor:
    """[D] fp32 mean of the shards' ordinary residuals. HarvestError if there is none."""
    sum_D, num_tokens = torch.zeros(()), 0
    for path in shards:
        resid_ND = read_shard(path)
        sum_D, num_tokens = sum_D + resid_ND.sum(0, dtype=torch.float64), num_tokens + len(resid_ND)
    if not num_tokens:
        raise HarvestError(f"{shards[0].parent} has no ordinary token")
    return (sum_D / num_tokens).float()


def evaluate(
    sae: SAE,
    lm: LanguageModel | None,
    tap: Tap | None,
    sets: dict[str, list[Path]],
    max_ce_tokens: int,
    *,
    batch_tokens: int | None = None,
) -> Evaluation:
    """Measure on each set of shards. The model is run only if there is one, on passes of `batch_tokens`."""
    reconstruction: dict[str, ReconstructionSums] = {}
    splicing: dict[str, SplicingSums] = {}
    for name, shards in sets.items():
        mean_D = mean_residual(shards)
        bar = tqdm(shards, desc=f"evaluate {name}", unit="shard", mininterval=5)
        reconstruction[name] = measure_reconstruction(sae, map(read_whole_shard, bar), mean_D=mean_D)
        if lm is not None and tap is not None:
            chosen = choose_contexts(shards, max_ce_tokens)
            size = batch_tokens or usual_batch_tokens(lm.model.get_output_embeddings().weight.shape[0])
            batches = tqdm(list(even_batches(chosen.contexts, size)), desc=f"cross-entropy {name}", mininterval=5)
            splicing[name] = measure_splicing(lm, sae, batches, tap, mean_D=mean_D)
            splicing[name].num_available = chosen.num_available
    if len(sets) > 1:
        reconstruction[TOTAL] = _total(list(reconstruction.values()))
        if splicing:
            splicing[TOTAL] = _total(list(splicing.values()))
    return Evaluation(reconstruction, splicing)


def _total(sums: list[Any]) -> Any:
    total = sums[0]
    for part in sums[1:]:
        total = total + part
    return total


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Put `metrics` into the dictionary's manifest, in the place of all but what other commands have put there."""
    manifest = load_manifest(folder)
    kept = {name: manifest.metrics[name] for name in _KEPT if name in manifest.metrics}
    manifest = manifest.model_copy(update={"metrics": metrics | kept})
    write_atomically(folder / MANIFEST_FILE, manifest.model_dump_json(indent=1) + "\n")


def parse_set(text: str) -> tuple[str, list[Path]]:
    """`NAME=FOLDER,FOLDER` as the name and all shards of the folders; HarvestError if there are none."""
    name, _, folders = text.partition("=")
    shards = [path for folder in folders.split(",") for path in shard_paths(Path(folder))]
    if not name or not shards:
        raise HarvestError(f"--set must be NAME=HARVEST[,HARVEST...] with finished shards, got {text!r}")
    return name, shards


def parse_sets(texts: list[str]) -> dict[str, list[Path]]:
    """Sets by name; HarvestError for a name that is given twice or is taken, and for a harvest that is there twice."""
    sets: dict[str, list[Path]] = {}
    for text in texts:
        name, shards = parse_set(text)
        if name in sets or name in _TAKEN:
            taken = ", ".join(map(repr, _TAKEN))
            raise HarvestError(f"--set must have names of their own, and none {taken}, got {name!r}")
        sets[name] = shards
    times = Counter(path.resolve() for shards in sets.values() for path in shards)
    for path in times:
        if times[path] > 1:
            raise HarvestError(f"--set must name each harvest once, got {path.parent} {times[path]} times")
    return sets


def check_harvests(manifest: Manifest, sets: dict[str, list[Path]]) -> None:
    """FitError if a harvest is of another model, quantisation or place than the dictionary."""
    for folder in sorted({path.parent for shards in sets.values() for path in shards}):
        check_harvest(manifest, load_harvest_manifest(folder)["settings"], folder)


def check_widths(manifest: Manifest, sets: dict[str, list[Path]]) -> None:
    """FitError if the dictionary can't read a harvest, whatever model it is of."""
    for folder in sorted({path.parent for shards in sets.values() for path in shards}):
        width = load_harvest_manifest(folder)["settings"].get("d_model", manifest.d_model)
        if width != manifest.d_model:
            raise FitError(f"d_model of harvest {folder} must be the dictionary's {manifest.d_model}, got {width}")


def check_held_out(manifest: Manifest, sets: dict[str, list[Path]]) -> None:
    """HarvestError if the dictionary says that it was trained on one of the harvests."""
    for folder in sorted({path.parent for shards in sets.values() for path in shards}):
        settings = load_harvest_manifest(folder)["settings"]
        check_unseen(manifest, settings.get("contexts_sha256"), f"harvest {folder}")


def check_whole(sets: dict[str, list[Path]]) -> None:
    """HarvestError if a harvest is not finished or lacks a shard: its figures would be of some of the text."""
    for folder in sorted({path.parent for shards in sets.values() for path in shards}):
        finished_shards(folder)


def _with_lists_on_lines(text: str) -> str:
    """Indented JSON with each list of numbers, a histogram's bins, on one line."""
    return re.sub(r"\[[\s\d.,eE+-]+\]", lambda found: " ".join(found[0].split()), text)


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("Held-out figures of a dictionary.")
    parser.add_argument("dictionary", type=Path, help="its folder")
    parser.add_argument("--set", action="append", required=True, help="NAME=HARVEST[,HARVEST...]; repeat")
    parser.add_argument("--model", default=EMBEDDED, help="embedded, a folder, a .gguf file or a hub name")
    parser.add_argument("--quantization", default="auto", choices=get_args(Quantization), help="of --model")
    parser.add_argument("--dtype", default="auto", choices=get_args(DTypeName), help="--model computes in it")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N; auto: cuda if there is one")
    parser.add_argument("--unverified", action="store_true", help="accept another model or place than the dictionary's")
    parser.add_argument("--trained-on", action="store_true", help="accept a harvest that the dictionary was trained on")
    parser.add_argument("--ce-tokens", type=int, default=32768, help="per set; 0 leaves cross-entropy and KL out")
    parser.add_argument(
        "--batch-tokens", type=int, help="of a pass for them; default: as many as give 512 MiB of logits"
    )
    parser.add_argument("--write", action="store_true", help="put the figures into the dictionary's manifest")
    parser.add_argument("--report", type=Path, help="also write an HTML page with plots")
    parser.add_argument("--fidelity", type=Path, help="what `telltale lab fidelity --json` printed, for page and JSON")
    args = parser.parse_args(argv)
    check_counts(args, "ce_tokens", least=0)
    check_counts(args, "batch_tokens")
    check_output("--report", args.report)
    check_output("--write", args.dictionary / MANIFEST_FILE if args.write else None)
    sae = load_sae(args.dictionary, device=resolve_device(args.device))
    sets = parse_sets(args.set)
    check_whole(sets)
    comparison = read_comparison(args.fidelity) if args.fidelity else None
    check_widths(sae.manifest, sets)
    if not args.unverified:
        check_harvests(sae.manifest, sets)
    if not args.trained_on:
        check_held_out(sae.manifest, sets)
    lm = load_model(args, sae.manifest) if args.ce_tokens else None
    with nullcontext() if lm is None else tapped(lm, sae.manifest.hook) as tap:
        evaluation = evaluate(sae, lm, tap, sets, args.ce_tokens, batch_tokens=args.batch_tokens)
    metrics: dict[str, Any] = evaluation.figures() | evaluation.token_fvu()
    geometry = geometry_figures(sae)
    density = {name: sums.density_histogram()._asdict() for name, sums in evaluation.reconstruction.items()}
    others = {"density": density, "decoder": geometry} | ({"fidelity": comparison} if comparison else {})
    # Before anything is written: what took so long must not go with a file that can't be.
    print(_with_lists_on_lines(json.dumps(metrics | others, indent=1)), flush=True)
    if args.write:
        write_metrics(args.dictionary, metrics)
    if args.report:
        write_report(sae, evaluation, geometry, args.report, comparison)
    return 0


def load_model(args: argparse.Namespace, manifest: Manifest) -> LanguageModel:
    """The model to splice into; FitError if it is not the dictionary's."""
    lm = load_language_model(
        args.model, quantization=args.quantization, dtype=args.dtype, device=args.device, progress=True
    )
    check_model(manifest, lm, unverified=args.unverified)
    return lm


def read_comparison(path: Path) -> dict[str, Any]:
    """What `telltale lab fidelity --json` printed; LabError if it is something else."""
    try:
        comparison = json.loads(path.read_text(encoding="utf-8"))
        if {"models", "answer", "correlation_histogram"} <= set(comparison):
            return dict(comparison)
    except (OSError, ValueError, TypeError) as error:
        raise LabError(f"comparison {path} can't be read: {error}") from None
    raise LabError(f"comparison {path} must be what `telltale lab fidelity --json` prints, got something else")


def write_report(
    sae: LoadedSAE,
    evaluation: Evaluation,
    geometry: dict[str, Any],
    path: Path,
    comparison: dict[str, Any] | None = None,
) -> None:
    """The figures and plots as one HTML page. Folders above it are made."""
    from discovery.evaluation_report import render  # plotly: only for those who want plots

    write_atomically(made_for(path), render(sae, evaluation.figures(), evaluation.reconstruction, geometry, comparison))


if __name__ == "__main__":
    sys.exit(main())
