"""Conditions over several monitors against a slow evaluator that looks at every alert so far, and every refusal."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_packs import feature_component, pack, thresholds

from monitors.bank import MonitorBank
from monitors.components import Inputs
from monitors.condition import MAX_CONDITION_ALERTS, MAX_CONDITION_DEPTH, AlertOf, AllOf, AnyOf
from monitors.errors import MonitorError
from monitors.policy import MAX_HOLD_TOKENS, Policy, PolicyAction
from monitors.thresholds import LEVELS

ROLES = ("user", "assistant")


def named(name, feature, **changes):
    facts = {
        "window": 1, "min_tokens": 1, "cooldown_tokens": 0, "thresholds": thresholds(2.0, 5.0, clear=1.0),
    }  # fmt: skip
    return pack(name, [feature_component(feature)], **(facts | changes)).spec()


SPECS = (named("a", 1, roles=ROLES), named("b", 2, cooldown_tokens=1), named("c", 1, window=3, roles=ROLES))
ROLES_OF = {spec.name: spec.roles for spec in SPECS}


def is_true(condition, history):
    """The obvious way. `history` is every alert so far: (monitor, role, state, level)."""
    if isinstance(condition, AllOf):
        return all([is_true(part, history) for part in condition.conditions])
    if isinstance(condition, AnyOf):
        return any([is_true(part, history) for part in condition.conditions])
    for role in condition.roles or ROLES_OF[condition.monitor]:
        mine = [(state, level) for monitor, of, state, level in history if (monitor, of) == (condition.monitor, role)]
        raised = [level for state, level in mine if state == "firing"]
        if not condition.has_fired:
            raised = [mine[-1][1]] if mine and mine[-1][0] == "firing" else []
        if any(LEVELS.index(level) >= LEVELS.index(condition.level) for level in raised):
            return True
    return False


@st.composite
def alerts(draw):
    monitor = draw(st.sampled_from("abc"))
    roles = draw(st.lists(st.sampled_from(ROLES_OF[monitor]), max_size=2, unique=True))
    level = draw(st.sampled_from(LEVELS))
    return AlertOf(monitor=monitor, level=level, roles=tuple(roles), has_fired=draw(st.booleans()))


def groups(parts):
    several = st.lists(parts, min_size=1, max_size=3).map(tuple)
    return several.map(AllOf) | several.map(AnyOf)


conditions = alerts() | groups(alerts()) | groups(alerts() | groups(alerts()))
stream = st.lists(st.tuples(st.sampled_from([*ROLES, None]), st.integers(0, 7), st.integers(0, 7)), max_size=25)
BOTH = AllOf((AlertOf(monitor="a"), AlertOf(monitor="b", has_fired=True)))


@given(st.lists(conditions, min_size=1, max_size=3), stream)
@example([BOTH], [("assistant", 0, 3), ("assistant", 0, 0), ("assistant", 3, 0)])
@example([AllOf((AlertOf(monitor="a"), AlertOf(monitor="b")))], [("assistant", 0, 3), ("assistant", 3, 0)])
@example([AlertOf(monitor="a", level="critical")], [("assistant", 3, 0), ("assistant", 6, 0)])
@example([AlertOf(monitor="a", roles=("user",))], [("assistant", 6, 0), (None, 6, 0), ("user", 3, 0)])
def test_a_policy_applies_from_the_first_token_at_which_its_condition_is_true(trees, tokens):
    policies = [Policy(str(i), PolicyAction.STEER, tree) for i, tree in enumerate(trees)]
    bank, history, first = MonitorBank(SPECS, policies), [], {}
    for position, (role, one, two) in enumerate(tokens, start=1):
        updates = bank.observe(position, Inputs({1: float(one), 2: float(two)}), role)
        raised = [update.alert for _, update in updates if update.alert is not None]
        history += [(alert.monitor, alert.role, alert.state, alert.level) for alert in raised]
        wanted = [p for p in policies if p not in first.values() and is_true(p.when, history)]
        assert list(bank.policies.latest) == wanted
        first |= {p.name: p for p in wanted}
        # It takes an alert that was raised, so there is always one to tell about it.
        assert not wanted or any(alert.state == "firing" for alert in raised)
        assert bank.triggered == tuple(first.values())


def test_a_policy_on_a_monitor_alone_is_any_of_its_alerts():
    for policy in (Policy("b", PolicyAction.STOP), Policy("x", PolicyAction.STOP, AlertOf(monitor="b"))):
        bank = MonitorBank(SPECS, [policy])
        bank.observe(1, Inputs({1: 9.0, 2: 0.0}), "assistant")
        assert not bank.stop_requested
        bank.observe(2, Inputs({1: 0.0, 2: 2.5}), "assistant")
        assert bank.stop_requested


def test_a_hold_lasts_until_its_policy_applies():
    bank = MonitorBank(
        SPECS, [Policy("a", PolicyAction.STEER, hold_tokens=9), Policy("b", PolicyAction.STOP, hold_tokens=4)]
    )
    assert bank.policies.hold_tokens == 9
    bank.observe(1, Inputs({1: 9.0, 2: 0.0}), "assistant")
    assert bank.policies.hold_tokens == 4
    bank.observe(2, Inputs({1: 9.0, 2: 9.0}), "assistant")
    assert bank.policies.hold_tokens == 0


values = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=12)


@given(conditions, values, values)
def test_what_is_done_with_at_the_prompts_end_would_not_have_come_to_apply(condition, prompt, reply):
    """Against a bank that goes on asking."""
    asking, ended = (MonitorBank(SPECS, [Policy("p", PolicyAction.STOP, condition, hold_tokens=3)]) for _ in range(2))
    tokens = [*((*token, "user") for token in prompt), None, *((*token, "assistant") for token in reply)]
    position = 0
    for token in tokens:
        if token is None:
            ended.end_prompt()
            continue
        position += 1
        one, two, role = token
        for bank in (asking, ended):
            bank.observe(position, Inputs({1: float(one), 2: float(two)}), role)
    assert ended.triggered == asking.triggered


USER, REPLY = AlertOf(monitor="a", roles=("user",)), AlertOf(monitor="b")


@pytest.mark.parametrize(
    ("condition", "read", "hold_tokens"),
    [
        (USER, 0.0, 0),
        (REPLY, 0.0, 3),
        (AlertOf(monitor="a"), 0.0, 3),
        (AllOf((USER, REPLY)), 0.0, 0),  # nothing is left that could make the first part true
        (AllOf((USER, REPLY)), 9.0, 3),  # it is true, and stays so
        (AllOf((AlertOf(monitor="a", level="critical", roles=("user",)), REPLY)), 2.5, 0),
        (AnyOf((USER, REPLY)), 0.0, 3),
        (AnyOf((USER, AllOf((USER, REPLY)))), 0.0, 0),
    ],
)
def test_once_the_prompt_is_read_nothing_is_held_back_for_what_only_it_could_make_apply(condition, read, hold_tokens):
    bank = MonitorBank(SPECS, [Policy("p", PolicyAction.STOP, condition, hold_tokens=3)])
    bank.observe(1, Inputs({1: read, 2: 0.0}), "user")
    assert bank.policies.hold_tokens == 3
    bank.end_prompt()
    assert bank.policies.hold_tokens == hold_tokens


def nested(depth):
    tree = AlertOf(monitor="a")
    for _ in range(depth - 1):
        tree = AnyOf((tree,))
    return tree


WIDE = AnyOf((AlertOf(monitor="a"),) * (MAX_CONDITION_ALERTS + 1))


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (AlertOf(monitor="x"), r"condition\.monitor: wanted one that this request runs \(a, b, c, w\), got 'x'"),
        (AllOf((AlertOf(monitor="a"), AlertOf(monitor="x"))), r"condition\.all_of\.1\.monitor: wanted one that"),
        (AnyOf((AllOf(()),)), r"condition\.any_of\.0\.all_of: wanted at least one condition, got none"),
        (
            AlertOf(monitor="w", level="critical"),
            r"condition\.level: wanted a level that w has \(warning\), got 'critical'",
        ),
        (
            AlertOf(monitor="b", roles=("user",)),
            r"condition\.roles\.0: wanted a role that b scores \(assistant\), got 'user'",
        ),
        (nested(MAX_CONDITION_DEPTH + 1), rf"wanted at most {MAX_CONDITION_DEPTH} levels of conditions, got more"),
        (WIDE, rf"condition: wanted at most {MAX_CONDITION_ALERTS} alerts, got {MAX_CONDITION_ALERTS + 1}"),
    ],
)
def test_what_could_never_be_true_is_refused_by_field(condition, message):
    specs = [*SPECS, named("w", 1, thresholds=thresholds(2.0))]
    with pytest.raises(MonitorError, match=rf"^policies\.1\.{message}" if message[0] == "c" else message):
        MonitorBank(specs, [Policy("a", PolicyAction.STOP), Policy("p", PolicyAction.STOP, condition)])


def test_the_bounds_themselves_are_allowed():
    widest = AnyOf((AlertOf(monitor="a"),) * MAX_CONDITION_ALERTS)
    deepest = nested(MAX_CONDITION_DEPTH)
    policies = Policy("wide", PolicyAction.STOP, widest), Policy("deep", PolicyAction.STOP, deepest, MAX_HOLD_TOKENS)
    bank = MonitorBank(SPECS, policies)
    assert bank.policies.hold_tokens == MAX_HOLD_TOKENS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AlertOf(monitor="a", level="info"), r"^level: wanted one of warning, critical, got 'info'$"),
        (lambda: AlertOf(monitor="a", roles=("tool",)), r"^roles\.0: wanted one of .*, got 'tool'$"),
        (
            lambda: Policy("a", PolicyAction.ANNOTATE, hold_tokens=3),
            r"^hold_tokens: wanted 0 for an action that keeps nothing back \(annotate\), got 3$",
        ),
        (
            lambda: Policy("a", PolicyAction.STOP, hold_tokens=MAX_HOLD_TOKENS + 1),
            rf"^hold_tokens: wanted at most {MAX_HOLD_TOKENS}, got {MAX_HOLD_TOKENS + 1}$",
        ),
        (lambda: Policy("a", PolicyAction.STOP, hold_tokens=-1), r"^hold_tokens: wanted a whole number of at least 0"),
        (lambda: Policy("", PolicyAction.STOP), r"^name: wanted a sentence"),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(make, message):
    with pytest.raises(MonitorError, match=message):
        make()
