"""All monitors of a request together: who scores what, in which order, what policies ask for, and every refusal."""

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_packs import feature_component, pack, probe_component, thresholds

from monitors.bank import MonitorBank
from monitors.components import Inputs
from monitors.condition import AlertOf, AnyOf
from monitors.errors import MonitorError
from monitors.monitor_spec import MonitorSpec
from monitors.policy import Policy, PolicyAction
from monitors.track import Track


def named(name: str, feature: int, **changes: Any) -> MonitorSpec:
    facts = {"window": 1, "min_tokens": 1, "cooldown_tokens": 0, "thresholds": thresholds(2.0, clear=1.0)} | changes
    return pack(name, [feature_component(feature)], **facts).spec()


def latents(*values: float) -> Inputs:
    """Readings of latents 1, 2, ..."""
    return Inputs(dict(enumerate(values, start=1)))


SPECS = (
    named("a", 1, window=2),
    named("b", 2, window=3, min_tokens=2),
    named("c", 1, thresholds=thresholds(5.0), cooldown_tokens=2),
)


@given(st.permutations(SPECS), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30))
@example(list(SPECS), [(9, 9), (0, 0), (9, 9), (9, 9)])
def test_monitors_in_a_bank_behave_as_alone_in_any_order(specs, stream):
    bank, alone = MonitorBank(specs), {spec.name: Track(spec, "assistant") for spec in specs}
    for position, (one, two) in enumerate(stream, start=1):
        inputs = latents(float(one), float(two))
        expected = [(spec.name, alone[spec.name].observe(position, inputs)) for spec in specs]
        assert bank.observe(position, inputs, "assistant") == expected
    assert bank.summaries() == [alone[spec.name].summary() for spec in specs]


def test_a_bank_says_what_it_needs():
    both = pack("both", [feature_component(5, name="x"), probe_component("p")])
    bank = MonitorBank([named("a", 9), named("b", 2), named("c", 9), both.spec()])
    assert (bank.latents, bank.probes) == ((2, 5, 9), ("both.p",))
    assert (MonitorBank([]).latents, MonitorBank([]).probes) == ((), ())


# Who is scored


def test_position_0_is_never_scored():
    bank = MonitorBank([named("a", 1)])
    assert bank.observe(0, latents(1e9), "assistant") == []
    assert [name for name, _ in bank.observe(1, latents(0.5), "assistant")] == ["a"]
    assert bank.summaries()[0].num_scored == 1


def test_only_the_roles_a_monitor_asks_for_are_scored():
    bank = MonitorBank([named("a", 1), named("b", 1, roles=("user", "assistant"))])
    assert bank.scores("user") and bank.scores("assistant") and not bank.scores("system") and not bank.scores(None)
    seen = [
        [name for name, _ in bank.observe(i, latents(1.0), role)]
        for i, role in enumerate(("user", None, "assistant"), 1)
    ]
    assert seen == [["b"], [], ["a", "b"]]


def test_a_role_is_scored_by_itself():
    """The user's high readings are in no mean of the assistant's, and an alert on the one is not open on the other."""
    bank = MonitorBank([named("a", 1, roles=("user", "assistant"), window=4)])
    [(_, user)] = bank.observe(1, latents(9.0), "user")
    [(_, reply)] = bank.observe(2, latents(1.0), "assistant")
    assert (user.score, user.level, reply.score, reply.level) == (9.0, "warning", 1.0, None)
    assert user.alert is not None and user.alert.role == "user"
    assert [(s.role, s.num_scored, s.level) for s in bank.summaries()] == [
        ("user", 1, "warning"),
        ("assistant", 1, None),
    ]


def test_tokens_that_are_not_scored_need_no_inputs_and_may_have_broken_ones():
    bank = MonitorBank([named("a", 1)])
    bank.observe(0, latents(math.inf), "assistant")
    bank.observe(1, Inputs(), "user")
    bank.observe(2, latents(math.nan), None)
    assert bank.observe(3, latents(1.0), "assistant")[0][1].score == 1.0


def test_an_alert_stays_open_over_tokens_that_are_not_scored():
    bank = MonitorBank([named("a", 1)])
    bank.observe(1, latents(9.0), "assistant")
    bank.observe(2, Inputs(), None)
    [(_, update)] = bank.observe(3, latents(1.5), "assistant")
    assert update.firing and update.alert is None


@pytest.mark.parametrize("position", [3, 5])
@pytest.mark.parametrize("role", [None, "assistant"])
def test_a_token_seen_twice_or_missed_is_refused(position, role):
    bank = MonitorBank([named("a", 1)])
    bank.observe(3, latents(1.0), role)
    before = bank.summaries()
    with pytest.raises(MonitorError, match=rf"^position: wanted 4, the one after the last, got {position}$"):
        bank.observe(position, latents(1.0), role)
    assert bank.summaries() == before


