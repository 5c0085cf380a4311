"""One round of `benchmarks.serving`: things that are compared one right after the other, several times, each time the
other way round, so that a machine that gets slower or faster meanwhile does not speak for one of them.

Each function gives figures by name; `serving_summary` makes ratios of those of a round. Rates are tokens per second.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.serving_client import UNREAD, Times, arrivals, rate, stream, streams
from benchmarks.serving_peers import PlainPass, generate_rate, prefill_seconds, read_bandwidth
from benchmarks.timing_lock import turn
from service.client import TelltaleClient
from service.client_request import Steering

Figures = dict[str, list[float]]
"""All values of a round, in the order they were taken: those of two names that took turns make pairs."""
STREAMS = (1, 4, 16)
NUM_NEIGHBOURS = 8
"""Streams of which one is steered, or that decode while a long prompt arrives."""
STEERING = {"op": "add", "strength": 0.2, "unit": "relative", "scope": "generated"}
_SETTLED_SECONDS = 0.1
"""Until a server has left streams that were broken off."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    tokens: int = 128
    """Of each stream."""
    pairs: int = 4
    """Of several streams at once in a round, and of what takes about as long."""
    short_pairs: int = 8
    """Of single streams, which take a second."""
    prompt_tokens: int = 512
    """Of the prompt whose first token is waited for."""
    long_prompt_tokens: int = 2000
    """Of the prompt that arrives while others decode."""
    tokens_around: int = 48
    """Of each stream beside it, before it arrives and again when it has been read."""
    most_tokens: int = 1000
    """Of each stream beside it, which they must outlast; the monitor has thresholds for 1,024 at most."""


@dataclass(frozen=True, slots=True)
class Compared:
    """All that a round measures."""

    monitored: TelltaleClient
    unmonitored: TelltaleClient
    watching: Mapping[str, Any]
    """Options of monitored requests."""
    reference: Any
    """The model in bf16, as transformers computes it."""
    plain_pass: PlainPass
    """The model as the server computes it, without a server."""
    prompt_ids: Sequence[int]
    """Of the prompt of all streams."""
    sizes: Sizes = field(default_factory=Sizes)


async def one_round(compared: Compared, lock: Path | None = None) -> Figures:
    """All figures, medians of each part also on stderr; the lock is held for a part at a time."""
    figures: Figures = {}
    for part in (decode_speed, steering_cost, first_token, long_prompt):
        with turn(lock):
            found = await part(compared)
        medians = {name: float(f"{statistics.median(values):.4g}") for name, values in found.items()}
        print(json.dumps(medians), file=sys.stderr, flush=True)
        figures |= found
    return figures


async def by_turns(number: int, **runs: Callable[[], Awaitable[float]]) -> Figures:
    """So many values of each of `runs`, one after the other, every other time from the last to the first."""
    figures: Figures = {name: [] for name in runs}
    for turn_number in range(number):
        for name in runs if turn_number % 2 == 0 else reversed(runs):
            figures[name].append(await runs[name]())
    return figures


async def decode_speed(compared: Compared) -> Figures:
    """Streams at once, monitored and not; what the memory gives beside one stream; `generate`."""
    figures, sizes = Figures(), compared.sizes

    async def read() -> float:
        return read_bandwidth()

    for n in STREAMS:

        async def monitored(n: int = n) -> float:
            return rate(await streams(compared.monitored, sizes.tokens, [compared.watching] * n))

        async def unmonitored(n: int = n) -> float:
            return rate(await streams(compared.unmonitored, sizes.tokens, [UNREAD] * n))

        ways = {f"monitored_{n}": monitored, f"unmonitored_{n}": unmonitored}
        if n == 1:
            ways["read_bandwidth"] = read
        figures |= await by_turns(sizes.short_pairs if n == 1 else sizes.pairs, **ways)
    most = STREAMS[-1]
    figures[f"generate_{most}"] = [generate_rate(compared.reference, compared.prompt_ids, most, sizes.tokens)]
    return figures


async def steering_cost(compared: Compared) -> Figures:
    """One stream, steered and not; then several, one of them steered or none: the rates of the others."""
    client, sizes, plain = compared.monitored, compared.sizes, compared.watching
    steered = {**plain, "steering": [Steering(direction=plain["watch"][0], **STEERING)]}

    async def alone(options: Mapping[str, Any]) -> float:
        return rate(await streams(client, sizes.tokens, [options]))

    async def neighbours(first: Mapping[str, Any]) -> float:
        _, *others = await streams(client, sizes.tokens, [first, *[plain] * (NUM_NEIGHBOURS - 1)])
        return statistics.fmean(rate([each]) for each in others)

    figures = await by_turns(
        sizes.short_pairs, unsteered_alone=lambda: alone(plain), steered_alone=lambda: alone(steered)
    )
    return figures | await by_turns(
        sizes.pairs,
        neighbour_of_unsteered=lambda: neighbours(plain),
        neighbour_of_steered=lambda: neighbours(steered),
    )


