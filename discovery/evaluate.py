"""Held-out figures of a dictionary, on the weights as they are served.

For each set of harvested residuals that the dictionary was not trained on, and for all together: the figures of
`reconstruction` and, from passes over the whole model, those of `splicing`; for the dictionary, those of
`decoder_geometry`.

    telltale lab evaluate DICTIONARY --set corpus=runs/harvest/corpus-held-out --set chat=runs/... --report report.html
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from discovery.decoder_geometry import geometry_figures
from discovery.errors import HarvestError
from discovery.harvest import load_manifest as load_harvest_manifest
from discovery.harvest import load_resid, load_shard, shard_paths
from discovery.reconstruction import ReconstructionSums, measure_reconstruction
from discovery.splicing import SplicingSums, measure_splicing
from sae_runtime.checkpoint import (
    MANIFEST_FILE,
    LoadedSAE,
    Manifest,
    load_manifest,
    load_sae,
    write_atomically,
)
from sae_runtime.language_model import EMBEDDED, LanguageModel, load_language_model
from sae_runtime.sae import SAE
from sae_runtime.tap import Tap

TOTAL = "all"


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


def full_contexts(shards: list[Path], max_tokens: int, batch_tokens: int = 4096) -> Iterator[Tensor]:
    """[B, T] batches of the shards' contexts that have the commonest length, up to `max_tokens`."""
    contexts: list[list[int]] = []
    for path in shards:
        contexts += load_shard(path).token_ids()
    lengths = [len(context) for context in contexts]
    length = max(set(lengths), key=lengths.count)
    chosen = [context for context in contexts if len(context) == length][: max(1, max_tokens // length)]
    yield from torch.split(torch.tensor(chosen), max(1, batch_tokens // length))


def evaluate(
    sae: SAE, lm: LanguageModel | None, tap: Tap | None, sets: dict[str, list[Path]], max_ce_tokens: int
) -> Evaluation:
    """Measure on each set of shards. The model is run only if there is one."""
    reconstruction: dict[str, ReconstructionSums] = {}
    splicing: dict[str, SplicingSums] = {}
    for name, shards in sets.items():
        bar = tqdm(shards, desc=f"evaluate {name}", unit="shard", mininterval=5)
        reconstruction[name] = measure_reconstruction(sae, (load_resid(path) for path in bar))
        if lm is not None and tap is not None:
            batches = tqdm(full_contexts(shards, max_ce_tokens), desc=f"cross-entropy {name}", mininterval=5)
            splicing[name] = measure_splicing(lm, sae, batches, tap)
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
    """Put `metrics` into the dictionary's manifest."""
    manifest = load_manifest(folder).model_copy(update={"metrics": metrics})
    write_atomically(folder / MANIFEST_FILE, manifest.model_dump_json(indent=1) + "\n")


def parse_set(text: str) -> tuple[str, list[Path]]:
    """`NAME=FOLDER,FOLDER` as the name and all shards of the folders; HarvestError if there are none."""
    name, _, folders = text.partition("=")
    shards = [path for folder in folders.split(",") for path in shard_paths(Path(folder))]
    if not name or not shards:
        raise HarvestError(f"--set must be NAME=HARVEST[,HARVEST...] with finished shards, got {text!r}")
    return name, shards


def check_harvests(manifest: Manifest, sets: dict[str, list[Path]]) -> None:
    """HarvestError if a harvest is of other weights or of another hook point than the dictionary."""
    for folder in sorted({path.parent for shards in sets.values() for path in shards}):
        settings = load_harvest_manifest(folder)["settings"]
        for name in ("model_sha256", "hook_point", "d_model"):
            wanted, got = getattr(manifest, name), settings.get(name)
            if got is not None and got != wanted:
                raise HarvestError(f"{folder}: {name} must be the dictionary's {wanted}, got {got}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Held-out figures of a dictionary.")
    parser.add_argument("dictionary", type=Path)
    parser.add_argument("--set", action="append", required=True, help="NAME=HARVEST[,HARVEST...]; repeat")
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--ce-tokens", type=int, default=32768, help="per set; 0 leaves cross-entropy and KL out")
    parser.add_argument("--write", action="store_true", help="put the figures into the dictionary's manifest")
    parser.add_argument("--report", type=Path, help="also write an HTML page with plots")
    args = parser.parse_args(argv)
    sae = load_sae(args.dictionary)
    sets = dict(parse_set(text) for text in args.set)
    check_harvests(sae.manifest, sets)
    lm = load_language_model(args.model, progress=True) if args.ce_tokens else None
    tap = Tap(lm.model, sae.manifest.hook, lm.d_model) if lm is not None else None
    evaluation = evaluate(sae, lm, tap, sets, args.ce_tokens)
    metrics: dict[str, Any] = evaluation.figures()
    if args.write:
        write_metrics(args.dictionary, metrics)
    if args.report:
        write_report(sae, evaluation, args.report)
    print(json.dumps(metrics | {"decoder": geometry_figures(sae)}, indent=1))
    return 0


def write_report(sae: LoadedSAE, evaluation: Evaluation, path: Path) -> None:
    """The figures and plots as one HTML page."""
    from discovery.evaluation_report import render  # plotly: only for those who want plots

    write_atomically(path, render(sae, evaluation.figures(), evaluation.reconstruction))


if __name__ == "__main__":
    sys.exit(main())
