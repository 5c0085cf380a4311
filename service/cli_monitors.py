"""`telltale monitors list` and `get`: what watches the model, when it fires, and what it does not show."""

import argparse

from telltale.v1 import monitor_pb2

from service import monitor_view
from service.cli_options import add_connection_flags, add_output_flags, connect
from service.cli_terminal import Terminal
from service.client_monitors import Monitor
from service.client_wire import decode


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    monitors = commands.add_parser("monitors", help="the server's monitors", allow_abbrev=False)
    which = monitors.add_subparsers(required=True, metavar="list | get")
    listing = which.add_parser("list", help="all monitors", allow_abbrev=False)
    listing.set_defaults(run=run_list)
    one = which.add_parser("get", help="one monitor, with its calibration and evidence", allow_abbrev=False)
    one.add_argument("name", metavar="NAME")
    one.set_defaults(run=run_get)
    for parser in (listing, one):
        add_output_flags(parser)
        add_connection_flags(parser)


async def run_list(args: argparse.Namespace) -> int:
    """All monitors."""
    terminal = Terminal(args.color)
    async with connect(args) as client:
        request = monitor_pb2.ListMonitorsRequest()
        response = await client.call(client.monitors.ListMonitors, request, timeout_seconds=args.timeout)
    for message in response.monitors:
        if args.json:
            terminal.json(message)
        else:
            terminal.show(monitor_view.brief(decode(Monitor, message)))
    return 0


async def run_get(args: argparse.Namespace) -> int:
    """One monitor in full."""
    terminal = Terminal(args.color)
    async with connect(args) as client:
        message = await client.monitor_message(args.name, timeout_seconds=args.timeout)
    if args.json:
        terminal.json(message)
        return 0
    for part in monitor_view.whole(decode(Monitor, message)):
        terminal.show(part)
    return 0
