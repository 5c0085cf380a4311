"""Servers in processes of their own, and streams through gRPC whose tokens' times of arrival are kept.

What benchmarks that measure a server from outside have in common. A token's time is that at which the client has made
an event of it.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from service.client import TelltaleClient
from service.client_events import Token

PROMPT = "The history of navigation at sea began when people first"
NUM_WATCHED = 16
MONITOR = "lying"
UNREAD: Mapping[str, Any] = {"no_defaults": True}
"""Asks for nothing to be read."""
Times = list[float]
"""When each token of a stream arrived, in seconds of `time.perf_counter`."""


def start_server(module: str, *arguments: str, stderr: int | None = None) -> tuple[subprocess.Popen[str], int]:
    """A server process and its gRPC port, once it is ready.

    It has the flags that are given and none of the TELLTALE_* variables, which are those of an operator's own server;
    it keeps no journal where `arguments` name none.

    Args:
        stderr: `subprocess.PIPE` keeps its log to be read; otherwise that goes where ours goes.

    Raises:
        RuntimeError: it ended before that; what stopped it is in the error if the log is kept.
    """
    # Behind `serve`, and before what is given: of two flags for one option the last counts.
    split = 1 if arguments[:1] == ("serve",) else 0
    command = [sys.executable, "-m", module, *arguments[:split], "--no-journal", *arguments[split:]]
    command += ["--grpc-port", "0", "--http-port", "0", "--log-format", "json", "--log-level", "warning"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment())
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        _, log = process.communicate()
        raise RuntimeError(f"the server did not start: {log or ' '.join(command)}")
    return process, int(json.loads(line)["grpc"])


def environment() -> dict[str, str]:
    """Ours without what sets options of `telltale serve`."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TELLTALE_")}


class Served:
    """A server that runs, and a client of it."""

    def __init__(self, process: subprocess.Popen[str], client: TelltaleClient) -> None:
        self.process, self.client = process, client


@asynccontextmanager
async def served(module: str, *arguments: str) -> AsyncIterator[Served]:
    """A server of its own, ended afterwards."""
    process, port = start_server(module, *arguments)
    try:
        async with TelltaleClient(f"127.0.0.1:{port}") as client:
            yield Served(process, client)
    finally:
        process.terminate()
        process.communicate()


async def watching(client: TelltaleClient, num_watched: int = NUM_WATCHED) -> dict[str, Any]:
    """Options that ask for so many of the server's named features, by latent, and for one monitor."""
    features = await client.list_features()
    # By latent: a name costs a call before every request.
    return {
        "no_defaults": True,
        "watch": [feature.index for feature in features][:num_watched],
        "monitors": [MONITOR],
    }


async def arrivals(
    client: TelltaleClient, prompt: str | Sequence[int], num_tokens: int, **options: Any
) -> AsyncGenerator[float, None]:
    """The time of each token of a stream, as it arrives. Closing it ends the stream on the server."""
    events = client.generate(prompt, max_tokens=num_tokens, ignore_eos=True, **options)
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Token):
                yield time.perf_counter()


async def stream(client: TelltaleClient, prompt: str | Sequence[int], num_tokens: int, **options: Any) -> Times:
    """One stream to its end."""
    return [arrived async for arrived in arrivals(client, prompt, num_tokens, **options)]


async def streams(
    client: TelltaleClient,
    num_tokens: int,
    options: Sequence[Mapping[str, Any]],
    *,
    prompt: str | Sequence[int] = PROMPT,
) -> list[Times]:
    """A stream for each of `options`, all at once."""
    return await asyncio.gather(*(stream(client, prompt, num_tokens, **each) for each in options))


def rate(times: Sequence[Times]) -> float:
    """Tokens per second of equal streams together, from their first tokens (the mean time) to the last of all."""
    seconds = max(each[-1] for each in times) - statistics.fmean(each[0] for each in times)
    return sum(len(each) - 1 for each in times) / seconds
