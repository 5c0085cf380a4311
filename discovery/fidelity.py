"""May a dictionary that was trained on one quantisation of a model be served on another?

Reads the same tokens through both and compares what the dictionary makes of them:

    residual_relative_error   mean over tokens of ||x_b - x_a|| / ||x_a - mean||
    correlation               Pearson, per latent over all tokens, of its readings; quantiles over latents that fire
                              at 10 tokens or more in the first
    flip_ratio                of the (token, latent) pairs active in either, the share that is active in only one
    l0, variance_explained    on each

    telltale lab fidelity DICTIONARY --model FOLDER --quantization none --against-quantization nf4 --corpus FILES

Position 0 and massive activations are left out, by the first model's residuals.

Shape suffixes: N tokens, F latents, T positions, D model width.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from discovery.corpus import Context, CorpusSettings, read_contexts, shuffle_contexts, take_tokens
from discovery.errors import LabError
from discovery.harvest import ordinary, read_in_batches
from discovery.reconstruction import ReconstructionSums
from sae_runtime.checkpoint import load_sae
from sae_runtime.language_model import EMBEDDED, LanguageModel, load_language_model
from sae_runtime.sae import SAE
from sae_runtime.tap import Tap

MIN_FIRINGS = 10
"""A correlation over fewer active tokens says nothing."""

_QUANTILES = {"1%": 0.01, "5%": 0.05, "25%": 0.25, "50%": 0.5, "75%": 0.75}


@dataclass(slots=True)
class FidelitySums:
    """What the comparison is made of."""

    num_latents: int
    first: ReconstructionSums = field(init=False)
    second: ReconstructionSums = field(init=False)
    moments_5F: Tensor = field(init=False)
    """fp64 sums over tokens of a, b, a^2, b^2, ab."""
    num_both: int = 0
    num_either: int = 0
    relative_error: float = 0.0

    def __post_init__(self) -> None:
        self.first, self.second = ReconstructionSums(self.num_latents), ReconstructionSums(self.num_latents)
        self.moments_5F = torch.zeros(5, self.num_latents, dtype=torch.float64)

    @torch.inference_mode()
    def add(self, sae: SAE, a_ND: Tensor, b_ND: Tensor) -> None:
        """Count the residuals of the same tokens in."""
        a_ND, b_ND = a_ND.float(), b_ND.float()
        self.first.add(sae, a_ND)
        self.second.add(sae, b_ND)
        a_NF, b_NF = sae.encode(a_ND), sae.encode(b_ND)
        for row, product_NF in enumerate((a_NF, b_NF, a_NF.square(), b_NF.square(), a_NF * b_NF)):
            self.moments_5F[row] += product_NF.sum(0, dtype=torch.float64).cpu()
        self.num_both += int(((a_NF > 0) & (b_NF > 0)).sum())
        self.num_either += int(((a_NF > 0) | (b_NF > 0)).sum())
        self.relative_error += float(((b_ND - a_ND).norm(dim=-1) / (a_ND - sae.resid_mean).norm(dim=-1)).sum())

    def correlation(self) -> Tensor:
        """[F] Pearson correlations; NaN for latents that fire at fewer than MIN_FIRINGS tokens of the first."""
        n = self.first.num_tokens
        a, b, aa, bb, ab = self.moments_5F
        covariance, variance = ab - a * b / n, (aa - a * a / n) * (bb - b * b / n)
        # A latent that never fires in the second has no variance there, and agrees in nothing.
        correlation_F = torch.where(variance > 0, covariance / variance.clamp_min(1e-300).sqrt(), 0.0)
        return correlation_F.masked_fill(self.first.firing_F < MIN_FIRINGS, torch.nan).float()

    def figures(self) -> dict[str, Any]:
        """The comparison in numbers."""
        correlation = self.correlation()
        correlation = correlation[~correlation.isnan()]
        if not len(correlation):
            raise LabError(f"no latent fires at {MIN_FIRINGS} tokens or more of {self.first.num_tokens}: use more text")
        a, b = self.first.figures(), self.second.figures()
        return {
            "tokens": self.first.num_tokens,
            "latents_compared": len(correlation),
            "correlation": {name: float(correlation.quantile(q)) for name, q in _QUANTILES.items()},
            "correlation_below_0.9_ratio": float((correlation < 0.9).float().mean()),
            "flip_ratio": 1 - self.num_both / self.num_either,
            "residual_relative_error": self.relative_error / self.first.num_tokens,
            "l0": [a["l0"], b["l0"]],
            "variance_explained": [a["variance_explained"], b["variance_explained"]],
        }


def paired_residuals(
    models: tuple[LanguageModel, LanguageModel], taps: tuple[Tap, Tap], contexts: list[Context], batch_tokens: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """[T-1, D] residuals of each context from both models, position 0 and massive activations left out."""
    passes = [read_in_batches(lm, tap, contexts, batch_tokens) for lm, tap in zip(models, taps, strict=True)]
    for (index, a_TD), (other, b_TD) in zip(*passes, strict=True):
        assert index == other
        kept_T = ordinary(a_TD[1:])
        yield a_TD[1:][kept_T], b_TD[1:][kept_T]


def compare(sae: SAE, pairs: Iterable[tuple[Tensor, Tensor]]) -> FidelitySums:
    """Sum up pairs of residuals."""
    sums = FidelitySums(sae.num_latents)
    for a_ND, b_ND in pairs:
        sums.add(sae, a_ND, b_ND)
    return sums


def _check_same_tokens(first: LanguageModel, second: LanguageModel) -> None:
    text = "The same text, token by token: 12345 — äöü."
    ids = [lm.tokenizer(text)["input_ids"] for lm in (first, second)]
    if first.d_model != second.d_model or ids[0] != ids[1]:
        names = [f"{lm.identity.name} (width {lm.d_model})" for lm in (first, second)]
        raise LabError(f"--against must be another form of the same model, got {names[0]} and {names[1]}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare a dictionary's readings on two quantisations of a model.")
    parser.add_argument("dictionary", type=Path)
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help=".jsonl, .jsonl.gz or text files")
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--quantization", default="auto", help="of --model")
    parser.add_argument("--against", help="the other form of the model; default --model")
    parser.add_argument("--against-quantization", default="auto", help="of --against")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"], help="of --model")
    parser.add_argument("--against-dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--max-tokens", type=int, default=32768)
    parser.add_argument("--context-tokens", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    args = parser.parse_args(argv)
    sae = load_sae(args.dictionary)
    other = args.against or args.model
    models = (
        load_language_model(args.model, quantization=args.quantization, dtype=args.dtype, progress=True),
        load_language_model(other, quantization=args.against_quantization, dtype=args.against_dtype, progress=True),
    )
    _check_same_tokens(*models)
    taps = tuple(Tap(lm.model, sae.manifest.hook, lm.d_model) for lm in models)
    settings = CorpusSettings(context_tokens=args.context_tokens)
    contexts = list(read_contexts(args.corpus, models[0].tokenizer, settings, "held_out"))
    contexts = take_tokens(shuffle_contexts(contexts, 0), args.max_tokens)
    pairs = paired_residuals(models, (taps[0], taps[1]), contexts, args.batch_tokens)
    bar = tqdm(pairs, total=len(contexts), desc="comparing", unit="ctx", mininterval=5)
    figures = compare(sae, bar).figures()
    identities = [f"{lm.identity.name} {lm.identity.quantization} {lm.identity.dtype}" for lm in models]
    print(json.dumps({"models": identities} | figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
