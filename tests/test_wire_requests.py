"""Wire messages to requests: every field checked, everything that is wrong told at once, nothing else ever raised."""

import math
import re
import time
from dataclasses import replace

import pytest
import tiny
import tiny_packs
from google.protobuf import message_factory, text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import ALWAYS, NEVER, catalog
from telltale.v1 import generation_pb2, types_pb2

from monitors.bank import MonitorBank
from monitors.components import Inputs
from monitors.condition import alerts_in
from monitors.policy import Policy, PolicyAction
from monitors.thresholds import Levels, LevelThreshold
from sae_runtime.steering_spec import SteeringOp, SteeringSpec
from service.errors import InvalidRequest
from service.monitor_packs import ServedMonitor
from service.request import FinishReason
from service.violations import MAX_VIOLATIONS
from service.wire_requests import RequestLimits, RequestReader

MODEL = tiny.language_model()
CATALOG = catalog(MODEL)
LIMITS = RequestLimits(
    context_length=tiny.NUM_POSITIONS, max_new_tokens_default=16, top_features_cap=8, max_request_seconds=60.0
)
STEERING = tiny.limits(tiny.sae())
READER = RequestReader(CATALOG, MODEL.tokenizer, STEERING, LIMITS)
WIDE = RequestReader(CATALOG, MODEL.tokenizer, STEERING, replace(LIMITS, context_length=4096))
ADD = "op: STEERING_OP_ADD"
VECTOR = 'vector: "' + "\\000\\000\\200?" * tiny.D_MODEL + '"'  # ones
NAN_VECTOR = 'vector: "' + "\\000\\000\\300\\177" * tiny.D_MODEL + '"'
ZERO_VECTOR = 'vector: "' + "\\000" * 4 * tiny.D_MODEL + '"'

