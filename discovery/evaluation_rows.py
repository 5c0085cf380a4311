"""The rows of an evaluation: what a monitor is measured on, what it gave, and what each baseline gives on them.

Shape suffixes: I replies, N scored tokens, D model width, F latents, R random draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from discovery.conversations import Conversation
from discovery.discrimination import auroc
from discovery.fitted_baselines import (
    FittedBaselines,
    bag_of_words_scores,
    output_scores,
    output_statistics,
)
from discovery.monitor_scores import ScoredReply
from discovery.reply_readings import ReplyReadings
from discovery.scored_tokens import Reply
from monitors.pack import MonitorPack

Scores = NDArray[np.float64]

NUM_RANDOM = 50
"""Random directions, and random features for each of the monitor's."""


@dataclass(frozen=True)
class Rows:
    """Replies with everything that was read of them."""

    conversations: list[Conversation]
    replies: list[Reply]
    readings: ReplyReadings
    """Off scale is what is so to the monitor."""
    scored: list[ScoredReply]
    points: tuple[str, ...] = ()
    """Hook points of `readings.mean_ILD`."""
    own: dict[str, Scores] = field(default_factory=dict)
    """The monitor's own numbers: statistic, final mean, and each component's statistic if there are several."""
    baselines: dict[str, Scores] = field(default_factory=dict)
    """[I] of each baseline; what could not be computed is not there."""

    @property
    def labels_I(self) -> NDArray[np.int64]:
        return np.array([conversation.label for conversation in self.conversations], np.int64)

    @property
    def groups(self) -> list[str]:
        return [conversation.full_group for conversation in self.conversations]

    def take(self, indices: Sequence[int]) -> "Rows":
        """Some of them."""
        chosen = np.asarray(indices, np.int64)
        return Rows(
            [self.conversations[i] for i in indices],
            [self.replies[i] for i in indices],
            self.readings.take(indices),
            [self.scored[i] for i in indices],
            self.points,
            {name: scores_I[chosen] for name, scores_I in self.own.items()},
            {name: scores_I[chosen] for name, scores_I in self.baselines.items()},
        )


def own_scores(pack: MonitorPack, scored: Sequence[ScoredReply]) -> dict[str, Scores]:
    """What the monitor itself says of each reply."""
    own = {
        "monitor": np.array([reply.statistic for reply in scored]),
        "final_mean": np.array([reply.final_mean for reply in scored]),
    }
    if len(pack.components) > 1:
        for index, component in enumerate(pack.components):
            values = [reply.component_statistic(index, pack.min_tokens) for reply in scored]
            own[f"component {component.name}"] = np.array(values)
    return own


def baseline_scores(
    conversations: Sequence[Conversation],
    readings: ReplyReadings,
    points: Sequence[str],
    fitted: FittedBaselines | None,
) -> dict[str, Scores]:
    """Every baseline that gives one number per reply: larger should mean label 1."""
    found: dict[str, Scores] = {"reply_length": readings.counts_I.astype(np.float64)}
    if len(readings.log_prob_N):
        values_IX = output_statistics(readings)
        found["low_log_prob"], found["entropy"] = -values_IX[:, 0], values_IX[:, 2]
        found["first_token_entropy"] = values_IX[:, 3]
        if fitted is not None and fitted.output_statistics is not None:
            found["output_statistics"] = output_scores(fitted.output_statistics, values_IX)
    if fitted is not None:
        if fitted.bag_of_words is not None:
            texts = [conversation.scored_text for conversation in conversations]
            found["bag_of_words"] = bag_of_words_scores(fitted.bag_of_words, texts)
        for name, probe in fitted.dense.items():
            if probe.hook_point in points:
                mean_ID = readings.mean_ILD[:, points.index(probe.hook_point)]
                found[f"dense_{name}"] = probe.scores(mean_ID)
    return found


