"""Policy messages to policies: conditions, holds and names as they were meant, and every field that is wrong named."""

import re

import pytest
import tiny_packs
from telltale.v1 import types_pb2 as pb

from monitors.condition import AlertOf, AllOf, AnyOf
from monitors.policy import MAX_HOLD_TOKENS, Policy, PolicyAction
from service.violations import Violations
from service.wire_policies import MAX_NAME_CHARACTERS, MAX_POLICIES, PolicyReader, _wire_field

BOTH = tiny_packs.thresholds(2.0, 5.0)
SPECS = (
    tiny_packs.pack("a", thresholds=BOTH, roles=("user", "assistant"), window=5).spec(),
    tiny_packs.pack("b", window=9).spec(),
    tiny_packs.pack("wide", window=MAX_HOLD_TOKENS + 1).spec(),
)
STOP, STEER, ANNOTATE = pb.POLICY_ACTION_STOP, pb.POLICY_ACTION_STEER, pb.POLICY_ACTION_ANNOTATE


class NoSteering:
    """Reads operations as their number."""

    def read(self, specs, _path, _wrong):
        return tuple(range(len(specs)))


def read(*messages):
    wrong = Violations()
    return PolicyReader(NoSteering(), SPECS, wrong).read(messages), {v.field: v.description for v in wrong.found}


def alert(monitor="a", **fields):
    return pb.Condition(alert=pb.AlertCondition(monitor=monitor, **fields))


def all_of(*parts):
    return pb.Condition(all_of=pb.Conditions(conditions=parts))


def any_of(*parts):
    return pb.Condition(any_of=pb.Conditions(conditions=parts))


def stop(**fields):
    return pb.Policy(action=STOP, **fields)


def nested(depth):
    return alert() if depth == 1 else any_of(nested(depth - 1))


def test_a_condition_arrives_as_it_was_meant():
    tree = all_of(
        alert("a", level=pb.SEVERITY_CRITICAL, roles=["user"]), any_of(alert("b"), alert("a", has_fired=True))
    )
    (policies, _), wrong = read(stop(condition=tree, name="mine"), stop(monitor="b"), stop(condition=alert("b")))
    assert wrong == {}
    assert policies == (
        Policy(
            "mine",
            PolicyAction.STOP,
            AllOf(
                (
                    AlertOf(monitor="a", level="critical", roles=("user",)),
                    AnyOf((AlertOf(monitor="b"), AlertOf(monitor="a", has_fired=True))),
                )
            ),
        ),
        Policy("b", PolicyAction.STOP),
        Policy("policy-2", PolicyAction.STOP, AlertOf(monitor="b")),
    )


def test_a_monitor_may_have_several_policies_under_names_of_their_own():
    (policies, steering), wrong = read(
        pb.Policy(monitor="a", action=STEER, steering=[pb.Steering()]),
        stop(monitor="a", name="last resort"),
        pb.Policy(condition=alert(), name="x", action=STEER, steering=[pb.Steering()] * 2),
    )
    assert wrong == {}
    assert policies[1] == Policy("last resort", PolicyAction.STOP, AlertOf(monitor="a"))
    assert steering == {"a": (0,), "x": (0, 1)}


@pytest.mark.parametrize(
    ("message", "hold", "reveals"),
    [
        (stop(monitor="a"), 0, False),
        (stop(monitor="a", hold=pb.Hold()), 5, False),
        (stop(condition=all_of(alert("a"), alert("b")), hold=pb.Hold()), 9, False),
        (stop(monitor="b", hold=pb.Hold(tokens=MAX_HOLD_TOKENS, reveal=True)), MAX_HOLD_TOKENS, True),
        (pb.Policy(monitor="b", action=STEER, steering=[pb.Steering()], hold=pb.Hold(tokens=1)), 1, False),
    ],
)
def test_a_hold_is_the_window_unless_it_is_told(message, hold, reveals):
    (policies, _), wrong = read(message)
    assert wrong == {} and (policies[0].hold_tokens, policies[0].reveals) == (hold, reveals)