WRONG: list[tuple[str, list[str]]] = [
    # The prompt
    ("", ["prompt"]),
    ("text: ''", ["text"]),
    (f"text: '{'a' * tiny.NUM_POSITIONS}'", ["text"]),
    ("chat {}", ["chat.messages"]),
    ("chat { messages { role: 'robot' content: 'x' } }", ["chat.messages[0].role"]),
    (
        "chat { messages { role: 'user' content: 'x' } messages { content: 'x' } messages { role: 'USER' } }",
        ["chat.messages[1].role", "chat.messages[2].role"],
    ),
    (f"chat {{ messages {{ role: 'user' content: '{'a' * tiny.NUM_POSITIONS}' }} }}", ["chat"]),
    ("token_ids {}", ["token_ids"]),
    ("token_ids { ids: 1 ids: 259 }", ["token_ids.ids[1]"]),
    ("token_ids { ids: 4294967295 }", ["token_ids.ids[0]"]),
    # Sampling
    *[
        (f"text: 'x' sampling {{ {field}: {value} }}", [f"sampling.{field}"])
        for field, values in {
            "temperature": ["-0.1", "0.0009", "100.1", "nan", "inf", "-inf"],
            "top_p": ["0", "-1", "1.01", "nan", "inf"],
            "min_p": ["-0.1", "1.01", "nan", "inf"],
            "repetition_penalty": ["0", "0.009", "-1", "10.1", "nan", "inf"],
            "max_tokens": ["0", f"{tiny.NUM_POSITIONS}", "4294967295"],
        }.items()
        for value in values
    ],
    ("text: 'x' sampling { stop: '' }", ["sampling.stop[0]"]),
    (f"text: 'x' sampling {{ stop: 'a' stop: '{'ö' * 129}' }}", ["sampling.stop[1]"]),
    ("text: 'x' sampling {" + "stop: 'a'" * 9 + "}", ["sampling.stop"]),
    # What to read
    ("text: 'x' watch { features: 64 }", ["watch.features[0]"]),
    ("text: 'x' watch { features: 1 features: 4294967295 }", ["watch.features[1]"]),
    ("text: 'x' watch { features: 1 features: 1 }", ["watch.features"]),
    ("text: 'x' watch { monitors: 'nobody' }", ["watch.monitors[0]"]),
    (f"text: 'x' watch {{ monitors: '{NEVER}' monitors: '{NEVER}' }}", ["watch.monitors[1]"]),
    ("text: 'x' watch { top_features: 9 }", ["watch.top_features"]),
    # Steering
    (f"text: 'x' steering {{ {ADD} strength: 1 }}", ["steering[0]"]),
    (f"text: 'x' steering {{ {ADD} {ZERO_VECTOR} strength: 1 }}", ["steering[0]"]),
    (f"text: 'x' steering {{ {ADD} feature: 64 }}", ["steering[0].feature"]),
    (f"text: 'x' steering {{ {ADD} name: 'nobody' }}", ["steering[0].name"]),
    (f"text: 'x' steering {{ {ADD} vector: '' }}", ["steering[0].vector"]),
    (f"text: 'x' steering {{ {ADD} vector: '0123' }}", ["steering[0].vector"]),
    (f"text: 'x' steering {{ {ADD} {NAN_VECTOR} strength: 1 }}", ["steering[0].vector"]),
    ("text: 'x' steering { feature: 1 }", ["steering[0].op"]),
    ("text: 'x' steering { feature: 1 op: 99 }", ["steering[0].op"]),
    (f"text: 'x' steering {{ {ADD} feature: 1 unit: 99 }}", ["steering[0].unit"]),
    ("text: 'x' steering { op: STEERING_OP_SCALE feature: 1 unit: STRENGTH_UNIT_RELATIVE }", ["steering[0].unit"]),
    (f"text: 'x' steering {{ {ADD} feature: 1 scope: 99 }}", ["steering[0].scope"]),
    (f"text: 'x' steering {{ {ADD} feature: 1 strength: nan }}", ["steering[0].strength"]),
    (f"text: 'x' steering {{ {ADD} feature: 1 strength: -inf }}", ["steering[0].strength"]),
    (f"text: 'x' steering {{ {ADD} feature: 1 strength: 1000 }}", ["steering[0].strength"]),
    (f"text: 'x' steering {{ {ADD} feature: 1 strength: 21 unit: STRENGTH_UNIT_RELATIVE }}", ["steering[0].strength"]),
    ("text: 'x' steering { op: STEERING_OP_PROJECT_OUT feature: 1 strength: 1 }", ["steering[0].strength"]),
    (f"text: 'x' steering {{ {ADD} feature: 1 window {{}} }}", ["steering[0].window"]),
    (f"text: 'x' steering {{ {ADD} feature: 1 window {{ start: 5 end: 5 }} }}", ["steering[0].window"]),
    ("text: 'x' " + f"steering {{ {ADD} feature: 1 }}" * 17, ["steering"]),
    # Policies
    ("text: 'x' policies { monitor: 'nobody' action: POLICY_ACTION_STOP }", ["policies[0].monitor"]),
    (
        f"text: 'x' watch {{ monitors: '{NEVER}' }} policies {{ monitor: '{ALWAYS}' action: POLICY_ACTION_STOP }}",
        ["policies[0].monitor"],
    ),
    ("text: 'x' " + f"policies {{ monitor: '{NEVER}' action: POLICY_ACTION_STOP }}" * 2, ["policies[1].monitor"]),
    (f"text: 'x' policies {{ monitor: '{NEVER}' }}", ["policies[0].action"]),
    (f"text: 'x' policies {{ monitor: '{NEVER}' action: 99 }}", ["policies[0].action"]),
    (f"text: 'x' policies {{ monitor: '{NEVER}' action: POLICY_ACTION_STEER }}", ["policies[0].steering"]),
    (
        f"text: 'x' policies {{ monitor: '{NEVER}' action: POLICY_ACTION_STOP steering {{ {ADD} feature: 1 }} }}",
        ["policies[0].steering"],
    ),
    (
        f"text: 'x' policies {{ monitor: '{NEVER}' action: POLICY_ACTION_STEER steering {{ {ADD} feature: 64 }} }}",
        ["policies[0].steering[0].feature"],
    ),
    ("text: 'x' " + f"policies {{ monitor: '{NEVER}' action: POLICY_ACTION_STOP }}" * 17, ["policies"]),
    # The label
    (f"text: 'x' label: '{'a' * 129}'", ["label"]),
    ("text: 'x' label: 'a\\nb'", ["label"]),
    ("text: 'x' label: '\\033[2J'", ["label"]),
]
"""GenerateRequests in protobuf's text format, and the fields that are wrong with them."""
WRONG_ON_ONE_SLOT = [
    ("text: 'x' baseline: true", ["baseline", "baseline"]),  # nothing to compare with either
    (f"text: 'x' baseline: true steering {{ {ADD} feature: 1 }}", ["baseline"]),
]

