"""Makes one frozen monitor of several: an ensemble under a rule, or a cascade in which the last must agree.

    telltale lab monitor combine disbelief.pack.yaml stance.pack.yaml --rule min --output deception.pack.yaml
    telltale lab monitor combine stance.pack.yaml disbelief.pack.yaml --gate 0 --output deception.pack.yaml
    telltale lab monitor combine disbelief.pack.yaml stance.pack.yaml end.pack.yaml --rule min --gate 0 --output ...

Each component keeps its center and scale: 0 is half-way between the labels it was fitted on, 1 the positives' mean. So
`--rule min` says: both must be high. Nothing is fitted here; thresholds come from `calibrate`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import get_args

from discovery.command_parser import command_parser
from discovery.input_arguments import add_roles_argument
from discovery.output_places import check_output, made_for
from discovery.pack_building import combined_pack
from discovery.pack_lookup import name_for
from monitors.combination import EnsembleRule
from monitors.pack import PACK_SUFFIX, MonitorPack

CLOSED_SCORE = -10.0
"""Of a cascade whose gate is closed: ten times as far below the middle as the negatives' mean."""
COMBINED_LIMITS = "Scores what its components agree on, with the limits that each has."


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("Make one frozen monitor of several.")
    parser.add_argument("packs", type=Path, nargs="+", help="frozen monitors; of a cascade, the gate last")
    parser.add_argument("--output", type=Path, required=True, metavar=f"NAME{PACK_SUFFIX}", help="the monitor")
    parser.add_argument("--rule", choices=get_args(EnsembleRule), help="min: all must be high; max: one is enough")
    parser.add_argument("--gate", type=float, metavar="SCORE", help="cascade: what the last one's score must exceed")
    parser.add_argument("--closed-score", type=float, default=CLOSED_SCORE, help="of a cascade whose gate is closed")
    parser.add_argument("--window", type=int, help="default: that of all packs")
    parser.add_argument("--min-tokens", type=int, help="default: that of all packs")
    add_roles_argument(parser, None, "whose words a server scores with it; default: those of all packs")
    parser.add_argument("--description", help="what it is meant to show")
    parser.add_argument("--limits", help="what it does not show")
    args = parser.parse_args(argv)
    if args.rule is None and args.gate is None:
        parser.error("--rule or --gate must be given, got neither")
    args.name = name_for(args.output)
    check_output("--output", args.output)
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    parts = [MonitorPack.load(path) for path in args.packs]
    how = _in_words([part.name for part in parts], args.rule, args.gate)
    pack = combined_pack(
        args.name,
        parts,
        rule=args.rule,
        gate_threshold=args.gate,
        closed_score=None if args.gate is None else args.closed_score,
        window=args.window,
        min_tokens=args.min_tokens,
        roles=args.roles,
        description=args.description or how,
        limits=args.limits or COMBINED_LIMITS,
    )
    pack.save(made_for(args.output))
    if lost := pack.evidence["fit"]["arms_not_held_out"]:
        print(
            f"caution: {', '.join(lost)}: held out of one part and fitted on by another, so not held out of "
            f"{args.name}; an evaluation has no figures of such arms by themselves",
            file=sys.stderr,
        )
    components = [component.name for component in pack.components]
    print(json.dumps({"pack": str(args.output), "frozen_sha256": pack.frozen_sha256, "components": components}))
    return 0


def _in_words(names: list[str], rule: str | None, gate: float | None) -> str:
    listened = names if gate is None else names[:-1]
    words = " and ".join(listened) + (f", under the rule {rule}" if rule else "")
    return f"{words}." if gate is None else f"{words}, while {names[-1]} is above {gate:g}."


if __name__ == "__main__":
    sys.exit(main())
