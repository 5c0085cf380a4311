"""Measures a monitor on labelled conversations: every figure per set, beside baselines on the same rows.

    telltale lab monitor evaluate lies.jsonl --monitor deception --control chat.jsonl --report report.html
    telltale lab monitor evaluate lies.jsonl --monitor deception.pack.yaml --json
    telltale lab monitor evaluate lies.jsonl --monitor deception --monitor stance --record records/    # read once

The score of a reply is what the streaming code makes of its tokens. Groups that the monitor was fitted on are left out.
Bag of words, output statistics and dense probes come from the file beside the pack (`--baselines`), fitted on the same
training rows and frozen; a combined monitor's are those of its first component that has such a file there. Without
one there are only those that need no fitting.

With `--json` the last line of stdout is JSON: data set -> `auroc` (`auroc_low`, `auroc_high`), `recall_at_1pct_fpr`,
`fpr_at_threshold`, `num_positive`, `num_negative`; null where there is no ground for a figure. Of several monitors it
is monitor -> data set. `--record` writes all numbers.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from discovery.argument_checks import check_counts, check_reading
from discovery.binomial import share_words
from discovery.command_parser import command_parser
from discovery.errors import MonitorLabError
from discovery.evaluation_run import Evaluation, EvaluationSettings, Reader, evaluate, evaluation_plan
from discovery.failure_gallery import as_json, gallery
from discovery.fitted_baselines import FittedBaselines, find_baselines, load_baselines
from discovery.input_arguments import add_reading_arguments, add_reasoning_argument, load_model
from discovery.joint_reading import JointReader
from discovery.monitor_figures import summary_line
from discovery.monitor_report import figure, interval, render
from discovery.output_places import check_output, made_for
from discovery.pack_building import bound_to
from discovery.pack_lookup import Dictionaries, find_pack
from discovery.tables import table_console
from monitors.pack import PACK_SUFFIX, MonitorPack
from sae_runtime.checkpoint import LoadedSAE, write_atomically
from sae_runtime.language_model import LanguageModel

_IN_PACK = ("data", "sets", "four_columns", "controls", "hard_negatives")
"""Parts of the record that a pack keeps as its evidence."""
_NO_EVIDENCE = {
    "include-seen": "figures on rows that it was fitted on are no evidence",
    "rebind": "the pack's thresholds were set on another model; `calibrate --rebind` sets them anew",
}
"""What the figures of a pack can't be taken under, and why."""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("Measure monitors on labelled conversations, beside baselines.")
    parser.add_argument(
        "data", type=Path, nargs="+", help="labelled conversations, JSON lines, both labels in each file"
    )
    parser.add_argument(
        "--monitor",
        required=True,
        action="append",
        help="a pack file, or the name of one of the model's; repeat, and data are read once for all of them",
    )
    parser.add_argument(
        "--monitor-packs", type=Path, action="append", default=[], help="folder with more packs; repeat"
    )
    parser.add_argument("--control", type=Path, nargs="+", default=[], help="benign replies, for recall at 1 %% FPR")
    parser.add_argument("--hard-negative", type=Path, nargs="+", default=[], help="text about the topic, told apart")
    parser.add_argument("--baselines", type=Path, help="default: NAME.baselines.json beside the pack, or a component's")
    parser.add_argument("--include-seen", action="store_true", help="also rows that the monitor was fitted on")
    parser.add_argument("--rebind", action="store_true", help="measure on a model that the pack is not bound to")
    parser.add_argument("--no-predictions", action="store_true", help="leave the output statistics out: much faster")
    parser.add_argument("--permutations", type=int, default=50, help="for the best features by luck")
    output = parser.add_argument_group("output", "of several monitors these are folders, with a file for each")
    output.add_argument("--report", type=Path, metavar="PAGE.html", help="one page with tables, plots and failures")
    output.add_argument("--record", type=Path, metavar="FILE.json", help="all numbers")
    output.add_argument("--output", type=Path, metavar="PACK", help="write the pack's next version, with this evidence")
    output.add_argument("--limits", metavar="WORDS", help="with --output: what the evidence does not show")
    output.add_argument("--validated", metavar="REASON", help="with --output: evidence supports the name, and why")
    output.add_argument("--json", action="store_true", help="print one JSON line instead of a table")
    model = parser.add_argument_group("model")
    add_reading_arguments(model)
    add_reasoning_argument(model)
    args = parser.parse_args(argv)
    for name, wanted in (("validated", "why the evidence supports the name"), ("limits", "what it does not show")):
        words = getattr(args, name)
        if words is not None and not args.output:
            parser.error(f"--{name} must come with --output, got none")
        if words is not None and not words.strip():
            parser.error(f"--{name} must say {wanted}, got nothing")
        if words is not None and len(args.monitor) > 1:
            parser.error(f"--{name} must come with one --monitor, got several: it is of one pack")
    for name, is_given in (("include-seen", args.include_seen), ("rebind", args.rebind)):
        if is_given and args.output:
            parser.error(f"--output must come without --{name}: {_NO_EVIDENCE[name]}")
    check_reading(args)
    check_counts(args, "permutations", least=0)
    if args.baselines and len(args.monitor) > 1:
        parser.error("--baselines must come with one --monitor, got several: theirs are found beside each pack")
    for name in ("report", "record", "output"):
        check_output(f"--{name}", getattr(args, name), is_folder=len(args.monitor) > 1)
    return args