WRONG = [
    ([stop(monitor="x")], {"policies[0].monitor"}),
    ([stop()], {"policies[0].monitor"}),
    ([stop(monitor="a"), stop(monitor="a")], {"policies[1].monitor"}),
    ([stop(monitor="a"), stop(monitor="b", name="a")], {"policies[1].name"}),
    ([stop(condition=alert()), stop(condition=alert(), name="policy-0")], {"policies[1].name"}),
    ([stop(monitor="a", name="n" * (MAX_NAME_CHARACTERS + 1))], {"policies[0].name"}),
    ([stop(monitor="a", name="a\nb")], {"policies[0].name"}),
    ([stop(monitor="a", name="  ")], {"policies[0].name"}),
    ([pb.Policy(monitor="a")], {"policies[0].action"}),
    ([pb.Policy(monitor="a", action=9)], {"policies[0].action"}),
    ([pb.Policy(monitor="a", action=STEER)], {"policies[0].steering"}),
    ([stop(monitor="a", steering=[pb.Steering()])], {"policies[0].steering"}),
    ([stop(monitor="a", condition=alert())], {"policies[0].condition"}),
    ([stop(condition=pb.Condition())], {"policies[0].condition"}),
    ([stop(condition=any_of())], {"policies[0].condition.any_of.conditions"}),
    ([stop(condition=all_of())], {"policies[0].condition.all_of.conditions"}),
    ([stop(condition=any_of(all_of()))], {"policies[0].condition.any_of.conditions[0].all_of.conditions"}),
    ([stop(condition=any_of(alert(), pb.Condition()))], {"policies[0].condition.any_of.conditions[1]"}),
    ([stop(condition=nested(5))], {"policies[0].condition" + ".any_of.conditions[0]" * 4}),
    ([stop(condition=nested(30))], {"policies[0].condition" + ".any_of.conditions[0]" * 4}),
    ([stop(condition=any_of(*[alert()] * 33))], {"policies[0].condition"}),
    ([stop(condition=alert("x"))], {"policies[0].condition.alert.monitor"}),
    ([stop(condition=any_of(alert(), alert("x")))], {"policies[0].condition.any_of.conditions[1].alert.monitor"}),
    ([stop(condition=alert(level=pb.SEVERITY_INFO))], {"policies[0].condition.alert.level"}),
    ([stop(condition=alert(level=9))], {"policies[0].condition.alert.level"}),
    # A level that it has not, a role that it does not score: never true.
    ([stop(condition=alert("b", level=pb.SEVERITY_CRITICAL))], {"policies[0].condition.alert.level"}),
    ([stop(condition=alert("b", roles=["assistant", "user"]))], {"policies[0].condition.alert.roles[1]"}),
    ([stop(condition=alert(roles=["user", "tool"]))], {"policies[0].condition.alert.roles[1]"}),
    ([pb.Policy(monitor="a", action=ANNOTATE, hold=pb.Hold())], {"policies[0].hold"}),
    ([stop(monitor="a", hold=pb.Hold(tokens=0))], {"policies[0].hold.tokens"}),
    ([stop(monitor="a", hold=pb.Hold(tokens=MAX_HOLD_TOKENS + 1))], {"policies[0].hold.tokens"}),
    ([stop(monitor="wide", hold=pb.Hold())], {"policies[0].hold.tokens"}),
    ([stop(monitor="a", name=str(i)) for i in range(MAX_POLICIES + 1)], {"policies"}),
    (
        [stop(monitor="x"), stop(monitor="y", hold=pb.Hold(tokens=999))],
        {"policies[0].monitor", "policies[1].monitor", "policies[1].hold.tokens"},
    ),
]
ANY_VALUE = {"condition.alert.has_fired", "hold.reveal"}


@pytest.mark.parametrize(("messages", "fields"), WRONG)
def test_a_wrong_field_is_named(messages, fields):
    _, wrong = read(*messages)
    assert set(wrong) == fields
    assert all(text.startswith("must ") and text.endswith(".") for text in wrong.values())


def leaves(descriptor, prefix=""):
    for field in descriptor.fields:
        path = f"{prefix}{field.name}"
        if field.message_type is None or field.message_type.name in ("Steering", "Conditions"):
            yield f"{path}.conditions" if path.endswith("_of") else path
        else:
            yield from leaves(field.message_type, f"{path}.")


def test_the_table_covers_every_field():
    refused = {re.sub(r"^policies\.?|\[\d+\]", "", field).lstrip(".") for _, fields in WRONG for field in fields}
    assert set(leaves(pb.Policy.DESCRIPTOR)) - ANY_VALUE - refused == set()


def test_paths_of_conditions_are_those_of_the_wire():
    assert _wire_field("monitor") == "monitor"
    assert _wire_field("condition.any_of.0.all_of.12.roles.1") == (
        "condition.any_of.conditions[0].all_of.conditions[12].alert.roles[1]"
    )


def test_the_bounds_themselves_are_allowed():
    messages = [stop(condition=nested(4), name=str(i) * 3) for i in range(MAX_POLICIES)]
    (policies, _), wrong = read(*messages)
    assert wrong == {} and len(policies) == MAX_POLICIES
