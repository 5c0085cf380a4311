"""`telltale features list`, `get` and `search`: what the dictionary's latents are about."""

import argparse
from typing import get_args

from service import feature_view
from service.cli_options import add_connection_flags, add_output_flags, connect
from service.cli_steering import feature_key
from service.cli_terminal import Terminal
from service.client_features import Feature, FeatureMatch, FeatureOrder
from service.client_lookup import list_request, search_request
from service.client_wire import decode
from service.errors import ConfigError


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    features = commands.add_parser("features", help="the dictionary's features and latents", allow_abbrev=False)
    which = features.add_subparsers(required=True, metavar="list | get | search")
    listing = which.add_parser("list", help="named features, or all latents", allow_abbrev=False)
    listing.add_argument("--all", action="store_true", help="latents that nobody named, too")
    listing.add_argument(
        "--order", choices=get_args(FeatureOrder), default="index", help="by what; largest first but for index"
    )
    listing.add_argument("--limit", metavar="N", type=_limit, help="at most so many")
    listing.set_defaults(run=run_list)
    one = which.add_parser("get", help="one latent, with examples and evidence", allow_abbrev=False)
    one.add_argument("key", metavar="NAME_OR_INDEX", type=feature_key)
    one.add_argument("--examples", metavar="N", type=int, default=5, help="show at most so many")
    one.set_defaults(run=run_get)
    search = which.add_parser("search", help="latents by words, or by likeness", allow_abbrev=False)
    search.add_argument("words", metavar="WORD", nargs="*", help="all of them must be found")
    search.add_argument("--like", metavar="NAME_OR_INDEX", type=feature_key, help="by cosine of decoder rows")
    search.add_argument("--limit", metavar="N", type=_limit, default=10, help="at most so many")
    search.set_defaults(run=run_search)
    for parser in (listing, one, search):
        add_output_flags(parser)
        add_connection_flags(parser)


def _limit(text: str) -> int:
    """One or more: of a list of none one would think that nothing was found."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more. Got {number}.")
    return number


async def run_list(args: argparse.Namespace) -> int:
    """Named features, or all latents."""
    terminal = Terminal(args.color)
    request = list_request(include_unnamed=args.all, order=args.order)
    async with connect(args) as client:
        messages = await client.feature_messages(request, limit=args.limit, timeout_seconds=args.timeout)
    if args.json:
        for message in messages:
            terminal.json(message)
    else:
        terminal.show(feature_view.table([decode(Feature, message) for message in messages]))
    return 0


async def run_get(args: argparse.Namespace) -> int:
    """One latent with all that is known of it."""
    terminal = Terminal(args.color)
    async with connect(args) as client:
        key = (await client.resolve_features([args.key]))[0]  # explains a misspelt name
        message = await client.feature_message(key, timeout_seconds=args.timeout)
    if args.json:
        terminal.json(message)
        return 0
    with_marks = not terminal.shows_color
    for part in feature_view.whole(decode(Feature, message), num_examples=args.examples, with_marks=with_marks):
        terminal.show(part)
    return 0


async def run_search(args: argparse.Namespace) -> int:
    """Latents that have the words, or are like another."""
    if bool(args.words) == (args.like is not None):
        raise ConfigError(f"search takes words or --like. Got {'both' if args.words else 'none'}.")
    terminal = Terminal(args.color)
    async with connect(args) as client:
        like = None if args.like is None else (await client.resolve_features([args.like]))[0]
        request = search_request(" ".join(args.words) if like is None else None, like=like)
        messages = await client.match_messages(request, limit=args.limit, timeout_seconds=args.timeout)
    if args.json:
        for message in messages:
            terminal.json(message)
        return 0
    found = [decode(FeatureMatch, message) for message in messages]
    for part in feature_view.matches(found, with_marks=not terminal.shows_color):
        terminal.show(part)
    return 0
