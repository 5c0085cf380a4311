"""Decode speed through the server: monitored, unmonitored, and transformers' `generate`, in one run.

    python -m benchmarks.serving [--rounds 3] [--tokens 128]

Two servers run side by side, one with monitoring taken out; only one works at a time, in turns, so that a drift of
the machine's speed falls on both. Figures are medians over rounds. Ends with one JSON line.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

from sae_runtime.language_model import load_language_model
from service.client import TelltaleClient
from service.client_events import Token

PROMPT = "The history of navigation at sea began when people first"
STREAMS = (1, 4, 16)


def start_server(module: str, *arguments: str) -> tuple[subprocess.Popen[str], int]:
    """A server process and its gRPC port, once it is ready."""
    command = [sys.executable, "-m", module, *arguments, "--grpc-port", "0", "--http-port", "0", "--log-format", "json"]
    command += ["--log-level", "warning"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(json.loads(process.stdout.readline())["grpc"])


async def run_streams(
    client: TelltaleClient, num_streams: int, num_tokens: int, *, watch: bool, prompt: str = PROMPT
) -> float:
    """Tokens per second over `num_streams` equal streams, from their first tokens (the mean time) to the end."""
    first_tokens: list[float] = []

    async def stream() -> None:
        is_first = True
        options: dict[str, Any] = {} if watch else {"no_defaults": True}
        async for event in client.generate(prompt, max_tokens=num_tokens, ignore_eos=True, **options):
            if is_first and isinstance(event, Token):
                first_tokens.append(time.perf_counter())
                is_first = False

    await asyncio.gather(*(stream() for _ in range(num_streams)))
    return num_streams * (num_tokens - 1) / (time.perf_counter() - statistics.fmean(first_tokens))


def run_generate(model: Any, ids: list[int], num_tokens: int) -> float:
    """Tokens per second of `generate`, its prefill left out."""
    prompt = torch.tensor([ids])
    options = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    times = []
    for length in (1, num_tokens):
        started = time.perf_counter()
        model.generate(prompt, max_new_tokens=length, **options)
        times.append(time.perf_counter() - started)
    return (num_tokens - 1) / (times[1] - times[0])


async def measure(rounds: int, num_tokens: int) -> dict[str, Any]:
    figures: dict[str, list[float]] = {"generate": []}
    for n in STREAMS:
        figures[f"monitored_{n}"], figures[f"unmonitored_{n}"] = [], []
    reference = load_language_model()
    ids = reference.tokenizer(PROMPT).input_ids
    monitored, port = start_server("service.cli", "serve")
    unmonitored, bare_port = start_server("benchmarks.unmonitored")
    try:
        async with TelltaleClient(f"127.0.0.1:{port}") as client, TelltaleClient(f"127.0.0.1:{bare_port}") as bare:
            for round_number in range(rounds + 1):  # the first warms up
                for n in STREAMS:
                    values = {
                        f"monitored_{n}": await run_streams(client, n, num_tokens, watch=True),
                        f"unmonitored_{n}": await run_streams(bare, n, num_tokens, watch=False),
                    }
                    for name, value in values.items() if round_number else ():
                        figures[name].append(value)
                speed = run_generate(reference.model, ids, num_tokens)
                if round_number:
                    figures["generate"].append(speed)
    finally:
        for process in (monitored, unmonitored):
            process.terminate()
            process.wait()
    return summarize(figures)


def summarize(figures: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and the ratios that matter, each a median of ratios within a round."""

    def ratio(a: str, b: str) -> float:
        return round(statistics.median(x / y for x, y in zip(figures[a], figures[b], strict=True)), 3)

    return {
        "tokens_per_second": {name: round(statistics.median(values), 1) for name, values in figures.items()},
        "monitoring_cost_ratio": {n: round(1 - ratio(f"monitored_{n}", f"unmonitored_{n}"), 3) for n in STREAMS},
        "one_stream_to_generate_ratio": ratio("monitored_1", "generate"),
        "sixteen_streams_to_one_ratio": ratio("monitored_16", "monitored_1"),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds, after one that warms up")
    parser.add_argument("--tokens", type=int, default=128, help="tokens per stream")
    args = parser.parse_args()
    print(json.dumps(asyncio.run(measure(args.rounds, args.tokens))))


if __name__ == "__main__":
    main()
