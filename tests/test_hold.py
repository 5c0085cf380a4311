"""Holding a reply back: the same stream where nothing fires, exactly a prefix of it where something does."""

import time
from dataclasses import replace

import pytest
import tiny
from hypothesis import example, given
from hypothesis import strategies as st
from test_engine import WATCHED, Reply, request, run_one, steer, submit
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from monitors.condition import AlertOf, AllOf, AnyOf
from monitors.policy import Policy, PolicyAction
from service.detokenizer import Detokenizer
from service.errors import DeadlineExceeded
from service.published import Published
from service.records import Outcome
from service.request import AlertEvent, FinishReason, StartedEvent, TokenEvent

STOP, STEER = PolicyAction.STOP, PolicyAction.STEER
PROMPT, LENGTH = "The sea was calm.", 40


def stream(reply):
    """What the client sees of a reply, times left out and how far it is held back."""

    def timeless(event):
        match event:
            case AlertEvent():
                return replace(event, time_seconds=0.0)
            case StartedEvent():
                return replace(event, hold_tokens=0)
        return event

    events = [timeless(event) for event in reply.events[:-1]]
    end = reply.finished
    return events, (end.reason, end.completion_tokens, end.monitors, end.tapped_tokens, end.matched_stop)


def quiet_monitor(**changes):
    return tiny.monitor_spec("quiet", features=(WATCHED[0],), threshold=1e9, **changes)


def firing_monitor(model, dictionary, name="watcher", latent=0, share=0.9, **changes):
    """A monitor of one token that fires where a watched latent is within a share of its largest reading, and that
    place, counted in generated tokens."""
    free = run_one(model, dictionary, request(model, PROMPT, max_tokens=LENGTH))
    readings = [token.readings[latent] for token in free.generated]
    threshold = max(readings) * share
    facts = {"window": 1, "min_tokens": 1, "cooldown_tokens": 0} | changes
    spec = tiny.monitor_spec(name, features=(WATCHED[latent],), threshold=threshold, **facts)
    return spec, next(i for i, value in enumerate(readings) if value > threshold)


def held(model, specs, *policies, **fields):
    return request(model, PROMPT, max_tokens=LENGTH, monitors=tuple(specs), policies=policies, **fields)


@pytest.mark.parametrize("hold", [1, 200])
@pytest.mark.parametrize("stop", [(), "a part of the text"])
def test_where_nothing_fires_the_stream_is_the_same(model, dictionary, hold, stop):
    if stop:
        text = run_one(model, dictionary, request(model, PROMPT, max_tokens=LENGTH)).text
        stop = (text[20:24], text[30] + "\0")
    fields = {"include_prompt": True, "include_logprobs": True, "top_features": 3, "sampling": {"stop": tuple(stop)}}
    # The annotating one fires all the time: its alerts stay where they are.
    loud, _ = firing_monitor(model, dictionary, "loud", share=0.3)
    specs = [quiet_monitor(), loud]
    plain = run_one(model, dictionary, held(model, specs, Policy("quiet", STOP), **fields))
    late = run_one(model, dictionary, held(model, specs, Policy("quiet", STOP, hold_tokens=hold), **fields))
    assert plain.alerts and stream(late) == stream(plain)
    assert (late.finished.num_withheld, late.finished.policies) == (0, ())


@pytest.mark.parametrize("hold", [1, 12])
def test_a_token_leaves_when_so_many_have_been_read_behind_it(model, dictionary, hold):
    engine = tiny.engine(model, dictionary)
    submission = submit(engine, held(model, [quiet_monitor()], Policy("quiet", STOP, hold_tokens=hold)))[0]
    num_prompt = len(submission.request.prompt_ids)
    while engine.num_active:
        engine.step()
        state = engine.state()
        left = [event.index for event in submission.mailbox._events if isinstance(event, TokenEvent)]
        if state.requests_running:
            assert len(left) == max(state.kv_tokens_used - num_prompt - hold, 0)
    assert len(left) == LENGTH


