"""A causal test's record as a latent's page shows it. Knows nothing of HTML."""

from typing import Any, NamedTuple


class CausalRow(NamedTuple):
    """One effect of a causal test, in words."""

    name: str
    mean: str
    interval: str
    controls: str
    verdict: str


class CausalView(NamedTuple):
    """A causal test."""

    passed: bool
    rows: list[CausalRow]
    reason: str
    """Why nothing could be measured where the feature was taken out; empty if it could."""


def causal_view(record: dict[str, Any]) -> CausalView:
    """What `telltale lab causal` wrote."""
    ablation, pinning = record.get("ablation", {}), record.get("pinning", {})
    effects = [
        ("taken out: cross-entropy of what follows", ablation.get("cross_entropy")),
        ("taken out: what the topic's tokens lose", ablation.get("topic_tokens")),
        ("pinned: gain of its topic against others", pinning if "mean" in pinning else None),
    ]
    rows = [
        CausalRow(
            name,
            f"{effect['mean']:+.3f}",
            f"{effect['low']:+.3f} to {effect['high']:+.3f}",
            f"{effect['control_p95']:+.3f}",
            "beyond controls" if effect["passed"] else "not beyond controls",
        )
        for name, effect in effects
        if effect
    ]
    return CausalView(bool(record.get("passed")), rows, str(ablation.get("reason", "")))
