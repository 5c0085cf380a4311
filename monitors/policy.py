"""What alerts lead to: annotate, stop, or steer; under which condition; and how much of the reply is held back for it.

With a *hold* of h tokens a token leaves once the token h later has been read and did not make the policy apply. Where
it applies, at token t, nothing of t - h to t leaves, and what is held before that stays held as long as another policy
may still come to apply. Who runs the generation does the holding; here it is only said.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from monitors import checks
from monitors.condition import AlertOf, Condition, Standings, holds, may_hold, problems_of
from monitors.errors import Problem, shown
from monitors.monitor_spec import REPLY_ROLES, MonitorSpec

MAX_HOLD_TOKENS = 256


class PolicyAction(StrEnum):
    """What a policy that applies leads to; weightiest last."""

    ANNOTATE = "annotate"
    """Nothing but the alert itself."""
    STEER = "steer"
    """The policy's steering is applied from then on, also after the alert has cleared."""
    STOP = "stop"
    """The reply ends."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What alerts lead to. A monitor in no policy annotates."""

    name: str
    """Which policy it is; of one without a condition, the monitor whose alerts it is about."""
    action: PolicyAction
    condition: Condition | None = None
    """None: any alert of the monitor called `name`."""
    hold_tokens: int = 0
    """Tokens by which the reply is held back so that it can apply before they leave; 0 for none."""
    reveals: bool = False
    """Whether the alert that makes it apply tells the text that was withheld."""

    def __post_init__(self) -> None:
        checks.refuse(
            checks.choice("action", self.action, list(PolicyAction)),
            checks.sentence("name", self.name),
            checks.count("hold_tokens", self.hold_tokens, at_least=0),
            *self._bad_hold(),
        )

    @property
    def when(self) -> Condition:
        """The condition under which it applies."""
        return self.condition if self.condition is not None else AlertOf(monitor=self.name)

    def problems(self, specs: Iterable[MonitorSpec]) -> list[Problem]:
        """Why it can't be used with these monitors."""
        parent = "" if self.condition is None else "condition"
        return [problem.within(parent) for problem in problems_of(self.when, {spec.name: spec for spec in specs})]

    def _bad_hold(self) -> Iterator[Problem]:
        if self.hold_tokens and self.action == PolicyAction.ANNOTATE:
            yield Problem("hold_tokens", "0 for an action that keeps nothing back (annotate)", shown(self.hold_tokens))
        if self.hold_tokens > MAX_HOLD_TOKENS:
            yield Problem("hold_tokens", f"at most {MAX_HOLD_TOKENS}", shown(self.hold_tokens))


class PolicySet:
    """The policies of one request, and which of them apply. Each applies once, and then for good."""

    def __init__(self, policies: Iterable[Policy], specs: Iterable[MonitorSpec]) -> None:
        """Raises MonitorError for two policies of one name, or one that does not suit the monitors."""
        self._waiting = list(policies)
        self._applied: list[Policy] = []
        self.latest: tuple[Policy, ...] = ()
        """Those that the last token made apply."""
        known, names = tuple(specs), [policy.name for policy in self._waiting]
        checks.refuse(
            *checks.distinct("policies", "name", names),
            *(p.within(f"policies.{i}") for i, policy in enumerate(self._waiting) for p in policy.problems(known)),
        )

    @property
    def applied(self) -> tuple[Policy, ...]:
        """Those that apply, in the order in which they came to."""
        return tuple(self._applied)

    @property
    def hold_tokens(self) -> int:
        """By how many tokens the reply is to be held back now: for those policies that may still come to apply."""
        return max((policy.hold_tokens for policy in self._waiting), default=0)

    def end_prompt(self, standings: Standings) -> None:
        """Only a reply is still to come: what that can't make apply need not be waited for, nor held back for."""
        self._waiting = [policy for policy in self._waiting if may_hold(policy.when, standings, REPLY_ROLES)]

    def pass_token(self) -> None:
        """A token at which no alert was raised: nothing can have come to apply."""
        self.latest = ()

    def update(self, standings: Standings) -> None:
        """As things stand after a token that raised an alert."""
        self.latest = tuple(policy for policy in self._waiting if holds(policy.when, standings))
        self._waiting = [policy for policy in self._waiting if policy not in self.latest]
        self._applied += self.latest
