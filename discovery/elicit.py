"""On-policy data from a running server: what its model says when it is asked to be honest, to lie, or neither.

    telltale lab monitor elicit --target 127.0.0.1:50051 --output runs/onpolicy.jsonl
    telltale lab monitor elicit --target 127.0.0.1:50051 --output runs/benign.jsonl --benign 1000
    telltale lab monitor elicit --target 127.0.0.1:50051 --output runs/fresh.jsonl --benign 1000 --monitors lying
    telltale lab monitor elicit --output runs/onpolicy.jsonl
    telltale lab monitor elicit --target 127.0.0.1:50051 --output runs/without.jsonl \
        --knowledge runs/onpolicy.jsonl.replies \
        --steering '[{"name": "lying", "op": "STEERING_OP_SCALE", "strength": 0}]'

First every question is asked plainly, to see what the model knows; then under all other arms, under instructions to lie
only what it knows. Replies are kept in OUTPUT.replies as they come: killed and started again, the same command asks
only what is missing. OUTPUT and OUTPUT.summary.json are made of them whole. Without a target nothing is asked and they
are made anew of the replies there are, by the rules of this version.

With steering, what the model knows is what it says unsteered (taken from another run's replies with --knowledge), and
OUTPUT holds what it says steered: whether a feature that seems to be about lies has a part in telling them.
"""

import argparse
import asyncio
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from discovery.benign_requests import LENGTHS, BenignSettings, benign_rows, plan_benign
from discovery.call_retries import Patience, on_stderr
from discovery.command_parser import command_parser
from discovery.elicit_run import ask_all
from discovery.elicitation_arms import ARMS, FORMATS
from discovery.elicitation_plan import Cell, ElicitSettings, knowledge_cells, other_cells, sampled_cells
from discovery.errors import ElicitError
from discovery.grpc_endpoint import GrpcEndpoint
from discovery.line_files import write_lines
from discovery.live_rates import as_table as rates_table
from discovery.live_rates import live_rates
from discovery.on_policy_classes import Knowledge
from discovery.on_policy_rows import Labelled, answers_to, knowledge_in, label_all, rows_of
from discovery.on_policy_summary import as_table, summarise
from discovery.output_places import check_output
from discovery.question_set import (
    Question,
    digest,
    read_questions,
    read_requests,
    shipped_questions,
    shipped_requests,
)
from discovery.reply_store import Inquiry, ReplyStore, identify
from discovery.result_lines import claimed
from discovery.steering_json import read_steering
from discovery.tables import table_console
from sae_runtime.checkpoint import write_atomically

LABEL = "telltale lab monitor elicit"
KEY_VARIABLE = "TELLTALE_ELICIT_API_KEY"
_OF_QUESTIONS = ("questions", "kinds", "skip", "limit", "arms", "formats", "share", "samples", "steering", "knowledge")

Ask = Callable[[str, Sequence[Inquiry]], None]
"""Name of the round, and what to ask in it."""


# --- what is asked --------------------------------------------------------------------------------------------------


def chosen_questions(args: argparse.Namespace) -> list[Question]:
    """Those of the files, or the shipped ones; of the kinds and as many as asked for, chosen by hash."""
    files: list[Path] = args.questions
    questions = [question for path in files for question in read_questions(path)] if files else shipped_questions()
    if len({question.id for question in questions}) < len(questions):
        raise ElicitError(
            f"questions must have ids that are unique in all files together, got {len(questions)} with fewer"
        )
    kinds = {question.kind for question in questions}
    if unknown := set(args.kinds or ()) - kinds:
        raise ElicitError(f"kinds must be among {', '.join(sorted(kinds))}, got {', '.join(sorted(unknown))}")
    questions = [question for question in questions if not args.kinds or question.kind in args.kinds]
    if args.limit is not None and args.limit < 1:
        raise ElicitError(f"limit must be at least 1, got {args.limit}")
    if not 0 <= args.skip < max(len(questions), 1):
        raise ElicitError(f"skip must leave some of the {len(questions)} questions, got {args.skip}")
    end = None if args.limit is None else args.skip + args.limit
    by_hash = sorted(questions, key=lambda question: _hash(f"{args.seed}/{question.id}"))
    chosen = {question.id for question in by_hash[args.skip : end]}
    return [question for question in questions if question.id in chosen]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# --- the rounds -----------------------------------------------------------------------------------------------------


