"""How the time and memory of collecting examples grow with tokens, width and documents.

    python -m benchmarks.examples [--tokens 8192] [--widths 8192 32768 131072]

Random dictionaries over random residuals, about 64 latents active at a token. Each case runs in a process of its own,
so that its peak memory is its own. `encode_seconds` is the dictionary alone over the same tokens: what no collecting
can do without. Ends with one JSON line.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from discovery.example_collector import Collector, ExampleSettings, read_batches
from discovery.text_pieces import Piece
from sae_runtime.sae import SAE

D_MODEL, ACTIVE, VOCABULARY = 576, 64, 49152
PIECE_TOKENS = 8192


@dataclass(frozen=True)
class Case:
    """One measurement."""

    name: str
    num_latents: int
    num_tokens: int
    context_tokens: int = 512


@dataclass(frozen=True)
class Figures:
    """What a case took."""

    seconds: float
    tokens_per_second: float
    encode_seconds: float
    state_mib: float
    """Held by the collector at the end."""
    peak_growth_mib: float
    """Of the process, above what it had with the dictionary alone."""


def random_sae(num_latents: int, generator: torch.Generator) -> SAE:
    """Unit rows, one threshold for all."""
    sae = SAE(d_model=D_MODEL, num_latents=num_latents, activation="batchtopk").requires_grad_(False)
    rows_FD = torch.nn.functional.normalize(torch.randn(num_latents, D_MODEL, generator=generator), dim=-1)
    sae.W_dec.copy_(rows_FD)
    sae.W_enc.copy_(rows_FD.T)
    # Readings of random residuals are standard normal.
    sae.threshold.fill_(float(torch.distributions.Normal(0, 1).icdf(torch.tensor(1 - ACTIVE / num_latents))))
    return sae


def random_piece(case: Case, generator: torch.Generator) -> Piece:
    """Contexts of one length, each a document of its own."""
    num = min(PIECE_TOKENS, case.num_tokens) // case.context_tokens * case.context_tokens
    contexts = num // case.context_tokens
    documents = torch.randint(2**62, (contexts,), generator=generator).numpy()
    return Piece(
        torch.randn(num, D_MODEL, generator=generator).bfloat16(),
        torch.randint(VOCABULARY, (num,), generator=generator).numpy(),
        np.tile(np.arange(1, case.context_tokens + 1), contexts),
        np.repeat(documents, case.context_tokens),
        np.zeros(num, np.int64),
        np.zeros(contexts, np.int64),
        np.ones(num, bool),
    )


def peak_mib() -> float:
    """The largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(case: Case) -> Figures:
    """Run one case, in this process."""
    generator = torch.Generator().manual_seed(0)
    sae = random_sae(case.num_latents, generator)
    before = peak_mib()
    collector = Collector(case.num_latents, ExampleSettings(), [True])
    seconds = encode_seconds = 0.0
    with torch.inference_mode():
        while collector.num_places < case.num_tokens:
            piece = random_piece(case, generator)
            begun = time.perf_counter()
            for _ in read_batches(sae, piece, 0):
                pass
            middle = time.perf_counter()
            collector.add(sae, piece)
            encode_seconds += middle - begun
            seconds += time.perf_counter() - middle
    return Figures(
        seconds=round(seconds, 2),
        tokens_per_second=round(collector.num_places / seconds),
        encode_seconds=round(encode_seconds, 2),
        state_mib=round(collector.num_bytes / 2**20, 1),
        peak_growth_mib=round(peak_mib() - before, 1),
    )


def cases(num_tokens: int, widths: Sequence[int]) -> list[Case]:
    """Tokens x1 and x10, all widths, and as many tokens in 8 times as many documents."""
    narrow = widths[0]
    return [
        Case("tokens x1", narrow, num_tokens),
        Case("tokens x10", narrow, 10 * num_tokens),
        *(Case(f"width {width}", width, num_tokens) for width in widths[1:]),
        Case("documents x8", narrow, num_tokens, context_tokens=64),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8192, help="of the smallest case")
    parser.add_argument("--widths", type=int, nargs="+", default=[8192, 32768, 131072])
    args = parser.parse_args()
    results: dict[str, Any] = {}
    context = multiprocessing.get_context("spawn")
    print(f"{'case':<16}{'seconds':>9}{'tokens/s':>10}{'encode s':>10}{'state MiB':>11}{'peak +MiB':>11}")
    for case in cases(args.tokens, args.widths):
        with context.Pool(1) as pool:
            figures = pool.apply(measure, (case,))
        results[case.name] = asdict(figures)
        print(
            f"{case.name:<16}{figures.seconds:>9.2f}{figures.tokens_per_second:>10.0f}{figures.encode_seconds:>10.2f}"
            f"{figures.state_mib:>11.1f}{figures.peak_growth_mib:>11.1f}",
            flush=True,
        )
    facts = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({"benchmark": "examples", **facts, "d_model": D_MODEL, "active": ACTIVE, "results": results}))


if __name__ == "__main__":
    main()
