"""Fits a monitor on labelled conversations and freezes it: `NAME.pack.yaml` without thresholds.

    telltale lab monitor fit lies.jsonl pairs.jsonl --output deception.pack.yaml
    telltale lab monitor fit ... --kind features --dictionary DICTIONARY
    telltale lab monitor fit ... --examples last                                       # read where a reply ends
    telltale lab monitor fit chats.jsonl --target statement_end --examples token       # where one does

    1  groups are split in three: training, development, held out (arms named with --hold-out-arm too)
    2  probe: the layer (and C) by cross-validation on training groups, then a fit on all of them
       features: latents that beat the best by luck on training groups, their signs, then weights
    3  window (and first token that counts), and units of the score, on development groups
    4  baselines on training groups, beside the pack: NAME.baselines.json

Nothing looks at the held-out groups. Which groups were seen is in the pack, as hashes of their names, so that an
evaluation leaves them out. The pack's `frozen_sha256` is that of everything that decides the score.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, get_args

from discovery.argument_checks import check_counts, check_reading
from discovery.command_parser import command_parser
from discovery.feature_choice import DEFAULT_L2, MAX_FEATURES
from discovery.fit_steps import fit
from discovery.fitted_baselines import baselines_path, save_baselines
from discovery.input_arguments import (
    add_reading_arguments,
    add_roles_argument,
    load_model,
    load_optional_dictionary,
)
from discovery.layer_sweep import NUM_FOLDS
from discovery.output_places import check_output, made_for
from discovery.pack_lookup import name_for
from discovery.probe_fit import DEFAULT_C, METHODS
from discovery.window_choice import WINDOWS
from monitors.pack import PACK_SUFFIX

Examples = Literal["reply", "token", "last"]
"""What a probe is fitted on."""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("Fit a monitor on labelled conversations, and freeze it.")
    parser.add_argument("data", type=Path, nargs="+", help="labelled conversations, JSON lines")
    parser.add_argument("--output", type=Path, required=True, metavar=f"NAME{PACK_SUFFIX}", help="the monitor")
    parser.add_argument("--kind", choices=["probe", "features"], default="probe", help="of residuals or of latents")
    parser.add_argument("--description", help="what it is meant to show")
    parser.add_argument("--limits", help="what it does not show")
    add_roles_argument(parser, ("assistant",), "whose words a server scores with it; default: assistant")
    rows = parser.add_argument_group("rows")
    rows.add_argument(
        "--target",
        choices=["label", "statement_end"],
        default="label",
        help="what is to be found: replies with label 1, or the tokens that end a statement, label 1 or 0",
    )
    rows.add_argument("--positive-class", type=_words, default=[], help="meta.class of label 1, with commas between")
    rows.add_argument("--negative-class", type=_words, default=[], help="meta.class of label 0, with commas between")
    rows.add_argument("--hold-out-arm", action="append", default=[], help="meta.arm that nothing is fitted on; repeat")
    rows.add_argument("--held-out-share", type=float, default=0.3, help="of groups, left for an evaluation")
    rows.add_argument("--development-share", type=float, default=0.2, help="of groups, for choosing windows")
    rows.add_argument("--seed", type=int, default=0, help="of the division of groups")
    how = parser.add_argument_group("fitting")
    how.add_argument("--method", choices=METHODS, default=METHODS[0], help="of a probe, and of the sweep over layers")
    how.add_argument(
        "--examples",
        choices=get_args(Examples),
        default="reply",
        help="fit on mean residuals, on every token, or on the last scored one: a part for combine --gate",
    )
    how.add_argument("--layers", default="all", help="block outputs to sweep: all, or numbers or hook points")
    how.add_argument("--C", type=_numbers, default=[DEFAULT_C], help="of logistic regression; several are compared")
    how.add_argument("--folds", type=int, default=NUM_FOLDS, help="of the cross-validation")
    how.add_argument("--windows", type=_counts, help=f"rolling means to choose from; default: {_shown(WINDOWS)}")
    how.add_argument("--min-tokens", type=_counts, help="first scored token that counts, or several; default: 8")
    how.add_argument("--max-features", type=int, default=MAX_FEATURES, help="most latents")
    how.add_argument("--max-p-value", type=float, default=0.05, help="of a latent, against the best of all by luck")
    how.add_argument("--permutations", type=int, default=200, help="of labels, for the best latents by luck")
    how.add_argument("--l2", type=float, default=DEFAULT_L2, help="of latents' weights")
    add_reading_arguments(parser.add_argument_group("model"))
    args = parser.parse_args(argv)
    args.name = name_for(args.output)
    _check_places(parser, args)
    check_reading(args)
    check_counts(args, "max_features")
    check_counts(args, "permutations", "seed", least=0)
    check_counts(args, "folds", least=2)
    if not 0 < args.max_p_value <= 1:
        parser.error(f"--max-p-value must lie in (0, 1], got {args.max_p_value:g}")
    if not 0 <= args.l2 < math.inf:
        parser.error(f"--l2 must be 0 or more, got {args.l2:g}")
    check_output("--output", args.output)
    if args.kind == "features" and args.dictionary is None:
        parser.error("--kind features must come with --dictionary, got none")
    if args.kind == "features" and args.examples != "reply":
        parser.error(f"--examples must be reply with --kind features, got {args.examples}: latents are taken as means")
    return args


def _check_places(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What goes with single tokens alone; and defaults of the window and of the first token that counts."""
    finds_ends = args.target == "statement_end"
    if finds_ends and args.examples == "last":
        parser.error("--examples must be reply or token with --target statement_end, got last: it is an end itself")
    if finds_ends and (args.positive_class or args.negative_class):
        parser.error("--target statement_end must come without classes: it takes all rows with a label, whichever")
    for name, usual in (("windows", list(WINDOWS)), ("min_tokens", [8])):
        given: list[int] | None = getattr(args, name)
        if not finds_ends and args.examples != "last":
            setattr(args, name, usual if given is None else given)
        elif given is None or given == [1]:
            setattr(args, name, [1])
        else:
            flag = f"--{name.replace('_', '-')}"
            parser.error(f"{flag} must be 1 where single tokens are read, got {_shown(given)}")


def _shown(counts: Sequence[int]) -> str:
    return ",".join(map(str, counts))


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _counts(text: str) -> list[int]:
    counts = [int(word) for word in text.split(",")]
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return counts


def _numbers(text: str) -> list[float]:
    numbers = [float(word) for word in text.split(",")]
    if not all(0 < number < math.inf for number in numbers):
        raise argparse.ArgumentTypeError(f"must be finite and above 0, got {text}")
    return numbers


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    lm = load_model(args)
    pack, baselines = fit(lm, load_optional_dictionary(args, lm), args)
    pack.save(made_for(args.output))
    if args.target == "label":  # beside where statements end no baseline means anything
        save_baselines(baselines_path(args.output), baselines)
    component, record = pack.components[0], pack.evidence["fit"]
    print(
        json.dumps(
            {
                "pack": str(args.output),
                "frozen_sha256": pack.frozen_sha256,
                "reads": component.reads,
                "features": [asdict(part) for part in component.features],
                "window": pack.window,
                "min_tokens": pack.min_tokens,
                "sweep": record["sweep"],
                "data": record["data"],
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
