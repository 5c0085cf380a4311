"""Where gradients of active latents alone begin to pay: dense and sparse steps of a penalised recipe, by L0.

    python -m benchmarks.sparse_crossover [--latents 8192]

`discovery.dictionary_trainer` takes the sparse way below a share of active latents; this is what the share comes from.
Ends with one JSON line.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.examples import D_MODEL
from discovery.penalty_gradients import Penalty, dense, sparse
from discovery.product_dtype import product_dtype
from sae_runtime.number_format import has_fast_bfloat16
from sae_runtime.sae import SAE

SHARES = [1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4]


def made_sae(num_latents: int, share: float, generator: torch.Generator) -> SAE:
    """relu latents, each active at `share` of standard normal tokens."""
    sae = SAE(d_model=D_MODEL, num_latents=num_latents, activation="relu", apply_b_dec=False)
    rows_FD = torch.nn.functional.normalize(torch.randn(num_latents, D_MODEL, generator=generator), dim=-1)
    with torch.no_grad():
        sae.W_dec.copy_(rows_FD)
        sae.W_enc.copy_(rows_FD.T)
        sae.b_enc.fill_(-float(torch.distributions.Normal(0, 1).icdf(torch.tensor(1 - share))))
    return sae


def seconds_of(call: Callable[[], Any]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def measure(num_latents: int, num_tokens: int, rounds: int) -> list[dict[str, float]]:
    """Processor seconds of either way, medians, for each share of active latents."""
    generator = torch.Generator().manual_seed(0)
    resid_BD = torch.randn(num_tokens, D_MODEL, generator=generator)
    products = product_dtype("bf16" if has_fast_bfloat16(torch.device("cpu")) else "fp32")
    penalty, rows = Penalty(0.1, 1.0), []
    for share in SHARES:
        sae = made_sae(num_latents, share, generator)
        sparse(sae, resid_BD, penalty, products=products)  # warms up
        ways: dict[str, list[float]] = {"dense": [], "sparse": []}
        for _ in range(rounds):
            ways["dense"].append(seconds_of(lambda: dense(sae, resid_BD, penalty, products=products)))  # noqa: B023
            ways["sparse"].append(seconds_of(lambda: sparse(sae, resid_BD, penalty, products=products)))  # noqa: B023
        rows.append({"active_share": share} | {name: round(statistics.median(ways[name]), 3) for name in ways})
        print(f"1/{1 / share:<5.0f} dense {rows[-1]['dense']:.3f} s   sparse {rows[-1]['sparse']:.3f} s", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latents", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows = measure(args.latents, args.tokens, args.rounds)
    facts = {"torch": torch.__version__, "instructions": torch.backends.cpu.get_cpu_capability()}
    print(json.dumps({"benchmark": "sparse_crossover", "latents": args.latents, **facts, "rows": rows}))


if __name__ == "__main__":
    main()
