"""Speed of harvesting residuals, beside a plain loop over `model(**batch)`.

    python -m benchmarks.harvest [--tokens 20000] [--rounds 3]

The plain loop is what one would write by hand: contexts in the order they come, padded to the longest of each batch,
`output_hidden_states=True`, position 0 dropped. `harvest` batches by length and stops at the hook point; it also writes
its shards to disk, which is counted. Harder opponents are the same loop over the decoder alone, without the logits that
nobody wants, and that on contexts that somebody sorted by length before. All take the same contexts in turns, first one
first and then the other; figures are medians over rounds. The residuals must agree, which is checked. Ends with one
JSON line.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from discovery.corpus import Context
from discovery.harvest import harvest
from discovery.shards import load_resid, shard_paths
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import EMBEDDED, LanguageModel, load_language_model

ROWS = 16


def made_contexts(num_tokens: int, vocab_size: int, seed: int = 0) -> list[Context]:
    """Contexts of 16 to 512 random tokens, a mixture of short and long as corpora have it."""
    rng, contexts, total = random.Random(seed), [], 0
    while total < num_tokens:
        length = min(512, int(16 * 2 ** rng.uniform(0, 5.5)))
        tokens = [rng.randrange(100, vocab_size) for _ in range(length)]
        contexts.append(Context(tokens, len(contexts), 0, "made"))
        total += length
    return contexts


@torch.inference_mode()
def plain_loop(
    lm: LanguageModel, hook_point: HookPoint, contexts: list[Context], *, with_logits: bool = True
) -> torch.Tensor:
    """[N, D] residuals in order, position 0 left out."""
    model, kept = lm.model if with_logits else lm.model.model, []
    for first in range(0, len(contexts), ROWS):
        part = contexts[first : first + ROWS]
        length = max(len(context.tokens) for context in part)
        ids_BT = torch.zeros(len(part), length, dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, context in enumerate(part):
            ids_BT[row, : len(context.tokens)] = torch.tensor(context.tokens)
            mask_BT[row, : len(context.tokens)] = 1
        hidden = model(input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True, use_cache=False)
        resid_BTD = hidden.hidden_states[hook_point.layer + 1]
        kept += [resid_BTD[row, 1 : len(context.tokens)].bfloat16() for row, context in enumerate(part)]
    return torch.cat(kept)


def timed(call: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def measure(num_tokens: int, rounds: int, dtype: Any) -> dict[str, Any]:
    lm, hook_point = load_language_model(EMBEDDED, dtype=dtype), HookPoint(15)
    contexts = made_contexts(num_tokens, lm.model.config.vocab_size)

    def harvested() -> torch.Tensor:
        with tempfile.TemporaryDirectory() as folder:
            harvest(lm, hook_point, contexts, Path(folder))
            return torch.cat([load_resid(shard) for shard in shard_paths(Path(folder))])

    by_length = sorted(range(len(contexts)), key=lambda at: len(contexts[at].tokens))

    def sorted_loop() -> torch.Tensor:
        resid_ND = plain_loop(lm, hook_point, [contexts[at] for at in by_length], with_logits=False)
        parts = resid_ND.split([len(contexts[at].tokens) - 1 for at in by_length])
        return torch.cat([part for _, part in sorted(zip(by_length, parts, strict=True), key=lambda pair: pair[0])])

    ways = {
        "plain": lambda: plain_loop(lm, hook_point, contexts),
        "decoder": lambda: plain_loop(lm, hook_point, contexts, with_logits=False),
        "sorted": sorted_loop,
        "harvest": harvested,
    }
    plain_loop(lm, hook_point, contexts[:ROWS])  # warms up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    resid_ND: dict[str, torch.Tensor] = {}
    for number in range(rounds):
        for name in ways if number % 2 == 0 else reversed(ways):
            spent, resid_ND[name] = timed(ways[name])
            seconds[name].append(spent)
    wanted_ND = resid_ND["plain"].float()

    def error_of(name: str) -> float:
        assert resid_ND[name].shape == wanted_ND.shape, f"{name}: {resid_ND[name].shape}, not {wanted_ND.shape}"
        return float((resid_ND[name].float() - wanted_ND).norm() / wanted_ND.norm())

    error = max(map(error_of, ways))
    assert error < 0.02, f"residuals differ by {error}"

    def speed_ratio(name: str) -> float:
        pairs = zip(seconds[name], seconds["harvest"], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    total = sum(len(context.tokens) for context in contexts)
    return {
        "tokens": total,
        "dtype": lm.identity.dtype,
        "tokens_per_second": {name: round(total / statistics.median(values)) for name, values in seconds.items()},
        "harvest_to_plain_speed_ratio": speed_ratio("plain"),
        "harvest_to_decoder_speed_ratio": speed_ratio("decoder"),
        "harvest_to_sorted_speed_ratio": speed_ratio("sorted"),
        "residual_relative_difference": round(error, 5),
        "machine": {"cores": os.cpu_count(), "instructions": torch.backends.cpu.get_cpu_capability()},
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto")
    args = parser.parse_args()
    print(json.dumps(measure(args.tokens, args.rounds, args.dtype)))


if __name__ == "__main__":
    main()
