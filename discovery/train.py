"""Trains a dictionary, on harvested residuals or straight from the model.

    python -m discovery.train --source runs/harvest/corpus:4 --source runs/harvest/chat:2 --output runs/train/a
    python -m discovery.train --corpus corpus/*.jsonl.gz --recipe relu --l1 5 --output runs/train/b

The recipe is one of relu, topk, batchtopk, jumprelu and gated (`train_settings` has their sources and defaults). The
output folder gets `checkpoints/` (a killed run goes on from there, bit by bit as if it had not been), `log.csv`,
`tensorboard/`, and at the end `sae.safetensors` + `sae.json`.
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from discovery import live_stream
from discovery.argument_checks import check_counts, check_reading
from discovery.buffers import Buffers
from discovery.command_parser import command_parser, default_words
from discovery.dictionary_trainer import Trainer
from discovery.errors import TrainError
from discovery.file_lock import locked
from discovery.finished_dictionary import finish
from discovery.output_places import check_output
from discovery.provenance import check_provenance
from discovery.shard_stream import ShardBuffers, Source
from discovery.train_settings import TrainSettings, defaults_for
from sae_runtime.checkpoint import LoadedSAE, load_sae
from sae_runtime.language_model import resolve_device
from sae_runtime.number_format import has_fast_bfloat16
from sae_runtime.sae import ACTIVATIONS

RECIPES = {"relu_l1": "relu"}
"""Other names of activations."""

_ALIASES = {"activation": ["--recipe"], "sparsity_weight": ["--l1", "--l0", "--lambda"], "l0_target": ["--target-l0"]}
_HELP = {
    "activation": "relu (or relu_l1), topk, batchtopk, jumprelu, gated; default as --init, else batchtopk",
    "num_latents": "of the dictionary; with --init as many as it has",
    "sparsity_weight": "lambda of the penalty: L1 (relu, gated) or L0 (jumprelu)",
    "l0_target": "mean L0 asked for: relu, jumprelu and gated steer lambda towards it, batchtopk sets its threshold "
    "for it after training; default k, of the others none",
    "k": "active latents per token (topk, batchtopk)",
    "num_steps": "see --tokens",
    "batch_size": "tokens per step",
    "learning_rate": "Adam's, behind the warm-up",
    "warmup_steps": "over which the rate rises from 0",
    "decay_share": "last part of the steps, over which the rate falls to 0",
    "aux_k": "dead latents that explain the error of each token (auxk)",
    "aux_weight": "of the loss of these (auxk)",
    "dead_after_tokens": "a latent silent for so long counts as dead",
    "max_grad_norm": "longer gradients are shortened to it",
    "decoder_init": "random, or data: the decoder's rows begin as residuals",
    "decoder_norm": "free, or unit: decoder rows keep norm 1",
    "seed": "of weights and of the order of data",
    "sparsity_warmup_share": "first part of the steps, over which lambda rises from 0",
    "bandwidth": "of the straight-through kernel, where the norm of a residual is about sqrt(D) (jumprelu)",
    "threshold_init": "threshold at the start, in the same units (jumprelu)",
    "adam_beta1": "Adam's share of earlier gradients in the mean",
    "revival": "of dead latents: auxk, resample, none",
    "resample_every": "steps between resamplings (resample)",
    "precision": "of large products: bf16, fp32; default bf16, or fp32 where the processor lacks it",
}


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    check_counts(args, "checkpoint_every", "tokens")
    check_reading(args)
    if args.metrics_port is not None and not 0 <= args.metrics_port <= 65535:
        raise TrainError(f"--metrics-port must lie in 0..65535, got {args.metrics_port}")
    check_output("--output", args.output, is_folder=True)
    first = load_sae(args.init) if args.init else None
    settings, target_l0 = settings_of(args, first)
    buffers = _buffers(args)
    if first is not None and not args.unverified:
        check_provenance(first.manifest, buffers.harvest_settings(), "the data")
    trainer = Trainer(settings, buffers, first, device=resolve_device(args.device))
    started_from = first.manifest.training if first is not None else None
    with locked(args.output / "lock", wait=False):
        train(trainer, args)
        manifest = finish(trainer, args.output, name=args.name, target_l0=target_l0, started_from=started_from)
    print(json.dumps({"sae_sha256": manifest.sae_sha256, "tokens_seen": manifest.training["tokens_seen"]}))
    return 0


def train(trainer: Trainer, args: argparse.Namespace) -> None:
    """Run all steps under Lightning, logging as asked for."""
    # Late: Lightning takes seconds to import, and a wrong flag should not wait for it.
    from discovery.lightning_module import fit
    from discovery.train_logs import CsvLog, Figures, PrometheusLog, TensorBoardLog

    def loggers(num_steps_done: int) -> list[Any]:
        made: list[Any] = [CsvLog(args.output, num_steps_done)]
        if not args.no_tensorboard:
            made.append(TensorBoardLog(args.output, num_steps_done))
        if args.metrics_port is not None or args.pushgateway:
            made.append(PrometheusLog(args.name, port=args.metrics_port, gateway=args.pushgateway))
        return made

    figures = Figures(trainer, args.output.name, progress=True)
    fit(trainer, args.output, checkpoint_every=args.checkpoint_every, loggers=loggers, callbacks=[figures])


def settings_of(args: argparse.Namespace, first: LoadedSAE | None) -> tuple[TrainSettings, float | None]:
    """The recipe's defaults with what was asked for, and the L0 that a batchtopk threshold is set for."""
    activation = args.activation or (first.activation if first else "batchtopk")
    defaults = defaults_for(RECIPES.get(activation, activation))
    names = [name for name in asdict(defaults) if name != "activation"]
    asked = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if first is not None:
        asked.setdefault("num_latents", first.num_latents)
    target_l0 = None
    if defaults.activation == "batchtopk":
        target_l0 = asked.pop("l0_target", None) or None  # 0 is none, as in the other recipes
    fast = has_fast_bfloat16(torch.device(resolve_device(args.device)))
    asked.setdefault("precision", "bf16" if fast else "fp32")
    if args.tokens is not None:
        if "num_steps" in asked:
            raise TrainError(f"either --tokens or --num-steps can be given, got {args.tokens} and {args.num_steps}")
        batch_size = asked.get("batch_size", defaults.batch_size)
        asked["num_steps"] = max(1, args.tokens // batch_size)
    settings = replace(defaults, **asked)
    if target_l0 is not None:
        check_target_l0(target_l0, settings.num_latents)
    return settings, target_l0


def check_target_l0(target_l0: float, num_latents: int) -> None:
    """ValueError if no threshold gives that mean L0. It would be found out only when all is trained."""
    if not 0 < target_l0 <= num_latents:
        raise ValueError(f"target_l0 must be above 0 and at most num_latents={num_latents}, got {target_l0}")


def _buffers(args: argparse.Namespace) -> Buffers:
    if bool(args.source) == bool(args.corpus):
        got = "both" if args.source else "neither"
        raise TrainError(f"either --source (a harvest) or --corpus (text, on the fly) must be given, got {got}")
    if args.corpus:
        return live_stream.from_arguments(args)
    return ShardBuffers([Source.parse(text) for text in args.source])


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("Train a dictionary on harvested residuals or straight from a model.")
    parser.add_argument("--source", action="append", help="FOLDER or FOLDER:SHARDS_PER_BUFFER; repeat")
    parser.add_argument("--output", type=Path, required=True, help="folder; continued if it has a checkpoint")
    parser.add_argument("--name", default="sae", help="short name, shown to clients")
    parser.add_argument("--init", type=Path, help="start from this dictionary instead of a random one")
    parser.add_argument("--unverified", action="store_true", help="accept an --init of another model or place")
    parser.add_argument("--tokens", type=int, help="in place of --num-steps: tokens // batch_size steps")
    parser.add_argument("--checkpoint-every", type=int, default=500, help="steps")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N; auto: cuda if there is one")
    parser.add_argument("--no-tensorboard", action="store_true", help="log.csv alone")
    parser.add_argument(
        "--metrics-port", type=int, help="serve Prometheus metrics at this port of all interfaces; 0: any"
    )
    parser.add_argument("--pushgateway", help="HOST:PORT of a Prometheus push gateway")
    live_stream.add_arguments(parser)
    add_recipe_arguments(parser)
    return parser


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for every field of `TrainSettings`; None where it is not given."""
    recipe = parser.add_argument_group("recipe", "docs/training.md has the formulas, and the papers they are from")
    for name, value in asdict(TrainSettings()).items():
        flags = ["--" + name.replace("_", "-"), *_ALIASES.get(name, [])]
        recipe.add_argument(*flags, dest=name, type=type(value), help=recipe_help(name))


def recipe_help(name: str) -> str:
    """What a field of the recipe is, and its default: one, or one for each kind of recipe."""
    recipes: dict[str, list[str]] = {}
    for activation in ACTIVATIONS:
        recipes.setdefault(default_words(getattr(defaults_for(activation), name)), []).append(activation)
    if "default" in _HELP[name]:
        return _HELP[name]
    if len(recipes) == 1:
        return f"{_HELP[name]}; default {next(iter(recipes))}"
    return f"{_HELP[name]}; default " + ", ".join(f"{value} ({' '.join(names)})" for value, names in recipes.items())


if __name__ == "__main__":
    sys.exit(main())
