"""Search over recipes with Ray Tune: many trainings of `telltale lab train`, compared on residuals they don't train on.

    telltale lab tune --source runs/harvest/corpus-train:4 --validation runs/harvest/corpus-held-out \\
        --output runs/tune/relu --recipe relu --tokens 1000000 --num-samples 32 \\
        --search sparsity_weight=loguniform:0.5:20 --search learning_rate=loguniform:3e-4:1e-2 \\
        --search num_latents=choice:4096,8192 --search batch_size=choice:1024,2048

Without --search: lambda (or k), learning rate, and width x batch size. All other flags of the recipe are those of
`train`, and the same for all trials. The same command goes on where it was killed; when all trials have ended it prints
the table again. The output folder gets `results.csv`, `results.json`, `index.html` with FVU against L0, `best.sh` with
the best recipe as a command, and with --keep-best its dictionary as `best/`. docs/tuning.md has more.
"""

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from discovery.argument_checks import check_counts
from discovery.command_parser import command_parser
from discovery.errors import TuneError
from discovery.file_lock import locked
from discovery.held_out import check_held_out
from discovery.output_places import check_output
from discovery.shard_stream import Source
from discovery.tables import table_console
from discovery.train import RECIPES, add_recipe_arguments, check_target_l0
from discovery.train_settings import TrainSettings, defaults_for
from discovery.tune_ledger import COMPLETED, STOPPED, UNFINISHED, Row, best_of, drop_checkpoints, rows_of
from discovery.tune_objective import DEFAULT_L0_LIMIT, NAMES, objective_of
from discovery.tune_search import Search, SearchSettings, begun_with, claim, plans_of
from discovery.tune_space import default_space, parse_space
from discovery.tune_table import CSV_FILE, JSON_FILE, failures, result_csv, result_record, result_table
from sae_runtime.checkpoint import write_atomically
from sae_runtime.number_format import has_fast_bfloat16

COMMAND_FILE = "best.sh"
_SAMPLES = 16


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    check_resources(args)
    check_output("--output", args.output, is_folder=True)
    settings = settings_of(args)
    sources = [Source.parse(text).folder for text in settings.sources]
    check_held_out(sources, [Path(text) for text in settings.validation])
    args.output.mkdir(parents=True, exist_ok=True)
    with locked(args.output / "lock", wait=False):
        search = claim(args.output, settings)
        _say_if_fewer(search)
        run(search, args)
        rows = rows_of(search)
        drop_checkpoints(search)
        record = write_results(search, rows)
        best = best_of(rows)
        if args.keep_best and best is not None:
            record["dictionary"] = keep_best(search, best, args.name)
    return conclude(search, rows, record, args)


def run(search: Search, args: argparse.Namespace) -> None:
    """Run what has not ended. Needs no Ray if all has."""
    if all(row.status in (COMPLETED, STOPPED) for row in rows_of(search)):
        return
    from discovery.tune_ray import Resources, run_search  # late: a wrong flag should not wait for Ray

    resources = Resources(
        cpus_per_trial=args.cpus_per_trial,
        gpus_per_trial=args.gpus_per_trial,
        max_concurrent=args.max_concurrent,
        address=args.address,
        time_budget_seconds=args.time_budget,
    )
    run_search(search, resources)


def write_results(search: Search, rows: list[Row]) -> dict[str, Any]:
    """Table, page and command; returns what the JSON file holds."""
    from discovery.tune_page import PAGE_FILE, render  # plotly: late, as all that is heavy

    record = result_record(search, rows)
    write_atomically(search.folder / CSV_FILE, result_csv(rows))
    write_atomically(search.folder / JSON_FILE, json.dumps(record, indent=1) + "\n")
    write_atomically(search.folder / PAGE_FILE, render(search, rows))
    if record["train_command"]:
        write_atomically(search.folder / COMMAND_FILE, record["train_command"] + "\n")
    return record