ANY_VALUE = {
    "chat.messages.content",
    "sampling.top_k",
    "sampling.seed",
    "sampling.ignore_eos",
    "watch.include_prompt",
    "watch.include_logprobs",
    "watch.no_defaults",
}
"""Fields that no value of their type is wrong for."""


def parse(text, cls=generation_pb2.GenerateRequest):
    return text_format.Parse(text, cls())


def generate(text):
    return READER.read_generate(parse(text), time_remaining=None)


def score(text):
    return READER.read_score(parse(text, generation_pb2.ScoreRequest), time_remaining=None)


def violations(read, text):
    with pytest.raises(InvalidRequest) as refused:
        read(text)
    return [v.field for v in refused.value.violations]


# --- what is refused ---


ALL_WRONG = WRONG + WRONG_ON_ONE_SLOT


@pytest.mark.parametrize(("text", "fields"), ALL_WRONG, ids=[text[:60] for text, _ in ALL_WRONG])
def test_a_wrong_field_is_named(text, fields):
    with pytest.raises(InvalidRequest) as refused:
        generate(text)
    assert [v.field for v in refused.value.violations] == fields
    for violation in refused.value.violations:
        assert violation.description.startswith("must ")
        assert violation.description.endswith(".")


def leaves(descriptor, prefix=""):
    for field in descriptor.fields:
        path = f"{prefix}{field.name}"
        # Policies have a table of their own, in test_wire_policies.
        if field.message_type is None or field.message_type.name in ("Window", "Policy"):
            yield path
        else:
            yield from leaves(field.message_type, f"{path}.")


def test_the_table_covers_every_field():
    refused = {re.sub(r"\[\d+\]", "", field) for _, fields in ALL_WRONG for field in fields}
    all_leaves = set(leaves(generation_pb2.GenerateRequest.DESCRIPTOR))
    assert all_leaves - ANY_VALUE - refused == set()
    assert all_leaves & ANY_VALUE == ANY_VALUE
    assert ANY_VALUE & refused == set()


def test_all_that_is_wrong_is_told_at_once():
    text = """
        text: 'x' label: '\\t'
        sampling { temperature: -1 top_p: 2 stop: '' }
        watch { features: 99 monitors: 'nobody' top_features: 65 }
        steering { op: STEERING_OP_ADD feature: 99 } steering { feature: 1 unit: 9 }
        policies { monitor: 'somebody' }
    """
    assert sorted(violations(generate, text)) == sorted(
        [
            "sampling.temperature",
            "sampling.top_p",
            "sampling.stop[0]",
            "watch.features[0]",
            "watch.monitors[0]",
            "watch.top_features",
            "label",
            "steering[0].feature",
            "steering[1].op",
            "steering[1].unit",
            "policies[0].monitor",
            "policies[0].action",
        ]
    )


def test_a_missing_prompt_is_told_with_the_rest():
    assert violations(generate, "sampling { top_p: 2 }") == ["sampling.top_p", "prompt"]
    assert violations(score, "label: '\\n'") == ["label", "prompt"]


