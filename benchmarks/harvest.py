"""Speed of harvesting residuals, beside a plain loop over `model(**batch)`.

    python -m benchmarks.harvest [--tokens 20000] [--rounds 3]

The plain loop is what one would write by hand: contexts in the order they come, padded to the longest of each batch,
`output_hidden_states=True`, position 0 dropped. `harvest` batches by length and stops at the hook point; it also writes
its shards to disk, which is counted. Both take the same contexts in turns; figures are medians over rounds. The bf16
residuals must agree, which is checked. Ends with one JSON line.
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
def plain_loop(lm: LanguageModel, hook_point: HookPoint, contexts: list[Context]) -> torch.Tensor:
    """[N, D] residuals in order, position 0 left out."""
    kept = []
    for first in range(0, len(contexts), ROWS):
        part = contexts[first : first + ROWS]
        length = max(len(context.tokens) for context in part)
        ids_BT = torch.zeros(len(part), length, dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, context in enumerate(part):
            ids_BT[row, : len(context.tokens)] = torch.tensor(context.tokens)
            mask_BT[row, : len(context.tokens)] = 1
        hidden = lm.model(input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True, use_cache=False)
        resid_BTD = hidden.hidden_states[hook_point.layer + 1]
        kept += [resid_BTD[row, 1 : len(context.tokens)].bfloat16() for row, context in enumerate(part)]
    return torch.cat(kept)


def timed(call: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def measure(num_tokens: int, rounds: int) -> dict[str, Any]:
    lm, hook_point = load_language_model(EMBEDDED), HookPoint(15)
    contexts = made_contexts(num_tokens, lm.model.config.vocab_size)
    total = sum(len(context.tokens) for context in contexts)
    plain_loop(lm, hook_point, contexts[:ROWS])  # warms up
    seconds: dict[str, list[float]] = {"plain": [], "harvest": []}
    for _ in range(rounds):
        spent, wanted_ND = timed(lambda: plain_loop(lm, hook_point, contexts))
        seconds["plain"].append(spent)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            spent, _ = timed(lambda path=path: harvest(lm, hook_point, contexts, path))
            seconds["harvest"].append(spent)
            got_ND = torch.cat([load_resid(shard) for shard in shard_paths(path)])
    error = float((got_ND.float() - wanted_ND.float()).norm() / wanted_ND.float().norm())
    assert got_ND.shape == wanted_ND.shape and error < 0.02, f"residuals differ by {error}"
    ratio = statistics.median(a / b for a, b in zip(seconds["plain"], seconds["harvest"], strict=True))
    return {
        "tokens": total,
        "tokens_per_second": {name: round(total / statistics.median(values)) for name, values in seconds.items()},
        "harvest_to_plain_speed_ratio": round(ratio, 3),
        "residual_relative_difference": round(error, 5),
        "machine": {"cores": os.cpu_count()},
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(json.dumps(measure(args.tokens, args.rounds)))


if __name__ == "__main__":
    main()
