"""Packs, scores, alerts and summaries on the wire: every fact of them, and what they don't hold for."""

from dataclasses import replace

import pytest
import tiny_packs
from telltale.v1 import types_pb2

from monitors.bank import MonitorBank
from monitors.components import Inputs
from monitors.monitor_spec import Role
from monitors.pack_parts import PackCalibration
from monitors.thresholds import Levels, LevelThreshold, Stratum, Thresholds
from sae_runtime.steering_spec import SteeringOp, SteeringSpec
from service import wire_monitors
from service.monitor_packs import ServedMonitor
from service.request import AlertEvent, Request, SamplingParams, Score

THRESHOLDS = Thresholds(
    (Stratum(4, 0.0), Stratum(8, 0.5)),
    Levels(LevelThreshold(0.01, 1.0, (4, 8)), LevelThreshold(0.001, 2.0, (4,), (8,))),
    clear_offset=0.25,
)
PACK = tiny_packs.pack(
    "deception",
    [
        tiny_packs.probe_component("stance", hook_point="layers.2.output"),
        tiny_packs.feature_component(3, 41, name="latents"),
    ],
    thresholds=THRESHOLDS,
    validated=True,
    version=4,
    window=1,
    min_tokens=1,
    calibration=PackCalibration(
        method="conformal_by_length", source="Benign replies.", figures={"strata": [{"num_replies": 1200}]}
    ),
    evidence={"auroc": 0.75},
)


def request(**changes: object) -> Request:
    facts = {"request_id": "r", "prompt_ids": (1, 2), "sampling": SamplingParams(max_tokens=8), "label": "job"}
    return Request(**(facts | changes))  # type: ignore[arg-type]


def test_a_definition_has_every_fact_of_its_pack():
    message = wire_monitors.monitor(ServedMonitor(PACK, ("bindings.dtype: wanted a, got b",)))
    assert (message.name, message.version, message.kind) == ("deception", 4, types_pb2.MONITOR_KIND_ENSEMBLE)
    assert message.pack_sha256 == PACK.content_sha256
    assert (message.description, message.limits) == (PACK.description, PACK.limits)
    assert (message.validated, message.validated_reason) == (True, PACK.validated_reason)
    assert (message.threshold_source, message.calibration_method) == ("Benign replies.", "conformal_by_length")
    assert [(c.name, c.hook_point, list(c.features), c.method) for c in message.components] == [
        ("stance", "layers.2.output", [], "logistic_regression"),
        ("latents", "", [3, 41], ""),
    ]
    assert message.combination == "min of stance, latents"
    assert list(message.features) == [3, 41]
    assert (message.window, message.min_tokens, message.cooldown_tokens) == (1, 1, 4)
    assert (list(message.roles), message.scores_prompt) == (["assistant"], False)
    assert list(message.mismatches) == ["bindings.dtype: wanted a, got b"]


@pytest.mark.parametrize(
    ("roles", "scores_prompt"), [(("assistant", "reasoning"), False), (("assistant", "user"), True), (("text",), True)]
)
def test_thoughts_are_no_prompt(roles, scores_prompt):
    message = wire_monitors.monitor(ServedMonitor(replace(PACK, roles=roles)))
    assert (tuple(message.roles), message.scores_prompt) == (roles, scores_prompt)


def test_a_definition_tells_levels_and_thresholds_by_length():
    message = wire_monitors.monitor(ServedMonitor(PACK))
    assert [(level.severity, level.alpha, list(level.absent)) for level in message.levels] == [
        (types_pb2.SEVERITY_WARNING, 0.01, []),
        (types_pb2.SEVERITY_CRITICAL, 0.001, [8]),
    ]
    short, long = message.strata
    assert (short.max_tokens, short.warning, short.critical, short.clear) == (4, 1.0, 2.0, 0.25)
    assert (long.max_tokens, long.warning, long.clear, long.HasField("critical")) == (8, 1.5, 0.75, False)
    assert (message.threshold, message.clear_threshold) == (1.0, 0.25)
    assert message.severity == types_pb2.SEVERITY_CRITICAL