async def first_token(compared: Compared) -> Figures:
    """Seconds from a request to its first token on idle servers, and those of plain passes over the same prompt."""
    ids = prompt_of(compared.prompt_ids, compared.sizes.prompt_tokens)

    async def plain_pass() -> float:
        return compared.plain_pass.seconds(ids)

    async def transformers_pass() -> float:
        return prefill_seconds(compared.reference, ids)

    return await by_turns(
        compared.sizes.short_pairs,
        first_token_seconds=lambda: waited(compared.monitored, ids, compared.watching),
        plain_pass_seconds=plain_pass,
        unmonitored_first_token_seconds=lambda: waited(compared.unmonitored, ids, UNREAD),
        transformers_pass_seconds=transformers_pass,
    )


async def waited(client: TelltaleClient, ids: Sequence[int], options: Mapping[str, Any]) -> float:
    """Seconds from a request to its first token."""
    started = time.perf_counter()
    (arrived,) = await stream(client, ids, 1, **options)
    return arrived - started


def prompt_of(ids: Sequence[int], num_tokens: int) -> list[int]:
    """So many tokens: `ids`, again and again."""
    return [ids[position % len(ids)] for position in range(num_tokens)]


async def long_prompt(compared: Compared) -> Figures:
    """How steady streams are beside a long prompt, and how long it takes there and alone."""
    ids = prompt_of(compared.prompt_ids, compared.sizes.long_prompt_tokens)
    around: Figures = {}

    async def beside() -> float:
        found = await beside_long_prompt(compared, ids)
        for name, value in found.items():
            around.setdefault(name, []).append(value)
        await asyncio.sleep(_SETTLED_SECONDS)
        return found["beside_seconds"]

    figures = await by_turns(
        max(1, compared.sizes.pairs // 2),
        alone_seconds=lambda: waited(compared.monitored, ids, compared.watching),
        beside_seconds=beside,
    )
    return {f"long_prompt_{name}": values for name, values in (around | figures).items()}


async def beside_long_prompt(compared: Compared, ids: Sequence[int]) -> dict[str, float]:
    """Streams decode; once each has got some tokens, a long prompt arrives, which they share the server with.

    Raises:
        RuntimeError: a stream had all its tokens before the prompt had been read, and some more.
    """
    client, sizes, options = compared.monitored, compared.sizes, compared.watching
    waiting_for, all_decode, is_read = set(range(NUM_NEIGHBOURS)), asyncio.Event(), asyncio.Event()

    async def neighbour(number: int) -> Times:
        times: Times = []
        num_after = 0
        async with aclosing(arrivals(client, compared.prompt_ids, sizes.most_tokens, **options)) as arriving:
            async for arrived in arriving:
                times.append(arrived)
                if len(times) == sizes.tokens_around:
                    waiting_for.discard(number)
                    if not waiting_for:
                        all_decode.set()
                num_after += is_read.is_set()
                if num_after == sizes.tokens_around:
                    return times
        raise RuntimeError(f"streams must outlast the prompt beside them: one ended after {len(times)} tokens")

    async def newcomer() -> tuple[float, float]:
        await all_decode.wait()
        started = time.perf_counter()
        (arrived,) = await stream(client, ids, 1, **options)
        is_read.set()
        return started, arrived

    reading, *times = await asyncio.gather(newcomer(), *map(neighbour, range(NUM_NEIGHBOURS)))
    return unsteadiness(times, reading) | {"beside_seconds": reading[1] - reading[0]}


def unsteadiness(times: Sequence[Times], reading: tuple[float, float]) -> dict[str, float]:
    """Of the times between tokens: p99 of those that overlap `reading`, and the median of those that don't. In
    seconds."""
    started, ended = reading
    gaps = [(before, after) for each in times for before, after in pairwise(each)]
    during = [after - before for before, after in gaps if before < ended and after > started]
    otherwise = [after - before for before, after in gaps if not (before < ended and after > started)]
    return {"p99": percentile(during, 0.99), "median_otherwise": percentile(otherwise, 0.5)}


def percentile(values: Sequence[float], share: float) -> float:
    """The least of `values` that at least `share` of them don't exceed."""
    ranked = sorted(values)
    return ranked[max(0, -int(-share * len(ranked) // 1) - 1)]
