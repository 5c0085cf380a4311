"""Measures a monitor on labelled conversations: every figure per set, beside baselines on the same rows.

    telltale lab monitor evaluate lies.jsonl --monitor deception --control chat.jsonl --report report.html
    telltale lab monitor evaluate lies.jsonl --monitor deception.pack.yaml --json

The score of a reply is what the streaming code makes of its tokens. Groups that the monitor was fitted on are left out.
Bag of words, output statistics and dense probes come from the file beside the pack (`--baselines`), fitted on the same
training rows and frozen; without one there are only those that need no fitting.

With `--json` the last line of stdout is JSON: data set -> `auroc` (`auroc_low`, `auroc_high`), `recall_at_1pct_fpr`,
`fpr_at_threshold`, `num_positive`, `num_negative`; null where there is no ground for a figure. `--record` writes all
numbers.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from discovery.argument_checks import check_counts, check_reading
from discovery.command_parser import command_parser
from discovery.errors import MonitorLabError
from discovery.evaluation_run import Evaluation, EvaluationSettings, Reader, evaluate
from discovery.failure_gallery import as_json, gallery
from discovery.fitted_baselines import baselines_path, load_baselines
from discovery.input_arguments import add_reading_arguments, add_reasoning_argument, load_model
from discovery.monitor_figures import summary_line
from discovery.monitor_report import figure, interval, render, share_words
from discovery.output_places import check_output, made_for
from discovery.pack_building import bound_to
from discovery.pack_lookup import dictionary_for, find_pack
from discovery.tables import table_console
from monitors.pack import MonitorPack
from sae_runtime.checkpoint import write_atomically

_IN_PACK = ("data", "sets", "four_columns", "controls", "hard_negatives")
"""Parts of the record that a pack keeps as its evidence."""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("Measure a monitor on labelled conversations, beside baselines.")
    parser.add_argument(
        "data", type=Path, nargs="+", help="labelled conversations, JSON lines, both labels in each file"
    )
    parser.add_argument("--monitor", required=True, help="a pack file, or the name of one of the model's")
    parser.add_argument(
        "--monitor-packs", type=Path, action="append", default=[], help="folder with more packs; repeat"
    )
    parser.add_argument("--control", type=Path, nargs="+", default=[], help="benign replies, for recall at 1 %% FPR")
    parser.add_argument("--hard-negative", type=Path, nargs="+", default=[], help="text about the topic, told apart")
    parser.add_argument("--baselines", type=Path, help="default: NAME.baselines.json beside the pack")
    parser.add_argument("--include-seen", action="store_true", help="also rows that the monitor was fitted on")
    parser.add_argument("--rebind", action="store_true", help="measure on a model that the pack is not bound to")
    parser.add_argument("--no-predictions", action="store_true", help="leave the output statistics out: much faster")
    parser.add_argument("--permutations", type=int, default=50, help="for the best features by luck")
    output = parser.add_argument_group("output")
    output.add_argument("--report", type=Path, metavar="PAGE.html", help="one page with tables, plots and failures")
    output.add_argument("--record", type=Path, metavar="FILE.json", help="all numbers")
    output.add_argument("--output", type=Path, metavar="PACK", help="write the pack's next version, with this evidence")
    output.add_argument("--validated", metavar="REASON", help="with --output: evidence supports the name, and why")
    output.add_argument("--json", action="store_true", help="print one JSON line instead of a table")
    model = parser.add_argument_group("model")
    add_reading_arguments(model)
    add_reasoning_argument(model)
    args = parser.parse_args(argv)
    if args.validated and not args.output:
        parser.error("--validated must come with --output, got none")
    check_reading(args)
    check_counts(args, "permutations", least=0)
    for name in ("report", "record", "output"):
        check_output(f"--{name}", getattr(args, name))
    return args


def measure(args: argparse.Namespace) -> tuple[Evaluation, Any]:
    """The evaluation asked for, and the model's tokenizer."""
    lm = load_model(args)
    pack, path = find_pack(args.monitor, lm, args.monitor_packs)
    sae = dictionary_for(pack, args, lm)
    pack = bound_to(pack, lm, sae, rebind=args.rebind)
    given = args.baselines or baselines_path(path)
    fitted = load_baselines(given, pack)
    if args.baselines and fitted is None:
        raise MonitorLabError(f"--baselines {args.baselines} must be there, got nothing")
    settings = EvaluationSettings(
        max_tokens=args.max_tokens,
        batch_tokens=args.batch_tokens,
        cache=args.cache,
        include_seen=args.include_seen,
        predictions=not args.no_predictions,
        num_permutations=args.permutations,
        reasoning=args.reasoning_delimiters,
    )
    reader = Reader(lm, sae, pack, fitted, settings)
    return evaluate(reader, args.data, args.control, args.hard_negative), lm.tokenizer


def with_evidence(pack: MonitorPack, record: dict[str, Any], validated: str | None) -> MonitorPack:
    """The pack's next version, with an evaluation's figures."""
    evidence = dict(pack.evidence) | {"evaluation": {name: record[name] for name in _IN_PACK}}
    reason = validated or "Evaluated; the figures are in the evidence."
    return replace(
        pack, version=pack.version + 1, evidence=evidence, validated=validated is not None, validated_reason=reason
    )


def show(evaluation: Evaluation) -> None:
    """The figures as tables."""
    console = table_console()
    table = Table(title=f"{evaluation.pack.name} by set")
    names = ("", "positive", "negative", "AUROC", "recall at 1% FPR", "FPR at threshold", "words", "length")
    for name in names:
        table.add_column(name, justify="right" if name else "left")
    for name, of_set in evaluation.record["sets"].items():
        baselines = of_set["baselines"]
        words = baselines.get("bag_of_words", {}).get("auroc")
        table.add_row(
            name,
            str(of_set["num_positive"]),
            str(of_set["num_negative"]),
            interval(of_set["auroc"]),
            f"{interval(of_set['recall_at_1pct_fpr'])} ({of_set['recall_basis']})",
            figure(of_set["fpr_at_threshold"]),
            interval(words),
            interval(baselines["reply_length"]["auroc"]),
        )
    console.print(table)
    for kind in ("controls", "hard_negatives"):
        for name, of_set in evaluation.record[kind].items():
            warning = None if of_set["levels"] is None else of_set["levels"]["warning"]
            console.print(f"{kind.replace('_', ' ')}, {name}: {share_words(warning)} reach a warning", highlight=False)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    evaluation, tokenizer = measure(args)
    galleries = {name: gallery(rows, tokenizer) for name, rows in evaluation.sets.items()}
    record = evaluation.record | {"gallery": {name: [as_json(r) for r in shown] for name, shown in galleries.items()}}
    # Before anything is written: what took so long must not go with a file that can't be.
    if args.json:
        print(json.dumps(summary_line(record["sets"]), allow_nan=False), flush=True)
    else:
        show(evaluation)
    if args.record:
        write_atomically(made_for(args.record), json.dumps(record, indent=1, allow_nan=False) + "\n")
    if args.report:
        write_atomically(made_for(args.report), render(evaluation, galleries))
    if args.output:
        with_evidence(evaluation.pack, evaluation.record, args.validated).save(made_for(args.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