def elicit(
    questions: Sequence[Question], settings: ElicitSettings, store: ReplyStore, ask: Ask
) -> tuple[list[Labelled], dict[str, Knowledge]]:
    """Ask both rounds and label all replies that there are then; with steering, those to the second."""
    first = list(knowledge_cells(questions))
    ask("what it knows", [cell.inquiry(settings) for cell in first])
    knowledge = _knowledge(questions, first, store, settings)
    if settings.num_samples:
        samples = list(sampled_cells(questions, knowledge, settings))
        ask("whether it always does", [cell.inquiry(settings) for cell in samples])
        first += samples
        knowledge = _knowledge(questions, first, store, settings)
    second = list(other_cells(questions, knowledge, settings))
    ask("under all arms", [cell.inquiry(settings) for cell in second])
    asked = second if settings.steering else [*first, *second]
    return label_all(answers_to(asked, store, settings), knowledge), knowledge


def _knowledge(
    questions: Sequence[Question], cells: Sequence[Cell], store: ReplyStore, settings: ElicitSettings
) -> dict[str, Knowledge]:
    expected = {question.id: 0 for question in questions}
    for cell in cells:
        expected[cell.question.id] += 1
    return knowledge_in(answers_to(cells, store, settings), expected)


def write_on_policy(args: argparse.Namespace, store: ReplyStore, ask: Ask) -> dict[str, Any]:
    """Ask, label and write; the summary."""
    questions = chosen_questions(args)
    settings = ElicitSettings(
        arms=tuple(args.arms or [arm.name for arm in ARMS]),
        formats=tuple(args.formats or FORMATS),
        num_samples=args.samples,
        temperature=args.temperature,
        share=args.share,
        seed=args.seed,
        steering=_canonical(store.identity.get("steering", {}).get("operations")),
    )
    if args.knowledge:
        everything: dict[str, Knowledge] = {question.id: "known" for question in questions}
        cells = [*knowledge_cells(questions), *sampled_cells(questions, everything, settings)]
        store.take_over([cell.inquiry(settings) for cell in cells], ReplyStore.reopen(args.knowledge))
    labelled, knowledge = elicit(questions, settings, store, ask)
    write_lines(args.output, list(rows_of(labelled, settings, store.identity)))
    return {"questions_sha256": digest(questions), **summarise(labelled, knowledge)}


def _canonical(operations: list[Any] | None) -> str:
    """Steering of a replies' file, as inquiries have it."""
    return read_steering(json.dumps(operations)) if operations else ""


def write_benign(args: argparse.Namespace, store: ReplyStore, ask: Ask) -> dict[str, Any]:
    """Ask and write benign replies; the summary."""
    requests = read_requests(args.requests) if args.requests else shipped_requests()
    settings = BenignSettings(args.benign, args.temperature, args.seed)
    plan = list(plan_benign(requests, settings, repeat=args.requests is not None))
    # Those of like length together: a server's pass over many rows attends as far back as its longest row.
    ask("benign", [one.inquiry for one in sorted(plan, key=lambda one: LENGTHS[one.length])])
    rows = list(benign_rows(plan, store))
    write_lines(args.output, rows)
    return {
        "requests_sha256": digest(requests),
        "asked": args.benign,
        "temperature": args.temperature,
        "seed": args.seed,
        "replies": len(rows),
        "groups": len({row["group"] for row in rows}),
        "by_length": {
            f"up to {limit}": sum(low < row["meta"]["completion_tokens"] <= limit for row in rows)
            for low, limit in ((0, 64), (64, 256), (256, 1024))
        },
        "empty": sum(row["label"] is None for row in rows),
        **({"live_rates": live_rates(rows)} if "monitors" in store.identity else {}),
    }


# --- the command ----------------------------------------------------------------------------------------------------


def target_url(target: str) -> str:
    """HOST:PORT, or a URL, as a URL."""
    return target if "://" in target else f"grpc://{target}"


def open_store(args: argparse.Namespace) -> ReplyStore:
    """The replies of earlier runs; begun if there are none and there is a target."""
    path = args.output.with_name(args.output.name + ".replies")
    if args.target is None:
        return ReplyStore.reopen(path)

    async def ask_who() -> dict[str, Any]:
        async with open_endpoint(args) as endpoint:
            return await Patience(args.attempts, notice=on_stderr).call(
                lambda: identify(endpoint, label=LABEL, monitors=args.monitors, steering=args.steering)
            )

    return ReplyStore(path, asyncio.run(ask_who()))


def open_endpoint(args: argparse.Namespace) -> GrpcEndpoint:
    from discovery.chat_endpoint import key_from_environment  # late: it needs httpx

    return GrpcEndpoint(
        target_url(args.target),
        key=key_from_environment(args.api_key_variable),
        timeout_seconds=args.timeout,
        monitors=args.monitors,
    )