@pytest.mark.parametrize(("hold", "reveals"), [(1, False), (3, True), (100, False)])
def test_a_stop_lets_exactly_the_tokens_before_the_held_span_leave(model, dictionary, hold, reveals):
    spec, first = firing_monitor(model, dictionary)
    free = run_one(model, dictionary, held(model, [spec]))
    reply = run_one(model, dictionary, held(model, [spec], Policy(spec.name, STOP, hold_tokens=hold, reveals=reveals)))
    num_left = max(first - hold, 0)
    assert reply.generated == free.generated[:num_left]
    end, start = reply.finished, reply.finished.tapped_tokens - first - 1
    assert (end.reason, end.completion_tokens) == (FinishReason.ALERT_STOP, first + 1)
    assert (end.num_withheld, end.policies) == (first + 1 - num_left, (spec.name,))
    [event] = [e for e in reply.events if isinstance(e, AlertEvent) and e.policies]
    assert event is reply.events[-2] and event.policies == (spec.name,)
    assert (event.withheld.first_position, event.withheld.num_tokens) == (start + num_left, first + 1 - num_left)
    withheld = "".join(t.text for t in free.generated[num_left : first + 1])
    # What the end of an undisturbed reply would complete is withheld with the rest.
    assert event.withheld.text is None if not reveals else event.withheld.text.startswith(withheld)
    assert (end.timings.time_to_first_token_seconds is None) == (num_left == 0)


def test_steering_goes_on_from_what_was_withheld(model, dictionary):
    spec, first = firing_monitor(model, dictionary)
    fields = {"policy_steering": {spec.name: (steer(30.0),)}}
    plain = run_one(model, dictionary, held(model, [spec], Policy(spec.name, STEER), **fields))
    reply = run_one(model, dictionary, held(model, [spec], Policy(spec.name, STEER, hold_tokens=4), **fields))
    kept = [token for i, token in enumerate(plain.generated) if not first - 4 <= i <= first]
    assert reply.generated == kept and len(plain.generated) == LENGTH
    assert reply.finished.num_withheld == len(plain.generated) - len(kept) == 5
    # Nothing is held back for a policy that has come to apply.
    assert reply.alerts == plain.alerts
    assert reply.finished.steering == plain.finished.steering


def test_a_stop_without_a_hold_sends_what_another_policy_held_back(model, dictionary):
    spec, first = firing_monitor(model, dictionary)
    both = [Policy(spec.name, STOP), Policy("quiet", STOP, hold_tokens=9)]
    reply = run_one(model, dictionary, held(model, [spec, quiet_monitor()], *both))
    alone = run_one(model, dictionary, held(model, [spec, quiet_monitor()], both[0]))
    assert len(reply.generated) == first + 1 and reply.finished.num_withheld == 0
    assert stream(reply) == stream(alone)


@pytest.mark.parametrize("shorter", [0, 2])
def test_a_stop_withholds_what_its_own_hold_covers_and_no_more(model, dictionary, shorter):
    """Not what is held back for another policy, which did not come to apply; of two that do, what the longer covers."""
    spec, first = firing_monitor(model, dictionary)
    loud, _ = firing_monitor(model, dictionary, "loud", share=0.3)
    specs = [spec, loud, quiet_monitor()]
    own = [
        Policy(spec.name, STOP, hold_tokens=2),
        Policy("also", STOP, AlertOf(monitor=spec.name), hold_tokens=shorter),
    ]
    reply = run_one(model, dictionary, held(model, specs, *own, Policy("quiet", STOP, hold_tokens=9)))
    alone = run_one(model, dictionary, held(model, specs, *own[:1]))
    assert len(reply.generated) == first - 2 and reply.finished.num_withheld == 3
    [told] = [event for event in reply.events if isinstance(event, AlertEvent) and event.withheld]
    assert told.policies == (spec.name, "also") and told.withheld.num_tokens == 3
    assert reply.generated == alone.generated and reply.alerts == alone.alerts
    kinds = [[type(e) for e in one.events] for one in (reply, alone)]
    assert kinds[0] == kinds[1]  # alerts in their places


def test_a_second_gap_begins_where_its_own_hold_says_and_counts_no_token_twice(model, dictionary):
    """A policy steers, and withholds; one with a longer hold, which the steered words make apply, withholds again."""
    spec, first = firing_monitor(model, dictionary)
    later = tiny.monitor_spec("later", features=(WATCHED[0],), threshold=-1.0, window=1, min_tokens=first + 4)
    fields = {"policy_steering": {spec.name: (steer(30.0),)}}
    one, two = Policy(spec.name, STEER, hold_tokens=1), Policy("later", STOP, hold_tokens=8)
    reply = run_one(model, dictionary, held(model, [spec, later], one, two, **fields))
    plain = run_one(model, dictionary, held(model, [spec, later], replace(one, hold_tokens=0), **fields))
    # The last one read is `first` + 3, counted from 0: it goes with the eight before it, two of which had gone before.
    assert reply.finished.completion_tokens == first + 4
    assert reply.generated == plain.generated[: first + 3 - 8]
    told = [event.withheld for event in reply.events if isinstance(event, AlertEvent) and event.withheld]
    start = reply.finished.tapped_tokens - (first + 4)
    assert [(w.first_position - start, w.num_tokens) for w in told] == [(first - 1, 2), (first - 5, 7)]
    assert reply.finished.num_withheld == 9
    assert [a.position for a in reply.alerts] == sorted(a.position for a in reply.alerts)


