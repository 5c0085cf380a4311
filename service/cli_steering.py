"""Reads `--steer`, `--policy` and `--policy-steer`: comma-separated `key=value` pairs.

    feature=lying,op=add,strength=8,unit=relative,scope=generated,window=3:10
    vector=@direction.f32,op=project_out
    monitor=lying,action=stop,hold=16
    when=lying and medical:critical,name=both,action=steer
    monitor=lying,feature=lying,op=scale,strength=0        what a monitor that fires turns on
    policy=both,feature=lying,op=scale,strength=0          what a policy of that name turns on

Errors are argparse's, so that they name the flag, and name the key.
"""

import math
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from service.cli_condition import parse_condition
from service.client_request import Hold, Policy, PolicyAction, PositionScope, Steering, SteeringOp, StrengthUnit
from service.errors import ConfigError

_STEERING_KEYS = ("feature", "vector", "op", "strength", "unit", "scope", "window")


def parse_steering(spec: str) -> Steering:
    """One operation of `--steer`.

    Raises:
        ArgumentTypeError: unknown, missing or repeated key, or a value that makes no sense.
    """
    return _steering(_pairs(spec, _STEERING_KEYS))


def parse_policy(spec: str) -> Policy:
    """One `--policy`. Errors as `parse_steering`."""
    pairs = _pairs(spec, ("monitor", "when", "name", "action", "hold", "reveal"))
    if ("monitor" in pairs) == ("when" in pairs):
        raise ArgumentTypeError("monitor, when: give one of them.")
    return Policy(
        monitor=pairs.get("monitor", ""),
        condition=parse_condition(pairs["when"]) if "when" in pairs else None,
        name=pairs.get("name", ""),
        action=_choice("action", _required(pairs, "action"), PolicyAction),
        hold=_hold(pairs),
    )


def parse_policy_steering(spec: str) -> Policy:
    """One `--policy-steer`, as a policy with this operation alone. Errors as `parse_steering`."""
    pairs = _pairs(spec, ("monitor", "policy", *_STEERING_KEYS))
    if ("monitor" in pairs) == ("policy" in pairs):
        raise ArgumentTypeError("monitor, policy: give one of them.")
    steering = [_steering(pairs)]
    return Policy(monitor=pairs.get("monitor", ""), name=pairs.get("policy", ""), action="steer", steering=steering)


def merge_policies(policies: Sequence[Policy], steered: Sequence[Policy]) -> list[Policy]:
    """The policies of `--policy`, with the operations of `--policy-steer` in the order given; for a monitor that no
    `--policy` names, a policy that steers.

    Raises:
        ConfigError: two policies of one name, operations for one that does not steer or is not there, or a steer action
            without operations.
    """
    merged: dict[str, Policy] = {}
    for i, policy in enumerate(policies):
        name = policy.name or policy.monitor or f"policy-{i}"
        if name in merged:
            raise ConfigError(f"two policies are called {name}: give one of them a name of its own.")
        merged[name] = policy
    for policy in steered:
        name = policy.name or policy.monitor
        if policy.name and name not in merged:
            raise ConfigError(f"--policy-steer policy={name} needs a --policy of that name.")
        known = merged.get(name, replace(policy, steering=()))
        if known.action != "steer":
            raise ConfigError(f"{name} can't both {known.action} and steer.")
        merged[name] = replace(known, steering=[*known.steering, *policy.steering])
    for name, policy in merged.items():
        if policy.action == "steer" and not policy.steering:
            key = "monitor" if name == policy.monitor else "policy"
            raise ConfigError(f"the policy {name}, which steers, needs --policy-steer {key}={name},... to say how.")
    return list(merged.values())


def _hold(pairs: dict[str, str]) -> Hold | None:
    """`hold=window`, `hold=TOKENS`; `reveal=yes` tells what was withheld."""
    reveal = _choice("reveal", pairs.get("reveal", "no"), Literal["yes", "no"]) == "yes"
    if "hold" not in pairs:
        if reveal:
            raise ArgumentTypeError("reveal: needs hold, without which nothing is withheld.")
        return None
    text = pairs["hold"]
    if text != "window" and not (text.isascii() and text.isdigit()):
        raise ArgumentTypeError(f"hold: must be a number of tokens, or window. Got {text!r}.")
    return Hold(tokens=None if text == "window" else int(text), reveal=reveal)


def _steering(pairs: dict[str, str]) -> Steering:
    op = _choice("op", _required(pairs, "op"), SteeringOp)
    return Steering(
        direction=_direction(pairs),
        op=op,
        strength=_strength(pairs, op),
        unit=_choice("unit", pairs.get("unit", "raw"), StrengthUnit),
        scope=_choice("scope", pairs.get("scope", "all"), PositionScope),
        window=_window(pairs["window"]) if "window" in pairs else None,
    )


def _pairs(spec: str, known: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in spec.split(","):
        key, equals, value = (text.strip() for text in part.partition("="))
        if not equals:
            raise ArgumentTypeError(f"must be key=value pairs. Got {part!r}.")
        if key not in known:
            raise ArgumentTypeError(f"{key}: unknown key. Known are {', '.join(known)}.")
        if key in pairs:
            raise ArgumentTypeError(f"{key}: given twice.")
        if not value:
            raise ArgumentTypeError(f"{key}: must not be empty.")
        pairs[key] = value
    return pairs


def _required(pairs: dict[str, str], key: str) -> str:
    if key not in pairs:
        raise ArgumentTypeError(f"{key}: missing.")
    return pairs[key]


def _direction(pairs: dict[str, str]) -> int | str | bytes:
    match pairs:
        case {"feature": _, "vector": _}:
            raise ArgumentTypeError("feature, vector: give one, not both.")
        case {"feature": feature}:
            return feature_key(feature)
        case {"vector": vector}:
            return _vector(vector)
        case _:
            raise ArgumentTypeError("feature: missing; give feature=NAME_OR_INDEX or vector=@FILE.")


def feature_key(text: str) -> int | str:
    """A feature as it is typed: digits are a latent, anything else a name."""
    return int(text) if text.isascii() and text.isdigit() else text


def _vector(text: str) -> bytes:
    if not text.startswith("@"):
        raise ArgumentTypeError(f"vector: must be @FILE, a file of little-endian 32-bit floats. Got {text!r}.")
    path = Path(text[1:])
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArgumentTypeError(f"vector: {path} can't be read: {error.strerror}.") from None
    if not data or len(data) % 4:
        raise ArgumentTypeError(f"vector: {path} must hold 32-bit floats, 4 bytes each. Got {len(data)} bytes.")
    return data


def _strength(pairs: dict[str, str], op: str) -> float:
    if op == "project_out":
        if "strength" in pairs:
            raise ArgumentTypeError("strength: project_out takes none.")
        return 0.0
    text = _required(pairs, "strength")
    try:
        strength = float(text)
    except ValueError:
        strength = math.nan
    if not math.isfinite(strength):
        raise ArgumentTypeError(f"strength: must be a finite number. Got {text!r}.")
    return strength


def _window(text: str) -> tuple[int, int]:
    bounds = text.split(":")
    if len(bounds) == 2 and all(bound.isascii() and bound.isdigit() for bound in bounds):
        start, end = map(int, bounds)
        if start < end:
            return start, end
    raise ArgumentTypeError(f"window: must be START:END, two positions with START before END. Got {text!r}.")


def _choice(key: str, value: str, choices: Any) -> Any:
    if value not in get_args(choices):
        raise ArgumentTypeError(f"{key}: must be one of {', '.join(get_args(choices))}. Got {value!r}.")
    return value
