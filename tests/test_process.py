"""The server as a process: the line that says it is ready, an orderly end, and errors that fit on one line."""

import asyncio
import json
import os
import signal
import socket
import sys
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from serving import NO_RETRIES
from tiny_files import write_dictionary, write_features, write_model, write_packs

from service.client import TelltaleClient
from service.client_events import Finished, Token
from service.errors import NotReady

ROOT = Path(__file__).parents[1]
SECONDS = 60
"""Starting takes a few; a machine with much else to do takes its time."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a dictionary made for it, and one made for another."""
    folder = tmp_path_factory.mktemp("process")
    sha256 = write_model(folder / "model")
    made = write_dictionary(folder / "sae", sha256)
    write_features(folder / "sae", made.sae_sha256)
    write_packs(folder / "packs", sha256, made.sae_sha256)
    write_dictionary(folder / "strange", "f" * 64)
    (folder / "empty").mkdir()
    return folder


async def spawn(folder, *flags, sae="sae", grpc_port=0):
    """`telltale serve` on the tiny model."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TELLTALE_")}
    environ |= {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "protos"))), "OMP_NUM_THREADS": "1"}
    fixed = ["--device", "cpu", "--dtype", "float32", "--threads", "1", "--slots", "2", "--log-format", "json"]
    where = ["--model", folder / "model", "--sae", folder / sae, "--cache-dir", folder / "cache"]
    where += ["--monitor-packs", folder / "packs"]
    ports = ["--grpc-port", grpc_port, "--http-port", "0"]
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service.cli", "serve", *map(str, [*fixed, *where, *ports, *flags]),
        cwd=ROOT, env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


@dataclass
class Running:
    process: asyncio.subprocess.Process
    ready: dict
    client: TelltaleClient

    def signal(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def end(self) -> tuple[int, str, list[dict]]:
        """Exit code, what stdout had after the ready line, and the log."""
        async with asyncio.timeout(SECONDS):
            out, err = await self.process.communicate()
        return self.process.returncode, out.decode(), [json.loads(line) for line in err.decode().splitlines()]


@asynccontextmanager
async def running(folder, *flags, **options):
    process = await spawn(folder, *flags, **options)
    try:
        async with asyncio.timeout(SECONDS):
            line = await process.stdout.readline()
        if not line:
            pytest.fail((await process.stderr.read()).decode())
        ready = json.loads(line)
        async with TelltaleClient(f"127.0.0.1:{ready['grpc']}", retry=NO_RETRIES) as client:
            yield Running(process, ready, client)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def long_stream(client):
    """Far longer than the test: 8000 tokens."""
    return aclosing(client.generate("The sea", max_tokens=8000, ignore_eos=True, no_defaults=True))


async def next_token(stream):
    async for event in stream:
        if isinstance(event, Token):
            return


async def refusal(client):
    """How the server says no, once it does."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                await client.complete("x", max_tokens=1)
            except NotReady as error:
                return str(error)


async def rest_of(stream):
    async with asyncio.timeout(SECONDS):
        return [event async for event in stream]


async def test_sigterm_lets_streams_end_and_refuses_new_ones(folder):
    async with running(folder, "--drain-timeout-seconds", "1") as server:
        assert set(server.ready) == {"event", "grpc", "http"}
        assert server.ready["event"] == "ready"
        assert (await server.client.server_info()).sae.verified
        assert [w.name for w in (await server.client.server_info()).default_watched] == ["hedging", "lying"]
        async with long_stream(server.client) as stream:
            await next_token(stream)
            server.signal()
            assert "shutting down" in await refusal(server.client)
            events = await rest_of(stream)
        finished = events[-1]
        assert isinstance(finished, Finished)
        assert finished.reason == "shutdown"
        assert finished.usage.completion_tokens == len(events)  # and the one read before, less Finished
        assert finished.tapped_tokens == len("The sea") + len(events)
        code, out, log = await server.end()
    assert (code, out) == (0, "")
    assert [line["outcome"] for line in log if "outcome" in line][-1] == "shutdown"
    assert not [line for line in log if line["level"] == "error" or "exception" in line]


async def test_a_second_sigterm_does_not_wait_for_the_drain(folder):
    async with running(folder, "--drain-timeout-seconds", "600") as server, long_stream(server.client) as stream:
        await next_token(stream)
        server.signal()
        await refusal(server.client)
        await next_token(stream)  # still running: one signal alone leaves it its time
        server.signal()
        assert (await rest_of(stream))[-1].reason == "shutdown"
        code, _, log = await server.end()
    assert code == 0
    assert not [line for line in log if "exception" in line]


async def test_an_unverified_dictionary_is_served_as_such_if_allowed(folder):
    async with running(folder, "--allow-unverified", sae="strange") as server:
        reply = await server.client.complete("x", max_tokens=2, ignore_eos=True, watch=[1])
        assert reply.started.sae.verified is False
        (mismatch,) = reply.started.sae.mismatches
        assert "f" * 64 in mismatch
        assert len(reply.tokens[0].readings) == 1
        server.signal()
        assert (await server.end())[0] == 0


async def test_startup_errors_are_one_line_and_an_exit_code(folder):
    """Side by side: each costs a start."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        attempts = {
            "sae": (spawn(folder, sae="missing"), 2),
            "has no sae.json": (spawn(folder, sae="empty"), 1),
            "must have sha256 aaaa": (spawn(folder, "--model-sha256", "a" * 64), 1),
            "allow_unverified": (spawn(folder, sae="strange"), 1),
            f"grpc_port must be free on 127.0.0.1. Got {port}": (spawn(folder, grpc_port=port), 2),
        }
        processes = await asyncio.gather(*(starting for starting, _ in attempts.values()))
        try:
            async with asyncio.timeout(SECONDS):
                ends = await asyncio.gather(*(process.communicate() for process in processes))
        finally:
            for process in processes:
                if process.returncode is None:
                    process.kill()
    for (words, (_, code)), process, (out, err) in zip(attempts.items(), processes, ends, strict=True):
        assert out == b""
        (line,) = err.decode().splitlines()
        assert line.startswith("telltale: ")
        assert words in line
        assert process.returncode == code, line
