"""Benign replies for thresholds and rates: what is read, what counts, and how often a monitor fires on them.

A reply with fewer scored tokens than a monitor's `min_tokens` can't fire, nor can one without thoughts if thoughts are
all that the monitor scores. It is left out, not counted as a success: rates are of replies that could have fired. One
that is longer than the last stratum counts with its beginning.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from discovery.binomial import Share, share
from discovery.conversations import Conversation, read_conversations
from discovery.errors import LabelledDataError, MonitorLabError
from discovery.monitor_scores import ScoredReply, reply_roles
from discovery.scored_tokens import Reply, encode_all
from discovery.seen_rows import SeenRows
from monitors.monitor_spec import Role
from monitors.pack import MonitorPack
from monitors.thresholds import LEVELS, Level
from sae_runtime.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class BenignRows:
    """Replies that could fire and ought not to."""

    conversations: list[Conversation]
    replies: list[Reply]
    left_out: dict[str, dict[str, int]]
    """Data set -> reason -> replies: too_long, no_scored_token, too_short, seen; and `cut`, which do count."""


def read_benign(
    lm: LanguageModel,
    paths: Iterable[Path],
    *,
    min_tokens: int,
    max_scored: int,
    max_tokens: int,
    roles: Sequence[Role] = ("assistant",),
    reasoning: str = "auto",
    seen: SeenRows | None = None,
) -> BenignRows:
    """Those of the files. What the monitor has `seen` in fitting is left out. `roles` are whose words it scores;
    `reasoning` says what encloses reasoning, for `sae_runtime.reasoning.parse_delimiters`.

    LabelledDataError for a reply with label 1, or if none is left.
    """
    conversations = read_conversations(paths)
    if lies := [conversation for conversation in conversations if conversation.label == 1]:
        raise LabelledDataError(
            f"benign replies must have label 0, got {len(lies)} with 1, first {lies[0].dataset}, id {lies[0].id!r}"
        )
    encoded = encode_all(
        lm.tokenizer, conversations, max_tokens=min(max_tokens, lm.context_length), reasoning=reasoning
    )
    seen, left_out = seen or SeenRows(), encoded.left_out
    kept, replies = [], []

    def note(conversation: Conversation, reason: str) -> None:
        of_set = left_out.setdefault(conversation.dataset, {})
        of_set[reason] = of_set.get(reason, 0) + 1

    for conversation, reply in zip(encoded.conversations, encoded.replies, strict=True):
        if seen.has(conversation):
            note(conversation, "seen")
        elif _longest_run(reply, roles) < min_tokens:
            note(conversation, "too_short")
        else:
            if len(reply.scored) > max_scored:
                note(conversation, "cut")
                reply = reply.cut(max_scored)
            kept.append(conversation)
            replies.append(reply)
    if not kept:
        raise MonitorLabError(f"some benign reply must have {min_tokens} scored tokens, got none: {left_out}")
    return BenignRows(kept, replies, left_out)


def _longest_run(reply: Reply, roles: Sequence[Role]) -> int:
    """Tokens of the longest of the runs that a monitor makes of a reply: of all, or of answer and thoughts apart."""
    num_thoughts = len(reply.reasoning.intersection(reply.scored))
    of_role = {"reasoning": num_thoughts, "assistant": len(reply.scored) - num_thoughts}
    scored = reply_roles(roles)
    return max(of_role[role] for role in scored) if "reasoning" in scored else len(reply.scored)


def has_level(pack: MonitorPack, level: Level) -> bool:
    """Whether `level` stands at any length: that nothing reached what there is none of says nothing."""
    return pack.thresholds is not None and level in dict(pack.thresholds.levels.named())


def reached(reply: ScoredReply, level: Level) -> bool:
    """Whether a reply got as far as `level`."""
    return reply.level is not None and LEVELS.index(reply.level) >= LEVELS.index(level)


def reach_shares(scored: Sequence[ScoredReply]) -> dict[str, Share]:
    """Of each level, the replies that reached it."""
    return {level: share(sum(reached(reply, level) for reply in scored), len(scored)) for level in LEVELS}


def shares_by(names: Sequence[Any], scored: Sequence[ScoredReply]) -> dict[str, dict[str, Any]]:
    """`reach_shares` by whatever each reply is named, for records."""
    return {
        str(name): {
            level: found.as_json()
            for level, found in reach_shares([r for r, n in zip(scored, names, strict=True) if n == name]).items()
        }
        for name in dict.fromkeys(names)
    }


def alert_rates(scored: Sequence[ScoredReply]) -> dict[str, Any]:
    """How many alerts they raised, rises to critical included."""
    num_alerts, num_tokens = sum(reply.num_fired for reply in scored), sum(len(reply.scores) for reply in scored)
    return {
        "num_replies": len(scored),
        "num_tokens": num_tokens,
        "num_alerts": num_alerts,
        "per_1000_replies": round(1000 * num_alerts / max(len(scored), 1), 3),
        "per_million_tokens": round(1e6 * num_alerts / max(num_tokens, 1), 1),
    }