@pytest.mark.parametrize("position", [-1, 1.0])
def test_a_position_is_a_whole_number(position):
    with pytest.raises(MonitorError, match=r"^position: wanted a whole number of at least 0"):
        MonitorBank([]).observe(position, Inputs(), None)


# Policies


def test_policies_take_effect_when_their_monitor_fires_and_stay_in_effect():
    stop, steer = Policy("a", PolicyAction.STOP), Policy("b", PolicyAction.STEER)
    bank = MonitorBank([named("a", 1), named("b", 2)], [stop, steer])
    bank.observe(1, latents(0.0, 0.0), "assistant")
    assert (bank.stop_requested, bank.steer_requested, bank.triggered) == (False, False, ())
    bank.observe(2, latents(0.0, 9.0), "assistant")
    assert (bank.stop_requested, bank.steer_requested, bank.triggered) == (False, True, (steer,))
    bank.observe(3, latents(9.0, 0.0), "assistant")
    assert (bank.stop_requested, bank.steer_requested, bank.triggered) == (True, True, (steer, stop))
    bank.observe(4, latents(0.0, 9.0), "assistant")
    assert bank.triggered == (steer, stop)


def test_an_alert_knows_what_it_led_to():
    policies = [
        Policy("a", PolicyAction.STOP),
        Policy("b", PolicyAction.ANNOTATE),
        Policy("both", PolicyAction.STEER, AnyOf((AlertOf(monitor="b"), AlertOf(monitor="c")))),
    ]
    bank = MonitorBank([named("a", 1), named("b", 2), named("c", 3, cooldown_tokens=0)], policies)
    updates = bank.observe(1, latents(0.0, 9.0, 9.0), "assistant")
    raised = [update.alert for _, update in updates if update.alert is not None]
    assert [[p.name for p in bank.applied_by(alert)] for alert in raised] == [["b", "both"], ["both"]]
    assert [bank.action_of(alert) for alert in raised] == [PolicyAction.STEER] * 2
    [(_, first), (_, second), _] = bank.observe(2, latents(9.0, 0.0, 9.0), "assistant")
    assert first.alert is not None and bank.action_of(first.alert) is PolicyAction.STOP
    assert second.alert is not None and bank.applied_by(second.alert) == ()  # it cleared


def test_an_alert_of_another_level_or_role_than_was_asked_for_led_to_nothing():
    """Beside one that did, at the same token."""
    asked = (AlertOf(monitor="a", level="critical"), AlertOf(monitor="a", roles=("user",)), AlertOf(monitor="b"))
    both = {"thresholds": thresholds(2.0, 5.0), "roles": ("user", "assistant")}
    bank = MonitorBank([named("a", 1, **both), named("b", 2)], [Policy("any", PolicyAction.STOP, AnyOf(asked))])
    raised = [update.alert for _, update in bank.observe(1, latents(3.0, 9.0), "assistant")]
    assert raised[0].level == "warning"
    assert [[p.name for p in bank.applied_by(alert)] for alert in raised] == [[], ["any"]]
    assert [bank.action_of(alert) for alert in raised] == [PolicyAction.ANNOTATE, PolicyAction.STOP]


def test_an_annotating_monitor_asks_for_nothing():
    for policies in ([], [Policy("a", PolicyAction.ANNOTATE)]):
        bank = MonitorBank([named("a", 1)], policies)
        [(name, update)] = bank.observe(1, latents(9.0), "assistant")
        assert name == "a" and update.firing
        assert not bank.stop_requested
        assert not bank.steer_requested


def test_a_policy_given_as_plain_text_works():
    """A StrEnum equals its text, so text passes the check; it must then act, too."""
    bank = MonitorBank([named("a", 1)], [Policy("a", "stop")])  # type: ignore[arg-type]
    bank.observe(1, latents(9.0), "assistant")
    assert bank.stop_requested


@pytest.mark.parametrize(
    ("specs", "policies", "message"),
    [
        ([named("a", 1), named("a", 2)], [], r"^monitors\.1\.name: wanted a monitor not in the bank yet, got 'a'$"),
        (
            [named("a", 1), named("b", 1)],
            [Policy("a", PolicyAction.STOP), Policy("x", PolicyAction.STOP)],
            r"^policies\.1\.monitor: wanted one that this request runs \(a, b\), got 'x'$",
        ),
        (
            [named("a", 1)],
            [Policy("a", PolicyAction.STOP), Policy("a", PolicyAction.STEER)],
            r"^policies\.1\.name: wanted a value of its own, unlike policies\.0\.name, got 'a'$",
        ),
    ],
)
def test_a_bad_bank_is_refused_by_field(specs, policies, message):
    with pytest.raises(MonitorError, match=message):
        MonitorBank(specs, policies)


def test_an_unknown_action_is_refused():
    with pytest.raises(MonitorError, match=r"^action: wanted one of annotate, steer, stop, got 'shout'$"):
        Policy("a", "shout")  # type: ignore[arg-type]
