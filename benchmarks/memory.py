"""The server's resident memory against what it planned, on the embedded model: once it is ready, and after a load.

    python -m benchmarks.memory [--streams 16] [--tokens 64] [--record FILE] [FLAGS OF telltale serve]

What is planned is what `GetServerInfo` says and the ready line shows by part. The load is that many streams at once,
everything watched that is by default, each with a prompt of some 600 tokens. The most that the process ever held counts
the file of the weights while it was read, pages that the system takes back. Ends with one JSON line; a file of results
has one for each number of positions of a slot.
"""

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.recording import facts, keep
from benchmarks.serving_client import PROMPT, start_server, streams
from service.client import TelltaleClient

_SETTLED_SECONDS = 1.0


def held_bytes(process_id: int) -> tuple[int, int]:
    """Resident memory of a process, now and at most so far."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process_id}/status").read_text().splitlines())
    return tuple(int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def settled_bytes(process_id: int) -> int:
    """What it holds once that grows no more: keys and values are taken beside the first requests."""
    last = -1
    while (now := held_bytes(process_id)[0]) > last:
        last = now
        time.sleep(_SETTLED_SECONDS)
    return now


async def measure(num_streams: int, num_tokens: int, *arguments: str) -> dict[str, Any]:
    """Bytes, and their ratio to those planned."""
    process, port = start_server("service.cli", "serve", *arguments)
    try:
        held = {"at_once": held_bytes(process.pid)[0], "ready": settled_bytes(process.pid)}
        async with TelltaleClient(f"127.0.0.1:{port}") as client:
            info = await client.server_info()
            await streams(client, num_tokens, [{}] * num_streams, prompt=PROMPT * 60)
        held |= {"loaded": settled_bytes(process.pid), "peak": held_bytes(process.pid)[1]}
    finally:
        process.terminate()
        process.communicate()
    planned = info.planned_memory_bytes
    return {
        "benchmark": "memory",
        "slots": info.limits.slots,
        "context_length": info.limits.context_length,
        "planned_bytes": planned,
        "held_bytes": held,
        "held_to_planned_ratio": {name: round(each / planned, 3) for name, each in held.items()},
        "streams": num_streams,
        **facts(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="of each reply")
    parser.add_argument("--record", type=Path, metavar="FILE", help="runs with other slots stay as they are there")
    args, serve = parser.parse_known_args()
    result = asyncio.run(measure(args.streams, args.tokens, *serve))
    if args.record is not None:
        keep(args.record, {str(result["context_length"]): result})
    print(json.dumps(result))


if __name__ == "__main__":
    main()
