"""Speed through the server, as ratios within one run: to unmonitored serving, `generate`, a plain pass, the memory.

    python -m benchmarks.serving [--rounds 5] [--record benchmarks/results/serving.json]

Everything goes through the gRPC server with the client, on the embedded model with its dictionary, every token fully
encoded, 16 features watched and one monitor at work, two threads. Each server keeps a journal, in a folder of the run's
own, as it does by default, and takes none of the TELLTALE_* variables.

Measured are: decoding with 1, 4 and 16 streams; what monitoring costs, and what steering costs a request and its
neighbours; the time to the first token; and how steady streams are while a long prompt is read. Other tools, at 1 and 8
streams, are in benchmarks/peers/serving.

The two servers, monitored and not, are processes that stand ready while only one works at a time, by turns, each time
the other way round, so that a drift of the machine's speed falls on all that is compared. The client, one process, has
its share of the same cores. Ratios are medians of pairs within a round; said are the median, the least and the largest
of rounds, each of which takes two minutes. Ends with one JSON line.

Not to be run at real-time priority (`chrt`): Linux stops what runs at it for a twentieth of each second where it leaves
nothing to others, which is what the 99th percentile beside a long prompt then tells of.
"""

import argparse
import asyncio
import gc
import json
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.recording import facts, write
from benchmarks.serving_client import MONITOR, NUM_WATCHED, PROMPT, served, watching
from benchmarks.serving_peers import PlainPass
from benchmarks.serving_rounds import Compared, Figures, Sizes, one_round
from benchmarks.serving_summary import summarize
from benchmarks.timing_lock import turn
from sae_runtime.language_model import load_language_model

CONTEXT_LENGTH = 4096
"""Of both servers, whose keys and values are in memory at once."""


async def measure(args: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    reference, plain_pass = load_language_model(), PlainPass(sizes.prompt_tokens)
    rounds: list[Figures] = []
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        flags = ["--threads", str(args.threads), "--context-length", str(CONTEXT_LENGTH), "--journal"]
        with turn(args.lock):
            monitored, unmonitored = [
                (await stack.enter_async_context(served(*command, *flags, f"{folder}/{command[0]}.sqlite"))).client
                for command in (("service.cli", "serve"), ("benchmarks.unmonitored",))
            ]
        gc.freeze()  # as the servers do: a client that goes through a million objects makes all its streams wait
        ids = reference.tokenizer(PROMPT).input_ids
        options = await watching(monitored)
        compared = Compared(monitored, unmonitored, options, reference.model, plain_pass, ids, sizes)
        await one_round(replace(compared, sizes=replace(sizes, pairs=1, short_pairs=1)), args.lock)  # warms up
        for _ in range(args.rounds):
            rounds.append(await one_round(compared, args.lock))
    return {
        "benchmark": "serving",
        **summarize(rounds, plain_pass.blocks.packed_bytes),
        "watched_features": NUM_WATCHED,
        "monitor": MONITOR,
        "threads": args.threads,
        **facts(),
    }


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, after a short one that warms up")
    parser.add_argument("--tokens", type=int, default=Sizes().tokens, help="tokens per stream")
    parser.add_argument("--threads", type=int, default=2, help="of the servers, of generate and of plain passes")
    parser.add_argument("--record", type=Path, metavar="FILE", help="also write the JSON there")
    parser.add_argument(
        "--lock", type=Path, metavar="FILE", help="held while something is timed, a part of a round at a time"
    )
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    result = asyncio.run(measure(args, Sizes(tokens=args.tokens)))
    if args.record is not None:
        write(args.record, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
