"""Sets frozen monitors' thresholds by benign replies, and writes each pack's next version.

    telltale lab monitor calibrate deception.pack.yaml --benign controls.jsonl generated.jsonl
    telltale lab monitor calibrate packs/*.pack.yaml --benign ...          # every reply read once for all of them
    telltale lab monitor calibrate deception.pack.yaml --benign ... --quantization nf4 --rebind     # for another form

A warning may be reached by 1 % of benign replies, a critical alert by 0.1 %, at any length: see `monitors.conformal`.
`--hard-negative` files (text about the topic) are measured and have no part in the thresholds. Groups that the monitor
was fitted on are left out. A model, quantisation or template that the pack is not bound to is refused; `--rebind` binds
it to what is there: everything in it but the thresholds is then of the old one. A pack that is bound to no template is
bound to the one that the replies went through.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from discovery.argument_checks import check_reading
from discovery.benign_replies import BenignRows, read_benign
from discovery.calibration_run import CalibrationSettings, calibrated
from discovery.command_parser import command_parser
from discovery.conversations import PLAIN_TEXT
from discovery.errors import MonitorLabError
from discovery.input_arguments import add_reading_arguments, add_reasoning_argument, load_model
from discovery.joint_reading import JointReader
from discovery.monitor_scores import reading_plan
from discovery.output_places import check_output, made_for
from discovery.pack_building import bound_to
from discovery.pack_lookup import Dictionaries
from discovery.read_replies import ReadingPlan
from discovery.reply_readings import ReplyReadings
from discovery.seen_rows import SeenRows
from discovery.tables import table_console
from monitors.conformal import DEFAULT_ALPHAS, DEFAULT_BOUNDS, check_levels
from monitors.pack import MonitorPack
from monitors.thresholds import LEVELS
from sae_runtime.chat_template import template_sha256
from sae_runtime.language_model import LanguageModel


class Frozen(NamedTuple):
    """A monitor to be calibrated."""

    pack: MonitorPack
    plan: ReadingPlan
    output: Path


def read_rows(
    joint: JointReader, lm: LanguageModel, frozen: Frozen, paths: Iterable[Path], args: argparse.Namespace
) -> tuple[BenignRows, ReplyReadings]:
    """Benign replies, and what the monitor reads in them."""
    pack = frozen.pack
    rows = read_benign(
        lm,
        paths,
        min_tokens=pack.min_tokens,
        max_scored=args.bounds[-1],
        max_tokens=args.max_tokens,
        roles=pack.roles,
        reasoning=args.reasoning_delimiters,
        seen=SeenRows.of(pack.evidence),
    )
    return rows, joint.read(rows.replies, frozen.plan, label="benign")


def temperatures(rows: BenignRows, given: list[float]) -> tuple[float, ...]:
    """Of the replies: those given, else what `meta.temperature` says."""
    said = {conversation.meta.get("temperature") for conversation in rows.conversations}
    return tuple(sorted(given or {float(value) for value in said if isinstance(value, int | float)}))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("Set frozen monitors' thresholds by benign replies.")
    parser.add_argument("pack", type=Path, nargs="+", help="a frozen monitor; of several, replies are read once")
    parser.add_argument("--benign", type=Path, nargs="+", required=True, help="replies that ought not to fire anything")
    parser.add_argument(
        "--hard-negative", type=Path, nargs="+", default=[], help="measured, and not used for thresholds"
    )
    parser.add_argument("--output", type=Path, help="default: the pack itself; for several packs a folder")
    parser.add_argument("--bounds", type=_bounds, default=list(DEFAULT_BOUNDS), help="last token of each stratum")
    for level in LEVELS:
        parser.add_argument(f"--{level}", type=float, default=DEFAULT_ALPHAS[level], help="share of benign replies")
    parser.add_argument("--temperature", type=float, action="append", default=[], help="of generated replies; repeat")
    parser.add_argument("--seed", default="", help="another seed, other folds of the rates")
    parser.add_argument("--rebind", action="store_true", help="bind the pack to the model that is given")
    parser.add_argument("--json", action="store_true", help="print a JSON line for each pack instead of a table")
    model = parser.add_argument_group("model")
    add_reading_arguments(model)
    add_reasoning_argument(model)
    return parser.parse_args(argv)


def _bounds(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    check_reading(args)
    settings = CalibrationSettings(args.bounds, {level: getattr(args, level) for level in LEVELS}, args.seed)
    check_levels(settings.bounds, settings.alphas)
    outputs = output_paths(args.pack, args.output)
    packs = [MonitorPack.load(path) for path in args.pack]
    for pack in packs:
        replace(pack.bindings, temperatures=tuple(args.temperature))  # refused before anything is read
    lm = load_model(args)
    dictionary = Dictionaries(args, lm)
    frozen = []
    for pack, output in zip(packs, outputs, strict=True):
        sae = dictionary.of(pack)
        bound = bound_to(pack, lm, sae, rebind=args.rebind)
        frozen.append(Frozen(bound, reading_plan(bound, sae), output))
    joint = JointReader(lm, [one.plan for one in frozen], cache=args.cache, batch_tokens=args.batch_tokens)
    for one in frozen:
        calibrate_one(one, joint, lm, settings, args)
    return 0


def output_paths(packs: Sequence[Path], output: Path | None) -> list[Path]:
    """Where each pack's next version goes. LabError if it can't be written."""
    is_folder = output is not None and len(packs) > 1
    for path in packs if output is None else [output]:
        check_output("--output", path, is_folder=is_folder)
    if not is_folder:
        return [output or path for path in packs]
    assert output is not None
    names = [path.name for path in packs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise MonitorLabError(f"packs that go to one folder must have different names, got {', '.join(twice)} twice")
    return [output / name for name in names]


def calibrate_one(
    frozen: Frozen, joint: JointReader, lm: LanguageModel, settings: CalibrationSettings, args: argparse.Namespace
) -> None:
    """Set the thresholds of one, write it, and say what came out."""
    rows, readings = read_rows(joint, lm, frozen, args.benign, args)
    hard = read_rows(joint, lm, frozen, args.hard_negative, args) if args.hard_negative else None
    made = calibrated(_bound_to_template(frozen.pack, rows, lm), rows, readings, settings, hard)
    made = replace(made, bindings=replace(made.bindings, temperatures=temperatures(rows, args.temperature)))
    made.save(made_for(frozen.output))
    show(made, frozen.output, as_json=args.json)


def _bound_to_template(pack: MonitorPack, rows: BenignRows, lm: LanguageModel) -> MonitorPack:
    """A pack that was bound to no template, bound to the one that replies went through: its thresholds hold there."""
    is_templated = any(row.messages[-1]["role"] != PLAIN_TEXT for row in rows.conversations)
    if pack.bindings.chat_template_sha256 is not None or not is_templated:
        return pack
    return replace(pack, bindings=replace(pack.bindings, chat_template_sha256=template_sha256(lm.tokenizer)))


def show(pack: MonitorPack, path: Path, *, as_json: bool) -> None:
    """What came out."""
    assert pack.calibration is not None and pack.thresholds is not None
    figures = pack.calibration.figures
    if as_json:
        levels = {name: level.offset for name, level in pack.thresholds.levels.named()}
        print(json.dumps({"pack": str(path), "version": pack.version, "offsets": levels, **figures}))
        return
    table = Table(title=f"{pack.name}: replies that reached a level, thresholds set on other replies")
    for name in ("", "level", "fired", "of", "share", "95 % interval"):
        table.add_column(name, justify="left" if name in ("", "level") else "right")
    for name, bound, shares in _rates(figures):
        for level, share in shares.items():
            threshold = getattr(pack.thresholds.levels, level)
            stands = threshold is not None and bound not in threshold.absent
            cells = [str(share["count"]), str(share["num"]), f"{share['share']:.2%}"]
            cells.append(f"{share['low']:.2%} to {share['high']:.2%}")
            table.add_row(name, level, *(cells if stands else ["-", str(share["num"]), "-", "-"]))
    table_console().print(table)
    for name in LEVELS:
        found = getattr(pack.thresholds.levels, name)
        if found is None:
            print(f"{name}: absent, too few replies in every stratum")
            continue
        absent = f"; absent up to {', '.join(map(str, found.absent))} tokens: too few replies" if found.absent else ""
        print(f"{name}: offset {found.offset:.4f} at {found.alpha:.2%} of benign replies{absent}")
    print(f"{path}: version {pack.version}")


def _rates(figures: Mapping[str, Any]) -> Iterator[tuple[str, int | None, Mapping[str, Any]]]:
    """Name, the stratum that it is if it is one, and the shares by level: all, strata as they rise, sets."""
    crossed = figures["cross_fitted"]
    yield "all", None, crossed["all"] or {}
    for bound in sorted(map(int, crossed["by_stratum"])):
        yield f"up to {bound} tokens", bound, crossed["by_stratum"][str(bound)]
    for name, shares in crossed["by_set"].items():
        yield name, None, shares
    for name, shares in figures["hard_negatives"].items():
        yield f"{name} (hard)", None, shares


if __name__ == "__main__":
    sys.exit(main())
