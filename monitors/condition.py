"""When a policy applies: a tree of alerts over several monitors, joined by and/or.

    condition    alert | all_of(conditions) | any_of(conditions)
    alert        true after a token at which an alert of `monitor`, of `level` or higher, on words of one of `roles`, is
                 open; with `has_fired`, after the first such token and ever after

There is no "not": a condition over alerts that have fired never turns false again, and every condition turns true at a
token that raised an alert. Alerts of one monitor on two roles are two: `roles` says which of them count.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, get_args

from monitors import checks
from monitors.errors import Problem, shown
from monitors.monitor_spec import MonitorSpec, Role
from monitors.thresholds import LEVELS, Level

MAX_CONDITION_DEPTH = 4
"""Levels of a tree; a single alert is one."""
MAX_CONDITION_ALERTS = 32
"""Alerts in a tree."""


class Standing(NamedTuple):
    """How a monitor stands on the words of one role."""

    open: Level | None
    """Level of the alert that is open."""
    highest: Level | None
    """Highest level that it has reached."""


Standings = Mapping[tuple[str, Role], Standing]
"""(monitor, role) -> how it stands, for every role that it scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertOf:
    """An alert of one monitor."""

    monitor: str
    level: Level = "warning"
    """The lowest level that counts."""
    roles: tuple[Role, ...] = ()
    """Whose words the alert may be about; empty: those of any role that the monitor scores."""
    has_fired: bool = False
    """Whether an alert that has cleared since counts too."""

    def __post_init__(self) -> None:
        checks.refuse(
            checks.choice("level", self.level, LEVELS),
            *(checks.choice(f"roles.{i}", role, get_args(Role)) for i, role in enumerate(self.roles)),
        )

    def counts(self, monitor: str, role: Role, level: Level | None) -> bool:
        """Whether an alert of that monitor and level on words of that role is one."""
        return monitor == self.monitor and (not self.roles or role in self.roles) and _reaches(level, self.level)


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every one of them."""

    conditions: "tuple[Condition, ...]"


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one of them."""

    conditions: "tuple[Condition, ...]"


Condition = AlertOf | AllOf | AnyOf


def holds(condition: Condition, standings: Standings) -> bool:
    """Whether it is true as things stand."""
    match condition:
        case AllOf(conditions):
            return all(holds(part, standings) for part in conditions)
        case AnyOf(conditions):
            return any(holds(part, standings) for part in conditions)
        case AlertOf(has_fired=has_fired) as alert:
            return any(
                alert.counts(monitor, role, standing.highest if has_fired else standing.open)
                for (monitor, role), standing in standings.items()
            )


def may_hold(condition: Condition, standings: Standings, to_come: Collection[Role]) -> bool:
    """Whether it is true, or may become so, where words of roles `to_come` alone are still to be scored."""
    match condition:
        case AllOf(conditions):
            return all(may_hold(part, standings, to_come) for part in conditions)
        case AnyOf(conditions):
            return any(may_hold(part, standings, to_come) for part in conditions)
        case AlertOf() as alert:
            is_to_come = any(alert.counts(monitor, role, alert.level) for monitor, role in standings if role in to_come)
            return is_to_come or holds(alert, standings)


def alerts_in(condition: Condition) -> Iterator[AlertOf]:
    """The alerts it asks for, in order."""
    if isinstance(condition, AlertOf):
        yield condition
    else:
        for part in condition.conditions:
            yield from alerts_in(part)


def problems_of(condition: Condition, monitors: Mapping[str, MonitorSpec]) -> Iterator[Problem]:
    """Why it can't be used with these monitors: unknown ones, levels they have not, roles they don't score, and trees
    that are empty, too deep or too large. One that could never be true would look like a policy and be none."""
    yield from _problems(condition, monitors, "", depth=1)
    num_alerts = sum(1 for _ in alerts_in(condition))
    if num_alerts > MAX_CONDITION_ALERTS:
        yield Problem("", f"at most {MAX_CONDITION_ALERTS} alerts", str(num_alerts))


def _problems(
    condition: Condition, monitors: Mapping[str, MonitorSpec], field: str, *, depth: int
) -> Iterator[Problem]:
    if depth > MAX_CONDITION_DEPTH:
        yield Problem(field, f"at most {MAX_CONDITION_DEPTH} levels of conditions", "more")
    elif isinstance(condition, AlertOf):
        yield from (problem.within(field) for problem in _misfits(condition, monitors))
    else:
        name = "all_of" if isinstance(condition, AllOf) else "any_of"
        inner = f"{field}.{name}" if field else name
        if not condition.conditions:
            yield Problem(inner, "at least one condition", "none")
        for i, part in enumerate(condition.conditions):
            yield from _problems(part, monitors, f"{inner}.{i}", depth=depth + 1)


def _misfits(alert: AlertOf, monitors: Mapping[str, MonitorSpec]) -> Iterator[Problem]:
    spec = monitors.get(alert.monitor)
    if spec is None:
        yield Problem(
            "monitor",
            f"one that this request runs ({', '.join(monitors) or 'none'})",
            shown(alert.monitor),
        )
        return
    levels = [level for level, _ in spec.thresholds.levels.named()]
    if not any(_reaches(level, alert.level) for level in levels):
        yield Problem("level", f"a level that {spec.name} has ({', '.join(levels)})", shown(alert.level))
    for i, role in enumerate(alert.roles):
        if role not in spec.roles:
            yield Problem(f"roles.{i}", f"a role that {spec.name} scores ({', '.join(spec.roles)})", shown(role))


def _reaches(level: Level | None, wanted: Level) -> bool:
    return level is not None and LEVELS.index(level) >= LEVELS.index(wanted)
