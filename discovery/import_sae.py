"""`telltale lab import`: what a dictionary in another library's format is, and what has to be assumed of it.

With `--output` it is written in our own format, for serving and for every other command; `--model` binds it to weights,
without which a server refuses it or calls it unverified; `--check` reads residuals with it. `docs/formats.md` has the
formats.

    telltale lab import sae_lens_run/final --check runs/harvest/held-out --output runs/imported
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.table import Table

from discovery.argument_checks import check_counts
from discovery.command_parser import command_parser
from discovery.errors import FitError
from discovery.fit_check import Fit, check_fit
from discovery.output_places import check_output
from discovery.tables import table_console
from sae_runtime.checkpoint import MANIFEST_FILE, LoadedSAE, save_sae
from sae_runtime.errors import CheckpointError
from sae_runtime.formats import UNKNOWN, import_sae
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import LanguageModel, load_language_model
from sae_runtime.usual_fvu import KEY, MIN_TOKENS


def bind(sae: LoadedSAE, lm: LanguageModel) -> None:
    """Say that `sae` was trained on activations of `lm`. FitError if it can't have been."""
    manifest, identity = sae.manifest, lm.identity
    if manifest.d_model != lm.d_model:
        raise FitError(f"{identity.name} must have width {manifest.d_model}, as the dictionary, got {lm.d_model}")
    if manifest.hook_point != UNKNOWN and manifest.hook.layer >= lm.num_layers:
        raise FitError(f"{identity.name} must have a layer for {manifest.hook_point}, got {lm.num_layers} layers")
    sae.manifest = manifest.model_copy(
        update={
            "model_name": identity.name,
            "model_sha256": identity.weights_sha256,
            "quantization": identity.quantization,
        }
    )


def record_fit(sae: LoadedSAE, fit: Fit) -> None:
    """Put what a harvest says of a dictionary into its manifest."""
    metrics = sae.manifest.metrics | {"fit": fit.as_json()}
    if fit.usual_fvu.tokens >= MIN_TOKENS:
        metrics[KEY] = fit.usual_fvu.as_json()
    sae.manifest = sae.manifest.model_copy(update={"metrics": metrics, "resid_norm_mean": fit.mean_norm})


def describe(sae: LoadedSAE) -> dict[str, str]:
    """What the dictionary is, by row of the table."""
    manifest = sae.manifest
    record = manifest.training.get("import", {})
    return {
        "format": record.get("format", "our own"),
        "dictionary": f"{sae.num_latents} latents of width {sae.d_model}, {_activation(sae)}, {manifest.dtype}",
        "input": _input(sae),
        "decoder rows": _decoder_rows(sae),
        "hook point": _hook_point(manifest.hook_point, record.get("hook_name")),
        "texts": {"always": "began with BOS", "never": "began without BOS", "tokenizer": "as the tokenizer has it"}.get(
            manifest.bos_policy, "with or without BOS is unknown"
        ),
        "model": _model(sae),
    }


def _activation(sae: LoadedSAE) -> str:
    match sae.activation:
        case "topk":
            return f"topk with k = {sae.k}"
        case "batchtopk":
            return f"batchtopk with threshold {float(sae.threshold):.4g}"
        case "jumprelu":
            return f"jumprelu with thresholds {float(sae.threshold.min()):.4g} to {float(sae.threshold.max()):.4g}"
        case activation:
            return activation


def _input(sae: LoadedSAE) -> str:
    scaled = "as it is" if sae.scale == 1 else f"times {sae.scale:.6g}"
    if sae.normalization != "scalar":
        scaled = f"{sae.normalization} per token"
    return f"the residual {scaled}, b_dec {'' if sae.apply_b_dec else 'not '}subtracted"


def _decoder_rows(sae: LoadedSAE) -> str:
    norms_F = sae.W_dec.norm(dim=-1)
    if sae.manifest.decoder_norms_folded:
        return "of norm 1"
    return f"of norm {float(norms_F.min()):.4g} to {float(norms_F.max()):.4g}"


def _hook_point(hook_point: str, in_file: str | None) -> str:
    if hook_point == UNKNOWN:
        return "unknown: state it with --hook-point"
    hook = HookPoint.parse(hook_point)
    same = f" = layers.{hook.layer - 1}.output" if hook.side == "input" and hook.layer else ""
    return f"{hook}{same}" + (f" ({in_file} in the file)" if in_file not in (None, str(hook)) else "")


