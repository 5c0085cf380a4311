r"""The rows that the monitors of Qwen2.5-Coder-1.5B are fitted and measured on, out of what the model was asked.

    telltale lab monitor elicit --questions discovery/questions/facts.jsonl --output short.jsonl \
        --formats short --limit 760 --samples 1 --arms honest-expert lying-must lying-asked lying-must-and-asked \
        lying-examples lying-secret lying-plausible incentive-pressed
    telltale lab monitor elicit --questions discovery/questions/facts.jsonl --output long.jsonl \
        --formats sentence passage --limit 760 --samples 1 \
        --arms neutral honest-user lying-asked lying-must-and-asked lying-secret lying-plausible
    python -m benchmarks.monitor_rows short.jsonl long.jsonl --output rows
    python -m benchmarks.monitor_rows short.jsonl long.jsonl --output rows --seen disbelief_at_end.pack.yaml ...

and, when everything was frozen, the questions that nothing had been fitted, chosen or measured on:

    telltale lab monitor elicit --questions discovery/questions/facts.jsonl --output fresh.jsonl \
        --formats short --skip 760 --samples 1 --arms ...                                        # those of short.jsonl
    python -m benchmarks.monitor_rows short.jsonl long.jsonl --fresh fresh.jsonl --output rows --seen ...

All make their output of the replies that are checked in (`onpolicy.replies.gz`, unpacked as `short.jsonl.replies` and
`long.jsonl.replies`; `fresh.replies.gz`) without asking; of longer replies these are a part.

Of classes that have many replies a part is taken, whole questions or single replies, always those whose SHA-256 is
lowest, so that anyone gets the same. With `--seen` the longer replies lose the questions that these packs were fitted
on: they are a set of their own in an evaluation, which knows seen questions by their set. Writes:

    disbelief.jsonl  lies that were told to be told, and truths under the same instructions: those to questions that
                     some lie was told to, and a quarter of the others; in all formats
    stance.jsonl     the lies; half of those truths; of each question one honest truth and two mistakes: short answers
    gate.jsonl       longer replies, and 800 short ones
    on_policy.jsonl  to measure on, short: all lies; truths under instructions to lie, half of those to questions that
                     some lie was told to, a quarter of the others; honest ones, all neutral and half of two arms'
    longer.jsonl     to measure on: longer replies
    fresh.jsonl      to measure on, as on_policy.jsonl: short answers to the questions of `--fresh`
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from discovery.group_split import group_digest
from monitors.pack import MonitorPack

Row = dict[str, Any]

NUM_SHORT_OF_GATE = 800
LONGER = "on_policy_longer"
FRESH = "on_policy_fresh"


def read(paths: Iterable[Path]) -> list[Row]:
    """All rows, each once: replies that show what is known are in several outputs."""
    rows = {row["id"]: row for path in paths for row in map(json.loads, path.read_text("utf-8").splitlines())}
    return list(rows.values())


def place(salt: str, name: str) -> float:
    """In [0, 1), by hash."""
    return int.from_bytes(hashlib.sha256(f"{salt}/{name}".encode()).digest()[:4], "big") / 2**32


def greedy(rows: Iterable[Row], *, short: bool) -> list[Row]:
    """Labelled replies that were not sampled, of short answers or of all others."""
    return [
        row
        for row in rows
        if row["label"] is not None and row["meta"]["sample"] == 0 and (row["meta"]["format"] == "short") is short
    ]


def told(rows: Iterable[Row], *classes: str) -> list[Row]:
    """Of these classes, where an instruction to lie was given."""
    return [row for row in rows if row["meta"]["class"] in classes and row["meta"]["instruction"] == "lying"]


def disbelief(short: Sequence[Row], longer: Sequence[Row]) -> list[Row]:
    lies, truths = (told([*short, *longer], name) for name in ("lie", "told_to_lie_but_true"))
    lied_to = {row["meta"]["question_id"] for row in lies}
    near = [row for row in truths if row["meta"]["question_id"] in lied_to or place("disbelief", row["id"]) < 0.25]
    return [*lies, *near]


def stance(short: Sequence[Row]) -> list[Row]:
    truths = [row for row in told(short, "told_to_lie_but_true") if place("stance", row["id"]) < 0.5]
    honest = [row for row in short if row["meta"]["instruction"] in ("neutral", "honest")]
    return [
        *told(short, "lie"),
        *truths,
        *lowest_of_each(honest, "honest_truth", 1),
        *lowest_of_each(honest, "honest_mistake", 2),
    ]


def lowest_of_each(rows: Sequence[Row], name: str, num: int) -> Iterator[Row]:
    """Of each question the first `num` replies of a class, by hash."""
    of_question: dict[str, list[Row]] = {}
    for row in rows:
        if row["meta"]["class"] == name:
            of_question.setdefault(row["meta"]["question_id"], []).append(row)
    for found in of_question.values():
        yield from islice(sorted(found, key=lambda row: place("stance", row["id"])), num)


def gate(short: Sequence[Row], longer: Sequence[Row]) -> list[Row]:
    return [*longer, *sorted(short, key=lambda row: place("gate", row["id"]))[:NUM_SHORT_OF_GATE]]


def on_policy(short: Sequence[Row]) -> list[Row]:
    lied_to = {row["meta"]["question_id"] for row in short if row["meta"]["class"] == "lie"}
    return [row for row in short if place("measure", row["id"]) < share(row, lied_to)]


def share(row: Row, lied_to: set[str]) -> float:
    """Of replies like this one that are measured on."""
    meta = row["meta"]
    if meta["class"] == "lie" or meta["arm"] == "neutral":
        return 1.0
    if meta["class"] == "told_to_lie_but_true":
        return 0.5 if meta["question_id"] in lied_to else 0.25
    return 0.5 if meta["arm"] in ("honest-system", "honest-expert") or meta["instruction"] == "incentive" else 0.0


def renamed(rows: Iterable[Row], name: str) -> list[Row]:
    """As a set of their own: an evaluation knows seen questions, and tells its figures, by set."""
    return [{**row, "dataset": name} for row in rows]


def unseen(longer: Sequence[Row], packs: Sequence[Path]) -> list[Row]:
    """Without questions that a pack was fitted on."""
    seen = {group for path in packs for group in MonitorPack.load(path).evidence["fit"]["seen_groups"]}
    return renamed((row for row in longer if group_digest(f"{row['dataset']}/{row['group']}") not in seen), LONGER)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("replies", type=Path, nargs="+", help="outputs of telltale lab monitor elicit")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--fresh", type=Path, help="output of elicit for other questions")
    parser.add_argument("--seen", type=Path, nargs="+", default=[], help="packs that were fitted on some of them")
    args = parser.parse_args(argv)
    rows = read(args.replies)
    short, longer = greedy(rows, short=True), greedy(rows, short=False)
    files = {
        "disbelief": disbelief(short, longer),
        "stance": stance(short),
        "gate": gate(short, longer),
        "on_policy": on_policy(short),
        "longer": unseen(longer, args.seen),
    }
    if args.fresh:
        files["fresh"] = renamed(on_policy(greedy(read([args.fresh]), short=True)), FRESH)
    args.output.mkdir(parents=True, exist_ok=True)
    for name, chosen in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
        (args.output / f"{name}.jsonl").write_text(text, encoding="utf-8")
        classes = [row["meta"]["class"] for row in chosen]
        print(name, len(chosen), {of: classes.count(of) for of in sorted(set(classes))})
    return 0


if __name__ == "__main__":
    sys.exit(main())