def keep_best(search: Search, best: Row, name: str) -> dict[str, Any]:
    """Finish the best trial's dictionary as `train` would, from its last checkpoint: nothing is trained again."""
    from discovery.finished_dictionary import finish
    from discovery.tune_trial import train_trial

    trained = train_trial(search, best.number, lambda _: None, node=best.reports[-1].node)
    folder = search.folder / "best"
    manifest = finish(trained, folder, name=name, target_l0=search.settings.target_l0)
    return {"folder": str(folder), "sae_sha256": manifest.sae_sha256}


def conclude(search: Search, rows: list[Row], record: dict[str, Any], args: argparse.Namespace) -> int:
    """Say what came of it. TuneError if no trial has completed, or some are unfinished and no time budget says why."""
    if args.json:
        print(json.dumps(record))
    else:
        table_console().print(result_table(search, rows))
        if record["train_command"]:
            print(record["train_command"])
        if "dictionary" in record:
            print(f"kept as {record['dictionary']['folder']}")
    for line in failures(rows):
        print(line, file=sys.stderr)
    num_completed = sum(row.status == COMPLETED for row in rows)
    num_unfinished = sum(row.status == UNFINISHED for row in rows)
    if num_unfinished:
        words = f"ended with {num_unfinished} trials unfinished: the same command goes on"
        if args.time_budget is None:
            raise TuneError(words)
        print(f"the time budget {words}", file=sys.stderr)
    elif not num_completed:
        raise TuneError(f"no trial of {len(rows)} has completed")
    return 0


def _say_if_fewer(search: Search) -> None:
    if len(search.plans) < search.settings.num_samples:
        print(f"the space has {len(search.plans)} different trials, fewer than --num-samples", file=sys.stderr)


# --- the command line -----------------------------------------------------------------------------------------------


def check_resources(args: argparse.Namespace) -> None:
    """TuneError or ValueError for processors, devices or seconds that there can't be: Ray would wait for ever."""
    for name in ("cpus_per_trial", "time_budget"):
        amount = getattr(args, name)
        if amount is not None and not 0 < amount < math.inf:
            raise TuneError(f"--{name.replace('_', '-')} must be a number above 0, got {amount}")
    if not 0 <= args.gpus_per_trial < math.inf:
        raise TuneError(f"--gpus-per-trial must be a number of at least 0, got {args.gpus_per_trial}")
    check_counts(args, "max_concurrent")


def settings_of(args: argparse.Namespace) -> SearchSettings:
    """What the command line asks for. TuneError if it is no search."""
    check_counts(args, "tokens")
    recipe = args.activation or "batchtopk"
    recipe = RECIPES.get(recipe, recipe)
    defaults_for(recipe)  # ValueError with the choices
    names = [name for name in asdict(TrainSettings()) if name not in ("activation", "seed")]
    fixed = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    given = set(fixed)
    # batchtopk stands for any recipe where activation is searched.
    target_l0 = (fixed.pop("l0_target", None) or None) if recipe == "batchtopk" else None
    space = parse_space(args.search) if args.search else default_space(recipe, fixed)
    searched = [dimension.name for dimension in space]
    for name in searched:
        if name in given or (name == "activation" and args.activation) or (name == "num_steps" and args.tokens):
            raise TuneError(f"{name} is searched, so that it can't also be set to one value")
    if args.tokens is not None and "num_steps" in fixed:
        raise TuneError(f"either --tokens or --num-steps can be given, got {args.tokens} and {fixed['num_steps']}")
    if "precision" not in searched:
        fixed.setdefault("precision", _precision(args.output, on_gpu=args.gpus_per_trial > 0))
    is_drawn = any(dimension.kind != "grid" for dimension in space)
    if args.num_samples is not None and not is_drawn:
        raise TuneError("--num-samples must not be given where nothing is drawn: a grid is gone through once")
    objective = objective_of(args.objective, args.l0_limit, searched)
    default_tokens = defaults_for(recipe).num_steps * defaults_for(recipe).batch_size
    counts_steps = "num_steps" in fixed or "num_steps" in searched
    settings = SearchSettings(
        sources=[_whole_source(text) for text in args.source],
        validation=[str(Path(text).resolve()) for text in args.validation],
        validation_tokens=args.validation_tokens,
        activation=recipe,
        fixed=fixed,
        space=[str(dimension) for dimension in space],
        num_samples=(_SAMPLES if args.num_samples is None else args.num_samples) if is_drawn else 1,
        seed=args.seed or 0,
        tokens=None if counts_steps else args.tokens or default_tokens,
        reports=args.reports,
        scheduler=args.scheduler,
        grace_reports=args.grace_reports,
        reduction_factor=args.reduction_factor,
        objective=objective.name,
        l0_limit=objective.l0_limit,
        target_l0=target_l0,
    )
    if target_l0 is not None:
        check_target_l0(target_l0, min(plan.settings.num_latents for plan in plans_of(settings)))
    return settings


