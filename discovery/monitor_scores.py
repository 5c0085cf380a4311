"""A monitor over replies that were read: its statistic is what the streaming code itself makes of their tokens.

Shape suffixes: I replies, N scored tokens, P probes, K latents.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from discovery.errors import MonitorLabError
from discovery.read_replies import ReadingPlan, ReadProbe
from discovery.reply_readings import ReplyReadings
from discovery.scored_tokens import Reply
from monitors.bank import MonitorBank
from monitors.components import Inputs
from monitors.monitor_spec import MonitorSpec, Role
from monitors.pack import MonitorPack
from monitors.pack_parts import PackCalibration
from monitors.thresholds import LEVELS, Level, Levels, LevelThreshold, Stratum, Thresholds
from sae_runtime.checkpoint import LoadedSAE
from sae_runtime.hook_point import HookPoint

_NEVER = 1e300
"""An offset that no score exceeds."""


class Run(NamedTuple):
    """What a monitor made of one role's tokens in a reply, which it scores by themselves."""

    role: Role
    scores: tuple[float, ...]
    statistic: float | None
    """None for fewer than `min_tokens` scored tokens."""


class ScoredReply(NamedTuple):
    """A monitor over one reply."""

    statistic: float
    """Largest excess over the length profile; -inf for a reply of fewer than `min_tokens` scored tokens."""
    final_mean: float
    """The score that one window over the whole reply gives; of a cascade, the mean of its scores at the tokens at which
    its gate was open. -inf if no token was scored, or the gate never opened; the larger one where reasoning is scored
    by itself."""
    scores: tuple[float, ...]
    """At each scored token."""
    components: tuple[tuple[float, ...], ...]
    """Standardised rolling score of each component at each scored token."""
    level: Level | None
    """The highest that it reached."""
    num_fired: int
    runs: tuple[Run, ...] = ()
    """Of the reply, or of answer and reasoning if the monitor scores reasoning by itself. Rates hold for each."""

    def component_statistic(self, index: int, min_tokens: int) -> float:
        """The largest score of one component alone, as `statistic` is of all."""
        return max(self.components[index][min_tokens - 1 :], default=-math.inf)


def reading_plan(pack: MonitorPack, sae: LoadedSAE | None) -> ReadingPlan:
    """What the monitor reads. MonitorLabError if it reads latents and there is no dictionary.

    A dictionary whose latents it does not read says which tokens are massive activations, if one of its probes can't.
    """
    probes = tuple(
        ReadProbe(HookPoint.parse(probe.hook_point), torch.tensor(probe.direction), probe.bias)
        for probe in pack.probes()
    )
    reads_latents = any(component.features for component in pack.components)
    if reads_latents and sae is None:
        raise MonitorLabError(f"monitor {pack.name} reads latents: give --dictionary, got none")
    if reads_latents or sae is None or _judges_alone(pack):
        return ReadingPlan(probes=probes, sae=sae if reads_latents else None)
    return ReadingPlan(probes=probes, judge=sae.manifest)


def _judges_alone(pack: MonitorPack) -> bool:
    """Whether all of its probes know their largest norm."""
    return all(c.probe.largest_norm is not None for c in pack.components if c.probe is not None)


def scoring_spec(pack: MonitorPack) -> MonitorSpec:
    """The pack's monitor; of one that has no thresholds yet, a monitor that never fires."""
    if pack.thresholds is not None:
        return pack.spec()
    bound = pack.min_tokens  # a level has to stand somewhere from there on
    never = Thresholds((Stratum(bound, 0.0),), Levels(LevelThreshold(0.5, _NEVER, (bound,)), None), 0.0)
    stand_in = PackCalibration(method="by_hand", source="None: the monitor never fires.")
    return replace(pack, validated=False, thresholds=never, calibration=stand_in).spec()


