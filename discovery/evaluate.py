"""Held-out figures of a dictionary, on the weights as they are served.

For each set of harvested residuals that the dictionary was not trained on:

    variance_explained         1 - sum ||x - x_hat||^2 / sum ||x - mean||^2     (mean: of the training data)
    median_token_variance_explained
                               median over tokens of 1 - ||x - x_hat||^2 / ||x - mean||^2
    l0                         mean number of active latents
    dead_ratio                 share of latents that are active at none of the tokens
    cross_entropy_recovered    (CE_zero - CE_sae) / (CE_zero - CE_clean)

The cross-entropies (nats per token) come from passes over the whole model in which the residual at the hook point is
replaced, through the tap, by its reconstruction, by zero or by the mean; position 0 is left alone and predictions made
there are not counted. All other tokens are replaced, those with massive activations (see `harvest.ordinary`) included;
the other figures leave these out, because they would be about them alone. Recovery from mean ablation is given beside
the one from zero ablation: it is the stricter.

    python -m discovery.evaluate DICTIONARY --set corpus=runs/harvest/corpus-held-out --set chat=runs/...

Shape suffixes: N harvested tokens, B rows, T positions, D model width, F latents, V vocabulary.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from discovery.harvest import load_resid, load_shard, ordinary, shard_paths
from sae_runtime.checkpoint import MANIFEST_FILE, load_manifest, load_sae, write_atomically
from sae_runtime.language_model import EMBEDDED, LanguageModel, load_language_model
from sae_runtime.sae import SAE
from sae_runtime.tap import Edit, Tap

_ENCODE_TOKENS = 2048


@dataclass(slots=True)
class ReconstructionSums:
    """What reconstruction figures are made of; sums of several sets can be added up."""

    num_latents: int
    num_tokens: int = 0
    """Ordinary ones; all figures are over them."""
    num_massive: int = 0
    """Tokens left out for their massive activation."""
    error: float = 0.0
    """Sum of ||x - x_hat||^2."""
    spread: float = 0.0
    """Sum of ||x - mean||^2."""
    num_active: int = 0
    token_variance_explained: list[Tensor] = field(default_factory=list)
    firing_F: Tensor = field(init=False)
    """Tokens at which each latent is active."""

    def __post_init__(self) -> None:
        self.firing_F = torch.zeros(self.num_latents, dtype=torch.long)

    @torch.inference_mode()
    def add(self, sae: SAE, resid_ND: Tensor) -> None:
        """Count ordinary residuals in."""
        resid_ND = resid_ND.float()
        f_NF = sae.encode(resid_ND)
        error_N = (resid_ND - sae.reconstruct(resid_ND, f_NF)).square().sum(-1)
        spread_N = (resid_ND - sae.resid_mean).square().sum(-1)
        active_F = (f_NF > 0).sum(0)
        self.num_tokens += len(resid_ND)
        self.error += float(error_N.double().sum())
        self.spread += float(spread_N.double().sum())
        self.num_active += int(active_F.sum())
        self.firing_F += active_F
        self.token_variance_explained.append(1 - error_N / spread_N)

    def __add__(self, other: "ReconstructionSums") -> "ReconstructionSums":
        both = ReconstructionSums(self.num_latents)
        both.num_tokens = self.num_tokens + other.num_tokens
        both.num_massive = self.num_massive + other.num_massive
        both.error, both.spread = self.error + other.error, self.spread + other.spread
        both.num_active = self.num_active + other.num_active
        both.token_variance_explained = self.token_variance_explained + other.token_variance_explained
        both.firing_F = self.firing_F + other.firing_F
        return both

    def figures(self) -> dict[str, float]:
        """The figures, by the names they have in manifests."""
        return {
            "tokens": self.num_tokens,
            "massive_tokens_left_out": self.num_massive,
            "variance_explained": 1 - self.error / self.spread,
            "median_token_variance_explained": float(torch.cat(self.token_variance_explained).median()),
            "l0": self.num_active / self.num_tokens,
            "dead_ratio": float((self.firing_F == 0).float().mean()),
        }


@dataclass(slots=True)
class CrossEntropySums:
    """Nats over the same predictions, under each replacement of the residual."""

    num_predictions: int = 0
    clean: float = 0.0
    sae: float = 0.0
    zero: float = 0.0
    mean: float = 0.0

    def __add__(self, other: "CrossEntropySums") -> "CrossEntropySums":
        return CrossEntropySums(
            self.num_predictions + other.num_predictions,
            self.clean + other.clean,
            self.sae + other.sae,
            self.zero + other.zero,
            self.mean + other.mean,
        )

    def figures(self) -> dict[str, float]:
        """The figures, by the names they have in manifests."""
        return {
            "predictions": self.num_predictions,
            "cross_entropy_clean": self.clean / self.num_predictions,
            "cross_entropy_sae": self.sae / self.num_predictions,
            "cross_entropy_zero_ablated": self.zero / self.num_predictions,
            "cross_entropy_mean_ablated": self.mean / self.num_predictions,
            "cross_entropy_recovered": (self.zero - self.sae) / (self.zero - self.clean),
            "cross_entropy_recovered_from_mean": (self.mean - self.sae) / (self.mean - self.clean),
        }


def measure_reconstruction(sae: SAE, residuals: Iterable[Tensor]) -> ReconstructionSums:
    """Figures over [N, D] pieces of residuals, massive activations left out."""
    sums = ReconstructionSums(sae.num_latents)
    for piece_ND in residuals:
        ordinary_N = ordinary(piece_ND)
        sums.num_massive += int((~ordinary_N).sum())
        for part_ND in torch.split(piece_ND[ordinary_N], _ENCODE_TOKENS):
            sums.add(sae, part_ND)
    return sums


def replacements(sae: SAE) -> dict[str, Edit | None]:
    """What the residual is replaced by, by the names of `CrossEntropySums`."""

    def keep_first(replace: Callable[[Tensor], Tensor]) -> Edit:
        def edit(resid_BTD: Tensor) -> Tensor:
            edited_BTD = replace(resid_BTD.flatten(0, 1)).to(resid_BTD.dtype).view_as(resid_BTD)
            # Without its massive activation at position 0 the model breaks, whatever is done elsewhere.
            return torch.cat([resid_BTD[:, :1], edited_BTD[:, 1:]], dim=1)

        return edit

    return {
        "clean": None,
        "sae": keep_first(lambda resid_ND: sae.reconstruct(resid_ND)),
        "zero": keep_first(torch.zeros_like),
        "mean": keep_first(lambda resid_ND: sae.resid_mean.expand_as(resid_ND)),
    }


@torch.inference_mode()
def measure_cross_entropy(lm: LanguageModel, sae: SAE, batches: Iterable[Tensor], tap: Tap) -> CrossEntropySums:
    """Cross-entropies over [B, T] batches of token ids. Contexts of a batch have the same length."""
    sums = CrossEntropySums()
    for token_ids_BT in batches:
        for name, edit in replacements(sae).items():
            with tap.step(token_ids_BT.numel(), edit):
                logits_BTV = lm.model(input_ids=token_ids_BT, use_cache=False).logits
            # From position 1 on: what position 0 predicts is the same under all replacements.
            nats = torch.nn.functional.cross_entropy(
                logits_BTV[:, 1:-1].flatten(0, 1).float(), token_ids_BT[:, 2:].flatten(), reduction="sum"
            )
            setattr(sums, name, getattr(sums, name) + float(nats))
        sums.num_predictions += token_ids_BT[:, 2:].numel()
    return sums


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
) -> dict[str, dict[str, float]]:
    """Figures of each set of shards, and of all together under `all`. Cross-entropy only if there is a model."""
    reconstructions: dict[str, ReconstructionSums] = {}
    entropies: dict[str, CrossEntropySums] = {}
    for name, shards in sets.items():
        bar = tqdm(shards, desc=f"evaluate {name}", unit="shard", mininterval=5)
        reconstructions[name] = measure_reconstruction(sae, (load_resid(path) for path in bar))
        if lm is not None and tap is not None:
            batches = tqdm(full_contexts(shards, max_ce_tokens), desc=f"cross-entropy {name}", mininterval=5)
            entropies[name] = measure_cross_entropy(lm, sae, batches, tap)
    if len(sets) > 1:
        reconstructions["all"] = _total(list(reconstructions.values()))
        if entropies:
            entropies["all"] = _total(list(entropies.values()))
    return {
        name: sums.figures() | (entropies[name].figures() if name in entropies else {})
        for name, sums in reconstructions.items()
    }


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
    """`NAME=FOLDER,FOLDER` as the name and all shards of the folders."""
    name, _, folders = text.partition("=")
    return name, [path for folder in folders.split(",") for path in shard_paths(Path(folder))]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Held-out figures of a dictionary.")
    parser.add_argument("dictionary", type=Path)
    parser.add_argument("--set", action="append", required=True, help="NAME=HARVEST[,HARVEST...]; repeat")
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--ce-tokens", type=int, default=32768, help="per set; 0 leaves cross-entropy out")
    parser.add_argument("--write", action="store_true", help="put the figures into the dictionary's manifest")
    args = parser.parse_args(argv)
    sae = load_sae(args.dictionary)
    sets = dict(parse_set(text) for text in args.set)
    lm = load_language_model(args.model, progress=True) if args.ce_tokens else None
    tap = Tap(lm.model, sae.manifest.hook, lm.d_model) if lm is not None else None
    metrics = evaluate(sae, lm, tap, sets, args.ce_tokens)
    if args.write:
        write_metrics(args.dictionary, metrics)
    print(json.dumps(metrics, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