def test_a_score_request_is_checked_alike():
    assert violations(score, "watch { features: 64 } text: 'x' steering { feature: 1 }") == [
        "watch.features[0]",
        "steering[0].op",
    ]
    assert violations(score, f"text: '{'a' * (tiny.NUM_POSITIONS + 1)}'") == ["text"]
    assert violations(score, "token_ids { ids: 300 }") == ["token_ids.ids[0]"]
    assert len(score(f"text: '{'a' * tiny.NUM_POSITIONS}'").prompt_ids) == tiny.NUM_POSITIONS


def test_a_request_that_is_wrong_a_hundred_thousand_times_is_told_the_beginning():
    message = generation_pb2.GenerateRequest(text="x")
    message.sampling.stop.extend([""] * 100_000)
    message.policies.extend([types_pb2.Policy()] * 10_000)
    with pytest.raises(InvalidRequest) as refused:
        READER.read_generate(message, time_remaining=None)
    assert [v.field for v in refused.value.violations][:3] == ["sampling.stop", "sampling.stop[0]", "sampling.stop[1]"]
    assert len(refused.value.violations) == MAX_VIOLATIONS


@pytest.mark.parametrize(
    "text",
    [
        "sampling { temperature: 0 top_p: 1 min_p: 0 repetition_penalty: 10 top_k: 4294967295 }",
        "sampling { temperature: 100 top_p: 1e-6 min_p: 1 repetition_penalty: 0.01 top_k: 0 max_tokens: 255 }",
        "sampling {" + f"stop: '{'a' * 256}'" * 8 + "}",
        "watch {" + "".join(f"features: {i} " for i in range(64)) + "top_features: 8 }",
        f"label: '{'ö' * 128}'",
        f"steering {{ {ADD} feature: 63 strength: 20 unit: STRENGTH_UNIT_RELATIVE window {{ end: 4294967295 }} }}",
        "steering { op: STEERING_OP_PROJECT_OUT name: 'calm' }" * 16,
        f"steering {{ {ADD} {VECTOR} strength: -1 }}",
        "policies { monitor: 'never' action: POLICY_ACTION_ANNOTATE }",
    ],
)
def test_the_bounds_themselves_are_allowed(text):
    assert generate(f"text: 'x' {text}").prompt_ids == tuple(MODEL.tokenizer("x").input_ids)


# --- what it becomes ---


def test_unset_fields_take_the_documented_defaults():
    request = generate("text: 'Wörter'")
    assert request.prompt_ids == tuple(MODEL.tokenizer("Wörter").input_ids)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.min_p) == (0, 1, 0)
    assert (sampling.repetition_penalty, sampling.top_k, sampling.max_tokens) == (1, 0, 16)
    assert (sampling.stop, sampling.ignore_eos) == ((), False)
    assert request.watched == (17, 3)
    assert [spec.name for spec in request.monitors] == [ALWAYS, NEVER]
    assert (request.top_features, request.include_prompt, request.include_logprobs) == (0, False, False)
    assert (request.steering, request.policies, request.policy_steering, request.label) == ((), (), {}, "")
    assert (request.score_only, request.scored_positions, request.prompt_roles) == (False, None, ())


def test_zero_is_not_unset():
    sampling = generate("text: 'x' sampling { temperature: 0 top_k: 0 seed: 0 ignore_eos: false }").sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed, sampling.ignore_eos) == (0, 0, 0, False)


def test_every_sampling_field_arrives():
    sampling = generate(
        "text: 'x' sampling { temperature: 0.5 top_p: 0.25 min_p: 0.125 repetition_penalty: 1.5 top_k: 7 max_tokens: 9 "
        "seed: 18446744073709551615 stop: 'a' stop: 'ö' ignore_eos: true }"
    ).sampling
    assert (sampling.temperature, sampling.top_p, sampling.min_p, sampling.repetition_penalty) == (
        0.5,
        0.25,
        0.125,
        1.5,
    )
    assert (sampling.top_k, sampling.max_tokens, sampling.seed) == (7, 9, 2**64 - 1)
    assert (sampling.stop, sampling.ignore_eos) == (("a", "ö"), True)


