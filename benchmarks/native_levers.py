"""Levers that the native kernels have in them, each by turns with what was there before, in one process.

    python -m benchmarks.native_levers [--only kernels pages] [--rounds 7] [--record FILE]

    kernels     transformers' step, in bf16 over the same slots, over the kernels': one token of each row at 128 live
                positions, and a prompt of 512 tokens
    pages       a step with the weights in pages as they come, over one with them in large pages
    engine      the engine's step with everything read, and with all rows steered besides, over its step with nothing
                read
    counting    counting readings for the metrics step by step, over counting 64 steps at once
    pace        eight streams beside a prompt of 2,000 tokens, without a pace for it and with one: the 99th percentile
                of a step while it is read, over the median before; and its time, with a pace over without

Ratios are of a round, in which things take turns, in every other round the other way round; said are their median, the
least and the largest. Pages: where the system makes all pages large (`always` in
/sys/kernel/mm/transparent_hugepage/enabled) there is no difference. Ends with one JSON line for each lever, and the
file of results keeps levers that were not measured.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from prometheus_client import CollectorRegistry
from torch import Tensor

from benchmarks.lever_steps import NUM_LIVE, Bench
from benchmarks.levers import text
from benchmarks.recording import facts, keep
from benchmarks.serving_peers import PlainPass, native_model, prefill_seconds, slots
from benchmarks.serving_rounds import STEERING, percentile, prompt_of
from benchmarks.unmonitored import Unmonitored
from sae_runtime import native_weights
from sae_runtime.language_model import LanguageModel, load_language_model
from sae_runtime.native_blocks import NativeBlocks
from sae_runtime.steering_spec import PositionScope, SteeringOp, SteeringSpec, StrengthUnit
from service import assembly
from service.admission import Admission
from service.assembly import Parts, assemble
from service.config import NO_DICTIONARY, NO_JOURNAL, Settings
from service.engine import Engine
from service.feature_metrics import FeatureMetrics, WatchedMetric
from service.records import Phase, StepRecord
from service.request import Request, SamplingParams
from service.scheduler import Scheduler
from service.step_batch import StepBatch

ROWS = (1, 4, 8, 16)
PROMPT_TOKENS, LONG_PROMPT_TOKENS = 512, 2000
NUM_WATCHED, NUM_NEIGHBOURS = 16, 8
STEPS_A_TURN, ENGINE_STEPS = 10, 60
COUNTED_STEPS = 64
MONITOR = "lying"
Run = Callable[[], float]
"""Seconds, or another figure."""


def by_turns(rounds: int, **runs: Run) -> list[dict[str, float]]:
    """Figures of each round by name."""
    found = []
    for number in range(rounds):
        names = list(runs) if number % 2 == 0 else list(reversed(runs))
        found.append({name: runs[name]() for name in names})
    return found


def ratio(found: Sequence[Mapping[str, float]], name: str, other: str) -> dict[str, Any]:
    """How many times `other` `name` is: the median of rounds, and the least and the largest."""
    each = [figures[name] / figures[other] for figures in found]
    return {"ratio": _rounded(statistics.median(each)), "of_rounds": [_rounded(min(each)), _rounded(max(each))]}


def medians(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: _rounded(statistics.median(figures[name] for figures in found)) for name in found[0]}


def median_seconds(step: Callable[[], object], number: int = STEPS_A_TURN) -> float:
    """Of a step, after one that does not count."""
    step()
    seconds = []
    for _ in range(number):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def kernel_step(model: LanguageModel, num_rows: int) -> Callable[[], Tensor]:
    """Passes over one token of each row, at 128 live positions."""
    assert model.blocks is not None
    where, rows = slots(model, num_rows, 2 * NUM_LIVE), list(range(num_rows))
    ids_BL = torch.arange(1000, 1000 + num_rows * NUM_LIVE).view(num_rows, NUM_LIVE)
    blocks: NativeBlocks = model.blocks
    with torch.inference_mode():
        blocks.logits(ids_BL[:, :-1], where, rows, [0] * num_rows)

    def step() -> Tensor:
        with torch.inference_mode():
            return blocks.logits(ids_BL[:, -1:], where, rows, [NUM_LIVE - 1] * num_rows)

    return step


def kernels(rounds: int) -> dict[str, Any]:
    reference, native = load_language_model(dtype="bfloat16"), native_model()
    ratios, found = {}, {}
    for num_rows in ROWS:
        bench = Bench(reference, reference.model, num_rows, text=text())
        taken = by_turns(
            rounds,
            transformers=partial(median_seconds, bench.baseline),
            kernels=partial(median_seconds, kernel_step(native, num_rows)),
        )
        ratios[f"transformers' step over the kernels', {_rows(num_rows)}"] = ratio(taken, "transformers", "kernels")
        found[f"{num_rows}"] = medians(taken)
    ids, plain_pass = prompt_of(range(1000, 1100), PROMPT_TOKENS), PlainPass(PROMPT_TOKENS)
    taken = by_turns(
        rounds,
        transformers=partial(prefill_seconds, reference.model, ids),
        kernels=partial(plain_pass.seconds, ids),
    )
    ratios[f"transformers' pass over the kernels', a prompt of {PROMPT_TOKENS}"] = ratio(
        taken, "transformers", "kernels"
    )
    return {"ratios": ratios, "seconds": found | {"prompt": medians(taken)}}


def pages(rounds: int) -> dict[str, Any]:
    large = native_model()
    with patch.object(native_weights, "side_by_side", _as_they_come):
        small = native_model()
    ratios, found = {}, {}
    for num_rows in (ROWS[0], ROWS[-1]):
        taken = by_turns(
            rounds,
            small=partial(median_seconds, kernel_step(small, num_rows)),
            large=partial(median_seconds, kernel_step(large, num_rows)),
        )
        ratios[f"a step with weights in small pages over large ones, {_rows(num_rows)}"] = ratio(
            taken, "small", "large"
        )
        found[f"{num_rows}"] = medians(taken)
    return {"ratios": ratios, "seconds": found}


def _as_they_come(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


@cache
def embedded() -> Parts:
    """A server's parts, warmed up."""
    return _warm(assemble(Settings(journal=NO_JOURNAL, context_length=4096)))


