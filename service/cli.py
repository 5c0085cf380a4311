"""The command line, `telltale`. docs/cli.md describes it; `telltale COMMAND --help` lists the flags.

Exit codes: 0 done; 1 it failed (server unreachable or busy, model can't be loaded, engine failed); 2 it was asked
wrongly (command line, option, config file, or a request that the server calls invalid); 130 interrupted.

Only `serve` needs the model's libraries, so only it imports them, and late.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from monitors.errors import MonitorError
from sae_runtime.errors import RuntimeFault
from service import cli_alerts, cli_features, cli_generate, cli_inspect, cli_monitors
from service.config_layers import print_config, read_layers, settings_of
from service.errors import ConfigError, InvalidRequest, NotFound, ServiceError
from service.lasting import lasting
from service.options import add_flags
from service.rendering import sanitize

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Wrong usage raises SystemExit(2), as argparse does."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        if words[:1] == ["lab"]:
            return run_lab(words[1:])
        return asyncio.run(execute(build_parser().parse_args(words)))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


async def execute(args: argparse.Namespace) -> int:
    """Run a parsed command. What goes wrong in a known way ends as a line on stderr and an exit code."""
    try:
        return int(await args.run(args))
    except (ConfigError, InvalidRequest, NotFound) as error:
        return _fail(error, EXIT_USAGE)
    except BrokenPipeError:  # `telltale ... | head`
        _discard_stdout()
        return EXIT_FAILED
    except (ServiceError, RuntimeFault, MonitorError, OSError) as error:
        return _fail(error, EXIT_FAILED)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. Flags are never abbreviated: an abbreviation changes meaning when a flag is added."""
    parser = argparse.ArgumentParser(
        prog="telltale",
        description="Generate text and watch what the model represents while it writes.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the server", allow_abbrev=False)
    serve.add_argument("--print-config", action="store_true", help="print the resulting options and end")
    add_flags(serve)
    serve.set_defaults(run=run_serve)
    cli_generate.add_parsers(commands)
    cli_inspect.add_parsers(commands)
    cli_features.add_parsers(commands)
    cli_alerts.add_parsers(commands)
    cli_monitors.add_parsers(commands)
    # Its own parsers take over from there; see `main`.
    commands.add_parser("lab", help="the offline half: train dictionaries, find and explain features", add_help=False)
    return parser


async def run_serve(args: argparse.Namespace) -> int:
    """Run the server until it is told to stop."""
    flags = {name: value for name, value in vars(args).items() if name not in ("run", "print_config")}
    given = read_layers(flags, os.environ)
    settings = settings_of(given)
    if args.print_config:
        from service.planned_passes import planned_passes  # torch

        sys.stdout.write(f"{print_config(settings, given)}# passes: {planned_passes(settings)}\n")
        return 0
    with lasting():
        from service.run_server import serve  # torch and the model's libraries: seconds to import
    return await serve(settings)


def run_lab(argv: list[str]) -> int:
    """Hand `telltale lab ...` over. By name, so that nothing online depends on the offline half."""
    return int(import_module("discovery.lab").main(argv))


def _fail(error: Exception, code: int) -> int:
    for line in sanitize(str(error) or type(error).__name__).splitlines():
        print(f"telltale: {line}", file=sys.stderr)
    return code


def _discard_stdout() -> None:
    # Python flushes stdout once more at exit, and would complain about the pipe there.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