def test_tokens_between_two_gaps_leave_when_nothing_can_withhold_them_any_more(model, dictionary):
    spec, first = firing_monitor(model, dictionary)
    fields = {"policy_steering": {spec.name: (steer(30.0),)}}
    policies = Policy(spec.name, STEER, hold_tokens=1), Policy("quiet", STOP, hold_tokens=8)
    engine = tiny.engine(model, dictionary)
    submission = submit(engine, held(model, [spec, quiet_monitor()], *policies, **fields))[0]
    num_prompt = len(submission.request.prompt_ids)
    while engine.num_active:
        engine.step()
        state = engine.state()
        left = [event.index - num_prompt for event in submission.mailbox._events if isinstance(event, TokenEvent)]
        num_read = state.kv_tokens_used - num_prompt
        gap = {first - 1, first}
        if state.requests_running:
            assert left == [i for i in range(max(num_read - 8, 0)) if i not in gap]
    assert left == [i for i in range(LENGTH) if i not in gap]


@pytest.mark.parametrize("action", [STOP, PolicyAction.ANNOTATE])
def test_a_reply_that_an_alert_stops_says_nothing_of_a_stop_string_that_ended_there_too(model, dictionary, action):
    spec, first = firing_monitor(model, dictionary)
    free = run_one(model, dictionary, held(model, [spec]))
    stop = "".join(token.text for token in free.generated[first - 2 : first + 1])
    policies = Policy(spec.name, action), Policy("quiet", STOP, hold_tokens=8)
    sampling = {"stop": (stop,)}
    reply = run_one(model, dictionary, held(model, [spec, quiet_monitor()], *policies, sampling=sampling))
    assert reply.finished.completion_tokens == first + 1 and not reply.text.endswith(stop)
    wanted = (FinishReason.ALERT_STOP, "") if action is STOP else (FinishReason.STOP_SEQUENCE, stop)
    assert (reply.finished.reason, reply.finished.matched_stop) == wanted


def test_alerts_of_withheld_tokens_are_told(model, dictionary):
    loud, _ = firing_monitor(model, dictionary, "loud", share=0.3)
    spec, _ = firing_monitor(model, dictionary)
    specs = [loud, spec]
    plain = run_one(model, dictionary, held(model, specs, Policy(spec.name, STOP)))
    reply = run_one(model, dictionary, held(model, specs, Policy(spec.name, STOP, hold_tokens=LENGTH)))
    assert reply.generated == [] and reply.alerts == plain.alerts and len(plain.alerts) > 1
    assert [e.withheld is not None for e in reply.events if isinstance(e, AlertEvent)].count(True) == 1


def test_a_condition_over_two_monitors_stops_at_the_token_that_makes_it_true(model, dictionary):
    one, first = firing_monitor(model, dictionary, "one", 0)
    two, second = firing_monitor(model, dictionary, "two", 1)
    fired = [AlertOf(monitor=name, has_fired=True) for name in ("one", "two")]
    for tree, wanted in ((AllOf(tuple(fired)), max(first, second)), (AnyOf(tuple(fired)), min(first, second))):
        reply = run_one(model, dictionary, held(model, [one, two], Policy("both", STOP, tree)))
        assert len(reply.generated) == wanted + 1
        assert reply.finished.policies == ("both",)
        last = reply.events[-2]
        assert last.policies == ("both",) and last.withheld is None


