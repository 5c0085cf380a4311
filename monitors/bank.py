"""All monitors of one request, and what their alerts ask the engine to do.

The bank decides nothing about generation: it says that a stop or a steering was asked for, the engine does it.
"""

from collections.abc import Iterable

from monitors import checks
from monitors.components import Inputs
from monitors.condition import Standing, Standings, alerts_in
from monitors.errors import Problem, shown
from monitors.monitor_spec import MonitorSpec, Role
from monitors.policy import Policy, PolicyAction, PolicySet
from monitors.track import Alert, MonitorSummary, MonitorUpdate, Track


class MonitorBank:
    """The monitors of one request, observed together; none sees another.

    A monitor scores each of its roles by itself, in a track: means, counts and alerts never run over two of them.
    """

    def __init__(self, specs: Iterable[MonitorSpec], policies: Iterable[Policy] = ()) -> None:
        """Raises MonitorError for a monitor or policy given twice, or a policy that does not suit the monitors."""
        self._specs = tuple(specs)
        self._last_position: int | None = None
        names = [spec.name for spec in self._specs]
        checks.refuse(
            *(
                Problem(f"monitors.{i}.name", "a monitor not in the bank yet", shown(name))
                for i, name in enumerate(names)
                if name in names[:i]
            )
        )
        self.policies = PolicySet(policies, self._specs)
        tracks = [Track(spec, role) for spec in self._specs for role in spec.roles]
        self._tracks = tuple(tracks)
        self._of_role: dict[Role, list[Track]] = {}
        for track in tracks:
            for role in track.spec.token_roles(track.role):
                self._of_role.setdefault(role, []).append(track)
        self.latents = tuple(sorted({latent for spec in self._specs for latent in spec.latents}))
        """Latents that `observe` needs the readings of, ascending."""
        self.probes = tuple(dict.fromkeys(probe for spec in self._specs for probe in spec.probes))
        """Probes that `observe` needs the values and norms of."""
        self.left_out = False
        """Whether the token observed last was off scale to a monitor that scores its role."""

    @property
    def triggered(self) -> tuple[Policy, ...]:
        """Policies that apply, each once, in the order in which they came to."""
        return self.policies.applied

    @property
    def stop_requested(self) -> bool:
        """Whether a policy has asked to end the reply."""
        return any(policy.action == PolicyAction.STOP for policy in self.triggered)

    @property
    def steer_requested(self) -> bool:
        """Whether a policy has asked for steering; `triggered` says whose."""
        return any(policy.action == PolicyAction.STEER for policy in self.triggered)

    def scores(self, role: Role | None) -> bool:
        """Whether any monitor scores tokens of that role: others need no inputs."""
        return role in self._of_role

    @property
    def span_start(self) -> int | None:
        """No further alert is about a position before this one; None if none was scored yet."""
        return min((track.span_start for track in self._tracks if track.span_start is not None), default=None)

    def observe(self, position: int, inputs: Inputs, role: Role | None) -> list[tuple[str, MonitorUpdate]]:
        """Shows one token to the monitors that score its role; (monitor name, update) in the order of the specs.

        Reasoning is the assistant's for a monitor that does not score it by itself. `role` is None for a token that
        nobody said (a template's). A monitor leaves out tokens that are off scale to it; position 0 is to all. The
        first position may be any; each further one must be the next, so that no token can be missed or counted twice.

        Raises MonitorError for a position out of turn and, at tokens that are scored, for a missing or non-finite
        input. Some monitors have then seen the token and others not: the request has to be failed.
        """
        self._take_position(position)
        self.policies.pass_token()
        self.left_out = False
        if position == 0 or role not in self._of_role:
            return []
        updates = []
        for track in self._of_role[role]:
            if track.spec.is_off_scale(inputs):
                self.left_out = True
                continue
            updates.append((track.spec.name, track.observe(position, inputs)))
        if any(update.alert is not None and update.alert.state == "firing" for _, update in updates):
            self.policies.update(self._standings())
        return updates

    def end_prompt(self) -> None:
        """All tokens from here on are a reply's: policies that only a prompt could make apply are done with."""
        self.policies.end_prompt(self._standings())

    def _standings(self) -> Standings:
        return {(t.spec.name, t.role): Standing(t.level, t.highest_level) for t in self._tracks}

    def applied_by(self, alert: Alert) -> tuple[Policy, ...]:
        """The policies that an alert of the last token made apply: those that ask for such an alert."""
        if alert.state != "firing":
            return ()
        raised = alert.monitor, alert.role, alert.level
        return tuple(p for p in self.policies.latest if any(part.counts(*raised) for part in alerts_in(p.when)))

    def action_of(self, alert: Alert) -> PolicyAction:
        """The weightiest thing that an alert of the last token led to."""
        actions = [PolicyAction(policy.action) for policy in self.applied_by(alert)]
        return max(actions, key=list(PolicyAction).index, default=PolicyAction.ANNOTATE)

    def summaries(self) -> list[MonitorSummary]:
        """One per monitor and role it scores, in the order the specs were given."""
        return [track.summary() for track in self._tracks]

    def _take_position(self, position: int) -> None:
        if self._last_position is None:
            checks.refuse(checks.count("position", position, at_least=0))
        elif position != self._last_position + 1:
            wanted = f"{self._last_position + 1}, the one after the last"
            checks.refuse(Problem("position", wanted, shown(position)))
        self._last_position = position