def test_what_is_watched_keeps_its_order():
    request = generate(
        f"text: 'x' watch {{ features: 9 features: 2 monitors: '{NEVER}' monitors: '{ALWAYS}' top_features: 3 "
        "include_prompt: true include_logprobs: true }"
    )
    assert request.watched == (9, 2)
    assert [spec.name for spec in request.monitors] == [NEVER, ALWAYS]
    assert (request.top_features, request.include_prompt, request.include_logprobs) == (3, True, True)


def test_no_defaults_leaves_what_was_named():
    nothing = generate("text: 'x' watch { no_defaults: true }")
    assert (nothing.watched, nothing.monitors) == ((), ())
    named = generate(f"text: 'x' watch {{ no_defaults: true features: 1 monitors: '{NEVER}' }}")
    assert (named.watched, [spec.name for spec in named.monitors]) == ((1,), [NEVER])


def test_steering_arrives():
    request = generate(f"text: 'x' steering {{ {ADD} feature: 2 strength: 3 }} steering {{ {ADD} feature: 1 }}")
    assert request.steering == (SteeringSpec(2, SteeringOp.ADD, 3.0), SteeringSpec(1, SteeringOp.ADD))


def test_policies_bring_their_own_steering():
    request = generate(
        f"""text: 'x'
        policies {{ monitor: '{NEVER}' action: POLICY_ACTION_STOP }}
        policies {{ monitor: '{ALWAYS}' action: POLICY_ACTION_STEER steering {{ {ADD} feature: 1 strength: 2 }} }}"""
    )
    assert request.policies == (Policy(NEVER, PolicyAction.STOP), Policy(ALWAYS, PolicyAction.STEER))
    assert request.policy_steering == {ALWAYS: (SteeringSpec(1, SteeringOp.ADD, 2.0),)}
    assert request.steering == ()


@pytest.mark.parametrize(
    ("num_prompt", "asked", "max_tokens", "reason"),
    [
        (100, None, 16, FinishReason.LENGTH),
        (250, None, 6, FinishReason.CONTEXT_LENGTH),
        (250, 6, 6, FinishReason.LENGTH),
        (255, 1, 1, FinishReason.LENGTH),
        (255, None, 1, FinishReason.CONTEXT_LENGTH),
    ],
)
def test_max_tokens_never_exceed_the_room(num_prompt, asked, max_tokens, reason):
    sampling = "" if asked is None else f"sampling {{ max_tokens: {asked} }}"
    request = generate(f"text: '{'a' * num_prompt}' {sampling}")
    assert (request.sampling.max_tokens, request.length_reason) == (max_tokens, reason)


@pytest.mark.parametrize(("remaining", "wanted"), [(None, 60), (5.0, 5), (1e6, 60), (-1.0, -1)])
def test_the_deadline_is_the_earlier_of_the_clients_and_the_servers(remaining, wanted):
    request = READER.read_generate(parse("text: 'x'"), time_remaining=remaining)
    assert request.deadline - time.monotonic() == pytest.approx(wanted, abs=1)


def test_every_request_gets_an_id_and_a_seed_of_its_own():
    requests = [generate("text: 'x'") for _ in range(20)]
    assert len({r.request_id for r in requests}) == len({r.sampling.seed for r in requests}) == 20


def test_a_score_request_reads_everything_and_scores_the_assistant():
    text = "chat { messages { role: 'user' content: 'ab' } messages { role: 'assistant' content: 'ab' } }"
    request = score(text)
    assert (request.score_only, request.include_prompt) == (True, True)
    scored = [token for i, token in enumerate(request.prompt_ids) if i in request.scored_positions]
    assert MODEL.tokenizer.decode(scored) == "ab"
    assert min(request.scored_positions) > request.prompt_ids.index(scored[1])
    assert score("text: 'abc'").scored_positions == {0, 1, 2}
    assert score("token_ids { ids: 5 ids: 6 }").scored_positions == {0, 1}


