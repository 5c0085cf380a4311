"""What `benchmarks.serving` says of its rounds: medians, and ratios that are medians of ratios within a round."""

import datetime
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from benchmarks.peers.serving.common import machine
from benchmarks.serving_rounds import STREAMS

Rounds = Sequence[Mapping[str, float]]
ONE, MOST = STREAMS[0], STREAMS[-1]


def summarize(rounds: Rounds, packed_bytes: int) -> dict[str, Any]:
    """All figures; those of prompts by `prefill_chunk_tokens`. `packed_bytes` is what a step reads of weights."""
    rounds = [each | {"read_limit": each["read_bandwidth"] / packed_bytes} for each in rounds]
    return {
        "rounds": len(rounds),
        "one_stream": _present(
            rounds,
            tokens_per_second="monitored_1",
            to_llama_cpp_ratio=("monitored_1", "llama_cpp_1"),
            to_generate_ratio=("monitored_1", "generate_1"),
            to_read_limit_ratio=("monitored_1", "read_limit"),
        ),
        "sixteen_streams": _present(
            rounds,
            tokens_per_second="monitored_16",
            to_one_stream_ratio=("monitored_16", "monitored_1"),
            to_generate_ratio=("monitored_16", "generate_16"),
            to_llama_cpp_ratio=("monitored_16", "llama_cpp_16"),
        ),
        "monitoring_cost_ratio": {n: cost(rounds, f"monitored_{n}", f"unmonitored_{n}") for n in STREAMS},
        "steering_cost_ratio": {
            "itself": cost(rounds, "steered_alone", "unsteered_alone"),
            "neighbours": cost(rounds, "neighbour_of_steered", "neighbour_of_unsteered"),
        },
        "prefill_seconds": median(rounds, "prefill_seconds"),
        "first_token": {chunk: _first_token(rounds, chunk) for chunk in chunks(rounds)},
        "beside_long_prompt": {chunk: _steadiness(rounds, chunk) for chunk in chunks(rounds)},
        "tokens_per_second": {
            name: median(rounds, name)
            for name in rounds[0]
            if name.startswith(("monitored", "unmonitored", "generate", "llama_cpp", "read_limit"))
        },
        "read_bandwidth_bytes_per_second": median(rounds, "read_bandwidth"),
        "packed_bytes": packed_bytes,
    }


def median(rounds: Rounds, name: str) -> float:
    return _rounded(statistics.median(each[name] for each in rounds))


def ratio(rounds: Rounds, name: str, other: str) -> float:
    """How many times `other` `name` is."""
    return _rounded(statistics.median(each[name] / each[other] for each in rounds))


def cost(rounds: Rounds, name: str, other: str) -> float:
    """The share of the rate `other` that `name` lacks; below 0 where it is higher."""
    return round(1 - statistics.median(each[name] / each[other] for each in rounds), 4)


def spread(rounds: Rounds, name: str, other: str) -> list[float]:
    """The least and the largest ratio of a round."""
    ratios = [each[name] / each[other] for each in rounds]
    return [_rounded(min(ratios)), _rounded(max(ratios))]


def chunks(rounds: Rounds) -> list[int]:
    """Sizes of chunks that a long prompt was read with."""
    return sorted(int(name.rpartition("_")[2]) for name in rounds[0] if name.startswith("p99_run_"))


def facts() -> dict[str, Any]:
    """When and where, and with which libraries."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "grpcio")},
    }


def _present(rounds: Rounds, **figures: str | tuple[str, str]) -> dict[str, Any]:
    """Medians, and ratios with their spread; without those that were not measured."""
    found: dict[str, Any] = {}
    for name, of in figures.items():
        if isinstance(of, str):
            found[name] = median(rounds, of)
        elif of[1] in rounds[0]:
            found[name] = ratio(rounds, *of)
            found[f"{name}s_of_rounds"] = spread(rounds, *of)
    return found


def _first_token(rounds: Rounds, chunk: int) -> dict[str, Any]:
    name = f"first_token_seconds_{chunk}"
    return _present(rounds, seconds=name, to_prefill_ratio=(name, "prefill_seconds"))


def _steadiness(rounds: Rounds, chunk: int) -> dict[str, Any]:
    return _present(
        rounds,
        p99_to_median_while_read_ratio=(f"p99_reading_{chunk}", f"median_otherwise_{chunk}"),
        p99_to_median_of_run_ratio=(f"p99_run_{chunk}", f"median_run_{chunk}"),
        median_seconds=f"median_otherwise_{chunk}",
        long_prompt_seconds=f"long_prompt_seconds_{chunk}",
    )


def _rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")