def test_evidence_comes_only_if_it_is_asked_for():
    bare, full = (wire_monitors.monitor(ServedMonitor(PACK), with_evidence=asked) for asked in (False, True))
    assert not (bare.HasField("evidence") or bare.HasField("calibration"))
    assert full.evidence["auroc"] == 0.75
    assert full.calibration["strata"][0]["num_replies"] == 1200


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "ensemble", "rule": "sum"}, "2 * a + 1 * b"),
        ({"kind": "ensemble", "rule": "max"}, "max of a, b"),
        (
            {"kind": "cascade", "rule": None, "gate_threshold": 0.5, "closed_score": -4.0},
            "a while b is above 0.5, else -4",
        ),
    ],
)
def test_a_combination_is_told_in_words(changes, words):
    weight = 2.0 if changes["rule"] == "sum" else 1.0
    components = [tiny_packs.probe_component("a", weight=weight), tiny_packs.probe_component("b")]
    assert wire_monitors.combination_words(tiny_packs.pack(components=components, **changes)) == words
    assert wire_monitors.combination_words(tiny_packs.pack()) == "latents"


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("min", "min of a, b while end is above 0.5, else -4"),
        ("sum", "2 * a + 1 * b while end is above 0.5, else -4"),
    ],
)
def test_an_ensemble_behind_a_gate_is_told_in_words(rule, words):
    weights = {"a": 2.0 if rule == "sum" else 1.0, "b": 1.0, "end": 1.0}
    components = [tiny_packs.probe_component(name, weight=weight) for name, weight in weights.items()]
    pack = tiny_packs.pack(components=components, kind="cascade", rule=rule, gate_threshold=0.5, closed_score=-4.0)
    assert wire_monitors.combination_words(pack) == words


def test_what_of_a_request_thresholds_do_not_hold_for_is_told():
    bound = replace(PACK, bindings=replace(PACK.bindings, temperatures=(0.0, 0.7)))
    served = ServedMonitor(bound)

    def told(**changes: object) -> list[str]:
        return list(wire_monitors.cautions(served, request(**changes)))

    assert told() == []
    assert told(sampling=SamplingParams(temperature=0.699999988079071, max_tokens=8)) == []  # 0.7 from the wire
    assert told(sampling=SamplingParams(temperature=1.0, max_tokens=9)) == [
        "thresholds were set on replies sampled at temperature 0, 0.7, this one is sampled at 1",
        "thresholds were set on replies of up to 8 tokens, this one may have more",
    ]
    assert told(steering=(SteeringSpec(3, SteeringOp.ADD, 1.0),)) == [
        "thresholds were set on replies that were not steered"
    ]
    assert told(score_only=True, sampling=SamplingParams(temperature=1.0, max_tokens=9)) == []
    assert list(wire_monitors.monitor(served, request(steering=(SteeringSpec(3, SteeringOp.ADD),))).cautions)


def test_how_far_thresholds_stand_is_told_where_a_request_goes_beyond():
    silent = replace(THRESHOLDS, levels=Levels(LevelThreshold(0.01, 1.0, (4,), (8,)), None))
    short, whole = (ServedMonitor(replace(PACK, thresholds=each)) for each in (silent, THRESHOLDS))

    def told(served: ServedMonitor, **changes: object) -> list[str]:
        return list(wire_monitors.cautions(served, request(**changes)))

    no_level = "no level stands after 4 scored tokens, this one may have more: it can't fire there"
    assert told(short, sampling=SamplingParams(max_tokens=4)) == []
    assert told(short, sampling=SamplingParams(max_tokens=5)) == [no_level]
    assert told(whole, sampling=SamplingParams(max_tokens=5)) == []

    def read(num_tokens: int, num_user: int = 0) -> dict[str, object]:
        """A text to be read, of which position 0 is not scored, behind a user's words."""
        roles = (*["user"] * num_user, *[None] * num_tokens)
        scored = frozenset(range(num_user, num_user + num_tokens))
        return {"prompt_ids": (1,) * len(roles), "prompt_roles": roles, "scored_positions": scored, "score_only": True}

    assert told(short, **read(5)) == told(short, **read(4, num_user=9)) == []
    assert told(short, **read(6)) == [no_level]
    of_text = ServedMonitor(replace(PACK, roles=("text",), thresholds=silent))
    as_text = {"monitors": (of_text.spec.for_plain_text(),)}
    assert told(of_text, **read(6)) == [] and told(of_text, **read(6), **as_text)[0] == no_level
    assert told(whole, **read(10)) == ["thresholds were set on replies of up to 8 tokens, this one may have more"]


