"""How time and memory of the offline half grow: with tokens (x1, x10), with width (8k to 131k), with documents.

    python -m benchmarks.growth                                   # about ten minutes on two cores
    python -m benchmarks.growth --only train --widths 1024 2048 --scale 0.125       # a try-out

Each measurement is a process of its own: wall and processor seconds are those of the work alone, without what is set
up for it; memory is the process's peak. Residuals, readings and dictionaries are random, with about 64 latents active
at a token; the model that is harvested is the embedded one. What is measured:

    harvest    `discovery.harvest.harvest` to a folder; knows no width
    train      steps of 2048 tokens, topk; tokens are shuffled, so that documents are nothing to it
    evaluate   `measure_reconstruction`; not the decoder's geometry, nor passes over the model
    examples   the collector of `telltale lab examples` in one pass; not the logit effects, nor the writing
    search     a contrast over items, with permutations; an item is a document, and has been read already

Ends with one JSON line, which `benchmarks.growth_table` makes tables of.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.examples import D_MODEL, Case, peak_mib, random_piece, random_sae

WIDTHS = [8192, 16384, 32768, 65536, 131072]
K, BATCH = 64, 2048


@dataclass(frozen=True)
class Size:
    """One measurement."""

    kind: str
    axis: str
    """What it is compared along: tokens, width or documents."""
    tokens: int
    width: int
    documents: int


@dataclass(frozen=True)
class Figures:
    """What it took."""

    seconds: float
    processor_seconds: float
    peak_mib: float
    before_mib: float
    """Peak before the work: libraries, and the model or the dictionary."""


Work = Callable[[], Any]

# --- the work, set up but not done -----------------------------------------------------------------------------------


def harvest_work(size: Size) -> Work:
    from benchmarks.harvest import Context
    from discovery.harvest import harvest
    from sae_runtime.hook_point import HookPoint
    from sae_runtime.language_model import EMBEDDED, load_language_model

    lm = load_language_model(EMBEDDED)
    length = size.tokens // size.documents
    ids_CT = torch.randint(100, lm.vocab_size, (size.documents, length), generator=torch.Generator().manual_seed(0))
    contexts = [Context(ids, number, 0, "made") for number, ids in enumerate(ids_CT.tolist())]

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            harvest(lm, HookPoint(15), contexts, Path(folder))

    return work


def train_work(size: Size) -> Work:
    from benchmarks.train_overhead import MadeBuffers
    from discovery.dictionary_trainer import Trainer
    from discovery.train_settings import defaults_for
    from sae_runtime.number_format import has_fast_bfloat16

    settings = replace(
        defaults_for("topk"), num_latents=size.width, k=K, batch_size=BATCH, num_steps=1 + size.tokens // BATCH
    )
    settings = replace(settings, precision="bf16" if has_fast_bfloat16(torch.device("cpu")) else "fp32")
    trainer = Trainer(settings, MadeBuffers(D_MODEL, 2 * BATCH))
    steps = trainer.steps()
    next(steps)  # the optimiser's memory is there from the first step on
    return lambda: list(steps)


def evaluate_work(size: Size) -> Work:
    from discovery.reconstruction import measure_reconstruction

    sae = random_sae(size.width, torch.Generator().manual_seed(0))
    pieces = (piece.resid_ND for piece in pieces_of(size))
    return lambda: measure_reconstruction(sae, pieces)


def examples_work(size: Size) -> Work:
    from discovery.example_collector import Collector, ExampleSettings

    sae = random_sae(size.width, torch.Generator().manual_seed(0))
    collector = Collector(size.width, ExampleSettings(), [True])

    def work() -> None:
        with torch.inference_mode():
            for piece in pieces_of(size):
                collector.add(sae, piece)

    return work


def search_work(size: Size) -> Work:
    from discovery.contrast_search import search

    generator = torch.Generator().manual_seed(0)
    scores_IF = torch.rand(size.documents, size.width, generator=generator)
    # An item's mean reading is 0 for most latents.
    scores_IF *= torch.rand(size.documents, size.width, generator=generator) < 0.1
    labels_I = torch.arange(size.documents) % 2
    groups = [str(number // 2) for number in range(size.documents)]
    return lambda: search(scores_IF, labels_I, groups)


def pieces_of(size: Size) -> Any:
    """Random text, a few thousand tokens at a time."""
    generator = torch.Generator().manual_seed(0)
    length, done = size.tokens // size.documents, 0
    while done < size.tokens:
        piece = random_piece(Case("", size.width, size.tokens - done, length), generator)
        done += len(piece.resid_ND)
        yield piece


WORK: dict[str, Callable[[Size], Work]] = {
    "harvest": harvest_work,
    "train": train_work,
    "evaluate": evaluate_work,
    "examples": examples_work,
    "search": search_work,
}


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(size: Size) -> Figures:
    """Do one measurement, in this process."""
    work = WORK[size.kind](size)
    before = peak_mib()
    began, began_processor = time.perf_counter(), time.process_time()
    work()
    return Figures(
        seconds=round(time.perf_counter() - began, 3),
        processor_seconds=round(time.process_time() - began_processor, 3),
        peak_mib=round(peak_mib()),
        before_mib=round(before),
    )


def measure_apart(size: Size) -> Figures:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.growth", "--one", json.dumps(asdict(size))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def sizes(widths: list[int], scale: float) -> list[Size]:
    """All measurements. The smallest is the first of each kind, and of each axis."""
    narrow = widths[0]
    base = {"harvest": 4096, "train": 8192, "evaluate": 8192, "examples": 8192}
    found = []
    for kind, tokens in base.items():
        unit = BATCH if kind == "train" else 512
        tokens = max(unit, int(tokens * scale) // unit * unit)
        documents = tokens // 512
        smallest = Size(kind, "tokens", tokens, 0 if kind == "harvest" else narrow, documents)
        found += [smallest, replace(smallest, tokens=10 * tokens, documents=10 * documents)]
        if kind != "harvest":
            found += [replace(smallest, axis="width", width=width) for width in widths]
        if kind in ("harvest", "examples"):
            found += [replace(smallest, axis="documents", documents=times * documents) for times in (1, 8)]
    items = max(40, int(200 * scale))
    smallest = Size("search", "documents", 0, narrow, items)
    found += [smallest, replace(smallest, documents=10 * items)]
    return found + [replace(smallest, axis="width", width=width) for width in widths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(WORK), choices=list(WORK))
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--scale", type=float, default=1.0, help="of tokens and items")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(asdict(measure(Size(**json.loads(args.one))))))
        return
    measured: dict[Size, Figures] = {}
    rows = []
    print(f"{'':<10}{'axis':<11}{'tokens':>8}{'width':>8}{'documents':>11}{'wall s':>9}{'cpu s':>9}{'peak MiB':>10}")
    for size in sizes(args.widths, args.scale):
        if size.kind not in args.only:
            continue
        same = replace(size, axis="")
        if same not in measured:
            measured[same] = measure_apart(size)
        took = measured[same]
        rows.append(asdict(size) | asdict(took))
        print(
            f"{size.kind:<10}{size.axis:<11}{size.tokens:>8}{size.width:>8}{size.documents:>11}"
            f"{took.seconds:>9.2f}{took.processor_seconds:>9.2f}{took.peak_mib:>10.0f}",
            flush=True,
        )
    facts = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    facts |= {"instructions": torch.backends.cpu.get_cpu_capability(), "d_model": D_MODEL, "k": K}
    line = json.dumps({"benchmark": "growth", **facts, "rows": rows})
    if args.output:
        args.output.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
