"""Speed through the server, as ratios within one run: to llama.cpp, to `transformers.generate`, to unmonitored serving.

    python -m benchmarks.serving [--rounds 3] [--llama-cpp PYTHON --llama-cpp-data DATA]

Everything goes through the gRPC server with the client, on the embedded model with its dictionary, every token fully
encoded, 16 features watched and one monitor at work, two threads. Measured are: decoding with 1, 4 and 16 streams; what
monitoring costs, and what steering costs a request and its neighbours; the time to the first token; and how steady
streams are while a long prompt is read, for several `prefill_chunk_tokens`.

Servers are processes that all stand ready while only one works at a time, by turns, so that a drift of the machine's
speed falls on all that is compared. The client, one process, has its share of the same cores. Figures are medians over
rounds, ratios the medians of ratios within a round. Ends with one JSON line.
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.serving_client import MONITOR, NUM_WATCHED, PROMPT, served, watching
from benchmarks.serving_peers import LLAMA_CPP_SCRIPT, LlamaCpp
from benchmarks.serving_rounds import NUM_NEIGHBOURS, Compared, Figures, Sizes, one_round, turn
from benchmarks.serving_summary import facts, summarize
from sae_runtime.language_model import load_language_model
from service.config import Settings

CHUNKS = (16, 32, 64, 128, 512)
"""Sizes of `prefill_chunk_tokens` besides the default."""
CONTEXT_LENGTH = 4096
"""Of servers: keys and values of several of them are in memory at once."""


async def measure(args: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    reference = load_language_model()
    default_chunk = Settings().prefill_chunk_tokens
    rounds: list[Figures] = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        async def start(module: str, *arguments: str) -> Any:
            journal = folder / f"alerts-{len(list(folder.iterdir()))}.sqlite"
            flags = ["--threads", str(args.threads), "--journal", str(journal), "--context-length", str(CONTEXT_LENGTH)]
            return (await stack.enter_async_context(served(module, *arguments, *flags))).client

        with turn(args.lock):
            monitored = await start("service.cli", "serve")
            unmonitored = await start("benchmarks.unmonitored")
            chunked = {default_chunk: monitored}
            for chunk in args.chunks:
                if chunk != default_chunk:
                    chunked[chunk] = await start(
                        "service.cli", "serve", "--prefill-chunk-tokens", str(chunk), "--slots", str(NUM_NEIGHBOURS + 1)
                    )
        compared = Compared(
            monitored,
            unmonitored,
            chunked,
            await watching(monitored),
            reference.model,
            reference.tokenizer(PROMPT).input_ids,
            llama_cpp(args),
            args.threads,
            sizes,
        )
        for number in range(args.rounds + 1):  # the first warms up
            figures = await one_round(compared, args.lock)
            if number:
                rounds.append(figures)
    return {
        "benchmark": "serving",
        **summarize(rounds, packed_bytes()),
        "default_prefill_chunk_tokens": default_chunk,
        "watched_features": NUM_WATCHED,
        "monitor": MONITOR,
        "threads": args.threads,
        **facts(),
    }


def packed_bytes() -> int:
    """Of the embedded model's weights, as the server computes with them."""
    blocks = load_language_model(native_kernels=True).blocks
    assert blocks is not None, "the model is not computed by native kernels on this processor"
    return blocks.packed_bytes


def llama_cpp(args: argparse.Namespace) -> LlamaCpp | None:
    if args.llama_cpp is None:
        return None
    return LlamaCpp(args.llama_cpp, args.llama_cpp_script, args.llama_cpp_data)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds, after one that warms up")
    parser.add_argument("--tokens", type=int, default=128, help="tokens per stream")
    parser.add_argument("--threads", type=int, default=2, help="of the servers, of generate and of llama.cpp")
    parser.add_argument(
        "--chunks", type=int, nargs="*", default=CHUNKS, help="prefill_chunk_tokens, besides the default"
    )
    parser.add_argument("--llama-cpp", metavar="PYTHON", help="interpreter that has llama-cpp-python; else left out")
    parser.add_argument("--llama-cpp-script", type=Path, default=LLAMA_CPP_SCRIPT, metavar="FILE")
    parser.add_argument("--llama-cpp-data", type=Path, metavar="FOLDER", help="what prepare.py beside the script wrote")
    parser.add_argument(
        "--lock", type=Path, metavar="FILE", help="held while something is timed, a part of a round at a time"
    )
    args = parser.parse_args(argv)
    if args.llama_cpp is not None and args.llama_cpp_data is None:
        parser.error("--llama-cpp needs --llama-cpp-data")
    return args


def main() -> None:
    args = parse()
    print(json.dumps(asyncio.run(measure(args, Sizes(tokens=args.tokens)))))


if __name__ == "__main__":
    main()
