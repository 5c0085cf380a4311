"""Rows of an evaluation made by hand: nothing was read, so every figure can be counted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from discovery.conversations import Conversation
from discovery.evaluation_rows import Rows
from discovery.monitor_scores import ScoredReply
from discovery.reply_readings import ReplyReadings
from discovery.scored_tokens import Reply
from monitors.thresholds import Level


def readings(counts: Sequence[int], **changes: Any) -> ReplyReadings:
    """Replies of so many tokens each, of which nothing was read."""
    num_tokens, none = sum(counts), np.zeros((0, 0), np.float32)
    facts: dict[str, Any] = {
        "counts_I": np.array(counts, np.int64),
        "mean_ILD": np.zeros((len(counts), 0, 0), np.float32),
        "token_ND": none,
        "probes_NP": none,
        "log_prob_N": np.zeros(0, np.float32),
        "entropy_N": np.zeros(0, np.float32),
        "off_scale_N": np.zeros(num_tokens, bool),
        "latents_NF": csr_array((0, 0), dtype=np.float32),
    }
    return ReplyReadings(**(facts | changes))


def rows(
    statistics: Sequence[float],
    labels: Sequence[int] | None = None,
    *,
    groups: Sequence[str] | None = None,
    metas: Sequence[dict[str, Any]] | None = None,
    levels: Sequence[Level | None] | None = None,
    count: int = 9,
    **baselines: Sequence[float],
) -> Rows:
    """A reply for each of `statistics`, of `count` tokens, each a group of its own unless told."""
    num = len(statistics)
    labels, metas = labels or [0] * num, metas or [{} for _ in range(num)]
    groups, levels = groups or [f"g{index}" for index in range(num)], levels or [None] * num
    text = {"role": "assistant", "content": "So."}
    return Rows(
        [
            Conversation(f"id-{index}", "made", (text,), 0, 3, label, group, meta)
            for index, (label, group, meta) in enumerate(zip(labels, groups, metas, strict=True))
        ],
        [Reply(tuple(range(count + 1)), tuple(range(1, count + 1)))] * num,
        readings([count] * num),
        [
            ScoredReply(statistic, statistic, (statistic,) * count, ((),) * count, level, 0)
            for statistic, level in zip(statistics, levels, strict=True)
        ],
        own={"monitor": np.array(statistics, np.float64)},
        baselines={name: np.array(scores, np.float64) for name, scores in baselines.items()},
    )
