"""What a request makes of each token that is read for it: its event, with monitors and policies done.

One `TokenObserver` per row. It knows nothing of text, of what leaves and when, or of how the reply ends.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitors.bank import MonitorBank
from monitors.components import Inputs
from monitors.monitor_spec import Role
from monitors.policy import PolicyAction
from monitors.track import Alert
from sae_runtime.reasoning import ReasoningReader
from sae_runtime.steering import Steering
from service.alert_evidence import AlertEvidence
from service.pass_output import Fetched
from service.read_plan import Columns, Places
from service.reconstruction_guard import OffDistributionTokens
from service.reply_scores import ReplyScores
from service.request import AlertEvent, Request, Score, TokenEvent

_NOTHING = Inputs()


class Place(NamedTuple):
    """Where a token is in a pass."""

    n: int
    """Its number, rows one after another."""
    b: int
    """Its row."""
    t: int
    """Its number in the row."""


class TokenObserver:
    """A request's monitors, policies and guards, over its tokens in order."""

    def __init__(
        self,
        request: Request,
        *,
        tokenizer: Any,
        steering: Steering | None,
        keeps_alerts: bool = False,
        max_fvu: float | None = None,
    ) -> None:
        """
        Args:
            steering: the request's, which policies switch on more of.
            keeps_alerts: whether each alert comes with what is to be kept of it.
            max_fvu: FVU above which a token is off the dictionary's distribution; None marks none.
        """
        self.request = request
        self.bank = MonitorBank(request.monitors, request.policies)
        self.alerts: list[AlertEvent] = []
        self.off_distribution = OffDistributionTokens(max_fvu, request.monitors)
        self.reply_scores = ReplyScores(request.monitors)
        self.evidence: AlertEvidence | None = None
        """Of its alerts; None if they are not kept."""
        if keeps_alerts and request.monitors and request.replay is None:
            self.evidence = AlertEvidence(request)
        self._steering = steering
        self._reasoning = ReasoningReader(tokenizer, request.reasoning, request.prompt_ids)

    def observe(
        self, fetched: Fetched, columns: Columns, place: Place, ids: Sequence[int], position: int, *, is_prompt: bool
    ) -> TokenEvent:
        """The event of the token of `ids` at `position`, which is at `place` in a pass. Its text comes later."""
        stats, (n, b, t), token_id = fetched.stats, place, ids[position]
        readings_U = stats.readings_NU[n]
        role = self.request.prompt_role(position) if is_prompt else self._reply_role(token_id)
        off_scale, fvu = bool(stats.off_scale_N[n]), float(stats.fvu_N[n])
        inputs = self._inputs(fetched, columns, n, role)
        updates = self.bank.observe(position, inputs, role)
        off_scale = off_scale or self.bank.left_out
        off_distribution = self.off_distribution.observe(position, role, fvu=fvu, off_scale=off_scale)
        if not is_prompt:
            self.reply_scores.add(updates, role)
        steered = fetched.steered.get(b)
        was_steered = steered is not None and bool(steered.covered_T[t])
        top = zip(stats.top_indices_Nk[n].tolist(), stats.top_values_Nk[n].tolist(), strict=True)
        event = TokenEvent(
            index=position,
            id=token_id,
            text="",
            is_prompt=is_prompt,
            readings=readings_U[columns.watched].tolist(),
            steered_readings=steered.readings_TU[t][columns.watched].tolist() if steered and was_steered else [],
            top_features=[(int(i), v) for i, v in top if v > 0][: self.request.top_features],
            logprob=None,
            scores=[Score(name, u.score, u.components, u.level) for name, u in updates],
            fvu=fvu,
            l0=int(stats.l0_N[n]),
            role=role,
            off_scale=off_scale,
            probes=inputs.probes,
            off_distribution=off_distribution,
        )
        if self.evidence is not None:
            self.evidence.observe(event, self.bank.span_start)
        self.alerts.extend(self._raised(update.alert, ids) for _, update in updates if update.alert is not None)
        self._apply_policies(position)
        return event

    def alerts_at(self, position: int) -> list[AlertEvent]:
        """Those that a token raised or cleared."""
        return [event for event in self.alerts if event.alert.position == position]

    def _raised(self, alert: Alert, ids: Sequence[int]) -> AlertEvent:
        """With the policies that it made apply."""
        policies = tuple(policy.name for policy in self.bank.applied_by(alert))
        num_off = self.off_distribution.in_span(alert.span_start, alert.position, alert.monitor, alert.role)
        event = AlertEvent(
            self.request.request_id,
            self.request.label,
            alert,
            time.time(),
            policies,
            off_distribution_tokens=num_off,
        )
        if self.evidence is None:
            return event
        return self.evidence.add(event, ids[: alert.position + 1], self.bank.action_of(alert).value)

    def _reply_role(self, token_id: int) -> Role:
        return "reasoning" if self._reasoning.push(token_id) else "assistant"

    def _inputs(self, fetched: Fetched, columns: Columns, n: int, role: Role | None) -> Inputs:
        """What the monitors need of token `n`; nothing where none of them scores it."""
        if not self.bank.scores(role):
            return _NOTHING
        stats = fetched.stats
        latents, probes = (columns.monitored_latents, columns.monitored), (columns.probes, columns.probed)
        return Inputs(
            _named(*latents, stats.readings_NU[n]),
            _named(*probes, stats.probes_NP[n]) if columns.probes else {},
            _named(*probes, stats.norms_NP[n]) if columns.probes else {},
            bool(stats.off_scale_N[n]),
        )

    def _apply_policies(self, position: int) -> None:
        """Switch on the steering of policies that have come to apply.

        From the next position on; if it was a prompt token, from the first generated one, since how much of the prompt
        is read in one pass must not matter.
        """
        for policy in self.bank.policies.latest:
            if policy.action is PolicyAction.STEER:
                assert self._steering is not None
                specs, active_from = (
                    self.request.policy_steering[policy.name],
                    max(position + 1, len(self.request.prompt_ids)),
                )
                self._steering.add(specs, active_from=active_from)
                if self.evidence is not None:
                    self.evidence.steer(policy.name, specs, active_from)


def _named(names: Sequence[Any], places: Places, values_X: NDArray[np.float32]) -> dict[Any, float]:
    """The values at `places`, by name."""
    return dict(zip(names, values_X[places].tolist(), strict=True))
