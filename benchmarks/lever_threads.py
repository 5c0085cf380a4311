"""Where threads run: the same step in processes that place OpenMP's workers otherwise, by turns.

    python -m benchmarks.lever_threads --rows 1

OpenMP reads its settings when it starts, so each setting is a process of its own; between its turns it is stopped,
lest workers that spin take the processors from the others. `busy` is a second thread of Python at work for a fifth of
the time, as the server's event loop is. Ends with one JSON line.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BUSY_SECONDS, PERIOD_SECONDS = 0.002, 0.010
SETTINGS: Mapping[str, Mapping[str, str]] = {
    "baseline": {},
    "bound": {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"},
    "spinning": {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "infinite"},
    "not_spinning": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
    "pinned": {},
}
"""Environment by name; `pinned` sets the affinity of each thread itself."""


def pin(thread_ids: list[int], processors: list[int]) -> None:
    """One processor for each thread, in turn."""
    for index, thread_id in enumerate(thread_ids):
        os.sched_setaffinity(thread_id, {processors[index % len(processors)]})


def ticks() -> dict[int, int]:
    """Processor time of this process's threads, in the kernel's ticks, by id."""
    spent = {}
    for task in Path("/proc/self/task").iterdir():
        # The name, in parentheses, may hold blanks; user and system time are the 14th and 15th fields.
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        spent[int(task.name)] = int(fields[11]) + int(fields[12])
    return spent


def busiest(call: Callable[[], object], number: int) -> list[int]:
    """The threads that take most of the processor's time while `call` runs, that of OpenMP's master first."""
    before = ticks()
    call()
    spent = {thread: after - before.get(thread, 0) for thread, after in ticks().items()}
    return sorted(sorted(spent, key=lambda thread: -spent[thread])[:number])


@contextmanager
def busy_thread(is_busy: bool) -> Iterator[None]:
    """Inside, a thread of Python is at work for `BUSY_SECONDS` of each `PERIOD_SECONDS`."""
    is_over = threading.Event()

    def work() -> None:
        while not is_over.wait(PERIOD_SECONDS - BUSY_SECONDS):
            until = time.perf_counter() + BUSY_SECONDS
            while time.perf_counter() < until:
                pass

    thread = threading.Thread(target=work)
    if is_busy:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        if is_busy:
            thread.join()


class Child:
    """A process that times turns of one setting's steps when it is told to."""

    def __init__(self, setting: str, num_rows: int) -> None:
        command = [sys.executable, "-m", "benchmarks.lever_threads", "--child", setting, "--rows", str(num_rows)]
        self._process = subprocess.Popen(
            command, env=os.environ | SETTINGS[setting], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()
        self._process.send_signal(signal.SIGSTOP)

    def turn(self, is_busy: bool) -> float:
        """Seconds of a step, the median of a turn."""
        self._process.send_signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(is_busy) + "\n")
        self._process.stdin.flush()
        seconds = self._read()
        self._process.send_signal(signal.SIGSTOP)
        return seconds

    def close(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._process.communicate()

    def _read(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with status {self._process.wait()}")
        return float(json.loads(line))


def serve(setting: str, num_rows: int, num_threads: int) -> None:
    """What a child does: a turn for each line it is given."""
    import torch

    from benchmarks.lever_steps import Bench
    from benchmarks.levers import median_seconds, text
    from sae_runtime.language_model import load_language_model

    torch.set_num_threads(num_threads)
    made = load_language_model(dtype="bfloat16")
    bench = Bench(made, made.model, num_rows, text=text())
    if setting == "pinned":
        workers = busiest(lambda: median_seconds(bench.baseline), num_threads)
        pin(workers, sorted(os.sched_getaffinity(0)))
    _say(0.0)
    for line in sys.stdin:
        with busy_thread(json.loads(line)):
            bench.baseline()
            _say(median_seconds(bench.baseline))


def _say(seconds: float) -> None:
    print(json.dumps(seconds), flush=True)


def ratios(turns: Mapping[str, list[float]]) -> dict[str, Any]:
    """Of each setting, the baseline's time over its own in the same round: the median, lowest and highest."""
    found = {}
    for name, seconds in turns.items():
        each = sorted(ours / theirs for ours, theirs in zip(turns["baseline"], seconds, strict=True))
        found[name] = {
            "ratio": round(statistics.median(each), 2),
            "ratio_lowest": round(each[0], 2),
            "ratio_highest": round(each[-1], 2),
            "milliseconds": round(1e3 * statistics.median(seconds), 2),
        }
    return found


def measure(num_rows: int, rounds: int) -> dict[str, Any]:
    """Every setting alone and beside a busy thread."""
    children = {name: Child(name, num_rows) for name in SETTINGS}
    try:
        found = {}
        for way, is_busy in ("alone", False), ("busy", True):
            turns: dict[str, list[float]] = {name: [] for name in SETTINGS}
            for _ in range(rounds):
                for name, child in children.items():
                    turns[name].append(child.turn(is_busy))
            found[way] = ratios(turns)
        return found
    finally:
        for child in children.values():
            child.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--child", choices=list(SETTINGS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        serve(args.child, args.rows, args.threads)
        return
    print(json.dumps({"benchmark": "lever_threads", "rows": args.rows, **measure(args.rows, args.rounds)}))


if __name__ == "__main__":
    main()