def _model(sae: LoadedSAE) -> str:
    manifest = sae.manifest
    if manifest.model_sha256 != UNKNOWN:
        return f"{manifest.model_name}, weights {manifest.model_sha256[:12]}, {manifest.quantization}"
    named = "no model is named" if manifest.model_name == UNKNOWN else manifest.model_name
    return f"{named}; which weights is unknown: served as unverified, unless bound with --model"


def print_report(sae: LoadedSAE, fit: Fit | None) -> None:
    """The report for a person."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, words in describe(sae).items():
        table.add_row(name, words)
    for number, sentence in enumerate(_assumed(sae)):
        table.add_row("assumed" if number == 0 else "", f"- {sentence}")
    if fit is not None:
        known = f" ({fit.expected_l0:g} according to the files)" if fit.expected_l0 else ""
        words = f"explains {1 - fit.fvu:.1%} of the variance of {fit.tokens:,} tokens of {fit.harvest}"
        table.add_row("check", f"{words}, with {fit.l0:.1f} active latents a token{known}")
    table_console(highlight=False, markup=False).print(table)


def _assumed(sae: LoadedSAE) -> list[str]:
    return list(sae.manifest.training.get("import", {}).get("assumed", []))


def report_json(sae: LoadedSAE, fit: Fit | None) -> str:
    """The report for machines: one line."""
    report: dict[str, Any] = {
        "found": describe(sae),
        "assumed": _assumed(sae),
        "fit": fit.as_json() if fit is not None else None,
        "manifest": sae.manifest.model_dump(exclude={"tensors"}) | {"sae_sha256": sae.manifest.sae_sha256},
    }
    return json.dumps(report)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("Read a dictionary in another library's format.")
    parser.add_argument("path", type=Path, help="folder or file")
    parser.add_argument("--scale", type=float, help="residuals are multiplied by it, where the files don't say")
    parser.add_argument("--hook-point", help="layers.15.output or blocks.15.hook_resid_post, where they don't say")
    parser.add_argument("--k", type=int, help="active latents a token, for BatchTopK files that hold no threshold")
    parser.add_argument("--threshold", type=float, help="the same, as a threshold")
    parser.add_argument("--fold-decoder-norms", action="store_true", help="decoder rows to norm 1, latents accordingly")
    parser.add_argument("--model", help="bind it to these weights: embedded, a folder, a .gguf file or a hub name")
    parser.add_argument("--quantization", default="auto", choices=["auto", "none", "nf4", "int8"], help="of --model")
    parser.add_argument("--check", type=Path, metavar="HARVEST", help="measure it on harvested residuals")
    parser.add_argument("--check-tokens", type=int, default=50_000, help="of --check")
    parser.add_argument("--name", help="short name, shown to clients")
    parser.add_argument("--output", type=Path, help="folder to write it to in our own format")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of a table")
    return parser.parse_args(argv)


def read_as_asked(args: argparse.Namespace) -> tuple[LoadedSAE, Fit | None]:
    """The dictionary, named, bound and checked as the arguments say."""
    sae = import_sae(
        args.path,
        scale=args.scale,
        hook_point=args.hook_point,
        k=args.k,
        threshold=args.threshold,
        fold_decoder_norms=args.fold_decoder_norms,
    )
    if args.name:
        sae.manifest = sae.manifest.model_copy(update={"name": args.name})
    if args.model:
        bind(sae, load_language_model(args.model, quantization=args.quantization, progress=True))
    if args.check is None:
        return sae, None
    fit = check_fit(sae, args.check, max_tokens=args.check_tokens, progress=True)
    record_fit(sae, fit)
    return sae, fit


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    check_counts(args, "check_tokens", "k")
    check_output("--output", args.output, is_folder=True)
    if args.output is not None and (args.output / MANIFEST_FILE).exists():
        raise CheckpointError(f"{args.output} holds a dictionary already: an import overwrites nothing")
    sae, fit = read_as_asked(args)
    if args.output is not None:
        if sae.manifest.hook_point == UNKNOWN:
            raise CheckpointError("hook point must be known to write a dictionary: state it with --hook-point")
        sae.manifest = save_sae(sae, sae.manifest, args.output)
    if args.json:
        print(report_json(sae, fit))
    else:
        print_report(sae, fit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
