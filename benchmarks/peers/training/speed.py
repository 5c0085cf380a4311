"""Training speed of all libraries, in turns on one machine: what each makes of the same steps, and the ratio per round.

    python -m benchmarks.peers.training.speed --data DATA --rounds 7 \
        --python saelens=envs/saelens/bin/python --python sparsify=envs/sparsify/bin/python

Each library trains in a process of its own, which does a few steps when it is told to and sleeps otherwise, so that
all are warm and none is measured while another runs. The first round is not counted. Ends with one JSON line.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers.training.common import BATCH_SIZE, machine
from benchmarks.peers.training.sweep import HERE, LIBRARIES, environment, python_of, rate_of


class Worker:
    """A training run that is told when to go on."""

    def __init__(self, args: argparse.Namespace, name: str, folder: Path) -> None:
        library = LIBRARIES[name]
        folder.mkdir()
        command = [python_of(args, name), str(HERE / library.script), "--data", str(args.data), "--recipe", args.recipe]
        command += ["--rate", f"{rate_of(library.first):g}", "--num-steps", "100000", "--output", str(folder)]
        command += ["--num-latents", str(args.num_latents), "--k", str(args.k), "--variant", library.variant]
        command += ["--paced", str(args.steps)]
        self.log = (folder / "log.txt").open("w")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment(name),
        )

    def seconds(self) -> float:
        """Of the next steps. The process is asleep again when this returns."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith('{"steps"'):
                return float(json.loads(line)["seconds"])
        raise SystemExit(f"{self.process.args} ended early: see {self.log.name}")

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def close(self) -> None:
        """End of input ends the run."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.log.close()


def measure(args: argparse.Namespace, names: list[str], folder: Path) -> dict[str, list[float]]:
    """Seconds of each round, by library."""
    workers: dict[str, Worker] = {}
    for name in names:  # one after the other: the first steps of each are its warm-up
        workers[name] = Worker(args, name, folder / name)
        workers[name].seconds()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(args.rounds):
        for name in names if number % 2 else reversed(names):
            workers[name].go()
            seconds[name].append(workers[name].seconds())
    for worker in workers.values():
        worker.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--python", action="append", default=[], metavar="LIBRARY=PATH")
    parser.add_argument("--only", nargs="+", default=["ours", "saelens", "sparsify"], choices=list(LIBRARIES))
    parser.add_argument("--recipe", default="topk")
    parser.add_argument("--num-latents", type=int, default=8192)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="of a library in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    names = [name for name in args.only if args.recipe in LIBRARIES[name].recipes]
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(args, names, Path(folder))
    tokens = args.steps * BATCH_SIZE
    figures: dict[str, Any] = {
        "recipe": args.recipe,
        "num_latents": args.num_latents,
        "k": args.k,
        "tokens_per_round": tokens,
        "rounds": args.rounds,
        "tokens_per_second": {name: [round(tokens / s) for s in values] for name, values in seconds.items()},
        "ours_to_peer_speed_ratio": {
            name: round(statistics.median(b / a for a, b in zip(seconds["ours"], values, strict=True)), 2)
            for name, values in seconds.items()
            if name != "ours"
        },
        "machine": machine(),
    }
    if args.output:
        args.output.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