def item_control(rows: Rows) -> Scores | None:
    """[I] the monitor's score of the same question asked neutrally: what the question alone gives away.

    In the same format, and of several such replies the first, which is the plainest. NaN where it was not asked so;
    None if none was.
    """
    neutral: dict[tuple[Any, Any], float] = {}
    for row, statistic in zip(rows.conversations, rows.own["monitor"], strict=True):
        if row.meta.get("instruction") == "neutral" and row.meta.get("question_id") is not None:
            neutral.setdefault(_asked(row), float(statistic))
    if not neutral:
        return None
    return np.array([neutral.get(_asked(row), np.nan) for row in rows.conversations])


def _asked(row: Conversation) -> tuple[Any, Any]:
    return row.meta.get("question_id"), row.meta.get("format")


def random_directions(mean_ID: NDArray[np.float32], labels_I: NDArray[np.int64], seed: int = 0) -> dict[str, float]:
    """Quantiles of AUROC over random directions, each turned the way that suits it: what a direction has by luck."""
    rng = np.random.default_rng(seed)
    directions_RD = rng.normal(size=(NUM_RANDOM, mean_ID.shape[1]))
    scores_IR = mean_ID.astype(np.float64) @ directions_RD.T
    return _quantiles([auroc(scores_IR[:, r], labels_I) for r in range(NUM_RANDOM)])


def random_features(
    readings: ReplyReadings, labels_I: NDArray[np.int64], latents: Sequence[int], seed: int = 0
) -> dict[str, float]:
    """Quantiles of AUROC over latents that fire as often as the monitor's, each turned the way that suits it."""
    rate_F = np.asarray((readings.latents_NF > 0).sum(axis=0)).ravel() / max(1, int(readings.counts_I.sum()))
    rng = np.random.default_rng(seed)
    others = np.setdiff1d(np.arange(len(rate_F)), np.asarray(latents, np.int64))
    drawn: set[int] = set()
    for latent in latents:
        nearest = others[np.argsort(np.abs(rate_F[others] - rate_F[latent]), kind="stable")[: 2 * NUM_RANDOM]]
        drawn |= set(rng.choice(nearest, min(NUM_RANDOM, len(nearest)), replace=False).tolist())
    mean_IF = readings.mean_latents()[:, sorted(drawn)].toarray().astype(np.float64)
    return _quantiles([auroc(mean_IF[:, k], labels_I) for k in range(mean_IF.shape[1])])


def _quantiles(aurocs: Sequence[float]) -> dict[str, float]:
    turned = [max(value, 1 - value) for value in aurocs if np.isfinite(value)]
    if not turned:
        return {}
    median, high = np.quantile(turned, [0.5, 0.95])
    return {"num": len(turned), "median": round(float(median), 4), "95%": round(float(high), 4)}


def best_features_by_luck(rows: Rows, num_features: int, num_permutations: int, seed: int = 0) -> dict[str, Any]:
    """The best of `num_features` latents, chosen on half of the groups and measured on the other: truly, and by luck.

    Empty if the groups are too few for two halves.
    """
    import torch

    from discovery.contrast_search import search
    from discovery.errors import SearchError

    mean_IF = rows.readings.mean_latents()
    active = np.flatnonzero((mean_IF > 0).sum(axis=0) >= 5)
    if not len(active):
        return {}
    dense_IF = torch.from_numpy(mean_IF[:, active].toarray().astype(np.float32))
    try:
        result = search(
            dense_IF,
            torch.from_numpy(rows.labels_I),
            rows.groups,
            top=num_features,
            num_permutations=num_permutations,
            seed=seed,
        )
    except SearchError:
        return {}
    best = max((candidate.auroc_held_out or 0.0) for candidate in result.candidates)
    luck = result.permuted_top_held_out
    quantiles = np.quantile(luck, [0.5, 0.95]).round(4).tolist() if luck else []
    return {
        "num_features": num_features,
        "num_latents": len(active),
        "auroc_held_out": best,
        "luck": dict(zip(("median", "95%"), quantiles, strict=False)),
    }
