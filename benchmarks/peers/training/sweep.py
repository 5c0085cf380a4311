"""Trains with every library at several rates, until the best rate of each lies between two worse ones.

    python -m benchmarks.peers.training.sweep --data DATA --runs RUNS --num-steps 250 \
        --python saelens=envs/saelens/bin/python --python sparsify=envs/sparsify/bin/python

Rates are half decades (1e-3, 3.16e-3, 1e-2, ...), beginning near each library's own default. "Best" is the variance
explained on held-out tokens, as the library itself reconstructs them. Runs that are done are not repeated, so that the
command can be killed and started again.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


class Library(NamedTuple):
    """How a library is swept."""

    script: str
    first: int
    """Half decades of the first rate: 10^(first / 2)."""
    recipes: tuple[str, ...]
    variant: str = ""


LIBRARIES = {
    "ours": Library("train_ours.py", -5, ("topk", "batchtopk")),
    "ours-unit": Library("train_ours.py", -4, ("topk",), "unit rows"),
    "saelens": Library("train_saelens.py", -7, ("topk", "batchtopk")),  # 3e-4
    "sparsify": Library("train_sparsify.py", -4, ("topk",)),  # 7.1e-3 at this width
    "sparsify-adam": Library("train_sparsify.py", -6, ("topk",), "adam"),
    "saelens-from-0": Library("train_saelens.py", -6, ("topk",), "b_dec from 0"),
}


def rate_of(half_decades: int) -> float:
    """Rounded, so that it can be read."""
    return float(f"{10 ** (half_decades / 2):.2g}")


def run_folder(runs: Path, name: str, recipe: str, rate: float) -> Path:
    return runs / f"{name}-{recipe}-{rate:g}"


def train(args: argparse.Namespace, name: str, recipe: str, rate: float) -> float:
    """Held-out variance explained of one run, trained unless it has been."""
    library, folder = LIBRARIES[name], run_folder(args.runs, name, recipe, rate)
    result = folder / "result.json"
    if not result.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [python_of(args, name), str(HERE / library.script), "--data", str(args.data), "--recipe", recipe]
        command += ["--rate", f"{rate:g}", "--num-steps", str(args.num_steps), "--output", str(folder)]
        command += ["--num-latents", str(args.num_latents), "--k", str(args.k), "--variant", library.variant]
        with (folder / "log.txt").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=environment(name))
    found = json.loads(result.read_text())
    for field in ("num_steps", "num_latents", "k"):
        if found[field] != getattr(args, field):
            raise SystemExit(f"{folder}: {field} must be {getattr(args, field)}, got {found[field]}: take other --runs")
    return float(found["own_variance_explained"])


def python_of(args: argparse.Namespace, name: str) -> str:
    """The interpreter of a library's environment."""
    given = {"ours": sys.executable} | dict(pair.split("=", 1) for pair in args.python)
    library = name.partition("-")[0]
    if library not in given:
        raise SystemExit(f"--python must name the interpreter of {library}, got {', '.join(args.python) or 'none'}")
    return given[library]


def environment(name: str) -> dict[str, str]:
    """Ours finds this checkout, the others find nothing of it."""
    others = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return others | ({"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}"} if name.startswith("ours") else {})


def sweep(args: argparse.Namespace, name: str, recipe: str) -> dict[int, float]:
    """Half decades -> held-out variance explained: upwards from the first rate, then whatever is missing beside the
    best."""
    found: dict[int, float] = {}
    at = LIBRARIES[name].first
    while True:
        found[at] = train(args, name, recipe, rate_of(at))
        tqdm.write(f"{name} {recipe} {rate_of(at):g}: {found[at]:.4f}")
        best = max(found, key=lambda step: found[step])
        missing = [step for step in (best + 1, best - 1) if step not in found]
        if not missing or len(found) >= args.max_runs:
            return found
        at = missing[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument(
        "--python", action="append", default=[], metavar="LIBRARY=PATH", help="its environment's python"
    )
    plain = [name for name in LIBRARIES if "-" not in name]
    parser.add_argument("--only", nargs="+", default=plain, choices=list(LIBRARIES))
    parser.add_argument("--recipe", nargs="+", default=["topk", "batchtopk"])
    parser.add_argument("--num-steps", type=int, default=250)
    parser.add_argument("--num-latents", type=int, default=8192)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--max-runs", type=int, default=5, help="of a library and recipe")
    args = parser.parse_args()
    found = {
        f"{name} {recipe}": {f"{rate_of(step):g}": value for step, value in sweep(args, name, recipe).items()}
        for recipe in args.recipe
        for name in args.only
        if recipe in LIBRARIES[name].recipes
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
