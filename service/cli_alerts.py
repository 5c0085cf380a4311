"""`telltale alerts`: the flags of the commands on an alert journal.

With `--target` a running server is asked (`server_alerts`): while it runs, its file takes nobody else's reviews.
Otherwise they work on the journal's file or database (`alert_commands`). The database's libraries are imported only
when a command runs: `telltale generate` starts in a moment.
"""

import argparse
import os
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any

from service.cli_options import add_connection_flags, add_output_flags

LEVELS = ("info", "warning", "critical")
STATES = ("firing", "cleared")
VERDICTS = ("true", "false", "unsure")
FORMATS = ("jsonl", "journal", "parquet", "labelled")
OF_SERVERS = ("list", "show", "review", "ack", "precision", "replay")
"""Commands that can ask a server; with `--target` alone, so that a variable does not change which journal is meant."""
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
MAX_DAYS = 36_500
"""As `journal_retention.MAX_DAYS`, which would take a database's libraries to import."""


_COMMANDS = "service.alert_commands"
_OF_FILES = {"replay": "service.local_replay"}


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    alerts = commands.add_parser(
        "alerts", help="the alert journal: what was raised, and what it was", allow_abbrev=False
    )
    which = alerts.add_subparsers(required=True, metavar="COMMAND")
    listing = _command(which, "list", "alerts, newest first")
    listing.add_argument("--limit", metavar="N", type=_positive, default=50, help="at most so many; 50")
    listing.add_argument("--page", metavar="TOKEN", default="", help="go on where an earlier list ended")
    _add_filters(listing)
    show = _command(which, "show", "one alert, with its text, readings and reviews")
    show.add_argument("id", metavar="ID")
    review = _command(which, "review", "say whether an alert was right")
    review.add_argument("id", metavar="ID")
    review.add_argument(
        "--verdict", choices=VERDICTS, required=True, help="whether what the monitor's name says was there"
    )
    review.add_argument("--reviewer", metavar="NAME", type=_name, default=None, help="who says so; by default the user")
    acknowledge = _command(which, "ack", "say that somebody takes care of an alert")
    acknowledge.add_argument("id", metavar="ID")
    acknowledge.add_argument("--by", metavar="NAME", type=_name, default=None, help="who; by default the user")
    for parser in (review, acknowledge):
        parser.add_argument("--note", metavar="TEXT", default="")
    export = _command(which, "export", "alerts for other programs")
    export.add_argument("--format", choices=FORMATS, default="jsonl", help="jsonl: alerts; journal: its very lines; "
                        "parquet; labelled: reviewed alerts as data to calibrate on")  # fmt: skip
    export.add_argument("--output", metavar="FILE", default="-", help="- is standard output")
    export.add_argument("--dataset", metavar="NAME", help="for labelled data, its name")
    _add_filters(export)
    _command(which, "precision", "how often each monitor was right, by the reviews")
    replay = _command(which, "replay", "do an alert's request again, on a server or here, and compare")
    replay.add_argument("id", metavar="ID")
    replay.add_argument(
        "--tolerance",
        metavar="SHARE",
        type=float,
        default=0.0,
        help="largest difference that counts as none, as a share of a series' largest value; by default 0.001 for "
        "float32, 0.1 for other formats",
    )
    replay.add_argument(
        "--config",
        metavar="FILE",
        help="without --target: options of `telltale serve` that say what to load here, TELLTALE_ variables too",
    )
    verify = _command(which, "verify", "whether the journal is as it was written")
    verify.add_argument("--head", metavar="[SEQ:]HASH", help="a head that was noted elsewhere")
    retain = _command(which, "retain", "delete the oldest")
    retain.add_argument("--days", metavar="N", type=_days, help="what is older")
    retain.add_argument("--alerts", metavar="N", type=int, help="what is beyond so many of the newest alerts")
    retain.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    retain.add_argument("--unsent-too", action="store_true", help="even what was not yet forwarded")
    _command(which, "upgrade", "bring a journal of an earlier version up to date")


def _command(which: Any, name: str, help_: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = which.add_parser(name, help=help_, allow_abbrev=False)
    parser.add_argument(
        "--journal",
        metavar="FILE_OR_URL",
        default=os.environ.get("TELLTALE_JOURNAL") or None,
        help="the journal's file, or postgresql://USER@HOST/DATABASE; by default that of the server on port 50051 "
        "[env: TELLTALE_JOURNAL, where a password belongs]",
    )
    add_output_flags(parser)
    if name in OF_SERVERS:
        add_connection_flags(parser)
        parser.set_defaults(target=None)
    parser.set_defaults(run=_late(name))
    return parser


def _add_filters(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which alerts")
    group.add_argument("--monitor", metavar="NAME", action="append", default=[], dest="monitors", help="repeatable")
    group.add_argument("--level", choices=LEVELS, action="append", default=[], dest="levels", help="repeatable")
    group.add_argument("--state", choices=STATES, action="append", default=[], dest="states")
    group.add_argument("--since", metavar="TIME", type=_time, help="2026-03-01, 2026-03-01T12:00Z, or 90m, 24h, 7d ago")
    group.add_argument("--until", metavar="TIME", type=_time, help="before then")
    group.add_argument("--request", metavar="ID", dest="request_id")
    group.add_argument("--label", metavar="TEXT", help="the client's own mark for the request")
    group.add_argument("--reviewed", action=argparse.BooleanOptionalAction, help="that somebody reviewed, or nobody")
    group.add_argument("--acknowledged", action=argparse.BooleanOptionalAction, help="that somebody took, or nobody")
    group.add_argument("--verdict", choices=VERDICTS, help="what the last review says")


def _late(name: str) -> Callable[[argparse.Namespace], Awaitable[int]]:
    """The command of that name, imported when it runs."""

    async def run(args: argparse.Namespace) -> int:
        module = "service.server_alerts" if getattr(args, "target", None) else _OF_FILES.get(name, _COMMANDS)
        return int(await getattr(import_module(module), f"run_{name}")(args))

    return run


def _time(text: str) -> datetime:
    """A time, or how long ago it was."""
    try:
        if ago := re.fullmatch(r"(\d{1,6})([mhd])", text):
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        time = datetime.fromisoformat(text)
    except (ValueError, OverflowError):  # the second for 999999d, which is before all dates
        raise argparse.ArgumentTypeError(
            f"must be a time like 2026-03-01T12:00Z, or 90m, 24h, 7d. Got {text!r}."
        ) from None
    return time if time.tzinfo is not None else time.astimezone()


def _positive(text: str) -> int:
    number = int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 999999999. Got {text!r}.")
    return number


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = 0.0
    if not 0 < days <= MAX_DAYS:
        raise argparse.ArgumentTypeError(f"must be a number of days, more than 0 and at most {MAX_DAYS}. Got {text!r}.")
    return days


def _name(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("must be a name. Got none.")
    return text
