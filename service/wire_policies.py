"""Policy messages -> policies and their steering. Checks every field; what is wrong is added to a list."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from telltale.v1 import types_pb2 as pb

from monitors.condition import MAX_CONDITION_DEPTH, AlertOf, AllOf, AnyOf, Condition, alerts_in, problems_of
from monitors.errors import MonitorError, Problem
from monitors.monitor_spec import MonitorSpec
from monitors.policy import MAX_HOLD_TOKENS, Policy, PolicyAction
from monitors.thresholds import Level
from sae_runtime.steering_spec import SteeringSpec
from service.violations import Violations
from service.wire_steering import SteeringReader

MAX_POLICIES = 16
MAX_NAME_CHARACTERS = 64

_ACTIONS: dict[int, PolicyAction] = {
    pb.POLICY_ACTION_ANNOTATE: PolicyAction.ANNOTATE,
    pb.POLICY_ACTION_STOP: PolicyAction.STOP,
    pb.POLICY_ACTION_STEER: PolicyAction.STEER,
}
_LEVELS: dict[int, Level] = {
    pb.SEVERITY_UNSPECIFIED: "warning",
    pb.SEVERITY_WARNING: "warning",
    pb.SEVERITY_CRITICAL: "critical",
}


class Policies(NamedTuple):
    """What a request's policies say."""

    policies: tuple[Policy, ...]
    steering: dict[str, tuple[SteeringSpec, ...]]
    """By name of a policy that steers."""


class PolicyReader:
    """Reads policies of one request."""

    def __init__(self, steering: SteeringReader, monitors: Sequence[MonitorSpec], wrong: Violations) -> None:
        """`monitors` are those that run in the request; what is not right is added to `wrong`."""
        self._steering, self._wrong = steering, wrong
        self._monitors = {spec.name: spec for spec in monitors}

    def read(self, messages: Sequence[Any]) -> Policies:
        """The policies that are right."""
        if len(messages) > MAX_POLICIES:
            self._wrong.add("policies", f"must hold at most {MAX_POLICIES}. Got {len(messages)}.")
            return Policies((), {})
        policies: dict[str, Policy] = {}
        steering: dict[str, tuple[SteeringSpec, ...]] = {}
        for i, message in enumerate(messages):
            path, is_named = f"policies[{i}]", bool(message.name)
            name = message.name or message.monitor or f"policy-{i}"
            self._check_name(f"{path}.{'name' if is_named else 'monitor'}", name, policies)
            policy = self._policy(message, path, name)
            operations = self._operations(message, f"{path}.steering")
            if policy is not None:
                policies[name] = policy
                if policy.action is PolicyAction.STEER:
                    steering[name] = operations
        return Policies(tuple(policies.values()), steering)

    def _check_name(self, field: str, name: str, known: dict[str, Policy]) -> None:
        self._wrong.require(name not in known, field, "be that of one policy only", f"{name!r} again")
        self._wrong.require(bool(name.strip()), field, "be more than blanks", repr(name))
        self._wrong.require(
            len(name) <= MAX_NAME_CHARACTERS and name.isprintable(),
            field,
            f"be at most {MAX_NAME_CHARACTERS} printable characters",
            f"{len(name)} characters" if name.isprintable() else "unprintable ones",
        )

    def _operations(self, message: Any, path: str) -> tuple[SteeringSpec, ...]:
        steers = message.action == pb.POLICY_ACTION_STEER
        if message.steering and not steers:
            self._wrong.add(path, "must be empty unless the action is POLICY_ACTION_STEER.")
        self._wrong.require(bool(message.steering) or not steers, path, "hold an operation for STEER", "none")
        return self._steering.read(message.steering, path, self._wrong)

    def _policy(self, message: Any, path: str, name: str) -> Policy | None:
        action = self._wrong.choice(f"{path}.action", _ACTIONS, message.action, pb.PolicyAction)
        condition = self._when(message, path)
        if condition is None:
            return None
        hold_tokens = self._hold_tokens(message, path, condition)
        problems = list(problems_of(condition, self._monitors))
        for problem in problems:
            self._add(path, problem.within("condition") if message.HasField("condition") else problem)
        if problems or action is None or hold_tokens is None or not name.strip():
            return None
        is_short = message.monitor == name
        return Policy(name, action, None if is_short else condition, hold_tokens, message.hold.reveal)

    # --- conditions ---

    def _when(self, message: Any, path: str) -> Condition | None:
        if not message.HasField("condition"):
            return AlertOf(monitor=message.monitor)  # an empty one is unknown like any other
        if message.monitor:
            self._wrong.add(f"{path}.condition", "must be unset beside monitor: the one is short for the other.")
            return None
        return self._condition(message.condition, f"{path}.condition", depth=1)

    def _condition(self, message: Any, path: str, *, depth: int) -> Condition | None:
        if depth > MAX_CONDITION_DEPTH:
            self._wrong.add(path, f"must be at most {MAX_CONDITION_DEPTH} levels of conditions. Got more.")
            return None
        kind = message.WhichOneof("kind")
        if kind is None:
            self._wrong.add(path, "must be an alert, all_of or any_of. Got none.")
            return None
        if kind == "alert":
            return self._alert(message.alert, f"{path}.alert")
        parts = [
            self._condition(part, f"{path}.{kind}.conditions[{i}]", depth=depth + 1)
            for i, part in enumerate(getattr(message, kind).conditions)
        ]
        right = tuple(part for part in parts if part is not None)
        if len(right) < len(parts):
            return None
        return AllOf(right) if kind == "all_of" else AnyOf(right)

    def _alert(self, message: Any, path: str) -> AlertOf | None:
        level = self._wrong.choice(f"{path}.level", _LEVELS, message.level, pb.Severity)
        if level is None:
            return None
        try:
            return AlertOf(
                monitor=message.monitor, level=level, roles=tuple(message.roles), has_fired=message.has_fired
            )
        except MonitorError as error:
            for problem in error.problems:
                self._add(path, problem)
            return None

    def _hold_tokens(self, message: Any, path: str, condition: Condition) -> int | None:
        """As asked for, or the largest window of the monitors in the condition; None if it can't be so."""
        if not message.HasField("hold"):
            return 0
        if message.action == pb.POLICY_ACTION_ANNOTATE:
            self._wrong.add(f"{path}.hold", "must be unset for an action that keeps nothing back (annotate).")
            return None
        field, tokens = f"{path}.hold.tokens", message.hold.tokens
        if not message.hold.HasField("tokens"):
            known = [self._monitors[alert.monitor] for alert in alerts_in(condition) if alert.monitor in self._monitors]
            tokens = max((spec.window for spec in known), default=1)
        if not 1 <= tokens <= MAX_HOLD_TOKENS:
            self._wrong.add(field, f"must be 1 to {MAX_HOLD_TOKENS}. Got {tokens}.")
            return None
        return int(tokens)

    def _add(self, path: str, problem: Problem) -> None:
        field = ".".join(part for part in (path, _wire_field(problem.field)) if part)
        self._wrong.add(field, f"must be {problem.wanted}. Got {problem.got}.")


def _wire_field(field: str) -> str:
    """`condition.any_of.0.roles.1` is `condition.any_of.conditions[0].alert.roles[1]` on the wire."""
    field = re.sub(r"\b(all_of|any_of)\.(\d+)", r"\1.conditions[\2]", field)
    field = re.sub(r"\broles\.(\d+)", r"roles[\1]", field)
    field = re.sub(r"\b(all_of|any_of)$", r"\1.conditions", field)
    return re.sub(r"^(condition\b.*)\.(monitor|level|roles)", r"\1.alert.\2", field)