class Asked(NamedTuple):
    """A monitor to be measured."""

    pack: MonitorPack
    sae: LoadedSAE | None
    fitted: FittedBaselines | None


def asked_for(args: argparse.Namespace, lm: LanguageModel) -> list[Asked]:
    """The monitors. MonitorLabError for what can't be found or measured, or a name given twice."""
    dictionaries = Dictionaries(args, lm)
    found = []
    for name in args.monitor:
        pack, path = find_pack(name, lm, args.monitor_packs)
        sae = dictionaries.of(pack)
        pack = bound_to(pack, lm, sae, rebind=args.rebind)
        if args.validated:
            # PackError for one whose thresholds bound nothing: now, not when all has been read.
            replace(pack, validated=True)
        fitted = load_baselines(args.baselines, pack) if args.baselines else find_baselines(path, pack)
        if args.baselines and fitted is None:
            raise MonitorLabError(f"--baselines {args.baselines} must be there, got nothing")
        found.append(Asked(pack, sae, fitted))
    names = [one.pack.name for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise MonitorLabError(f"--monitor must name different monitors, got {', '.join(twice)} twice")
    return found


def measure(args: argparse.Namespace) -> Iterator[tuple[Evaluation, Any]]:
    """The evaluation of each monitor asked for, and the model's tokenizer."""
    lm = load_model(args)
    asked = asked_for(args, lm)
    settings = EvaluationSettings(
        max_tokens=args.max_tokens,
        include_seen=args.include_seen,
        predictions=not args.no_predictions,
        num_permutations=args.permutations,
        reasoning=args.reasoning_delimiters,
    )
    plans = [evaluation_plan(*one, predictions=settings.predictions) for one in asked]
    joint = JointReader(lm, plans, cache=args.cache, batch_tokens=args.batch_tokens)
    for one in asked:
        reader = Reader(lm, one.sae, one.pack, one.fitted, settings, joint)
        yield evaluate(reader, args.data, args.control, args.hard_negative), lm.tokenizer


def with_evidence(
    pack: MonitorPack, record: dict[str, Any], validated: str | None = None, limits: str | None = None
) -> MonitorPack:
    """The pack's next version, with an evaluation's figures; `limits` in words are the old ones unless given."""
    evidence = dict(pack.evidence) | {"evaluation": {name: record[name] for name in _IN_PACK}}
    reason = validated or "Evaluated; the figures are in the evidence."
    return replace(
        pack,
        version=pack.version + 1,
        evidence=evidence,
        limits=limits or pack.limits,
        validated=validated is not None,
        validated_reason=reason,
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


def write(args: argparse.Namespace, evaluation: Evaluation, tokenizer: Any) -> None:
    """The files asked for."""
    galleries = {name: gallery(rows, evaluation.pack, tokenizer) for name, rows in evaluation.sets.items()}
    record = evaluation.record | {"gallery": {name: [as_json(r) for r in shown] for name, shown in galleries.items()}}

    def place(given: Path, suffix: str) -> Path:
        return made_for(given if len(args.monitor) == 1 else given / f"{evaluation.pack.name}{suffix}")

    if args.record:
        write_atomically(place(args.record, ".json"), json.dumps(record, indent=1, allow_nan=False) + "\n")
    if args.report:
        write_atomically(place(args.report, ".html"), render(evaluation, galleries))
    if args.output:
        made = with_evidence(evaluation.pack, evaluation.record, args.validated, args.limits)
        made.save(place(args.output, PACK_SUFFIX))


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    lines = {}
    for evaluation, tokenizer in measure(args):
        lines[evaluation.pack.name] = summary_line(evaluation.record["sets"])
        if not args.json:
            show(evaluation)
        elif len(args.monitor) == 1:
            # Before anything is written: what took so long must not go with a file that can't be.
            print(json.dumps(lines[evaluation.pack.name], allow_nan=False), flush=True)
        write(args, evaluation, tokenizer)
    if args.json and len(args.monitor) > 1:
        print(json.dumps(lines, allow_nan=False), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
