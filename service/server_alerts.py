"""What `telltale alerts --target HOST:PORT` does: the same on a running server. `cli_alerts` has the flags.

Answers with `--json` are the wire contract's messages. Alerts are shown as those of a file are: `GetAlert` gives the
very line of the journal.
"""

import argparse
import getpass
import hashlib

from telltale.v1 import alert_pb2

from monitors.alert_record import AlertRecord
from monitors.errors import JournalError, Problem
from monitors.journal_entry import Acknowledgement, Review, parsed
from monitors.journal_precision import Precision
from monitors.journal_reader import MAX_PAGE, KeptAlert
from monitors.time_ids import new_id
from service import client_alerts
from service.alert_view import alert_parts, precision_table, replay_lines, told_alert_table
from service.cli_options import connect
from service.cli_terminal import Terminal
from service.client_alerts import AlertPage, AlertReplay, JournalAlert, MonitorPrecision
from service.client_journal import AlertFilters, list_request
from service.client_wire import decode

_FILTERS = ("since", "until", "request_id", "label", "reviewed", "acknowledged", "verdict")


async def run_list(args: argparse.Namespace) -> int:
    """Alerts, newest first."""
    terminal = Terminal(args.color)
    request = list_request(_filters(args), page_size=min(args.limit, MAX_PAGE), page_token=args.page)
    async with connect(args) as client:
        response = await client.call(client.journal.stub.ListAlerts, request, timeout_seconds=args.timeout)
    if args.json:
        terminal.json(response)
        return 0
    page = decode(AlertPage, response)
    terminal.show(told_alert_table(page.alerts))
    if page.next_page_token:
        terminal.note(f"more: --page {page.next_page_token}")
    return 0


async def run_show(args: argparse.Namespace) -> int:
    """One alert."""
    terminal = Terminal(args.color)
    request = alert_pb2.GetAlertRequest(alert_id=args.id)
    async with connect(args) as client:
        response = await client.call(client.journal.stub.GetAlert, request, timeout_seconds=args.timeout)
    if args.json:
        terminal.json(response.alert)
        return 0
    for part in alert_parts(kept_alert(decode(JournalAlert, response.alert))):
        terminal.show(part)
    return 0


async def run_review(args: argparse.Namespace) -> int:
    """A verdict."""
    async with connect(args) as client:
        request = alert_pb2.ReviewAlertRequest(
            alert_id=args.id,
            verdict=f"VERDICT_{args.verdict.upper()}",
            reviewer=args.reviewer or getpass.getuser(),
            note=args.note,
        )
        response = await client.call(client.journal.stub.ReviewAlert, request, timeout_seconds=args.timeout)
    return _said(args, f"reviewed as {args.verdict}", response)


async def run_ack(args: argparse.Namespace) -> int:
    """An acknowledgement."""
    async with connect(args) as client:
        request = alert_pb2.AcknowledgeAlertRequest(alert_id=args.id, by=args.by or getpass.getuser(), note=args.note)
        response = await client.call(client.journal.stub.AcknowledgeAlert, request, timeout_seconds=args.timeout)
    return _said(args, "acknowledged", response)


async def run_precision(args: argparse.Namespace) -> int:
    """How often each monitor was right."""
    terminal = Terminal(args.color)
    async with connect(args) as client:
        request = alert_pb2.GetPrecisionRequest()
        response = await client.call(client.journal.stub.GetPrecision, request, timeout_seconds=args.timeout)
    if args.json:
        for each in response.monitors:
            terminal.json(each)
        return 0
    terminal.show(precision_table([_precision(decode(MonitorPrecision, each)) for each in response.monitors]))
    return 0


async def run_replay(args: argparse.Namespace) -> int:
    """An alert's request again: 0 if both ways reproduce it, else 1."""
    terminal = Terminal(args.color)
    async with connect(args) as client:
        request = alert_pb2.ReplayAlertRequest(alert_id=args.id, tolerance=args.tolerance)
        response = await client.call(client.journal.stub.ReplayAlert, request, timeout_seconds=args.timeout)
    return show_replay(response, terminal, as_json=args.json)


def show_replay(response: object, terminal: Terminal, *, as_json: bool) -> int:
    """Show a ReplayAlertResponse; the exit code."""
    replay = decode(AlertReplay, response)
    if as_json:
        terminal.json(response)
    else:
        for line in replay_lines(replay):
            terminal.show(line)
    is_reproduced = replay.read.reproduced and (replay.generated is None or replay.generated.reproduced)
    return 0 if is_reproduced else 1


def kept_alert(told: JournalAlert) -> KeptAlert:
    """The alert as a journal's reader gives it. JournalError if its line is not the one that its hash is of."""
    line = parsed(told.entry)
    digest = hashlib.sha256(told.entry.encode()).hexdigest()
    if digest != told.hash or not isinstance(line.entry, AlertRecord):
        raise JournalError(Problem("entry", f"an alert whose sha256 is {told.hash}", digest))
    record = line.entry
    return KeptAlert(
        record=record,
        journal=told.journal,
        seq=told.seq,
        hash=told.hash,
        acknowledgements=tuple(_acknowledgement(record, each) for each in told.acknowledgements),
        reviews=tuple(_review(record, each) for each in told.reviews),
        line=told.entry,
    )


def _acknowledgement(record: AlertRecord, told: client_alerts.Acknowledgement) -> Acknowledgement:
    return Acknowledgement(id=new_id(), time=told.time or record.time, alert_id=record.id, by=told.by, note=told.note)


def _review(record: AlertRecord, told: client_alerts.Review) -> Review:
    verdict = told.verdict if told.verdict != "unspecified" else "unsure"
    return Review(
        id=new_id(), time=told.time or record.time, alert_id=record.id, monitor=record.monitor, level=record.level,
        verdict=verdict, reviewer=told.reviewer, note=told.note,
    )  # fmt: skip


def _precision(told: MonitorPrecision) -> Precision:
    return Precision(told.monitor, told.pack_sha256 or None, told.num_true, told.num_false, told.num_unsure)


def _filters(args: argparse.Namespace) -> AlertFilters:
    filters = {"monitors": args.monitors, "severities": args.levels, "states": args.states}
    given = {name: getattr(args, name) for name in _FILTERS if getattr(args, name) is not None}
    return AlertFilters(**(filters | given))  # type: ignore[typeddict-item]


def _said(args: argparse.Namespace, what: str, response: object) -> int:
    terminal = Terminal(args.color)
    if args.json:
        terminal.json(response)
    else:
        terminal.show(f"{what}: entry {response.seq}, {response.hash}")  # type: ignore[attr-defined]
    return 0
