"""Measures the dictionaries of all runs with one evaluator, ours, after importing them.

    python -m benchmarks.peers.training.measure --data DATA --runs RUNS --held-out runs/harvest/corpus-held-out \
        --results benchmarks/peers/training/results

Every run gets variance explained, L0 and dead latents; the best run of each library and recipe also cross-entropy
recovered. The figure that the library's own reconstruction gave (`own_variance_explained`, another formula in another
process) must agree within 0.002, or the import is wrong and nothing is written.
"""

import argparse
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from discovery.reconstruction import measure_reconstruction
from discovery.shards import shard_paths
from discovery.splicing import measure_splicing
from discovery.splicing_contexts import choose_contexts, even_batches
from sae_runtime.checkpoint import load_sae
from sae_runtime.formats import import_sae
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import EMBEDDED, load_language_model
from sae_runtime.sae import SAE
from sae_runtime.tap import Tap

AGREEMENT = 0.002


def read_dictionary(folder: Path, library: str, mean_D: torch.Tensor) -> SAE:
    """Whatever format it is in. The mean, with which single tokens are compared, is the same for all."""
    match library:
        case "ours":
            sae: SAE = load_sae(folder / "dictionary")
        case "SAELens":
            sae = import_sae(folder / "dictionary")
        case _:
            sae = import_sae(folder / "dictionary" / "layers.15", hook_point="layers.15.output")
    sae.resid_mean.copy_(mean_D)
    return sae


def reconstruction_of(folder: Path, result: dict[str, Any], data: Path) -> dict[str, float]:
    """Our evaluator's figures on the held-out tokens."""
    mean_D = load_file(data / "residuals.safetensors")["mean_D"]
    sae = read_dictionary(folder, result["library"], mean_D)
    figures = measure_reconstruction(sae, [load_file(data / "held_out.safetensors")["resid_ND"]]).figures()
    off = abs(figures["variance_explained"] - result["own_variance_explained"])
    if off > AGREEMENT:
        raise SystemExit(
            f"{folder}: variance explained must agree with the library's own within {AGREEMENT}, off {off}"
        )
    figures["held_out_tokens"] = figures.pop("tokens")  # a result's own tokens are those trained on
    return {name: round(value, 5) for name, value in figures.items()}


def splicing_of(folder: Path, result: dict[str, Any], args: argparse.Namespace, lm: Any) -> dict[str, float]:
    """Cross-entropy figures, from passes over the whole model."""
    sae = read_dictionary(folder, result["library"], load_file(args.data / "residuals.safetensors")["mean_D"])
    tap = Tap(lm.model, HookPoint(15), lm.d_model)
    try:
        chosen = choose_contexts(shard_paths(args.held_out), args.ce_tokens)
        sums = measure_splicing(lm, sae, even_batches(chosen.contexts, 4096), tap)
    finally:
        tap.remove()
    return {name: round(value, 5) for name, value in sums.figures().items()}


def group_of(result: dict[str, Any]) -> tuple[str, str, str, int]:
    return result["recipe"], result["library"], result["variant"], result["tokens"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True, help="harvest, for its token ids")
    parser.add_argument("--ce-tokens", type=int, default=8192, help="0 leaves cross-entropy out")
    parser.add_argument("--results", type=Path, required=True)
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    data = json.loads((args.data / "data.json").read_text())
    runs = []
    for path in sorted(args.runs.glob("*/result.json")):
        result = json.loads(path.read_text())
        known = args.results / f"{path.parent.name}.json"
        if known.exists():
            result |= json.loads(known.read_text())
        else:
            result |= reconstruction_of(path.parent, result, args.data) | {"data": data}
            write(known, result)
        runs.append((path.parent, known, result))
    runs.sort(key=lambda run: group_of(run[2]))
    lm = load_language_model(EMBEDDED, dtype=data["dtype"], progress=True) if args.ce_tokens else None
    for _, group in groupby(runs, key=lambda run: group_of(run[2])):
        folder, known, result = max(group, key=lambda run: run[2]["variance_explained"])
        if lm is not None and "cross_entropy_recovered" not in result:
            write(known, result | splicing_of(folder, result, args, lm))
    print(json.dumps({"results": len(runs)}))


def write(path: Path, result: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    main()
