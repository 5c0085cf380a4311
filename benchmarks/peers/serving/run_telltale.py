"""telltale: its server in a process of its own, through the client, with a monitor. Runs in our own environment.

    python run_telltale.py --data DATA

Every latent is encoded at every token, of the prompt too; one request is steered among the others.
"""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import Emit, Generate, Work, main

from service.client import TelltaleClient
from service.client_events import Token
from service.client_request import GenerateOptions, Steering


class Server:
    """`telltale serve` of the embedded model, and a client of it."""

    def __init__(self, _data: Path, work: Work, threads: int) -> None:
        self.work, self.runner = work, asyncio.Runner()
        command = [sys.executable, "-m", "service.cli", "serve", "--grpc-port", "0", "--http-port", "0"]
        command += ["--log-format", "json", "--log-level", "warning", "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert self.process.stdout is not None
            port = json.loads(self.process.stdout.readline())["grpc"]
            self.client = self.runner.run(self._connect(port))
        except BaseException:
            self._end()
            raise

    async def _connect(self, port: int) -> TelltaleClient:
        return TelltaleClient(f"127.0.0.1:{port}")

    def __call__(self, prompts: list[list[int]], steered: int | None, emit: Emit) -> None:
        self.runner.run(self._generate(prompts, steered, emit))

    async def _generate(self, prompts: list[list[int]], steered: int | None, emit: Emit) -> None:
        async with asyncio.TaskGroup() as group:
            for request, prompt in enumerate(prompts):
                group.create_task(self._stream(request, prompt, request == steered, emit))

    async def _stream(self, request: int, prompt: list[int], steer: bool, emit: Emit) -> None:
        options: GenerateOptions = {
            "watch": self.work.watched,
            "monitors": [self.work.monitor],
            "no_defaults": True,
            "max_tokens": self.work.num_tokens,
            "ignore_eos": True,
            "temperature": 0.0,
        }
        if steer:
            options["steering"] = [Steering(direction=self.work.steered_feature, strength=self.work.strength)]
        async for event in self.client.generate(prompt, **options):
            if isinstance(event, Token):
                emit(request, event.id, event.readings)

    def number_format(self) -> str:
        """How the weights lie, and what is computed in."""
        model = self.runner.run(self.client.server_info()).model
        return f"{model.quantization}, {model.dtype}"

    def peak_mib(self) -> float:
        """Of the server."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(kib) / 1024

    def close(self) -> None:
        """The client, and the server with it, whatever becomes of the client."""
        try:
            self.runner.run(self.client.close())
        finally:
            self._end()

    def _end(self) -> None:
        self.runner.close()
        self.process.terminate()
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()


def run() -> None:
    facts: dict[str, Any] = {
        "reads": "all latents, and what they leave unexplained",
        "steers": "a request",
        "alerts": "one monitor, in the same pass",
    }
    servers: list[Server] = []

    def make(data: Path, work: Work, threads: int) -> Generate:
        server = Server(data, work, threads)
        servers.append(server)
        facts["dtype"] = server.number_format()
        return server

    try:
        main("telltale", ["torch", "transformers", "grpcio"], make, facts=facts, peak_mib=lambda: servers[0].peak_mib())
    finally:
        for server in servers:
            server.close()


if __name__ == "__main__":
    run()
