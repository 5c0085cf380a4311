"""May a dictionary that was trained on one quantisation of a model be served on another?

Reads the same tokens through both and compares what the dictionary makes of them:

    residual_relative_error   sqrt(sum ||x_b - x_a||^2 / sum ||x_a - mean||^2)
    correlation               Pearson, per latent over all tokens, of its readings; quantiles over latents that fire
                              at 10 tokens or more in the first
    flip_ratio                of the (token, latent) pairs active in either, the share that is active in only one:
                              the readings that crossed the latent's threshold
    l0, variance_explained    on each

    telltale lab fidelity DICTIONARY --model FOLDER --quantization none --against-quantization nf4 --corpus FILES

The first model is the one the dictionary was trained on; position 0 and massive activations are left out, by its
residuals. The answer is yes if all of `fidelity_sums.LIMITS` hold. They are a judgement: within them a typical latent
reads the same on both, and no more is lost than a slightly worse dictionary would lose. A threshold or a scale that was
calibrated on one form should be calibrated again on the other, whatever the answer. `--write` puts the figures into the
dictionary's manifest, and a server tells them to its clients. Each named feature (the
dictionary's features.json) has an answer of its own: its readings correlate at MIN_CORRELATION or more, and its flips
are within the limit; a typical latent's figures say nothing of one.

Shape suffixes: N tokens, T positions, D model width.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from discovery.argument_checks import check_reading
from discovery.command_parser import command_parser
from discovery.context_store import taken
from discovery.corpus import Context, CorpusSettings, read_contexts
from discovery.errors import LabError
from discovery.fidelity_sums import MIN_FIRINGS, Answer, FeatureFidelity, FidelitySums, answer
from discovery.input_arguments import read_limit
from discovery.latent_names import load_watchlist
from discovery.output_places import check_output
from discovery.provenance import check_model
from discovery.residuals import read_in_batches, tapped
from discovery.shards import ordinary
from discovery.tables import table_console
from sae_runtime.checkpoint import MANIFEST_FILE, Manifest, load_manifest, load_sae, write_atomically
from sae_runtime.fidelity_figures import FidelityFigures
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


def paired_residuals(
    models: tuple[LanguageModel, LanguageModel], taps: tuple[Tap, Tap], contexts: Sequence[Context], batch_tokens: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """[T-1, D] residuals of each context from both models, position 0 and massive activations left out."""
    passes = [read_in_batches(lm, tap, contexts, batch_tokens) for lm, tap in zip(models, taps, strict=True)]
    for (index, a_TD), (other, b_TD) in zip(*passes, strict=True):
        assert index == other
        kept_T = ordinary(a_TD[1:])
        yield a_TD[1:][kept_T], b_TD[1:][kept_T]


def compare(sae: SAE, pairs: Iterable[tuple[Tensor, Tensor]]) -> FidelitySums:
    """Sum up pairs of residuals."""
    sums = FidelitySums(sae.num_latents, sae.d_model)
    for a_ND, b_ND in pairs:
        sums.add(sae, a_ND, b_ND)
    return sums


def _check_same_tokens(first: LanguageModel, second: LanguageModel) -> None:
    text = "The same text, token by token: 12345 — äöü."
    ids = [lm.tokenizer(text)["input_ids"] for lm in (first, second)]
    if first.d_model != second.d_model or ids[0] != ids[1]:
        names = [f"{lm.identity.name} (width {lm.d_model})" for lm in (first, second)]
        raise LabError(f"--against must be another form of the same model, got {names[0]} and {names[1]}")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("Compare a dictionary's readings on two quantisations of a model.")
    parser.add_argument("dictionary", type=Path, help="its folder")
    parser.add_argument("--corpus", nargs="+", required=True, help=".jsonl, .jsonl.gz, text files, or hf:NAME")
    parser.add_argument(
        "--split",
        default="held_out",
        choices=["train", "held_out", "all"],
        help="of the files' documents; as harvest has it",
    )
    parser.add_argument("--model", default=EMBEDDED, help="embedded, a folder, a .gguf file or a hub name")
    parser.add_argument("--quantization", default="auto", choices=get_args(Quantization), help="of --model")
    parser.add_argument("--against", help="the other form of the model; default --model")
    parser.add_argument("--against-quantization", default="auto", choices=get_args(Quantization), help="of --against")
    parser.add_argument("--dtype", default="auto", choices=get_args(DTypeName), help="of --model")
    parser.add_argument("--against-dtype", default="auto", choices=get_args(DTypeName), help="of --against")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N; auto: cuda if there is one")
    parser.add_argument("--unverified", action="store_true", help="accept another first model than the dictionary's")
    parser.add_argument("--max-tokens", type=int, default=32768, help="tokens to compare on")
    parser.add_argument("--context-tokens", type=int, default=256, help="longest context")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="of a forward pass")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--write", action="store_true", help="put the figures into the dictionary's manifest")
    return parser.parse_args(argv)


def load_models(args: argparse.Namespace, manifest: Manifest) -> tuple[LanguageModel, LanguageModel]:
    """The dictionary's model and the other form of it. FitError or LabError if they are something else."""
    other = args.against or args.model
    first = load_language_model(
        args.model, quantization=args.quantization, dtype=args.dtype, device=args.device, progress=True
    )
    check_model(manifest, first, unverified=args.unverified)
    second = load_language_model(
        other, quantization=args.against_quantization, dtype=args.against_dtype, device=args.device, progress=True
    )
    _check_same_tokens(first, second)
    return first, second


