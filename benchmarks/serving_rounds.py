"""One round of `benchmarks.serving`: every figure once, things that are compared one right after the other.

Each function gives figures by name; `serving_summary` makes ratios of those of a round. Rates are tokens per second.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.serving_client import UNREAD, Times, arrivals, rate, stream, streams
from benchmarks.serving_peers import LlamaCpp, generate_rate, prefill_seconds, read_bandwidth
from benchmarks.timing_lock import turn
from service.client import TelltaleClient
from service.client_request import Steering

Figures = dict[str, float]
STREAMS = (1, 4, 16)
NUM_NEIGHBOURS = 8
"""Streams of which one is steered, or that decode while a long prompt arrives."""
STEERING = {"op": "add", "strength": 0.2, "unit": "relative", "scope": "generated"}
_FIRST_TOKEN_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    tokens: int = 128
    """Of each stream."""
    prompt_tokens: int = 512
    """Of the prompt whose first token is waited for."""
    long_prompt_tokens: int = 2000
    """Of the prompt that arrives while others decode."""
    long_run_tokens: int = 256
    """Of each stream beside it, which arrives when they have an eighth of them."""


@dataclass(frozen=True, slots=True)
class Compared:
    """All that a round measures."""

    monitored: TelltaleClient
    unmonitored: TelltaleClient
    chunked: Mapping[int, TelltaleClient]
    """Monitored servers by `prefill_chunk_tokens`."""
    watching: Mapping[str, Any]
    """Options of monitored requests."""
    reference: Any
    """The model in bf16, as transformers computes it."""
    prompt_ids: Sequence[int]
    """Of the prompt of all streams."""
    llama_cpp: LlamaCpp | None
    threads: int
    sizes: Sizes = field(default_factory=Sizes)


async def one_round(compared: Compared, lock: Path | None = None) -> Figures:
    """All figures, those of each part also on stderr; the lock is held for a part at a time."""
    figures: Figures = {}
    for part in (decode_speed, steering_cost, first_token, long_prompt):
        with turn(lock):
            found = await part(compared)
        print(json.dumps({name: float(f"{value:.4g}") for name, value in found.items()}), file=sys.stderr, flush=True)
        figures |= found
    return figures


async def decode_speed(compared: Compared) -> Figures:
    """Streams at once, monitored and not; `generate`; llama.cpp; the memory."""
    figures, tokens = {"read_bandwidth": read_bandwidth()}, compared.sizes.tokens
    for n in STREAMS:
        figures[f"monitored_{n}"] = rate(await streams(compared.monitored, tokens, [compared.watching] * n))
        figures[f"unmonitored_{n}"] = rate(await streams(compared.unmonitored, tokens, [UNREAD] * n))
    ends = (STREAMS[0], STREAMS[-1])
    for n in ends:
        figures[f"generate_{n}"] = generate_rate(compared.reference, compared.prompt_ids, n, tokens)
    if compared.llama_cpp is not None:
        rates = compared.llama_cpp.rates(ends, tokens, compared.threads)
        figures |= {f"llama_cpp_{n}": rates[n] for n in ends}
    return figures


async def steering_cost(compared: Compared) -> Figures:
    """One stream, steered and not; then several, one of them steered or none: the rates of the others."""
    client, tokens, plain = compared.monitored, compared.sizes.tokens, compared.watching
    steered = {**plain, "steering": [Steering(direction=plain["watch"][0], **STEERING)]}
    figures = {
        "unsteered_alone": rate(await streams(client, tokens, [plain])),
        "steered_alone": rate(await streams(client, tokens, [steered])),
    }
    undisturbed = await streams(client, tokens, [plain] * NUM_NEIGHBOURS)
    _, *neighbours = await streams(client, tokens, [steered, *[plain] * (NUM_NEIGHBOURS - 1)])
    figures["neighbour_of_unsteered"] = statistics.fmean(rate([each]) for each in undisturbed)
    figures["neighbour_of_steered"] = statistics.fmean(rate([each]) for each in neighbours)
    return figures


async def first_token(compared: Compared) -> Figures:
    """Seconds from a request to its first token on idle servers, and those of a plain pass over the same prompt."""
    ids = prompt_of(compared.prompt_ids, compared.sizes.prompt_tokens)
    waited: dict[str, list[float]] = {}
    for _ in range(_FIRST_TOKEN_REPEATS):
        for chunk, client in compared.chunked.items():
            started = time.perf_counter()
            (arrived,) = await stream(client, ids, 1, **compared.watching)
            waited.setdefault(f"first_token_seconds_{chunk}", []).append(arrived - started)
        waited.setdefault("prefill_seconds", []).append(prefill_seconds(compared.reference, ids))
    return {name: statistics.median(seconds) for name, seconds in waited.items()}


def prompt_of(ids: Sequence[int], num_tokens: int) -> list[int]:
    """So many tokens: `ids`, again and again."""
    return [ids[position % len(ids)] for position in range(num_tokens)]


async def long_prompt(compared: Compared) -> Figures:
    """How steady streams are beside a long prompt, for each size of chunk."""
    figures: Figures = {}
    for chunk, client in compared.chunked.items():
        found = await beside_long_prompt(client, compared)
        figures |= {f"{name}_{chunk}": value for name, value in found.items()}
    return figures


async def beside_long_prompt(client: TelltaleClient, compared: Compared) -> Figures:
    """Streams decode; once each has got some tokens, a long prompt arrives, which they share the server with."""
    sizes, options = compared.sizes, compared.watching
    waiting_for, all_decode = set(range(NUM_NEIGHBOURS)), asyncio.Event()

    async def neighbour(number: int) -> Times:
        times = []
        async for arrived in arrivals(client, compared.prompt_ids, sizes.long_run_tokens, **options):
            times.append(arrived)
            if len(times) == sizes.long_run_tokens // 8:
                waiting_for.discard(number)
                if not waiting_for:
                    all_decode.set()
        return times

    async def newcomer() -> tuple[float, float]:
        await all_decode.wait()
        started = time.perf_counter()
        (arrived,) = await stream(client, prompt_of(compared.prompt_ids, sizes.long_prompt_tokens), 1, **options)
        return started, arrived

    reading, *times = await asyncio.gather(newcomer(), *map(neighbour, range(NUM_NEIGHBOURS)))
    return unsteadiness(times, reading) | {"long_prompt_seconds": reading[1] - reading[0]}


def unsteadiness(times: Sequence[Times], reading: tuple[float, float]) -> Figures:
    """Of the times between tokens: p99 and median of all, and p99 of those that overlap `reading` and the median of
    those that don't. In seconds."""
    started, ended = reading
    gaps = [(before, after) for each in times for before, after in pairwise(each)]
    during = [after - before for before, after in gaps if before < ended and after > started]
    beside = [after - before for before, after in gaps if not (before < ended and after > started)]
    every = during + beside
    return {
        "p99_reading": percentile(during, 0.99),
        "median_otherwise": percentile(beside, 0.5),
        "p99_run": percentile(every, 0.99),
        "median_run": percentile(every, 0.5),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The least of `values` that at least `share` of them don't exceed."""
    ranked = sorted(values)
    return ranked[max(0, -int(-share * len(ranked) // 1) - 1)]