def _precision(folder: Path, *, on_gpu: bool) -> str:
    """That of the search in `folder`; for a new one as `train` chooses it, on the machine where it is begun."""
    if begun := begun_with(folder).get("precision"):
        return str(begun)
    return "bf16" if on_gpu or has_fast_bfloat16(torch.device("cpu")) else "fp32"


def _whole_source(text: str) -> str:
    source = Source.parse(text)
    return f"{source.folder.resolve()}:{source.shards_per_buffer}"


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("Search over recipes with Ray Tune.")
    parser.add_argument("--source", action="append", required=True, help="FOLDER or FOLDER:SHARDS_PER_BUFFER; repeat")
    parser.add_argument("--validation", action="append", required=True, help="harvest not trained on; repeat")
    parser.add_argument("--validation-tokens", type=int, default=16384, help="so many, at each report")
    parser.add_argument("--output", type=Path, required=True, help="folder; continued if it holds this search")
    parser.add_argument(
        "--search",
        action="append",
        help="FIELD=KIND:VALUES; repeat. Kinds: loguniform:LOW:HIGH, "
        "uniform:LOW:HIGH, randint:LOW:HIGH, choice:A,B, grid:A,B",
    )
    parser.add_argument("--num-samples", type=int, help=f"draws; default {_SAMPLES}")
    parser.add_argument("--tokens", type=int, help="each trial's, in place of --num-steps; default as train's")
    parser.add_argument("--objective", default="fvu", help=f"made small: one of {', '.join(NAMES)}")
    parser.add_argument(
        "--l0-limit",
        type=float,
        default=DEFAULT_L0_LIMIT,
        help=f"beyond it FVU counts L0 / limit times; default {DEFAULT_L0_LIMIT:g}, 1.1 x 64; 0: none",
    )
    parser.add_argument("--reports", type=int, default=8, help="each trial's, evenly spread")
    parser.add_argument("--scheduler", default="asha", help="asha stops the worse trials early, fifo none")
    parser.add_argument("--grace-reports", type=int, default=2, help="asha: none is stopped before its report")
    parser.add_argument("--reduction-factor", type=float, default=2.0, help="asha: one in so many goes on from a rung")
    parser.add_argument("--keep-best", action="store_true", help="write the best trial's dictionary to OUTPUT/best")
    parser.add_argument("--name", default="sae", help="of that dictionary")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of a table")
    where = parser.add_argument_group("where it runs", "may be changed when a search goes on")
    where.add_argument("--cpus-per-trial", type=float, default=1.0, help="processors of each")
    where.add_argument("--gpus-per-trial", type=float, default=0.0, help="above 0, trials run on cuda")
    where.add_argument("--max-concurrent", type=int, help="trials at once; default: as many as there is room for")
    where.add_argument("--address", help="of a Ray cluster, or auto; default: Ray is started on this machine")
    where.add_argument("--time-budget", type=float, help="seconds, after which trials are left for another run")
    add_recipe_arguments(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