def test_a_policy_on_critical_alone_lets_a_warning_pass(model, dictionary):
    spec, first = firing_monitor(model, dictionary, share=0.5)
    _, top = firing_monitor(model, dictionary, share=0.999)
    levels = replace(spec.thresholds.levels, critical=None)
    warning = spec.thresholds.levels.warning
    critical = replace(warning, alpha=0.001, offset=warning.offset * 0.999 / 0.5)
    spec = replace(spec, thresholds=replace(spec.thresholds, levels=replace(levels, critical=critical)))
    policy = Policy("act", STOP, AlertOf(monitor=spec.name, level="critical"))
    reply = run_one(model, dictionary, held(model, [spec], policy))
    assert first < top and len(reply.generated) == top + 1
    assert reply.alerts[-1].level == "critical"


@pytest.mark.parametrize("chunk_tokens", [3, 64])
@pytest.mark.parametrize("action", [STOP, STEER])
def test_an_alert_in_the_prompt_withholds_nothing(model, dictionary, action, chunk_tokens):
    """The prompt is the client's own, and nothing of the reply is there yet."""
    spec = tiny.monitor_spec(
        features=(WATCHED[0],), threshold=-1.0, window=1, min_tokens=1, roles=("text", "assistant")
    )
    req = held(model, [spec], Policy(spec.name, action, hold_tokens=3), include_prompt=True)
    num_prompt = len(req.prompt_ids)
    req = replace(req, prompt_roles=("text",) * num_prompt, policy_steering={spec.name: (steer(30.0),)})
    reply = run_one(model, dictionary, req, chunk_tokens=chunk_tokens)
    assert len([t for t in reply.tokens if t.is_prompt]) == num_prompt
    assert len(reply.generated) == (0 if action is STOP else LENGTH)
    assert (reply.finished.num_withheld, reply.finished.policies) == (0, (spec.name,))
    assert next(e for e in reply.events if isinstance(e, AlertEvent)).withheld is None


@pytest.mark.parametrize(("roles", "hold"), [(("text",), 0), (("assistant",), 8), ((), 8)])
def test_nothing_is_held_back_for_a_policy_that_only_the_prompt_could_make_apply(model, dictionary, roles, hold):
    spec = quiet_monitor(roles=("text", "assistant"))
    req = held(model, [spec], Policy("p", STOP, AlertOf(monitor=spec.name, roles=roles), hold_tokens=8))
    engine = tiny.engine(model, dictionary)
    [submission] = submit(engine, replace(req, prompt_roles=("text",) * len(req.prompt_ids)))
    for _ in range(12):
        engine.step()
    num_read = engine.state().kv_tokens_used - len(req.prompt_ids)
    reply = Reply(submission)
    assert num_read > 8 and len(reply.generated) == num_read - hold
    [started] = [event for event in reply.events if isinstance(event, StartedEvent)]
    assert started.hold_tokens == hold


def test_a_policy_on_words_of_the_reply_passes_over_the_prompts(model, dictionary):
    spec, first = firing_monitor(model, dictionary, roles=("text", "assistant"))
    req = held(model, [spec], Policy("reply", STOP, AlertOf(monitor=spec.name, roles=("assistant",)), hold_tokens=1))
    reply = run_one(model, dictionary, replace(req, prompt_roles=("text",) * len(req.prompt_ids)))
    assert len(reply.generated) == max(first - 1, 0)
    assert [e.alert.role for e in reply.events if isinstance(e, AlertEvent) and e.policies] == ["assistant"]


@pytest.mark.parametrize("how", ["deadline", "cancel", "nan", "stop"])
def test_what_was_held_back_does_not_leave_a_request_that_fails(model, dictionary, how):
    published: list[Published] = []
    loud, _ = firing_monitor(model, dictionary, "loud", share=0.3)
    engine = tiny.engine(model, dictionary, publish=published.append)
    policy = Policy("quiet", STOP, hold_tokens=4)
    plain = run_one(model, dictionary, held(model, [loud, quiet_monitor()]))
    submission = submit(engine, held(model, [loud, quiet_monitor()], policy))[0]
    for _ in range(20):
        engine.step()
    num_read = engine.state().kv_tokens_used - len(submission.request.prompt_ids)
    if how == "deadline":
        object.__setattr__(submission.request, "deadline", time.monotonic() - 1)
    elif how == "cancel":
        engine.admission.cancel(submission)
    elif how == "nan":
        for tensor in (*engine.runner.cache.keys, *engine.runner.cache.values):
            tensor[0, :, :3] = float("nan")
    if how == "stop":
        engine.start()
        assert engine.stop()
    else:
        engine.step()
    reply = Reply(submission)
    assert reply.failure is not None and reply.finished is None
    num_left = len(reply.generated)
    assert reply.generated == plain.generated[:num_left]
    # The thread may have gone on a little before it stopped.
    assert num_left == num_read - 4 if how != "stop" else num_left >= num_read - 4
    raised = [e.alert for p in published for e in p.alerts]
    seen = [a for a in plain.alerts if a.position < len(submission.request.prompt_ids) + num_left + 4]
    assert raised == reply.alerts == seen and raised