def print_comparison(
    names: list[str], figures: dict[str, Any], answered: Answer, features: Sequence[FeatureFidelity] = ()
) -> None:
    """For a person."""
    table = Table("", *names)
    table.add_row("L0", *(f"{l0:.1f}" for l0 in figures["l0"]))
    table.add_row("variance explained", *(f"{explained:.4f}" for explained in figures["variance_explained"]))
    console = table_console(highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    quantiles = ", ".join(f"{name} {value:.3f}" for name, value in figures["correlation"].items())
    console.print(
        f"{figures['tokens']:,} tokens; residuals differ by {figures['residual_relative_error']:.3f} of their spread; "
        f"correlation of readings, quantiles over {figures['latents_compared']:,} latents: {quantiles}"
    )
    if features:
        console.print(feature_table(features))
    for reason in answered.reasons:
        console.print(f"- {reason}")
    verdict = "Yes" if answered.may_be_served else "No"
    may = "may" if answered.may_be_served else "should not"
    console.print(f"{verdict}: what was trained on {names[0]} {may} be served on {names[1]}.")
    for said, may_be_served in (("that should not be", False), ("with too few readings to tell", None)):
        if those := [feature.name for feature in features if feature.may_be_served is may_be_served]:
            console.print(f"Named features {said}: {', '.join(those)}.")


def feature_table(features: Sequence[FeatureFidelity]) -> Table:
    """The named features, one a row."""
    table = Table("feature", "latent", "fires at", "correlation", "flips", "may be served")
    words = {True: "yes", False: "no", None: f"? (below {MIN_FIRINGS} tokens)"}
    for feature in features:
        figures = ("-" if figure is None else f"{figure:.3f}" for figure in (feature.correlation, feature.flip_ratio))
        fires = " / ".join(map(str, feature.firings))
        table.add_row(feature.name, str(feature.latent), fires, *figures, words[feature.may_be_served])
    return table


def write_fidelity(folder: Path, names: Sequence[str], figures: dict[str, Any], answered: Answer) -> None:
    """Put a comparison into the dictionary's manifest, in the place of an earlier one of the same two."""
    first, against = names
    compared = FidelityFigures(
        first=first,
        against=against,
        tokens=figures["tokens"],
        residual_relative_error=figures["residual_relative_error"],
        median_correlation=figures["correlation"]["50%"],
        flip_ratio=figures["flip_ratio"],
        l0=figures["l0"],
        variance_explained=figures["variance_explained"],
        may_be_served=answered.may_be_served,
    )
    manifest = load_manifest(folder)
    manifest = manifest.model_copy(update={"metrics": compared.added_to(manifest.metrics)})
    write_atomically(folder / MANIFEST_FILE, manifest.model_dump_json(indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    check_reading(args)
    check_output("--write", args.dictionary / MANIFEST_FILE if args.write else None)
    sae = load_sae(args.dictionary, device=resolve_device(args.device))
    models = load_models(args, sae.manifest)
    settings = CorpusSettings(context_tokens=args.context_tokens)
    read = read_contexts(args.corpus, models[0].tokenizer, settings, args.split)
    limit = read_limit(args.corpus, args.max_tokens)
    contexts = taken(read, limit, "--max-tokens").shuffled(0, args.max_tokens)
    if not contexts:
        raise LabError(f"the corpus must have text in the split {args.split}, got none; --split all reads everything")
    watchlist = load_watchlist(args.dictionary, sae.manifest)
    named = {feature.name: feature.index for feature in watchlist.features} if watchlist else {}
    hook_point = sae.manifest.hook
    with tapped(models[0], hook_point) as first, tapped(models[1], hook_point) as second:
        pairs = paired_residuals(models, (first, second), contexts, args.batch_tokens)
        bar = tqdm(pairs, total=len(contexts), desc="comparing", unit="ctx", mininterval=5)
        sums = compare(sae, bar)
    figures = sums.figures()
    answered, features = answer(figures), sums.features(named)
    names = [f"{lm.identity.name} {lm.identity.quantization} {lm.identity.dtype}" for lm in models]
    # Before anything is written: what took so long must not go with a file that can't be.
    if args.json:
        said = answered._asdict() | {"features": [feature._asdict() for feature in features]}
        print(json.dumps({"models": names} | figures | {"by_latent": sums.by_latent(), "answer": said}), flush=True)
    else:
        print_comparison(names, figures, answered, features)
    if args.write:
        write_fidelity(args.dictionary, names, figures, answered)
    return 0


if __name__ == "__main__":
    sys.exit(main())
