"""The flags that client commands share, and what they mean to the client."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from service.cli_steering import feature_key, merge_policies, parse_policy, parse_policy_steering, parse_steering
from service.client import TelltaleClient
from service.client_request import GenerateOptions, ReadOptions, Steering
from service.errors import ConfigError

DEFAULT_TARGET = "127.0.0.1:50051"
_SAMPLING = ("temperature", "top_p", "min_p", "top_k", "repetition_penalty", "max_tokens", "seed", "stop", "ignore_eos")


def add_connection_flags(parser: argparse.ArgumentParser) -> None:
    """Where the server is, and how to be let in."""
    group = parser.add_argument_group("connection")
    target = os.environ.get("TELLTALE_TARGET") or DEFAULT_TARGET
    group.add_argument("--target", metavar="HOST:PORT", default=target, help=f"[env: TELLTALE_TARGET] [now: {target}]")
    group.add_argument("--tls", action="store_true", help="encrypt, trusting the usual authorities")
    group.add_argument(
        "--tls-ca",
        metavar="FILE",
        default=os.environ.get("TELLTALE_TLS_CA") or None,
        help="encrypt, trusting the authorities in this PEM file [env: TELLTALE_TLS_CA]",
    )
    group.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="file with the API key; else TELLTALE_API_KEY holds it. Never a flag: others could read it in `ps`",
    )
    group.add_argument("--timeout", metavar="SECONDS", type=float, help="deadline of the call")


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """How to show the answer."""
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON line per message, as in the wire contract")
    group.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto", help="auto: on a terminal, unless NO_COLOR"
    )


def add_read_flags(parser: argparse.ArgumentParser) -> None:
    """What to read, and how to steer."""
    group = parser.add_argument_group("readings")
    group.add_argument(
        "--watch", metavar="NAME_OR_INDEX", type=feature_key, action="append", help="feature to read; repeatable"
    )
    group.add_argument("--monitor", metavar="NAME", action="append", dest="monitors", help="monitor to run; repeatable")
    group.add_argument("--top", metavar="N", type=int, dest="top_features", help="largest latents to report per token")
    group.add_argument("--no-defaults", action="store_true", help="read nothing that is not asked for")
    group.add_argument("--label", metavar="TEXT", help="your own mark for the request; comes back in alerts")
    group.add_argument(
        "--steer",
        metavar="SPEC",
        type=parse_steering,
        action="append",
        default=[],
        help="change the residual: key=value pairs, comma-separated, of feature (or vector=@FILE), op (add, scale, "
        "set, project_out, cap), strength, unit (raw, relative), scope (all, prompt, generated), window (START:END); "
        "repeatable, carried out in this order",
    )


def add_generation_flags(parser: argparse.ArgumentParser) -> None:
    """How to draw tokens, and what alerts do."""
    group = parser.add_argument_group("generation")
    group.add_argument("--max-tokens", metavar="N", type=int)
    group.add_argument("--temperature", metavar="X", type=float, help="0 is greedy")
    group.add_argument("--top-p", metavar="X", type=float)
    group.add_argument("--min-p", metavar="X", type=float)
    group.add_argument("--top-k", metavar="N", type=int)
    group.add_argument("--repetition-penalty", metavar="X", type=float)
    group.add_argument("--seed", metavar="N", type=int)
    group.add_argument("--stop", metavar="TEXT", action="append", help="end before this text; repeatable")
    group.add_argument("--ignore-eos", action="store_true", default=None)
    group.add_argument("--include-prompt", action="store_true", help="show the prompt's tokens with their readings")
    group.add_argument(
        "--logprobs", action="store_true", dest="include_logprobs", help="with log-probabilities, --json"
    )
    group.add_argument(
        "--policy",
        metavar="SPEC",
        type=parse_policy,
        action="append",
        default=[],
        help="monitor=NAME, or when=CONDITION like 'a and (b:critical or c@user)'; action=annotate|stop|steer, "
        "name=NAME, hold=TOKENS|window, reveal=yes; repeatable",
    )
    group.add_argument(
        "--policy-steer",
        metavar="SPEC",
        type=parse_policy_steering,
        action="append",
        default=[],
        help="monitor=NAME or policy=NAME, and the keys of --steer: what that policy turns on; repeatable",
    )


def connect(args: argparse.Namespace) -> TelltaleClient:
    """A client for the connection flags.

    Raises:
        ConfigError: a key or certificate file that can't be used.
    """
    return TelltaleClient(args.target, api_key=_api_key(args.api_key_file), tls=args.tls_ca or args.tls)


async def read_options(args: argparse.Namespace, client: TelltaleClient) -> ReadOptions:
    """What `add_read_flags` says. Names of features to steer along are resolved, so that a wrong one is explained."""
    options = ReadOptions(no_defaults=args.no_defaults)
    if args.watch:
        options["watch"] = args.watch
    if args.monitors:
        options["monitors"] = args.monitors
    if args.top_features is not None:
        options["top_features"] = args.top_features
    if args.label is not None:
        options["label"] = args.label
    if args.timeout is not None:
        options["timeout_seconds"] = args.timeout
    options["steering"] = await _with_latents(args.steer, client)
    return options


async def generate_options(args: argparse.Namespace, client: TelltaleClient) -> GenerateOptions:
    """What `add_read_flags` and `add_generation_flags` say."""
    policies = merge_policies(args.policy, args.policy_steer)
    given: dict[str, Any] = {name: getattr(args, name) for name in _SAMPLING if getattr(args, name) is not None}
    given |= await read_options(args, client)
    given["include_prompt"] = args.include_prompt
    given["include_logprobs"] = args.include_logprobs
    given["policies"] = [replace(p, steering=await _with_latents(p.steering, client)) for p in policies]
    return cast(GenerateOptions, given)


async def _with_latents(operations: Sequence[Steering], client: TelltaleClient) -> list[Steering]:
    """The operations with latents for names. The server knows the names too, but not which one was meant."""
    names = [op.direction for op in operations if isinstance(op.direction, str)]
    latents = dict(zip(names, await client.resolve_features(names), strict=True))
    return [
        replace(operation, direction=latents[operation.direction])
        if isinstance(operation.direction, str)
        else operation
        for operation in operations
    ]


def _api_key(path: str | None) -> str | None:
    if path is None:
        return os.environ.get("TELLTALE_API_KEY") or None
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"--api-key-file: {path} can't be read.") from None
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(f"--api-key-file: {path} must hold one key, printable ASCII.")
    return key