@cache
def unread() -> Parts:
    """Those of a server that reads nothing, as `benchmarks.unmonitored` starts it."""
    settings = Settings(journal=NO_JOURNAL, context_length=4096, sae=NO_DICTIONARY, shipped_monitors=False)
    with patch.object(assembly, "ModelRunner", Unmonitored):
        return _warm(assemble(settings))


def _warm(parts: Parts) -> Parts:
    parts.runner.warm_up()
    gc.freeze()  # as the server does
    return parts


def new_engine(parts: Parts) -> Engine:
    return Engine(
        parts.runner,
        Scheduler(ROWS[-1], Settings().prefill_chunk_tokens),
        Admission(num_slots=ROWS[-1], max_requests=2 * ROWS[-1], max_prompt_tokens=10**6),
        steering_limits=parts.steering_limits,
        server_watch=parts.catalog.default_latents,
    )


def submit(engine: Engine, name: str, ids: Sequence[int], num_tokens: int, **options: Any) -> None:
    engine.admission.reserve()
    sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
    engine.admission.submit(Request(request_id=name, prompt_ids=tuple(ids), sampling=sampling, **options))


def watching(parts: Parts) -> dict[str, Any]:
    """Of a monitored request."""
    monitors = tuple(monitor for monitor in parts.catalog.default_monitors if monitor.name == MONITOR)
    return {"watched": tuple(parts.catalog.watchlist.by_index)[:NUM_WATCHED], "monitors": monitors}


def engine_seconds(parts: Parts, num_rows: int, options: Mapping[str, Any]) -> float:
    """Median time of the engine's step while all rows decode."""
    engine = new_engine(parts)
    for number in range(num_rows):
        submit(engine, str(number), prompt_of(range(1000, 1010), 10), ENGINE_STEPS + num_rows + 4, **options)
    while len(engine._roster.writing) < num_rows:
        engine.step()
    seconds = median_seconds(engine.step, ENGINE_STEPS)
    while engine.num_active:
        engine.step()
    return seconds


def engine(rounds: int) -> dict[str, Any]:
    parts, bare = embedded(), unread()
    plain = watching(parts)
    spec = SteeringSpec(
        plain["watched"][0], SteeringOp.ADD, STEERING["strength"], StrengthUnit.RELATIVE, PositionScope.GENERATED
    )

    ratios, found = {}, {}
    for num_rows in (ROWS[0], ROWS[-1]):
        taken = by_turns(
            rounds,
            unmonitored=partial(engine_seconds, bare, num_rows, {}),
            monitored=partial(engine_seconds, parts, num_rows, plain),
            steered=partial(engine_seconds, parts, num_rows, {**plain, "steering": (spec,)}),
        )
        for way in ("monitored", "steered"):
            ratios[f"the engine's step {way} over unmonitored, {_rows(num_rows)}"] = ratio(taken, way, "unmonitored")
        found[f"{num_rows}"] = medians(taken)
    return {"ratios": ratios, "seconds": found}