def wide(text: str):
    return WIDE.read_generate(parse(text), time_remaining=None)


def reader_with(pack, **limits) -> RequestReader:
    catalog = replace(CATALOG, monitors=(ServedMonitor(pack),))
    return RequestReader(catalog, MODEL.tokenizer, STEERING, replace(LIMITS, **limits))


def test_a_monitor_asked_for_by_name_must_know_the_length_of_the_reply():
    """Its thresholds stand up to 1,024 tokens, and `WIDE` has room for more."""
    with pytest.raises(InvalidRequest) as refused:
        wide(f"text: 'x' sampling {{ max_tokens: 1025 }} watch {{ monitors: '{ALWAYS}' monitors: '{NEVER}' }}")
    assert [v.field for v in refused.value.violations] == ["watch.monitors[0]", "watch.monitors[1]"]
    assert refused.value.violations[1].description == (
        "must have thresholds for replies of up to 1025 tokens (sampling.max_tokens). "
        "Got 'never', whose thresholds stand up to 1024."
    )
    assert wide(f"text: 'x' sampling {{ max_tokens: 1024 }} watch {{ monitors: '{NEVER}' }}").monitors
    assert len(wide("text: 'x' sampling { max_tokens: 1025 }").monitors) == 2  # they run by default, and say so


@pytest.mark.parametrize(("strata", "stands"), [((64, 256), 256), ((64, 1024), 64)])
def test_a_monitor_asked_for_by_name_must_be_able_to_fire_at_every_length_of_the_reply(strata, stands):
    """Its strata go up to 1,024 tokens, but no level stands in one of them: it would be silent there."""
    [absent] = {64, 256, 1024} - set(strata)
    warning = LevelThreshold(0.01, 0.5, strata, (absent,))
    thresholds = replace(tiny_packs.thresholds(0.5), levels=Levels(warning, None))
    reader = reader_with(tiny_packs.pack("partly", thresholds=thresholds), context_length=4096)

    def asked(max_tokens: int, watch: str = "watch { monitors: 'partly' }"):
        text = f"text: 'x' sampling {{ max_tokens: {max_tokens} }} {watch}"
        return reader.read_generate(parse(text), time_remaining=None)

    assert asked(stands).monitors
    with pytest.raises(InvalidRequest) as refused:
        asked(stands + 1)
    assert refused.value.violations[0].description.endswith(f"whose thresholds stand up to {stands}.")
    assert asked(stands + 1, watch="").monitors


CHAT = (
    "chat { messages { role: 'system' content: 'be' } messages { role: 'user' content: 'ab' } "
    "messages { role: 'assistant' content: 'cd' } messages { role: 'user' content: 'ef' } }"
)


def said(request, role: str) -> str:
    ids = zip(request.prompt_ids, request.prompt_roles, strict=True)
    return MODEL.tokenizer.decode([token for token, whose in ids if whose == role])


def test_roles_are_found_for_the_monitors_that_score_them():
    """What the assistant said before was scored when it was written; nobody asks for the system's."""
    reader = reader_with(tiny_packs.pack("both", roles=("user", "assistant")))
    request = reader.read_generate(parse(CHAT), time_remaining=None)
    assert (said(request, "user"), said(request, "assistant"), said(request, "system")) == ("abef", "", "")
    assert request.prompt_role(0) is None
    assert generate(CHAT).prompt_roles == ()
    assert reader.read_generate(parse("text: 'abc'"), time_remaining=None).prompt_roles == ("text",) * 3