def test_a_deadline_ends_a_held_reply_by_its_name(model, dictionary):
    engine = tiny.engine(model, dictionary)
    submission = submit(engine, held(model, [quiet_monitor()], Policy("quiet", STOP, hold_tokens=4)))[0]
    engine.step()
    object.__setattr__(submission.request, "deadline", time.monotonic() - 1)
    engine.step()
    assert isinstance(Reply(submission).failure, DeadlineExceeded)


def test_shutdown_sends_what_was_held_back(model, dictionary):
    engine = tiny.engine(model, dictionary)
    submission = submit(engine, held(model, [quiet_monitor()], Policy("quiet", STOP, hold_tokens=6)))[0]
    for _ in range(9):
        engine.step()
    engine.finish_all()
    engine.step()
    reply = Reply(submission)
    assert reply.finished.reason is FinishReason.SHUTDOWN
    assert reply.finished.completion_tokens == len(reply.ids) > 6
    assert reply.text == model.tokenizer.decode(reply.ids, skip_special_tokens=True)


def test_a_reply_that_ends_by_itself_sends_what_was_held_back(model, dictionary):
    free = run_one(model, dictionary, request(model, PROMPT, max_tokens=LENGTH)).ids
    stopping = tiny.language_model()
    object.__setattr__(stopping, "eos_token_ids", frozenset({free[12]}))
    policies = (Policy("quiet", STOP, hold_tokens=6),)
    req = held(stopping, [quiet_monitor()], *policies)
    req = replace(req, sampling=replace(req.sampling, ignore_eos=False))
    reply = run_one(stopping, dictionary, req)
    assert (reply.finished.reason, reply.ids) == (FinishReason.EOS, free[: free.index(free[12])])
    assert reply.text == model.tokenizer.decode(reply.ids, skip_special_tokens=True)


def test_neighbours_are_not_held_back(model, dictionary):
    spec, first = firing_monitor(model, dictionary)
    engine = tiny.engine(model, dictionary)
    stopped = held(model, [spec], Policy(spec.name, STOP, hold_tokens=3))
    others = [request(model, text, request_id=text, max_tokens=20) for text in ("x", "1 2 3")]
    submissions = submit(engine, others[0], stopped, others[1])
    while engine.num_active:
        engine.step()
    replies = [Reply(submission) for submission in submissions]
    assert len(replies[1].generated) == max(first - 3, 0)
    for reply, other in ((replies[0], others[0]), (replies[2], others[1])):
        assert reply.ids == run_one(model, dictionary, other).ids


def test_a_started_stream_is_not_held_back(model, dictionary):
    engine = tiny.engine(model, dictionary, chunk_tokens=64)
    submission = submit(engine, held(model, [quiet_monitor()], Policy("quiet", STOP, hold_tokens=200)))[0]
    engine.step()
    assert [type(event) for event in submission.mailbox._events] == [StartedEvent]


def test_records_count_what_was_withheld(model, dictionary):
    published: list[Published] = []
    spec, first = firing_monitor(model, dictionary)
    engine = tiny.engine(model, dictionary, publish=published.append)
    submit(engine, held(model, [spec], Policy(spec.name, STOP, hold_tokens=LENGTH)))
    while engine.num_active or engine.admission.has_mail():
        engine.step()
    [record] = [r for p in published for r in p.requests]
    assert (record.outcome, record.withheld_tokens) == (Outcome.ALERT_STOP, first + 1)
    assert (record.completion_tokens, record.time_to_first_token_seconds) == (first + 1, None)


# --- text that is left out ---

TOKENIZER = tiny.byte_tokenizer()


def ids_of(text):
    return TOKENIZER(text, add_special_tokens=False).input_ids


some_text = st.text(alphabet="abÄ\N{GRINNING FACE}", max_size=8)