def test_other_words_than_the_assistants_have_no_known_rate():
    def told(*roles: Role, **changes: object) -> list[str]:
        served = ServedMonitor(replace(PACK, roles=roles))
        return list(wire_monitors.cautions(served, request(**changes)))

    def unknown(role: str) -> list[str]:
        return [f"no false-positive rate is known for words of {role}, unless thresholds were set on such text"]

    spoken = {"prompt_ids": (1,) * 4, "prompt_roles": (None, "system", "user", None)}
    assert told("assistant", **spoken) == told("assistant", "reasoning", **spoken) == []
    assert told("assistant", "user", **spoken) == unknown("user")
    assert told("user", "reasoning", "system", **spoken) == unknown("user, system")
    # Of a request without such words there is nothing to say.
    assert told("assistant", "user") == told("assistant", "text", **spoken) == []
    read = {"prompt_ids": (1,) * 4, "scored_positions": frozenset(range(4)), "score_only": True}
    of_text = ServedMonitor(replace(PACK, roles=("text",))).spec.for_plain_text()
    assert told("text", **read, monitors=(of_text,)) == unknown("text")
    assert told("assistant", "text", **read) == []


def test_a_score_has_its_components_and_level():
    quiet = wire_monitors.score(Score("m", 1.5, (1.5, 2.0), None))
    assert (quiet.monitor, quiet.value, list(quiet.components), quiet.firing) == ("m", 1.5, [1.5, 2.0], False)
    assert quiet.level == types_pb2.SEVERITY_UNSPECIFIED
    firing = wire_monitors.score(Score("m", 1.5, (1.5,), "critical"))
    assert (firing.firing, firing.level) == (True, types_pb2.SEVERITY_CRITICAL)


def test_an_alert_and_a_summary_have_all_that_the_monitor_said():
    bank = MonitorBank([PACK.spec()])
    inputs = Inputs({3: 1.0, 41: 2.0}, {"deception.stance": 2.5})
    [(_, update)] = bank.observe(5, inputs, "assistant")
    assert update.alert is not None
    message = wire_monitors.alert(AlertEvent("r", "job", update.alert, 1.25))
    assert (message.request_id, message.label, message.time_seconds) == ("r", "job", 1.25)
    assert (message.monitor, message.role, message.validated) == ("deception", "assistant", True)
    assert (message.state, message.severity) == (types_pb2.ALERT_STATE_FIRING, types_pb2.SEVERITY_CRITICAL)
    assert (message.position, message.span_start, message.score, message.threshold) == (5, 5, 2.5, 2.0)
    assert [(c.component, c.score, c.contribution) for c in message.components] == [
        ("stance", 2.5, 2.5),
        ("latents", 3.0, 0.0),
    ]
    assert [(c.component, c.feature, c.value) for c in message.contributions] == [
        ("latents", 3, 1.0),
        ("latents", 41, 2.0),
    ]
    assert (message.pack_sha256, message.beyond_calibration) == (PACK.content_sha256, False)

    [summary] = [wire_monitors.summary(one, None) for one in bank.summaries()]
    assert (summary.monitor, summary.role, summary.fired, summary.alerts) == ("deception", "assistant", True, 1)
    assert (summary.level, summary.first_fired_position) == (types_pb2.SEVERITY_CRITICAL, 5)
    assert (summary.max_score, summary.max_statistic, summary.mean_score) == (2.5, 2.5, 2.5)
    assert (summary.scored_tokens, summary.beyond_calibration) == (1, False)
