"""What `telltale alerts` does on a journal's file or database. `cli_alerts` has the flags."""

import argparse
import getpass
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

from monitors import journal_export
from monitors.alert_record import plain
from monitors.errors import JournalError
from monitors.journal import Journal, Receipt
from monitors.journal_chain import NotedHead
from monitors.journal_export import as_json
from monitors.journal_precision import precisions
from monitors.journal_query import EVERYTHING, Filters
from monitors.journal_reader import MAX_PAGE, JournalReader, KeptAlert
from monitors.journal_retention import Keep
from sae_runtime.whole_files import whole_file
from service.alert_view import alert_parts, alert_table, precision_table, verification_line
from service.cli_terminal import Terminal
from service.errors import ConfigError, NotFound
from service.journal_place import default_place


async def run_list(args: argparse.Namespace) -> int:
    """Alerts, newest first."""
    terminal = Terminal(args.color)
    with JournalReader.open(where(args)) as reader:
        page = reader.alerts(_filters(args), page_size=min(args.limit, MAX_PAGE), token=args.page)
    if args.json:
        _print_json({"alerts": [as_json(kept) for kept in page.alerts], "next_page": page.next_token})
        return 0
    terminal.show(alert_table(page.alerts))
    if page.next_token:
        terminal.note(f"more: --page {page.next_token}")
    return 0


async def run_show(args: argparse.Namespace) -> int:
    """One alert."""
    terminal = Terminal(args.color)
    with JournalReader.open(where(args)) as reader:
        kept = reader.find(args.id)
    if kept is None:
        raise NotFound(f"alert {args.id!r}")
    if args.json:
        _print_json(as_json(kept))
        return 0
    for part in alert_parts(kept):
        terminal.show(part)
    return 0


async def run_review(args: argparse.Namespace) -> int:
    """A verdict."""
    with Journal.open(where(args), must_exist=True) as journal:
        _check_there(journal.reader.find(args.id), args.id)
        receipt = journal.review(
            args.id, verdict=args.verdict, reviewer=args.reviewer or getpass.getuser(), note=args.note
        )
    return _said(args, f"reviewed as {args.verdict}", receipt)


async def run_ack(args: argparse.Namespace) -> int:
    """An acknowledgement."""
    with Journal.open(where(args), must_exist=True) as journal:
        _check_there(journal.reader.find(args.id), args.id)
        receipt = journal.acknowledge(args.id, by=args.by or getpass.getuser(), note=args.note)
    return _said(args, "acknowledged", receipt)


async def run_export(args: argparse.Namespace) -> int:
    """Alerts for other programs."""
    filters = _filters(args)
    if args.format == "parquet" and args.output == "-":
        raise ConfigError("--format parquet needs --output FILE.")
    if args.format == "journal" and filters != EVERYTHING:
        raise ConfigError("--format journal is all of the journal: no other flags say which alerts.")
    with JournalReader.open(where(args)) as reader, _output(args.output) as path:
        if args.format == "parquet":
            said = f"{journal_export.write_parquet(reader.all_alerts(filters), Path(path))} written"
        else:
            with _text_file(path) as file:
                said = _export_text(args, reader, filters, file)
    print(said, file=sys.stderr)
    return 0


def _export_text(args: argparse.Namespace, reader: JournalReader, filters: Filters, file: IO[str]) -> str:
    match args.format:
        case "journal":
            return f"{journal_export.write_lines(reader, file)} written"
        case "labelled":
            dataset = args.dataset or journal_export.DATASET
            num, num_left_out = journal_export.write_labelled(reader.all_alerts(filters), file, dataset)
            return f"{num} written" + (
                f"; left out, as they have no text, or are in a system's or user's words: {num_left_out}"
                if num_left_out
                else ""
            )
        case _:
            return f"{journal_export.write_alerts(reader.all_alerts(filters), file)} written"


async def run_precision(args: argparse.Namespace) -> int:
    """How often each monitor was right."""
    terminal = Terminal(args.color)
    with JournalReader.open(where(args)) as reader:
        found = precisions(reader.reviews())
    if not args.json:
        terminal.show(precision_table(found))
        return 0
    for each in found:
        _print_json({
            "monitor": each.monitor, "pack_sha256": each.pack_sha256, "num_true": each.num_true,
            "num_false": each.num_false, "num_unsure": each.num_unsure, "precision": each.precision,
            "interval_95": each.interval,
        })  # fmt: skip
    return 0


async def run_verify(args: argparse.Namespace) -> int:
    """Whether the journal is as it was written: 0 if it is, else 1. ConfigError for a head that is none: not the
    journal is wrong then."""
    terminal = Terminal(args.color)
    try:
        noted = None if args.head is None else NotedHead.read(args.head)
    except JournalError as error:
        raise ConfigError(f"--{error}") from None
    with JournalReader.open(where(args)) as reader:
        results = reader.verify(noted)
    for result in results:
        finding = result.finding
        if args.json:
            _print_json({
                "journal": result.journal, "holds": result.holds, "num_rows": result.num_rows,
                "first_seq": result.first_seq, "head": f"{result.head.seq}:{result.head.hash}",
                "fault": finding and str(finding.fault), "seq": finding and finding.seq,
                "detail": finding and finding.detail,
            })  # fmt: skip
        else:
            terminal.show(verification_line(result))
    return 0 if results and all(result.holds for result in results) else 1


async def run_retain(args: argparse.Namespace) -> int:
    """Delete the oldest."""
    if args.days is None and args.alerts is None:
        raise ConfigError("retain needs --days or --alerts.")
    age = None if args.days is None else timedelta(days=args.days)
    keep = Keep(max_age=age, max_alerts=args.alerts, unsent_too=args.unsent_too)
    with Journal.open(where(args), must_exist=True) as journal:
        done = journal.retain(keep, dry_run=args.dry_run)
    for each in done:
        if args.json:
            _print_json(plain(each))
        else:
            verb = "would delete" if args.dry_run else "deleted"
            print(f"{verb} {each.num_deleted} entries of {each.journal}, up to {each.through_seq}: {each.reason}")
    if not done and not args.json:
        print("nothing to delete")
    return 0


async def run_upgrade(args: argparse.Namespace) -> int:
    """Bring the tables up to date: opening for writing does."""
    with Journal.open(where(args), must_exist=True) as journal:
        place = journal.place
    print(f"{place} is up to date")
    return 0


def where(args: argparse.Namespace) -> str | Path:
    """The journal that is meant; by default that of the server on the usual port."""
    return args.journal if args.journal is not None else default_place()


def _filters(args: argparse.Namespace) -> Filters:
    return Filters(
        monitors=tuple(args.monitors),
        levels=tuple(args.levels),
        states=tuple(args.states),
        **{name: getattr(args, name) for name in ("since", "until", "request_id", "label", "reviewed", "acknowledged")},
        verdict=args.verdict,
    )


def _check_there(kept: KeptAlert | None, alert_id: str) -> None:
    if kept is None:
        raise NotFound(f"alert {alert_id!r}")


def _said(args: argparse.Namespace, what: str, receipt: Receipt) -> int:
    if args.json:
        _print_json(receipt._asdict())
    else:
        print(f"{what}: entry {receipt.seq}, {receipt.hash}")
    return 0


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


@contextmanager
def _output(output: str) -> Iterator[str]:
    """Where to write: a file takes its place only when it is whole."""
    if output == "-":
        yield output
        return
    with whole_file(Path(output)) as path:
        yield str(path)


@contextmanager
def _text_file(path: str) -> Iterator[IO[str]]:
    if path == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    with Path(path).open("w", encoding="utf-8") as file:
        yield file
