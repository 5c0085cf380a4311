"""All monitors of one request, and what their alerts ask the engine to do.

The bank decides nothing about generation: it says that a stop or a steering was asked for, the engine does it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from monitors import checks
from monitors.errors import Problem, shown
from monitors.monitor import Monitor, MonitorSpec, MonitorSummary, MonitorUpdate


class PolicyAction(StrEnum):
    """What a firing alert leads to."""

    ANNOTATE = "annotate"
    """Nothing but the alert itself."""
    STOP = "stop"
    """The reply ends."""
    STEER = "steer"
    """The policy's steering is applied from then on, also after the alert has cleared."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What one monitor's alerts lead to. A monitor without a policy annotates."""

    monitor: str
    """Name of the monitor."""
    action: PolicyAction

    def __post_init__(self) -> None:
        checks.refuse(checks.choice("action", self.action, list(PolicyAction)))


class MonitorBank:
    """The monitors of one request, observed together; none sees another."""

    def __init__(self, specs: Iterable[MonitorSpec], policies: Iterable[Policy] = ()) -> None:
        """Raises MonitorError for a monitor or policy given twice, or a policy of a monitor that is not here."""
        self._monitors = [Monitor(spec) for spec in specs]
        self._policies: dict[str, Policy] = {}
        self._triggered: list[Policy] = []
        names = [monitor.spec.name for monitor in self._monitors]
        checks.refuse(
            *(
                Problem(f"monitors.{i}.name", "a monitor not in the bank yet", shown(name))
                for i, name in enumerate(names)
                if name in names[:i]
            )
        )
        for i, policy in enumerate(policies):
            self._add_policy(f"policies.{i}.monitor", policy, names)

    @property
    def features(self) -> tuple[int, ...]:
        """Latents that `observe` needs the readings of, ascending."""
        return tuple(sorted({part.feature for monitor in self._monitors for part in monitor.spec.features}))

    @property
    def triggered(self) -> tuple[Policy, ...]:
        """Policies whose monitor has fired, each once, in the order they first fired."""
        return tuple(self._triggered)

    @property
    def stop_requested(self) -> bool:
        """Whether an alert has asked to end the reply."""
        return any(policy.action == PolicyAction.STOP for policy in self._triggered)

    @property
    def steer_requested(self) -> bool:
        """Whether an alert has asked for steering; `triggered` says whose."""
        return any(policy.action == PolicyAction.STEER for policy in self._triggered)

    def observe(
        self, position: int, readings: Mapping[int, float], is_prompt: bool, is_off_scale: bool = False
    ) -> list[tuple[str, MonitorUpdate]]:
        """Shows one token to every monitor; (monitor name, update) in the order the specs were given.

        Raises what `Monitor.observe` raises. Some monitors have then seen the token and others not: the request
        has to be failed.
        """
        updates = []
        for monitor in self._monitors:
            update = monitor.observe(position, readings, is_prompt, is_off_scale)
            updates.append((monitor.spec.name, update))
            self._trigger(update)
        return updates

    def summaries(self) -> list[MonitorSummary]:
        """One per monitor, in the order the specs were given."""
        return [monitor.summary() for monitor in self._monitors]

    def _add_policy(self, field: str, policy: Policy, names: list[str]) -> None:
        checks.refuse(checks.choice(field, policy.monitor, names))
        if policy.monitor in self._policies:
            checks.refuse(Problem(field, "one policy per monitor", f"a second one for {policy.monitor!r}"))
        self._policies[policy.monitor] = policy

    def _trigger(self, update: MonitorUpdate) -> None:
        if update.alert is None or update.alert.state != "firing":
            return
        policy = self._policies.get(update.alert.monitor)
        if policy is not None and policy not in self._triggered:
            self._triggered.append(policy)
