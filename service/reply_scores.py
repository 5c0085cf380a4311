"""What monitors made of one reply's tokens, kept until its end: for comparing traffic with the calibration."""

from collections.abc import Iterable, Sequence

from monitors.drift import FinishedReply
from monitors.monitor_spec import MonitorSpec, Role
from monitors.track import MonitorSummary, MonitorUpdate


class ReplyScores:
    """Scores of the assistant's words, by monitor."""

    def __init__(self, monitors: Sequence[MonitorSpec]) -> None:
        self._token_roles = {spec.name: spec.token_roles("assistant") for spec in monitors}
        self._min_tokens = {spec.name: spec.min_tokens for spec in monitors if "assistant" in spec.roles}
        self._scores: dict[str, list[float]] = {name: [] for name in self._min_tokens}

    def add(self, updates: Iterable[tuple[str, MonitorUpdate]], role: Role | None) -> None:
        """One token of the reply: of those monitors that it is the assistant's for."""
        for name, update in updates:
            if name in self._scores and role in self._token_roles[name]:
                self._scores[name].append(update.score)

    def finished(self, summaries: Iterable[MonitorSummary]) -> list[FinishedReply]:
        """The whole reply, of each monitor that has a statistic: a shorter reply is in no calibration either."""
        found = []
        for one in summaries:
            if one.role == "assistant" and one.max_statistic is not None:
                scores = self._scores[one.monitor][self._min_tokens[one.monitor] - 1 :]
                found.append(FinishedReply(one.monitor, one.max_statistic, scores))
        return found
