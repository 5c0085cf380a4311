"""Several monitors over the same replies: each reply goes through the model once, whatever they read of it.

    joint = JointReader(lm, [plan_of_one, plan_of_another], cache=folder)
    joint.read(replies, plan_of_one)        # what read_replies(lm, replies, plan_of_one) gives

All that was read stays in memory.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array  # type: ignore[import-untyped]

from discovery.errors import MonitorLabError
from discovery.read_replies import ReadingPlan, ReadProbe, read_replies
from discovery.reply_readings import ReplyReadings, concatenated
from discovery.scored_tokens import Reply
from sae_runtime.language_model import LanguageModel

_Key = tuple[tuple[int, ...], tuple[int, ...]]
"""Tokens and scored positions: all that a reply's readings depend on."""


class JointReader:
    """Reads what all of some plans want, and gives each its part."""

    def __init__(
        self,
        lm: LanguageModel,
        plans: Sequence[ReadingPlan],
        *,
        cache: Path | None = None,
        batch_tokens: int = 4096,
    ) -> None:
        """MonitorLabError if the plans read different dictionaries."""
        self._lm = lm
        self._plan = joint_plan(plans)
        self._cache = cache
        self._batch_tokens = batch_tokens
        self._places: dict[_Key, int] = {}
        self._read: ReplyReadings | None = None

    def read(self, replies: Sequence[Reply], plan: ReadingPlan, *, label: str = "replies") -> ReplyReadings:
        """Readings of `replies` as `plan`, one of those given before, has them. Raises what `read_replies` does."""
        missing = {_key(reply): reply for reply in replies if _key(reply) not in self._places}
        if missing or not replies:
            self._load(list(missing.values()), label)
        assert self._read is not None
        chosen = self._read.take([self._places[_key(reply)] for reply in replies])
        return part_of(chosen, self._plan, plan)

    def _load(self, replies: Sequence[Reply], label: str) -> None:
        found = read_replies(
            self._lm, replies, self._plan, cache=self._cache, batch_tokens=self._batch_tokens, label=label
        )
        for reply in replies:
            self._places[_key(reply)] = len(self._places)
        self._read = found if self._read is None else concatenated([self._read, found])


def _key(reply: Reply) -> _Key:
    return reply.tokens, reply.scored


def joint_plan(plans: Sequence[ReadingPlan]) -> ReadingPlan:
    """All that the plans ask for. MonitorLabError if they read different dictionaries, or residuals of every token, or
    means of different tokens."""
    if any(plan.token_point is not None for plan in plans):
        raise MonitorLabError("several monitors can't be read at once where every token's residual is wanted")
    judges = {plan.judged_by.sae_sha256 for plan in plans if plan.judged_by is not None}
    if len(judges) > 1:
        raise MonitorLabError(f"monitors that are measured together must go by one dictionary, got {sorted(judges)}")
    averaged = {plan.averaged for plan in plans if plan.mean_points}
    if len(averaged) > 1:
        raise MonitorLabError(
            "monitors whose baselines are of replies' last tokens must be measured apart from others, got both kinds"
        )
    return ReadingPlan(
        averaged=next(iter(averaged), "scored"),
        mean_points=tuple(dict.fromkeys(point for plan in plans for point in plan.mean_points)),
        probes=tuple({_probe_key(probe): probe for plan in plans for probe in plan.probes}.values()),
        sae=next((plan.sae for plan in plans if plan.sae is not None), None),
        judge=next((plan.judged_by for plan in plans if plan.judged_by is not None), None),
        predictions=any(plan.predictions for plan in plans),
    )


def _probe_key(probe: ReadProbe) -> tuple[str, bytes, float]:
    return str(probe.hook_point), probe.direction_D.numpy().tobytes(), probe.bias


def part_of(readings: ReplyReadings, joint: ReadingPlan, plan: ReadingPlan) -> ReplyReadings:
    """What `plan` alone would have read, out of what `joint` did."""
    points = [joint.mean_points.index(point) for point in plan.mean_points]
    keys = [_probe_key(probe) for probe in joint.probes]
    columns = [keys.index(_probe_key(probe)) for probe in plan.probes]
    num_tokens, nothing = len(readings.off_scale_N), np.zeros(0, np.float32)
    return ReplyReadings(
        counts_I=readings.counts_I,
        mean_ILD=readings.mean_ILD[:, points],
        token_ND=readings.token_ND,
        probes_NP=readings.probes_NP[:, columns],
        log_prob_N=readings.log_prob_N if plan.predictions else nothing,
        entropy_N=readings.entropy_N if plan.predictions else nothing,
        off_scale_N=readings.off_scale_N if plan.judged_by is not None else np.zeros(num_tokens, np.bool_),
        latents_NF=readings.latents_NF if plan.sae is not None else csr_array((num_tokens, 0), dtype=np.float32),
        norms_NP=readings.norms_NP[:, columns],
    )