def score_replies(pack: MonitorPack, readings: ReplyReadings, replies: Sequence[Reply] = ()) -> list[ScoredReply]:
    """Every reply through the streaming code. `readings.probes_NP` has the pack's probes, in their order; `replies` say
    which of the scored tokens are reasoning, none if they are not given."""
    spec = scoring_spec(pack)
    tokens = _inputs(spec, [probe.name for probe in pack.probes()], readings)
    flags = [[at in reply.reasoning for at in reply.scored] for reply in replies]
    flags = flags or [[False] * count for count in readings.counts_I.tolist()]
    return [_run(spec, [(next(tokens), flag) for flag in of_reply]) for of_reply in flags]


def scored_positions(pack: MonitorPack, reply: Reply, off_scale: Iterable[bool]) -> list[int]:
    """Positions that the monitor scored: `ScoredReply.scores` has one each. `off_scale` is of `reply.scored`."""
    counts_answers = "assistant" in reply_roles(pack.roles)
    return [
        position
        for position, is_off_scale in zip(reply.scored, off_scale, strict=True)
        # Thoughts are the assistant's unless scored by themselves, so they always count.
        if not is_off_scale and (counts_answers or position in reply.reasoning)
    ]


def off_scale_to(pack: MonitorPack, readings: ReplyReadings) -> NDArray[np.bool_]:
    """[N] the tokens that the monitor leaves out."""
    spec = scoring_spec(pack)
    tokens = _inputs(spec, [probe.name for probe in pack.probes()], readings)
    return np.array([spec.is_off_scale(inputs) for inputs in tokens], np.bool_)


def _inputs(spec: MonitorSpec, probe_names: Sequence[str], readings: ReplyReadings) -> Iterator[Inputs]:
    """Of every scored token, in order."""
    num_tokens = int(readings.counts_I.sum())
    latents: list[int] = list(spec.latents)
    f_NK = readings.latents_NF[:, latents].toarray() if latents else np.zeros((num_tokens, 0))
    probes_NP, norms_NP = readings.probes_NP, readings.norms_NP
    has_norms = len(norms_NP) == num_tokens
    for row in range(num_tokens):
        yield Inputs(
            dict(zip(latents, f_NK[row].tolist(), strict=True)),
            dict(zip(probe_names, probes_NP[row, : len(probe_names)].tolist(), strict=True)),
            dict(zip(probe_names, norms_NP[row].tolist(), strict=False)) if has_norms else {},
            bool(readings.off_scale_N[row]),
        )


def _run(spec: MonitorSpec, tokens: Sequence[tuple[Inputs, bool]]) -> ScoredReply:
    """A reply of inputs, each with whether it is reasoning; tokens that are off scale are left out."""
    roles = reply_roles(spec.roles)
    bank, runs = MonitorBank([replace(spec, roles=roles)]), dict[Role, list[float]]()
    updates = []
    counted = [(inputs, is_reasoning) for inputs, is_reasoning in tokens if not spec.is_off_scale(inputs)]
    for position, (inputs, is_reasoning) in enumerate(counted, start=1):
        role: Role = "reasoning" if is_reasoning else "assistant"
        for _, update in bank.observe(position, inputs, role):
            updates.append(update)
            runs.setdefault(role if role in roles else "assistant", []).append(update.score)
    summaries = bank.summaries()
    statistics = {summary.role: summary.max_statistic for summary in summaries}
    levels = [summary.level for summary in summaries if summary.level is not None]
    return ScoredReply(
        statistic=max((s.max_statistic for s in summaries if s.max_statistic is not None), default=-math.inf),
        final_mean=max((s.mean_score for s in summaries if s.mean_score is not None), default=-math.inf),
        scores=tuple(update.score for update in updates),
        components=tuple(zip(*(update.components for update in updates), strict=True)) or ((),) * len(spec.components),
        level=max(levels, key=LEVELS.index, default=None),
        num_fired=sum(summary.num_fired for summary in summaries),
        runs=tuple(Run(role, tuple(scores), statistics.get(role)) for role, scores in runs.items()),
    )


def reply_roles(roles: Sequence[Role]) -> tuple[Role, ...]:
    """What is scored of a reply. Labelled text is scored as the assistant's, whatever else the monitor scores."""
    spoken = tuple(role for role in roles if role in ("assistant", "reasoning"))
    return spoken if "reasoning" in spoken else ("assistant",)
