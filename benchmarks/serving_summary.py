"""What `benchmarks.serving` says of its rounds: medians, and ratios with the least and the largest of a round.

The ratio of a round is the median of its pairs' ratios, and the ratio that is said is the median of those of rounds.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.serving_rounds import STREAMS

Rounds = Sequence[Mapping[str, Sequence[float]]]
MOST = STREAMS[-1]


def summarize(rounds: Rounds, packed_bytes: int) -> dict[str, Any]:
    """All figures. `packed_bytes` is what a step reads of weights."""
    # A step can't take less than reading these once: so many tokens per second of one stream.
    rounds = [{**each, "read_limit_1": [read / packed_bytes for read in each["read_bandwidth"]]} for each in rounds]
    monitored, generate = f"monitored_{MOST}", f"generate_{MOST}"
    return {
        "rounds": len(rounds),
        "one_stream": {
            "tokens_per_second": median(rounds, "monitored_1"),
            "to_read_limit": ratio(rounds, "monitored_1", "read_limit_1"),
            "unmonitored_to_read_limit": ratio(rounds, "unmonitored_1", "read_limit_1"),
        },
        "sixteen_streams": {
            "tokens_per_second": median(rounds, monitored),
            "to_one_stream": ratio_of_medians(rounds, monitored, "monitored_1"),
            "to_generate": ratio_of_medians(rounds, monitored, generate),
        },
        "monitoring_cost": {n: cost(rounds, f"monitored_{n}", f"unmonitored_{n}") for n in STREAMS},
        "steering_cost": {
            "itself": cost(rounds, "steered_alone", "unsteered_alone"),
            "neighbours": cost(rounds, "neighbour_of_steered", "neighbour_of_unsteered"),
        },
        "first_token": {
            "seconds": median(rounds, "first_token_seconds"),
            "to_plain_pass": ratio(rounds, "first_token_seconds", "plain_pass_seconds"),
            "to_unmonitored": ratio(rounds, "first_token_seconds", "unmonitored_first_token_seconds"),
            "to_transformers_pass": ratio(rounds, "first_token_seconds", "transformers_pass_seconds"),
        },
        "beside_long_prompt": {
            "p99_to_median_otherwise": ratio(rounds, "long_prompt_p99", "long_prompt_median_otherwise"),
            "prompt_to_alone": ratio(rounds, "long_prompt_beside_seconds", "long_prompt_alone_seconds"),
        },
        "medians": {name: median(rounds, name) for name in rounds[0]},
        "packed_bytes": packed_bytes,
    }


def median(rounds: Rounds, name: str) -> float:
    """Of the medians of rounds."""
    return _rounded(statistics.median(statistics.median(each[name]) for each in rounds))


def ratio(rounds: Rounds, name: str, other: str) -> dict[str, Any]:
    """How many times `other` `name` is, which took turns."""
    return _spread([_of_pairs(each, name, other) for each in rounds])


def ratio_of_medians(rounds: Rounds, name: str, other: str) -> dict[str, Any]:
    """How many times `other` `name` is, which did not take turns within a round."""
    return _spread([statistics.median(each[name]) / statistics.median(each[other]) for each in rounds])


def cost(rounds: Rounds, name: str, other: str) -> dict[str, Any]:
    """The share of the rate `other` that `name` lacks; below 0 where it is higher."""
    return _spread([1 - _of_pairs(each, name, other) for each in rounds])


def _of_pairs(figures: Mapping[str, Sequence[float]], name: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(figures[name], figures[other], strict=True))


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Of rounds: the median, the least and the largest."""
    return {"ratio": _rounded(statistics.median(values)), "of_rounds": [_rounded(min(values)), _rounded(max(values))]}


def _rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")
