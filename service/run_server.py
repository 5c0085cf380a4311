"""The server as a process: logging, signals, the line that says it is ready, and the exit code.

`serve` runs until SIGTERM or SIGINT, then lets the server drain. A second signal cuts the wait short.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Thread

from sae_runtime.large_pages import take_pages
from service.assembly import Parts, assemble
from service.catalog import Catalog
from service.config import Settings
from service.errors import ConfigError
from service.journal_keeper import JournalKeeper
from service.lasting import lasting
from service.server import Server

logger = logging.getLogger(__name__)


async def serve(settings: Settings) -> int:
    """Run a server until it is told to stop; its exit code. Startup errors are raised."""
    set_up_logging(settings)
    _check_ports(settings)  # loading the model takes longer
    # In a thread that ends: OpenMP keeps a team of workers for every thread that has computed, and where all teams
    # together outnumber the cores it stops spinning at its barriers, which made a step half as slow again.
    journal = JournalKeeper.open(settings)  # before the model, which takes longer
    try:
        with lasting(), ThreadPoolExecutor(1) as pool:
            load = partial(assemble, settings, progress=sys.stderr.isatty())
            parts = await asyncio.get_running_loop().run_in_executor(pool, load)
        server = Server(settings, parts, journal)
    except BaseException:
        if journal is not None:
            journal.close()
        raise
    logger.info("alerts are kept in %s", "no journal" if journal is None else journal.status.place)
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        await server.start()
        _say_ready(server, parts)
        _take_memory(parts)
        code = await server.run(stop, hurry)
    except BaseException:
        await server.close()
        raise
    if code and server.engine.stalled_seconds():
        # The engine hangs in a pass; its thread would keep the process from ending.
        os._exit(code)
    return code


def _take_memory(parts: Parts) -> Thread:
    """Take what keys and values are to have, beside the first requests: the start would wait a second for it, and the
    model's first pass as long if it were taken beside that, since both want memory from the system."""
    cache = parts.runner.cache
    thread = Thread(target=take_pages, args=([*cache.keys, *cache.values],), name="take-pages", daemon=True)
    thread.start()
    return thread


def _check_ports(settings: Settings) -> None:
    """ConfigError for a port that is taken. gRPC itself would not say why, and log it in its own way."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    for name, port in (("grpc_port", settings.grpc_port), ("http_port", settings.http_port)):
        if not port:
            continue
        try:
            socket.create_server((settings.host, port), family=family).close()
        except OSError as error:
            raise ConfigError(f"{name} must be free on {settings.host}. Got {port}: {error.strerror}.") from None


def _say_ready(server: Server, parts: Parts) -> None:
    """The one line on stdout that says the ports."""
    if server.settings.log_format == "json":
        line = json.dumps({"event": "ready", "grpc": server.grpc_port, "http": server.http_port})
    else:
        host, catalog = server.settings.host, parts.catalog
        line = (
            f"telltale is ready: gRPC {host}:{server.grpc_port}, HTTP {host}:{server.http_port}; "
            f"{catalog.model.identity.name} ({catalog.model.identity.quantization}, {catalog.model.identity.dtype}), "
            f"{_read_by(catalog)}; {parts.slots} slots of {parts.context_length} tokens, "
            f"{parts.planned_memory}; passes: {parts.runner.passes}"
        )
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _read_by(catalog: Catalog) -> str:
    """What reads the model's residuals."""
    if catalog.manifest is None:
        return f"no dictionary; monitors: {', '.join(catalog.monitors_by_name) or 'none'}"
    unverified = " (UNVERIFIED)" if catalog.mismatches else ""
    return f"dictionary {catalog.manifest.name} at {catalog.manifest.hook_point}{unverified}"


def set_up_logging(settings: Settings) -> None:
    """Logs go to stderr: stdout is for the ready line."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    # It tells every plugin that it sets up.
    logging.getLogger("alembic").setLevel(logging.WARNING)


class _JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        facts |= {key: record.__dict__[key] for key in ("request_id", "outcome") if key in record.__dict__}
        if record.exc_info:
            facts["exception"] = self.formatException(record.exc_info)
        return json.dumps(facts)
