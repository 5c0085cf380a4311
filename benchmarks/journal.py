"""Alerts per second that a journal takes, each of them on disk before the next is begun.

    python -m benchmarks.journal [--seconds 5] [--prompt-tokens 200] [--folder DIR] [--url postgresql://...]

Alerts are appended one at a time, and in groups of 8 and 64 as a step of so many requests would bring them. What takes
most of the time is the disk's answer that it has them: beside it stands the same number of `fsync`s of as many bytes at
the end of a plain file, which no journal can be faster than. Processor time, which counts making the alerts too, says
more than the clock where others use the machine. `--folder` says on which disk. With `--url` the time until
a database has them too is measured. Ends with one JSON line.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from monitors.alert_record import AlertRecord, KeptText, Message, ModelRef, Series
from monitors.alert_record import Generation as GenerationRef
from monitors.forwarder import Forwarder
from monitors.journal import Journal
from monitors.time_ids import new_id

GROUPS = (1, 8, 64)
SPAN = 16


def made_alert(num_prompt_tokens: int) -> AlertRecord:
    """As a server would make one: a prompt, a paragraph of reply, three watched features over a window of 16 tokens."""
    reply = "And so it went on, one word after another. " * 6
    return AlertRecord(
        id=new_id(),
        time=datetime.now(UTC),
        request_id=new_id(),
        monitor="deception",
        validated=False,
        state="firing",
        level="warning",
        span_start=num_prompt_tokens + 40,
        position=num_prompt_tokens + 40 + SPAN - 1,
        score=1.5,
        threshold=1.25,
        readings=tuple(Series(name=name, kind="feature", values=(0.123456,) * SPAN) for name in ("a", "b", "c")),
        text=KeptText(
            messages=(
                Message(role="user", content="word " * num_prompt_tokens),
                Message(role="assistant", content=reply),
            ),
            span_from_char=len(reply) - 60,
            span_to_char=len(reply),
            prompt_ids=tuple(range(1000, 1000 + num_prompt_tokens)),
            reply_ids=tuple(range(1000, 1056)),
        ),
        generated=True,
        generation=GenerationRef(
            temperature=0.7, top_p=1, min_p=0, repetition_penalty=1, top_k=0, max_tokens=256, seed=2**63
        ),
        model=ModelRef(name="model", sha256="0" * 64, quantization="none", dtype="float32"),
        server_version="0",
    )


def per_second(call: Callable[[], object], seconds: float) -> float:
    """Calls per second."""
    num, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        call()
        num += 1
    return num / passed


def synced_writes(path: Path, num_bytes: int, seconds: float) -> float:
    """Writes of so many bytes to the end of a file, each forced to disk, per second."""
    data = os.urandom(num_bytes)
    with path.open("ab", buffering=0) as file:

        def write() -> None:
            file.write(data)
            os.fsync(file.fileno())

        return per_second(write, seconds)


def measure(folder: Path, num_prompt_tokens: int, seconds: float) -> dict[str, Any]:
    """Alerts per second, one at a time and in groups."""
    result: dict[str, Any] = {}
    with Journal.open(folder / "alerts.sqlite") as journal:
        for group in GROUPS:

            def append(group: int = group) -> None:
                journal.append([made_alert(num_prompt_tokens) for _ in range(group)])

            append()
            before, began = journal.reader.heads()[journal.id].seq, time.process_time()
            result[f"alerts_per_second_by_{group}"] = round(group * per_second(append, seconds), 1)
            num = journal.reader.heads()[journal.id].seq - before
            result[f"cpu_ms_per_alert_by_{group}"] = round(1000 * (time.process_time() - began) / num, 2)
        result["bytes_per_alert"] = len(next(journal.reader.lines(journal.id)))
        num = journal.reader.heads()[journal.id].seq
        started = time.perf_counter()
        assert all(each.holds for each in journal.reader.verify())
        result["verified_per_second"] = round(num / (time.perf_counter() - started))
    writes = synced_writes(folder / "plain", result["bytes_per_alert"], seconds)
    result["synced_writes_per_second"] = round(writes, 1)
    result["made_per_second"] = round(per_second(lambda: made_alert(num_prompt_tokens), 1))
    return result


def measure_forwarding(folder: Path, url: str, num_prompt_tokens: int) -> dict[str, Any]:
    """Entries per second that reach a database."""
    with Journal.open(folder / "forwarded.sqlite") as journal:
        for _ in range(32):
            journal.append([made_alert(num_prompt_tokens) for _ in range(64)])
        forwarder = Forwarder(journal, url)
        started = time.perf_counter()
        forwarder.start()
        assert forwarder.wait_sent(600), forwarder.status()
        result = {"forwarded_per_second": round(32 * 64 / (time.perf_counter() - started))}
        forwarder.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure")
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument("--folder", help="on which disk; by default the one for temporary files")
    parser.add_argument("--url", help="a PostgreSQL database to forward to")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result = measure(Path(folder), args.prompt_tokens, args.seconds)
        if args.url:
            result |= measure_forwarding(Path(folder), args.url, args.prompt_tokens)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
