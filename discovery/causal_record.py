"""The figures of a causal test as a feature's evidence has them, and as a table."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text as Line

from discovery.causal_ablation import Effects
from discovery.causal_texts import LEAST_GROUPS, Text
from discovery.group_bootstrap import difference_interval, mean_interval

_PERCENTILE = 95
_NUM_TOKENS = 10

Side = Sequence[tuple[Text, dict[str, Any]]]
"""Texts, each with its line of the results file."""


def ablation_record(
    on_topic: Effects | None,
    elsewhere: Effects | None,
    decode: Callable[[list[int]], str],
    *,
    typical: Sequence[int],
    seed: int,
) -> dict[str, Any]:
    """Under `ablation`: effects on the texts for a feature beside its controls', and on texts against it."""
    if on_topic is None or len(set(on_topic.groups)) < LEAST_GROUPS:
        num = 0 if on_topic is None else len(on_topic.groups)
        reason = f"active at {num} different positions of its texts, in fewer than {LEAST_GROUPS} documents"
        return {"ablation": {"positions": num, "passed": False, "reason": reason}}
    cross_entropy = against_controls(on_topic.cross_entropy, on_topic.groups, seed)
    topic = against_controls(on_topic.topic_tokens, on_topic.groups, seed) if typical else None
    lost = on_topic.lost_V.topk(_NUM_TOKENS).indices.tolist()
    record = {
        "positions": len(on_topic.groups),
        "documents": len(set(on_topic.groups)),
        "relative_norm": round(float(on_topic.relative_norm[0].mean()), 4),
        "control_relative_norm": round(float(on_topic.relative_norm[1:].mean()), 4),
        "num_controls": len(on_topic.cross_entropy) - 1,
        "cross_entropy": cross_entropy,
        "kl": against_controls(on_topic.kl, on_topic.groups, seed),
        "topic_tokens": topic,
        "typical": [decode([token]) for token in typical[:_NUM_TOKENS]],
        "loses_most": [decode([token]) for token in lost],
        "other_texts": other_texts(elsewhere, seed),
        "passed": cross_entropy["passed"] and topic is not None and topic["low"] > 0,
    }
    return {"ablation": record}


def other_texts(effects: Effects | None, seed: int) -> dict[str, Any]:
    """Cross-entropy where the feature is active in texts against it."""
    if effects is None or len(set(effects.groups)) < LEAST_GROUPS:
        return {"positions": 0 if effects is None else len(effects.groups)}
    estimate = mean_interval(effects.cross_entropy[0].tolist(), effects.groups, seed)
    return {"positions": len(effects.groups), "cross_entropy": estimate.rounded()}


def against_controls(effects: NDArray[np.float64], groups: Sequence[str], seed: int) -> dict[str, Any]:
    """Row 0 with its interval, beside the controls' means."""
    estimate = mean_interval(effects[0].tolist(), groups, seed)
    return _verdict(estimate.rounded(), effects[1:].mean(1))


def pinning_record(name: str, positive: Side, negative: Side, *, pin: float, seed: int) -> dict[str, Any]:
    """What pinning feature `name` does for texts of its topic against others, beside the controls."""

    def data(side: Side, values: list[float]) -> tuple[list[float], list[str]]:
        return values, [text.group for text, _ in side]

    def gains_of(side: Side) -> tuple[list[float], list[str]]:
        return data(side, [line["gains"][name] for _, line in side])

    estimate = difference_interval(gains_of(positive), gains_of(negative), seed)
    by_control = [np.array([line["controls"] for _, line in side]).mean(0) for side in (positive, negative)]
    return {
        "relative_norm": pin,
        "positive": len(positive),
        "negative": len(negative),
        "gain_positive": round(float(np.mean(gains_of(positive)[0])), 5),
        "gain_negative": round(float(np.mean(gains_of(negative)[0])), 5),
        "num_controls": len(by_control[0]),
        **_verdict(estimate.rounded(), by_control[0] - by_control[1]),
    }


def _verdict(estimate: dict[str, float], controls: NDArray[np.float64]) -> dict[str, Any]:
    percentile = float(np.percentile(controls, _PERCENTILE))
    return {
        **estimate,
        "control_mean": round(float(controls.mean()), 5),
        "control_p95": round(percentile, 5),
        "passed": estimate["low"] > 0 and estimate["mean"] > percentile,
    }


def causal_table(records: dict[str, dict[str, Any]]) -> Table:
    """A line per feature."""
    table = Table(title="nats; 95 % intervals over documents; in brackets the controls' 95th percentile")
    table.add_column("feature", no_wrap=True)
    for heading in ("n", "ablated: cross-entropy", "topic tokens lose", "pinned: topic - other"):
        table.add_column(heading, justify="right")
    for heading in ("ablation", "pinning", "passed"):
        table.add_column(heading, no_wrap=True)
    for name, record in records.items():
        ablation, pinning = record["ablation"], record["pinning"]
        effects = [_words(ablation.get(key)) for key in ("cross_entropy", "topic_tokens")]
        marks = [_mark(part["passed"]) for part in (ablation, pinning, record)]
        table.add_row(name, str(ablation["positions"]), *effects, _words(pinning), *marks)
    return table


def _words(effect: dict[str, Any] | None) -> str:
    if effect is None:
        return ""
    return f"{effect['mean']:+.3f} {effect['low']:+.3f}..{effect['high']:+.3f} ({effect['control_p95']:+.3f})"


def _mark(passed: bool) -> Line:
    return Line("yes", "green") if passed else Line("no", "red")