def asker(args: argparse.Namespace, store: ReplyStore) -> Ask:
    """Asks the server, with a progress bar on stderr; nobody, without a target."""

    def ask(name: str, inquiries: Sequence[Inquiry]) -> None:
        if args.target is not None:
            asyncio.run(_ask(args, store, name, inquiries))

    return ask


async def _ask(args: argparse.Namespace, store: ReplyStore, name: str, inquiries: Sequence[Inquiry]) -> None:
    keys = {inquiry.key for inquiry in inquiries}
    done = len(keys) - len(store.missing(inquiries))
    async with open_endpoint(args) as endpoint:
        patience = Patience(args.attempts, notice=on_stderr)
        concurrency = args.concurrency or (await patience.call(endpoint.facts)).slots or 1
        with tqdm(total=len(keys), initial=done, desc=name, unit="reply", mininterval=1) as bar:
            await ask_all(
                endpoint,
                store,
                inquiries,
                concurrency=concurrency,
                label=LABEL,
                patience=patience,
                on_reply=lambda: bar.update(),
            )


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("Have the served model answer, and label what it says.")
    parser.add_argument("--target", help="the server, HOST:PORT, or grpcs://HOST:PORT for TLS; none: label again")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines of labelled conversations")
    parser.add_argument("--json", action="store_true", help="the summary as JSON instead of a table")
    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--questions", type=Path, action="append", default=[], help="a file of questions; repeat")
    asked.add_argument("--kinds", nargs="+", help="of questions; default: all")
    asked.add_argument("--limit", type=int, help="no more questions than this, chosen by hash")
    asked.add_argument("--skip", type=int, default=0, help="none of those that this --limit would choose; default 0")
    asked.add_argument("--arms", nargs="+", help="default: all; those that ask for knowledge are asked anyway")
    asked.add_argument("--formats", nargs="+", help=f"of {', '.join(FORMATS)}; default: all")
    asked.add_argument("--share", type=float, default=1.0, help="of what is asked in the second round, by hash")
    asked.add_argument(
        "--samples", type=int, default=0, help="at --temperature, of every prompt that asks for knowledge"
    )
    asked.add_argument("--temperature", type=float, default=0.7, help="of samples and benign replies")
    asked.add_argument("--seed", type=int, default=0, help="of samples and choices")
    asked.add_argument(
        "--steering",
        default="",
        metavar="JSON",
        help="of the second round: a list of operations of telltale.v1.Steering",
    )
    asked.add_argument(
        "--knowledge",
        type=Path,
        metavar="REPLIES",
        help="OUTPUT.replies of another run: what it has of the first round",
    )
    benign = parser.add_argument_group("benign replies instead")
    benign.add_argument("--benign", type=int, metavar="N", help="N replies of mixed lengths to ordinary requests")
    benign.add_argument(
        "--requests", type=Path, help="a file of requests, asked in rounds; default: the shipped ones, then others"
    )
    benign.add_argument(
        "--monitors", nargs="+", default=[], help="of the server, which run on the replies: how often they fire is told"
    )
    calls = parser.add_argument_group("calls")
    calls.add_argument(
        "--concurrency", type=int, help="requests at a time; default: as many as the server runs at once"
    )
    calls.add_argument("--timeout", type=float, default=600.0, help="seconds for a reply")
    calls.add_argument("--attempts", type=int, default=6, help="for each call")
    calls.add_argument("--api-key-variable", default=KEY_VARIABLE, help="environment variable with the key")
    args = parser.parse_args(argv)
    if args.benign is None:
        for name in ("monitors", "requests"):
            if getattr(args, name):
                parser.error(f"--{name} must come with --benign: it is of benign replies alone")
    else:
        for name in _OF_QUESTIONS:
            if getattr(args, name) != parser.get_default(name):
                parser.error(f"--{name} must come without --benign: it is of questions, and benign replies have none")
    for name in ("concurrency", "attempts"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    check_output("--output", args.output)
    args.steering = read_steering(args.steering) if args.steering else ""
    with claimed(args.output):
        store = open_store(args)
        write = write_on_policy if args.benign is None else write_benign
        summary = {"output": str(args.output), "identity": store.identity, **write(args, store, asker(args, store))}
        write_atomically(args.output.with_name(args.output.name + ".summary.json"), _as_json(summary, indent=1) + "\n")
    if not args.json and "live_rates" in summary:
        table_console().print(rates_table(summary["live_rates"]))
    else:
        print(_as_json(summary) if args.json or "arms" not in summary else as_table(summary))
    return 0


def _as_json(summary: Mapping[str, Any], *, indent: int | None = None) -> str:
    return json.dumps(summary, ensure_ascii=False, indent=indent)


if __name__ == "__main__":
    sys.exit(main())