def counting(rounds: int) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    records = [
        StepRecord(
            phase=Phase.DECODE, num_rows=1, num_tokens=1, num_tapped_tokens=1, step_seconds=0.004, encode_seconds=None,
            num_nonfinite_tokens=0, readings_NW=generator.random((1, NUM_WATCHED), dtype=np.float32),
        )
        for _ in range(COUNTED_STEPS)
    ]  # fmt: skip
    watched = [WatchedMetric(f"f{number}", 1.0) for number in range(NUM_WATCHED)]
    metrics, batch = FeatureMetrics(CollectorRegistry(), watched), StepBatch()

    def one_by_one() -> None:
        for record in records:
            metrics.observe_step(record)

    def at_once() -> None:
        for record in records:
            batch.add([record])
        for record in batch.take():
            metrics.observe_step(record)

    taken = by_turns(rounds, one_by_one=partial(median_seconds, one_by_one), at_once=partial(median_seconds, at_once))
    words = f"counting {COUNTED_STEPS} steps one by one over at once"
    return {"ratios": {words: ratio(taken, "one_by_one", "at_once")}, "seconds": {f"{COUNTED_STEPS}": medians(taken)}}


class Beside:
    """Streams of an engine beside a long prompt, with its pace or without."""

    def __init__(self, parts: Parts, *, is_paced: bool) -> None:
        self._engine = new_engine(parts)
        options = watching(parts)
        for number in range(NUM_NEIGHBOURS):
            submit(self._engine, str(number), prompt_of(range(1000, 1010), 10), 1000, **options)
        self._options = options
        if not is_paced:
            self._engine._pace.budget = lambda limit, *_, **__: limit  # type: ignore[method-assign]

    def run(self) -> tuple[float, float]:
        """p99 of a step while the prompt is read over the median before, and the seconds it takes to be read."""
        engine = self._engine
        while len(engine._roster.writing) < NUM_NEIGHBOURS:
            engine.step()
        before = [self._step() for _ in range(ENGINE_STEPS)]
        submit(engine, "long", prompt_of(range(1000, 1100), LONG_PROMPT_TOKENS), 1, **self._options)
        meanwhile = [self._step()]
        while any(row.num_unread for row in engine._roster.rows):
            meanwhile.append(self._step())
        assert len(engine._roster.writing) >= NUM_NEIGHBOURS, "streams must outlast the prompt beside them"
        engine.finish_all()
        while engine.num_active:
            engine.step()
        return percentile(meanwhile, 0.99) / statistics.median(before), sum(meanwhile)

    def _step(self) -> float:
        started = time.perf_counter()
        self._engine.step()
        return time.perf_counter() - started


def pace(rounds: int) -> dict[str, Any]:
    parts = embedded()
    taken = []
    for number in range(max(1, rounds // 2)):  # each takes as long as several of the others
        figures = {}
        for is_paced in (True, False) if number % 2 == 0 else (False, True):
            way = "paced" if is_paced else "unpaced"
            figures[f"{way}_unsteadiness"], figures[f"{way}_seconds"] = Beside(parts, is_paced=is_paced).run()
        taken.append(figures | {"one": 1.0})
    ratios = {
        "99th percentile of 8 streams' steps beside a prompt over the median before, unpaced": ratio(
            taken, "unpaced_unsteadiness", "one"
        ),
        "the same, with a pace": ratio(taken, "paced_unsteadiness", "one"),
        f"time of that prompt of {LONG_PROMPT_TOKENS}, with a pace over without": ratio(
            taken, "paced_seconds", "unpaced_seconds"
        ),
    }
    return {"ratios": ratios, "medians": medians(taken)}


LEVERS: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "kernels": kernels,
    "pages": pages,
    "engine": engine,
    "counting": counting,
    "pace": pace,
}


def _rows(num_rows: int) -> str:
    return f"{num_rows} row" + ("s" if num_rows > 1 else "")


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(LEVERS), default=list(LEVERS), metavar="LEVER")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", type=Path, metavar="FILE", help="levers that were not measured stay as they are")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    for name in args.only:
        figures = {**LEVERS[name](args.rounds), "rounds": args.rounds, "threads": args.threads, **facts()}
        if args.record is not None:
            keep(args.record, {"benchmark": "native_levers", "levers": {name: figures}})
        print(json.dumps({"benchmark": "native_levers", "lever": name, **figures}), flush=True)


if __name__ == "__main__":
    main()
