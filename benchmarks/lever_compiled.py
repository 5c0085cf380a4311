"""Levers that are compiled, which takes a minute and a C++ compiler. See `benchmarks.levers`."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.lever_parts import Linear
from benchmarks.lever_steps import INT4, NUM_LIVE, Bench, Made, MakeProduct, by_hand


def compiled(
    bench: Bench,
    *,
    blocks: MakeProduct = Linear,
    head: MakeProduct = Linear,
    over_all: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Made:
    """The hand-written step through `torch.compile`, compiled here with inductor's `options`. Steps at other lengths
    must not compile again."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()

    def run(step: Any) -> Any:
        graph = torch.compile(
            step, fullgraph=True, dynamic=False if over_all else None, options=dict(options or {}) or None
        )

        def marked(*args: Any) -> Tensor:
            if not over_all:
                torch._dynamo.mark_dynamic(args[2], 3)
            return graph(*args)

        return marked

    made = by_hand(bench, run=run, blocks=blocks, head=head, over_all=over_all)
    began, process = time.perf_counter(), time.process_time()
    made.step()
    hits = counters["inductor"]["fxgraph_cache_hit"]
    spent = {"seconds": time.perf_counter() - began, "process_seconds": time.process_time() - process}
    made.facts["compile_from_cache" if hits else "compile"] = {name: round(s, 1) for name, s in spent.items()}
    step: Any = made.step
    for num_live in range(NUM_LIVE + 1, NUM_LIVE + 4):
        step(num_live)
    step()
    made.facts["graphs"] = counters["stats"]["unique_graphs"]
    return made


COMPILED: Mapping[str, Callable[[Bench], Made]] = {
    "compiled": compiled,
    "compiled_over_all": partial(compiled, over_all=True),
    "compiled_autotuned_frozen": partial(compiled, options={"max_autotune": True, "freezing": True}),
    "compiled_int4": partial(compiled, **INT4),
    "compiled_int4_over_all": partial(compiled, **INT4, over_all=True),
}