@given(some_text, some_text, st.integers(0, 3))
@example("a", "Äb", 1)
def test_text_after_a_gap_holds_nothing_of_what_was_left_out(left_out, following, num_cut):
    """The gap may end within a character, which then belongs to it."""
    text = left_out + following
    cut = min(len(left_out.encode()) + num_cut, len(text.encode()))
    detokenizer = Detokenizer(TOKENIZER)
    for token in ids_of(text)[:cut]:
        detokenizer.push(token)
    detokenizer.leave_out()
    sent = [detokenizer.push(token) for token in ids_of(text)[cut:]] + [detokenizer.flush()]
    assert "".join(sent) == "".join(char for i, char in enumerate(text) if len(text[:i].encode()) >= cut)


@given(st.text(alphabet="ab Ä\N{GRINNING FACE}", min_size=1, max_size=8), st.integers(0, 30), st.integers(1, 8))
@example(" \N{GRINNING FACE} b", 0, 2)
@example("aÄ\N{GRINNING FACE}b", 1, 3)
def test_a_gap_may_end_in_a_token_that_begins_a_character_behind_others(text, start, num_bytes):
    """Real vocabularies have tokens such as a blank with the first byte of an emoji: nothing of either is sent."""
    names = TOKENIZER.convert_ids_to_tokens(ids_of(text))
    start = min(start, len(names) - 1)
    end = min(start + num_bytes, len(names))
    names[start:end] = ["".join(names[start:end])]
    vocab = {name: i for i, name in enumerate(dict.fromkeys(names))}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.decoder = decoders.ByteLevel()
    detokenizer = Detokenizer(PreTrainedTokenizerFast(tokenizer_object=made))
    pieces = [detokenizer.push(vocab[name]) for name in names[: start + 1]]
    known = "".join(pieces) + detokenizer.leave_out()
    sent = [detokenizer.push(vocab[name]) for name in names[start + 1 :]] + [detokenizer.flush()]
    ends = [len(text[: i + 1].encode()) for i in range(len(text))]
    begins = [0, *ends[:-1]]
    assert "".join(sent) == "".join(char for char, at in zip(text, begins, strict=True) if at >= end)
    # What a policy that reveals it tells: all but the character that is not complete.
    assert known == "".join(char for char, at in zip(text, ends, strict=True) if at <= end)


def test_a_character_in_two_gaps_is_left_out_once():
    names = [chr(0x120), *TOKENIZER.convert_ids_to_tokens(ids_of("\N{GRINNING FACE}ab"))]
    names[:2] = ["".join(names[:2])]
    vocab = {name: i for i, name in enumerate(names)}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.decoder = decoders.ByteLevel()
    detokenizer = Detokenizer(PreTrainedTokenizerFast(tokenizer_object=made))
    assert [detokenizer.push(0), detokenizer.leave_out()] == ["", " "]
    assert [detokenizer.push(1), detokenizer.leave_out()] == ["", ""]
    assert [detokenizer.push(token) for token in range(2, len(names))] == ["", "", "a", "b"]


def test_bytes_of_a_character_that_stand_one_by_one_until_it_is_complete_are_one_character():
    """Tokenizers with byte fallback show as many replacement characters as there are bytes."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"x": 256}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    face = list("\N{GRINNING FACE}".encode())
    for following, wanted in (([*face[2:], 256], "x"), ([256], "x"), ([], "")):
        detokenizer = Detokenizer(tokenizer)
        assert [detokenizer.push(token) for token in face[:2]] == ["", ""]
        detokenizer.leave_out()
        assert "".join(map(detokenizer.push, following)) + detokenizer.flush() == wanted


def test_a_stop_string_that_begins_in_left_out_text_still_ends_the_reply():
    detokenizer = Detokenizer(TOKENIZER, ("ENDING",))
    for token in ids_of("xEN"):
        detokenizer.push(token)
    assert detokenizer.leave_out() == "EN"
    assert [detokenizer.push(token) for token in ids_of("DI")] == ["", ""]
    assert [detokenizer.push(token) for token in ids_of("NG")] == ["", ""]
    assert detokenizer.matched_stop == "ENDING" and detokenizer.flush() == ""


def test_text_that_only_might_have_been_a_stop_string_comes_later():
    detokenizer = Detokenizer(TOKENIZER, ("ENDING",))
    for token in ids_of("xEN"):
        detokenizer.push(token)
    detokenizer.leave_out()
    assert [detokenizer.push(token) for token in ids_of("Dab")] == ["", "Da", "b"]
    assert detokenizer.matched_stop is None
