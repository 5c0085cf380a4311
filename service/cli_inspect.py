"""`telltale score`, `watch`, `info` and `health`: what was written, what is served, what happens."""

import argparse
import json
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text
from telltale.v1 import generation_pb2, monitor_pb2

from service import guard_view, monitor_view, rendering
from service.cli_options import add_connection_flags, add_output_flags, add_read_flags, connect, read_options
from service.cli_terminal import ReplyView, Terminal
from service.client_catalog import ServerInfo
from service.client_events import Alert
from service.client_monitors import Monitor
from service.client_reply import ScoreResult
from service.client_request import Message, Prompt
from service.client_wire import decode, decode_score
from service.errors import ConfigError
from service.rendering import sanitize


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands."""
    score = commands.add_parser("score", help="read an existing text, without generating", allow_abbrev=False)
    score.add_argument("file", metavar="FILE", help="text, or a conversation as JSON messages; - for standard input")
    score.add_argument(
        "--as", choices=("auto", "text", "chat"), default="auto", dest="kind", help="auto: chat if it is JSON messages"
    )
    add_read_flags(score)
    score.set_defaults(run=run_score)

    watch = commands.add_parser("watch", help="alerts of all requests, as they happen", allow_abbrev=False)
    watch.add_argument("--monitor", metavar="NAME", action="append", default=[], dest="monitors", help="repeatable")
    watch.set_defaults(run=run_watch)
    info = commands.add_parser("info", help="what is served: model, dictionary, limits, monitors", allow_abbrev=False)
    info.set_defaults(run=run_info)
    health = commands.add_parser("health", help="exit with 0 if the server takes requests", allow_abbrev=False)
    health.set_defaults(run=run_health)
    for parser in (score, watch, info):
        add_output_flags(parser)
    for parser in (score, watch, info, health):
        add_connection_flags(parser)


async def run_score(args: argparse.Namespace) -> int:
    """Read a text or a conversation."""
    prompt = parse_scored(_read(args.file), args.kind)
    terminal = Terminal(args.color)
    async with connect(args) as client:
        request = await client.score_request(prompt, **await read_options(args, client))
        response = await client.call(client.generation.Score, request, timeout_seconds=args.timeout)
    if args.json:
        terminal.json(response)
    else:
        _show_score(decode_score(response), terminal)
    return 0


async def run_watch(args: argparse.Namespace) -> int:
    """Alerts until the server goes away, which is an error: what happens from then on, nobody sees."""
    terminal = Terminal(args.color)
    request = monitor_pb2.WatchAlertsRequest(monitors=args.monitors)
    async with connect(args) as client, aclosing(client.alert_messages(request)) as responses:
        async for response in responses:
            if args.json:
                terminal.json(response.alert)
            else:
                terminal.show(_alert_of_any_request(decode(Alert, response.alert)))
    return 0


async def run_info(args: argparse.Namespace) -> int:
    """What is served."""
    terminal = Terminal(args.color)
    async with connect(args) as client:
        info = await client.call(
            client.generation.GetServerInfo, generation_pb2.GetServerInfoRequest(), timeout_seconds=args.timeout
        )
        monitors = await client.call(
            client.monitors.ListMonitors, monitor_pb2.ListMonitorsRequest(), timeout_seconds=args.timeout
        )
    if args.json:
        terminal.json(info)
        terminal.json(monitors)
    else:
        terminal.show(_info_grid(decode(ServerInfo, info)))
        for message in monitors.monitors:
            terminal.show(monitor_view.brief(decode(Monitor, message)))
    return 0


async def run_health(args: argparse.Namespace) -> int:
    """Whether requests are taken. Waits for it, up to the timeout."""
    async with connect(args) as client:
        await client.wait_ready(timeout_seconds=args.timeout if args.timeout is not None else 5.0)
    return 0


def parse_scored(text: str, kind: str) -> Prompt:
    """What to score: the text, or the messages it spells out as JSON, alone or under the key `messages`.

    Raises:
        ConfigError: `kind` is chat and the text is no list of messages.
    """
    if kind == "text":
        return text
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    messages = _messages(value.get("messages") if isinstance(value, dict) else value)
    if messages is None and kind == "chat":
        raise ConfigError('--as chat: wanted a JSON list of {"role": ..., "content": ...}. Got something else.')
    return text if messages is None else messages


def _messages(value: Any) -> list[Message] | None:
    """`value` as messages; None if it is anything else."""
    if not isinstance(value, list) or not value:
        return None
    for item in value:
        if not isinstance(item, dict) or set(item) != {"role", "content"}:
            return None
        if not all(isinstance(part, str) for part in item.values()):
            return None
    return [Message(**item) for item in value]


def _read(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8 text.") from None


def _show_score(result: ScoreResult, terminal: Terminal) -> None:
    terminal.note(rendering.unverified_warning(result.sae))
    terminal.note(monitor_view.cautions(result.monitor_definitions))
    view = ReplyView(terminal)
    for token in result.tokens:
        view.show(token)
        for alert in result.alerts:
            if alert.position == token.index:
                view.show(alert)
    terminal.end_line()
    if result.watched:
        terminal.note(rendering.legend(result.watched, view.peaks))
    for line in rendering.monitor_lines(result.monitors, result.monitor_definitions):
        terminal.note(line)


def _alert_of_any_request(alert: Alert) -> Text:
    label = f" '{sanitize(alert.label)}'" if alert.label else ""
    return Text(f"{sanitize(alert.request_id)}{label} ").append_text(rendering.alert_line(alert))


def _dictionary(info: ServerInfo) -> str:
    sae = info.sae
    if sae is None:
        steering = f"vectors steer at {info.steering_hook_point}" if info.steering_hook_point else "no steering"
        return f"none: probe monitors alone, no features, {steering}"
    verified = "verified" if sae.verified else f"UNVERIFIED: {'; '.join(sae.mismatches)}"
    about = f"{sae.num_latents} latents ({sae.activation}) at {sae.hook_point}"
    return f"{sae.name}: {about}, {verified}, sha256 {sae.sha256[:12]}"


def _info_grid(info: ServerInfo) -> Table:
    model, limits = info.model, info.limits
    watched = ", ".join(feature.label for feature in info.default_watched) or "nothing"
    rows = {
        "server": f"{info.version}, up {info.uptime_seconds:.0f} s, {info.requests_running} requests running, "
        f"{info.requests_waiting} waiting",
        "model": f"{model.name} ({model.quantization}, {model.dtype}, {model.device}), {model.num_layers} blocks of "
        f"width {model.d_model}, sha256 {model.weights_sha256[:12]}",
        "passes": info.passes or "not said",
        "dictionary": _dictionary(info),
        "guard": guard_view.guard(info.reconstruction_guard),
        "fidelity": guard_view.fidelity(info.fidelity),
        "inputs": guard_view.inputs(info.inputs),
        "limits": f"{limits.slots} slots of {limits.context_length} tokens, {limits.max_queued_requests} requests and "
        f"{limits.max_queued_prompt_tokens} prompt tokens may wait, steering up to "
        f"{limits.max_steering_relative_norm:g} of the residual's norm",
        "watched": f"{watched}; monitors: {', '.join(info.default_monitors) or 'none'} (by default)",
    }
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, value in rows.items():
        grid.add_row(Text(name, style="dim"), Text(sanitize(value)))
    return grid