@pytest.mark.parametrize("prompt", ["text: 'abc'", "token_ids { ids: 5 ids: 6 ids: 7 }"])
@pytest.mark.parametrize(
    ("roles", "scored_as"),
    [
        (("assistant",), "assistant"),
        (("text",), "text"),
        (("text", "user"), "text"),
        (("text", "assistant"), "assistant"),  # once, and as it was calibrated
        (("user",), None),
    ],
)
def test_a_plain_text_is_scored_as_the_role_of_it_that_a_monitor_has(prompt, roles, scored_as):
    reader = reader_with(tiny_packs.pack("one", roles=roles, min_tokens=1))
    request = reader.read_score(parse(prompt, generation_pb2.ScoreRequest), time_remaining=None)
    bank = MonitorBank(request.monitors)
    for position in range(3):
        bank.observe(position, Inputs({3: 1.0}), request.prompt_role(position))
    scored = {summary.role: summary.num_scored for summary in bank.summaries() if summary.num_scored}
    assert scored == ({} if scored_as is None else {scored_as: 2})  # position 0 is never scored


def test_a_conversation_has_no_plain_text():
    reader = reader_with(tiny_packs.pack("one", roles=("text",)))
    request = reader.read_score(parse(CHAT, generation_pb2.ScoreRequest), time_remaining=None)
    bank = MonitorBank(request.monitors)
    assert not any(bank.scores(request.prompt_role(position)) for position in range(len(request.prompt_ids)))


def test_a_score_request_finds_other_roles_beside_the_assistants():
    reader = reader_with(tiny_packs.pack("both", roles=("system", "assistant")))
    request = reader.read_score(parse(CHAT, generation_pb2.ScoreRequest), time_remaining=None)
    assert (said(request, "system"), said(request, "assistant"), said(request, "user")) == ("be", "cd", "")
    assert [request.prompt_role(i) for i in sorted(request.scored_positions)] == ["assistant"] * 2


# --- anything ---


def messages(descriptor):
    """Any message that the wire can carry, prompts kept short."""

    def build(setters):
        message = message_factory.GetMessageClass(descriptor)()
        for put in setters:
            put(message)
        return message

    unset = st.just(lambda _message: None)
    return st.tuples(*(unset | setter(field) for field in descriptor.fields)).map(build)


CONDITIONS = st.deferred(lambda: messages(types_pb2.Condition.DESCRIPTOR))  # one holds others


def value(field):
    if field.message_type is not None and field.message_type.name == "Condition":
        return CONDITIONS
    if field.message_type is not None:
        return messages(field.message_type)
    kinds = {
        field.TYPE_UINT32: st.sampled_from([0, 1, 3, 63, 64, 300, 2**32 - 1]),
        field.TYPE_UINT64: st.integers(0, 2**64 - 1),
        field.TYPE_FLOAT: st.floats(width=32) | st.sampled_from([0.0, 0.5, 1.0, math.nan]),
        field.TYPE_BOOL: st.booleans(),
        field.TYPE_ENUM: st.integers(-1, 6),
        field.TYPE_STRING: st.sampled_from(["", "x", "user", "assistant", NEVER, ALWAYS, "calm"]) | st.text(max_size=5),
        field.TYPE_BYTES: st.binary(max_size=9) | st.binary(min_size=4 * tiny.D_MODEL, max_size=4 * tiny.D_MODEL),
    }
    return kinds[field.type]


def setter(field):
    if field.is_repeated:
        values = st.lists(value(field), max_size=3)
        return values.map(lambda items: lambda message: getattr(message, field.name).extend(items))
    if field.message_type is not None:
        return value(field).map(lambda item: lambda message: getattr(message, field.name).CopyFrom(item))
    return value(field).map(lambda item: lambda message: setattr(message, field.name, item))


@settings(max_examples=300, deadline=None)
@given(messages(generation_pb2.GenerateRequest.DESCRIPTOR))
def test_any_message_is_a_request_or_an_invalid_one(message):
    try:
        request = READER.read_generate(message, time_remaining=None)
    except InvalidRequest as error:
        assert error.violations
        return
    assert 0 < len(request.prompt_ids) < tiny.NUM_POSITIONS
    assert len(request.prompt_ids) + request.sampling.max_tokens <= tiny.NUM_POSITIONS
    assert all(latent < tiny.NUM_LATENTS for latent in request.watched)
    names = {spec.name for spec in request.monitors}
    assert {alert.monitor for policy in request.policies for alert in alerts_in(policy.when)} <= names
