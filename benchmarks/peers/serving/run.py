"""All peers by turns on one machine: medians of the rounds, ratios within each round, and what each wrote, checked.

    python -m benchmarks.peers.serving.run --data runs/peers/serving --results benchmarks/peers/serving/results \
        --python nnsight=envs/nnsight/bin/python --python transformerlens=envs/transformerlens/bin/python \
        --python generate=envs/generate/bin/python --python llama_cpp=envs/llama_cpp/bin/python

Each peer is a process of its own, which runs all scenarios once when it is told to and sleeps otherwise, so that all
are warm and none is measured while another runs; every other round goes backwards, so that a drift of the machine's
speed falls on all. Peers without an environment are left out. Writes a JSON file for each peer, and ends with one JSON
line.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.peers.serving.common import SCENARIOS, Work
from benchmarks.timing_lock import turn

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
OURS = "telltale"
PEERS = [OURS, "llama_cpp", "generate", "nnsight", "transformerlens"]

Round = dict[str, dict[str, float]]
"""Figures of a round, by scenario."""


class Worker:
    """A peer's script that is told when to go on."""

    def __init__(self, peer: str, python: str, args: argparse.Namespace, folder: Path) -> None:
        self.peer, self.output, self.log = peer, folder / f"{peer}.json", (folder / f"{peer}.log").open("w")
        command = [python, str(HERE / f"run_{peer}.py"), "--data", str(args.data), "--threads", str(args.threads)]
        command += ["--paced", "--output", str(self.output)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment(peer, folder),
        )
        self._line("ready")  # once it has warmed up

    def round(self) -> Round:
        """All scenarios once. The process is asleep again when this returns."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._line("round")["round"]

    def finish(self) -> dict[str, Any]:
        """End of input ends the run; what it wrote, with tokens and readings."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._line("peer")
        return json.loads(self.output.read_text())

    def stop(self) -> None:
        """However far it is: at the end of its input it ends by itself, and ends what it has started."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(120)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.log.close()

    def _line(self, key: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(f'{{"{key}"'):
                return json.loads(line)
        self.stop()
        raise SystemExit(f"{self.peer} ended early:\n{Path(self.log.name).read_text()[-2000:]}")


def environment(peer: str, folder: Path) -> dict[str, str]:
    """Ours sees this repository, the others only their own packages; nobody asks a hub. Options of an operator's own
    server, in TELLTALE_* variables, are left out."""
    variables = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("TELLTALE_")
    }
    if peer == OURS:
        variables |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}", "XDG_STATE_HOME": str(folder / "state")}
    return variables | {"HF_HUB_OFFLINE": "1"}


def measure(args: argparse.Namespace, pythons: dict[str, str], folder: Path) -> dict[str, dict[str, Any]]:
    """What each peer wrote, its rounds within."""
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for peer, python in pythons.items():
            with turn(args.lock):
                workers[peer] = Worker(peer, python, args, folder)
            stack.callback(workers[peer].stop)
        for number in range(args.rounds):
            with turn(args.lock):  # for a whole round: its ratios are of one state of the machine
                for peer in list(workers) if number % 2 == 0 else reversed(list(workers)):
                    figures = workers[peer].round()
                    print(peer, round(figures["8"]["decode_tokens_per_second"], 1), file=sys.stderr)
        return {peer: worker.finish() for peer, worker in workers.items()}


def medians(rounds: Sequence[Round]) -> Round:
    """Of each figure of each scenario."""
    return {
        scenario: {
            figure: round(statistics.median(one[scenario][figure] for one in rounds), 4)
            for figure in rounds[0][scenario]
        }
        for scenario in SCENARIOS
    }


def speed_ratios(ours: Sequence[Round], peers: Sequence[Round]) -> dict[str, float]:
    """How many times as fast as the peer we decode, by scenario: the median of the ratios within a round."""
    figure = "decode_tokens_per_second"
    return {
        scenario: round(
            statistics.median(a[scenario][figure] / b[scenario][figure] for a, b in zip(ours, peers, strict=True)), 3
        )
        for scenario in SCENARIOS
    }


def results_of(outputs: dict[str, dict[str, Any]], checks: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What is kept of each peer: not its tokens."""
    return {
        peer: {
            **{key: value for key, value in output.items() if key not in ("rounds", "tokens", "readings")},
            "medians": medians(output["rounds"]),
            "ours_to_peer_speed_ratio": speed_ratios(outputs[OURS]["rounds"], output["rounds"]),
            "check": checks[peer],
            "rounds": output["rounds"],
        }
        for peer, output in outputs.items()
    }


def check_all(data: Path, outputs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each peer's output against a plain pass. SystemExit that names the peer whose output is not what it should be."""
    from benchmarks.peers.serving.compare import check  # so that timing does without the memory of this
    from sae_runtime.checkpoint import load_sae
    from sae_runtime.language_model import load_language_model
    from service.served_dictionary import DICTIONARIES, EMBEDDED_DICTIONARY

    language_model, sae = load_language_model(), load_sae(DICTIONARIES / EMBEDDED_DICTIONARY)
    work, checks = Work.load(data), {}
    for peer, output in outputs.items():
        try:
            checks[peer] = check(language_model, sae, work, output, outputs[OURS]["tokens"])
        except ValueError as error:
            raise SystemExit(f"{peer}: {error}") from None
    return checks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with what prepare.py wrote")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PATH")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of every peer")
    parser.add_argument("--lock", type=Path, help="hold this file locked while a peer starts and during a round")
    parser.add_argument("--outputs", type=Path, help="folder for what each peer wrote; otherwise it is not kept")
    parser.add_argument("--results", type=Path, help="folder that gets a JSON file for each peer")
    args = parser.parse_args()
    given = dict(pair.split("=", 1) for pair in args.python)
    if unknown := set(given) - set(PEERS):
        raise SystemExit(f"--python must name one of {', '.join(PEERS)}, got {', '.join(sorted(unknown))}")
    given.setdefault(OURS, sys.executable)
    with tempfile.TemporaryDirectory() as folder:
        kept = args.outputs or Path(folder)
        kept.mkdir(parents=True, exist_ok=True)
        outputs = measure(args, {peer: given[peer] for peer in PEERS if peer in given}, kept)
    results = results_of(outputs, check_all(args.data, outputs))
    for peer, result in results.items() if args.results else ():
        args.results.mkdir(parents=True, exist_ok=True)
        (args.results / f"{peer}.json").write_text(json.dumps(result, indent=1) + "\n")
    summary = {
        peer: {
            "decode_tokens_per_second": {
                name: round(figures["decode_tokens_per_second"], 1) for name, figures in result["medians"].items()
            },
            "ours_to_peer_speed_ratio": result["ours_to_peer_speed_ratio"],
        }
        for peer, result in results.items()
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
