"""A steered request and its unsteered twin: two rows of the engine that are one RPC.

Both are submissions like any other, with one mailbox: the twin's events come marked. They get their slots together and
are cancelled together; if one fails the other is cancelled, and the RPC fails with what came first. For the metrics
they are one request, told when both have ended.
"""

from collections.abc import Sequence
from dataclasses import replace

from monitors.alert_record import BASELINE_SUFFIX
from monitors.policy import PolicyAction
from service.records import Outcome, RequestRecord
from service.request import BaselineEvent, Event, FinishReason, Mailbox, Request

_ENDED_WELL = {Outcome(reason.value) for reason in FinishReason}


def baseline_of(request: Request) -> Request:
    """The same request without steering: not by itself, and by no policy. Such a policy's monitor annotates."""
    policies = tuple(policy for policy in request.policies if policy.action is not PolicyAction.STEER)
    return replace(
        request,
        # In alerts, in the log, and in Started.
        request_id=request.request_id + BASELINE_SUFFIX,
        steering=(),
        policies=policies,
        policy_steering={},
        with_baseline=False,
    )


class BaselineMailbox(Mailbox):
    """Passes a twin's events on to the mailbox of its request, marked."""

    def __init__(self, to: Mailbox) -> None:
        super().__init__()
        self._to = to

    @property
    def address(self) -> Mailbox:
        return self._to

    def put(self, events: Sequence[Event]) -> None:
        self._to.put([event if isinstance(event, BaselineEvent) else BaselineEvent(event) for event in events])

    def fail(self, failure: Exception) -> None:
        self._to.fail(failure)

    def unread_seconds(self, now: float) -> float:
        return self._to.unread_seconds(now)


class PairRecords:
    """What became of the two. The engine's own."""

    def __init__(self) -> None:
        self._first: tuple[RequestRecord, bool] | None = None

    def join(self, record: RequestRecord, *, is_baseline: bool) -> RequestRecord | None:
        """One record of both, once both have ended; None before.

        Its figures are the steered one's, but for what monitors and policies did, which both count; its outcome is that
        of the first that failed, if one did.
        """
        if self._first is None:
            self._first = record, is_baseline
            return None
        first, first_is_baseline = self._first
        steered, baseline = (record, first) if first_is_baseline else (first, record)
        failed = [one.outcome for one in (first, record) if one.outcome not in _ENDED_WELL]
        return replace(
            steered,
            outcome=failed[0] if failed else steered.outcome,
            alerts=steered.alerts + baseline.alerts,
            policy_actions=steered.policy_actions + baseline.policy_actions,
            withheld_tokens=steered.withheld_tokens + baseline.withheld_tokens,
            monitored=steered.monitored + baseline.monitored,
        )
