"""Levers for a faster decode step on a CPU, each measured alone against transformers' own step.

    python -m benchmarks.levers                                  # all levers, some of which compile for minutes
    python -m benchmarks.levers --levers fused_products --rows 1

The step is one token for each of several rows, 128 positions live, over the service's cache and without the dictionary.
Lever and baseline take turns in rounds; a ratio is the baseline's time over the lever's, the median of the rounds. A
lever changes a copy of the model. Beside its time stand the largest difference of its logits from those of fp32
weights, and the baseline's own. What came of each is in benchmarks/NOTES.md. Ends with one JSON line.

Shape suffixes: B rows, T tokens per row, D model width, L positions, V tokens.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.lever_parts import HandWritten, Int4, Int8, Joined, Linear, Prepacked, Rest, Transposed
from sae_runtime.cache_argument import cache_argument
from sae_runtime.gguf_file import embedded_gguf_path
from sae_runtime.language_model import LanguageModel, load_language_model
from sae_runtime.last_position import last_position
from sae_runtime.tap import decoder_layers
from service.slot_cache import SlotCache

NUM_LIVE = 128
NUM_POSITIONS = 512
STEPS_A_TURN = 8
Step = Callable[[], Tensor]
"""One decode step; logits [B, V]."""
MakeProduct = Callable[[Tensor], nn.Module]
"""Weights [N, K] in fp32 -> a module that multiplies [B, K] with them."""


class Bench:
    """A model, `num_rows` rows of text in a cache, and the baseline's step over them."""

    def __init__(
        self, made: LanguageModel, exact: Any, num_rows: int, *, text: str, num_positions: int = NUM_POSITIONS
    ) -> None:
        """`exact` is the same model with fp32 weights."""
        self.model, self.exact, self.num_rows = made.model, exact, num_rows
        ids = made.tokenizer(text)["input_ids"]
        # Each row has a text of its own; the step reads its last token.
        self.ids_BL = torch.tensor([ids[97 * b : 97 * b + NUM_LIVE] for b in range(num_rows)])
        self.tapped = len(decoder_layers(exact)) // 2
        self.cache = self.filled(self.model, num_positions)
        self.exact_BV = self.step(exact, self.filled(exact, num_positions))

    def filled(self, model: Any, num_positions: int) -> SlotCache:
        """A cache with all but the last token read."""
        config = model.config
        cache = SlotCache(
            num_layers=config.num_hidden_layers,
            num_slots=self.num_rows,
            num_heads=config.num_key_value_heads,
            num_positions=num_positions,
            head_dim=config.hidden_size // config.num_attention_heads,
            dtype=model.dtype,
            device=torch.device("cpu"),
        )
        positions_BT, mask_B1TL = cache.begin(list(range(self.num_rows)), [0] * self.num_rows, NUM_LIVE - 1)
        forward(model, cache, self.ids_BL[:, :-1], positions_BT, mask_B1TL)
        return cache

    def places(self, cache: SlotCache, num_live: int, *, over_all: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """The step's ids [B, 1] and positions [B, 1] on position `num_live` - 1, and its mask [B, 1, 1, L]."""
        ids_B1 = torch.tensor(self.ids_BL[:, -1].tolist())[:, None]
        if over_all:
            positions_B = torch.full((self.num_rows,), num_live - 1)
            mask_B11L = cache.begin_fixed(torch.arange(self.num_rows), positions_B)
            return ids_B1, positions_B[:, None], mask_B11L
        return ids_B1, *cache.begin(list(range(self.num_rows)), [num_live - 1] * self.num_rows, 1)

    def step(self, model: Any, cache: SlotCache, *, over_all: bool = False) -> Tensor:
        """The service's eager pass. Each writes the same position, so it can be repeated."""
        return forward(model, cache, *self.places(cache, NUM_LIVE, over_all=over_all))

    def baseline(self) -> Tensor:
        return self.step(self.model, self.cache)

    def difference(self, logits_BV: Tensor) -> float:
        """The largest of logits from those of fp32 weights."""
        return float((logits_BV.float() - self.exact_BV).abs().max())


def forward(model: Any, cache: SlotCache, ids_BT: Tensor, positions_BT: Tensor, mask_B1TL: Tensor) -> Tensor:
    """Logits [B, V] of the last token, as the service asks transformers' model for them."""
    with torch.inference_mode():
        return model(
            input_ids=ids_BT,
            position_ids=positions_BT,
            attention_mask=mask_B1TL,
            use_cache=True,
            logits_to_keep=last_position(ids_BT),
            **cache_argument(cache),
        ).logits[:, 0]


@dataclass(slots=True)
class Made:
    """A lever, ready to be timed."""

    step: Step
    facts: dict[str, Any] = field(default_factory=dict)
    """What there is to say of it besides its time."""
    tapped: "Tapped | None" = None
    """Where its tap writes, if it has one."""


# --- products -----------------------------------------------------------------------------------------------------


def with_products(bench: Bench, blocks: MakeProduct | None, head: MakeProduct | None) -> Made:
    """Other products in place of linear layers' in a copy of the model. None leaves them."""
    model = copy.deepcopy(bench.model)
    for name, layer in list(bench.exact.named_modules()):
        make = head if name == "lm_head" else blocks
        if isinstance(layer, nn.Linear) and make is not None:
            model.set_submodule(name, OverRows(make(layer.weight)))
    return Made(partial(bench.step, model, bench.cache))


class OverRows(nn.Module):
    """[B, 1, K] through a product of [B, K]."""

    def __init__(self, product: nn.Module) -> None:
        super().__init__()
        self.product = product

    def forward(self, x_B1K: Tensor) -> Tensor:
        return self.product(x_B1K.flatten(0, 1))[:, None]


def int4_blocks(bench: Bench) -> Made:
    """The blocks' weights in torch's int4 kernel, exactly as the file has them."""
    return with_products(bench, Int4, None)


def int4_all(bench: Bench) -> Made:
    """The head's as well: the file has 8 bits there, 4 are fewer."""
    return with_products(bench, Int4, Int4)


def int4_int8_head(bench: Bench) -> Made:
    """The head's in torch's int8 kernel: one scale for each token instead of one for 32 weights."""
    return with_products(bench, Int4, Int8)


def transposed(bench: Bench) -> Made:
    """`torch.mm` with the weights on the left."""
    return with_products(bench, Transposed, Transposed)


def prepacked(bench: Bench) -> Made:
    """bf16 weights in oneDNN's order for that number of rows."""
    make = partial(Prepacked, num_rows=bench.num_rows)
    return with_products(bench, make, make)


def fused_products(bench: Bench) -> Made:
    """Queries, keys and values as one product, gate and up as one."""
    model = copy.deepcopy(bench.model)
    layer: Any
    for layer in decoder_layers(model):
        for part, names in (layer.self_attn, ("q_proj", "k_proj", "v_proj")), (layer.mlp, ("gate_proj", "up_proj")):
            weights = [getattr(part, name).weight for name in names]
            joined = Joined(Linear(torch.cat(weights)), [len(weight) for weight in weights])
            for name in names:
                setattr(part, name, joined if name == names[0] else Rest(joined))
    return Made(partial(bench.step, model, bench.cache))


def attention_over(bench: Bench, num_positions: int) -> Made:
    """Attention over whole slots of that many positions instead of live ones, as fixed shapes have it."""
    cache = bench.filled(bench.model, num_positions)
    return Made(partial(bench.step, bench.model, cache, over_all=True))


# --- steps --------------------------------------------------------------------------------------------------------


class Tapped:
    """What a step with the tap inside writes and is steered with, [B, D]."""

    def __init__(self, bench: Bench) -> None:
        shape = bench.num_rows, bench.model.config.hidden_size
        self.resid_BD = torch.zeros(shape, dtype=torch.bfloat16)
        self.steering_BD = torch.zeros(shape, dtype=torch.bfloat16)

    def on_output(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """A hook on a block of transformers' model."""
        first = output[0] if isinstance(output, tuple) else output
        self.resid_BD.copy_(first[:, 0])
        steered = first + self.steering_BD[:, None]
        return (steered, *output[1:]) if isinstance(output, tuple) else steered


def by_hand(
    bench: Bench,
    run: Callable[[Any], Any],
    *,
    blocks: MakeProduct = Linear,
    head: MakeProduct = Linear,
    over_all: bool = False,
) -> Made:
    """A hand-written step, which `run` makes something of that is called in its place."""
    called = run(HandWritten(bench.exact, blocks, head, bench.tapped))
    tapped, cache = Tapped(bench), bench.cache

    def step(num_live: int = NUM_LIVE) -> Tensor:
        ids_B1, positions_B1, mask_B11L = bench.places(cache, num_live, over_all=over_all)
        with torch.inference_mode():
            where = ids_B1[:, 0], positions_B1[:, 0], mask_B11L, cache.keys, cache.values
            return called(*where, tapped.resid_BD, tapped.steering_BD)

    return Made(step, tapped=tapped)


def eager(bench: Bench, **products: MakeProduct) -> Made:
    """Fewer dispatches: the hand-written step as it is."""
    return by_hand(bench, lambda step: step, **products)


def of_transformers(bench: Bench, run: Callable[[Any], Any], *, over_all: bool = False) -> Made:
    """transformers' step with a hook as the tap, which `run` makes something of."""
    model, cache, tapped = copy.deepcopy(bench.model), bench.cache, Tapped(bench)
    decoder_layers(model)[bench.tapped].register_forward_hook(tapped.on_output)

    def whole(ids_B1: Tensor, positions_B1: Tensor, mask_B11L: Tensor) -> Tensor:
        if not over_all:
            # From the mask's shape, which may vary in a graph; a number would be part of it.
            cache._num_live = mask_B11L.shape[-1]
        return model(
            input_ids=ids_B1,
            position_ids=positions_B1,
            attention_mask=mask_B11L,
            use_cache=True,
            **cache_argument(cache),
        ).logits[:, 0]

    called = run(whole)

    def step(num_live: int = NUM_LIVE) -> Tensor:
        with torch.inference_mode():
            return called(*bench.places(cache, num_live, over_all=over_all))

    return Made(step, tapped=tapped)


# --- compiled -----------------------------------------------------------------------------------------------------


def compiled(bench: Bench, make: Callable[..., Made], *, over_all: bool = False, **options: Any) -> Made:
    """A step through `torch.compile`, compiled here. Steps at other lengths must not compile again."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()

    def run(step: Any) -> Any:
        graph = torch.compile(step, fullgraph=True, dynamic=False if over_all else None, options=options or None)

        def marked(*args: Any) -> Tensor:
            if not over_all:
                torch._dynamo.mark_dynamic(args[2], 3)
            return graph(*args)

        return marked

    made = make(bench, run=run, over_all=over_all)
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


def packaged(bench: Bench, **products: MakeProduct) -> Made:
    """The hand-written step compiled ahead of time into a package, which is loaded without a compiler."""
    spent: dict[str, float] = {}

    def run(step: HandWritten) -> Callable[..., Tensor]:
        loaded: list[Callable[..., Tensor]] = []

        def called(*args: Any) -> Tensor:
            if not loaded:
                loaded.append(_package(step, args, spent))
            return loaded[0](*args)

        return called

    made = by_hand(bench, run, **products)
    made.step()
    step: Any = made.step
    for num_live in range(NUM_LIVE + 1, NUM_LIVE + 4):
        step(num_live)
    made.facts["package"] = spent
    return made


def _package(step: HandWritten, args: tuple[Any, ...], spent: dict[str, float]) -> Callable[..., Tensor]:
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    shapes: list[Any] = [None, None, {3: torch.export.Dim.DYNAMIC}, *([None] * len(part) for part in args[3:5])]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False), torch.no_grad():
        began, process = time.perf_counter(), time.process_time()
        exported = torch.export.export(step, args, dynamic_shapes=(*shapes, None, None))
        path = aoti_compile_and_package(exported, package_path=f"{folder}/step.pt2")
        spent["seconds"] = round(time.perf_counter() - began, 1)
        spent["process_seconds"] = round(time.process_time() - process, 1)
        spent["bytes"] = Path(path).stat().st_size
        began = time.perf_counter()
        loaded: Callable[..., Tensor] = aoti_load_package(path)
        spent["load_seconds"] = round(time.perf_counter() - began, 1)
    return loaded


_INT4 = {"blocks": Int4, "head": Int4}
_INT4_INT8 = {"blocks": Int4, "head": Int8}

LEVERS: Mapping[str, Callable[[Bench], Made]] = {
    "int4_blocks": int4_blocks,
    "int4_all": int4_all,
    "int4_int8_head": int4_int8_head,
    "transposed": transposed,
    "prepacked": prepacked,
    "fused_products": fused_products,
    "attention_over_512": partial(attention_over, num_positions=512),
    "attention_over_2048": partial(attention_over, num_positions=2048),
    "hand_written": eager,
    "hand_written_int4": partial(eager, **_INT4),
    "hand_written_int4_int8_head": partial(eager, **_INT4_INT8),
    "compiled_transformers": partial(compiled, make=of_transformers),
    "compiled_transformers_over_all": partial(compiled, make=of_transformers, over_all=True),
    "compiled": partial(compiled, make=by_hand),
    "compiled_over_all": partial(compiled, make=by_hand, over_all=True),
    "compiled_autotuned": partial(compiled, make=by_hand, max_autotune=True),
    "compiled_autotuned_frozen": partial(compiled, make=by_hand, max_autotune=True, freezing=True),
    "compiled_int4": partial(compiled, make=partial(by_hand, **_INT4)),
    "compiled_int4_over_all": partial(compiled, make=partial(by_hand, **_INT4), over_all=True),
    "compiled_int4_int8_head": partial(compiled, make=partial(by_hand, **_INT4_INT8)),
    "packaged_int4": partial(packaged, **_INT4),
}


def median_seconds(step: Step) -> float:
    seconds = []
    for _ in range(STEPS_A_TURN):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def by_turns(bench: Bench, made: Made, rounds: int) -> dict[str, Any]:
    """Times of baseline and lever, and what their logits differ by from fp32's."""
    pairs = []
    for _ in range(rounds):
        bench.baseline()
        baseline = median_seconds(bench.baseline)
        made.step()
        pairs.append((baseline, median_seconds(made.step)))
    ratios = sorted(baseline / lever for baseline, lever in pairs)
    ways = {"": made.step(), "baseline_": bench.baseline()}
    likeliest_B = bench.exact_BV.argmax(-1)
    return {
        "ratio": round(statistics.median(ratios), 2),
        "ratio_lowest": round(ratios[0], 2),
        "ratio_highest": round(ratios[-1], 2),
        "milliseconds": round(1e3 * statistics.median(lever for _, lever in pairs), 2),
        "baseline_milliseconds": round(1e3 * statistics.median(baseline for baseline, _ in pairs), 2),
        **{f"{way}logit_difference": round(bench.difference(ways[way]), 3) for way in ways},
        **{f"{way}most_likely_changed": int((ways[way].argmax(-1) != likeliest_B).sum()) for way in ways},
        **made.facts,
    }


def floor(made: LanguageModel) -> dict[str, float]:
    """What reading all weights once takes: in bf16, and the bytes of the 4-bit file."""
    numbers = torch.ones(2**28)  # 1 GiB
    seconds = median_seconds(lambda: numbers.sum())
    bandwidth = numbers.nbytes / seconds
    sizes = {"bf16": made.weights_bytes, "file": embedded_gguf_path().stat().st_size}
    return {"bytes_per_second": round(bandwidth)} | {
        f"{name}_{what}": value
        for name, size in sizes.items()
        for what, value in (("bytes", size), ("milliseconds", round(1e3 * size / bandwidth, 2)))
    }


def facts() -> dict[str, Any]:
    """Of this run, and of the machine: date, processor, its instructions that products can use, and torch."""
    described = dict(
        line.split("\t", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if "\t" in line
    )
    described = {name.strip(): value.strip(" :\t") for name, value in described.items()}
    model = ", ".join(described.get(name, "?") for name in ("model name", "cpu family", "model"))
    wanted = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"}
    return {
        "date": date.today().isoformat(),
        "processor": model,
        "instructions": sorted(wanted & set(described.get("flags", "").split())),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def readme() -> str:
    """The text that rows are cut from."""
    return (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def keep(path: Path, measured: Mapping[str, Any]) -> None:
    """Put what was measured into a file of results, lever by lever: one that was measured alone keeps the others."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(_merged(kept, measured), indent=1) + "\n")


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    return {**old, **{name: _merged(old.get(name), value) for name, value in new.items()}}


def measure(names: Sequence[str], rows: Sequence[int], rounds: int) -> dict[str, Any]:
    """All levers by name, each at all numbers of rows."""
    made, exact = load_language_model(dtype="bfloat16"), load_language_model(dtype="float32").model
    found: dict[str, Any] = {"floor": floor(made) | {"facts": facts()}}
    for num_rows in rows:
        bench = Bench(made, exact, num_rows, text=readme())
        for name in names:
            figures = by_turns(bench, LEVERS[name](bench), rounds)
            found.setdefault(name, {"facts": facts()})[str(num_rows)] = figures
            print(f"{name:32} {num_rows:3} rows: {figures['ratio']:.2f} ({figures['milliseconds']:.2f} ms)", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--levers", nargs="+", choices=list(LEVERS), default=list(LEVERS))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--into", type=Path, help="a file of results, whose other levers stay")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = measure(args.levers, args.rows, args.rounds)
    if args.into is not None:
        keep(args.into, found)
    print(json.dumps({"benchmark": "levers", "levers": found}))


if __name__ == "__main__":
    main()
