"""A steered request and its unsteered twin: each as it is alone, one stream, one end, one place in the counts."""

from contextlib import aclosing
from dataclasses import replace

import pytest
import serving
import tiny
from serving import ALWAYS, NEVER
from telltale.v1 import generation_pb2, types_pb2
from test_engine import Reply, request, run_one, submit

from monitors.bank import Policy, PolicyAction
from sae_runtime.steering_spec import SteeringOp, SteeringSpec, StrengthUnit
from service import cli, errors, rendering
from service.client_events import Alert, Baseline, Finished, Started, Token
from service.client_reply import gather
from service.client_request import Policy as ClientPolicy
from service.client_request import Steering
from service.errors import AlertNotKept, EngineFailed, QueueFull
from service.published import Published
from service.records import Outcome
from service.request import BaselineEvent, FinishedEvent, TokenEvent
from service.twin import baseline_of
from service.twin_comparison import TwinComparison

PUSH = SteeringSpec(3, SteeringOp.ADD, 4.0, StrengthUnit.RELATIVE)
STEERING = Steering(direction=3, op="add", strength=4.0, unit="relative", scope="generated")
TEXT = "The sea was calm."


class Side(Reply):
    """The events of one of the two."""

    def __init__(self, events, failure) -> None:
        class Taken:
            @staticmethod
            def take():
                return events, failure

        class Submitted:
            mailbox = Taken

        super().__init__(Submitted)


def sides(submission) -> tuple[Side, Side]:
    events, failure = submission.mailbox.take()
    own = [event for event in events if not isinstance(event, BaselineEvent)]
    return Side(own, failure), Side([event.event for event in events if isinstance(event, BaselineEvent)], failure)


def run_to_end(engine) -> None:
    engine.step()
    while engine.num_active:
        engine.step()


def submit_pair(engine, asked):
    engine.admission.reserve(2)
    return engine.admission.submit(asked)


def pair_request(model, **fields):
    return request(model, TEXT, steering=(PUSH,), with_baseline=True, **({"max_tokens": 16} | fields))


def counting(**settings):
    """An engine whose published records are kept."""
    published: list[Published] = []
    engine = tiny.engine(tiny.language_model(), tiny.sae(), publish=published.append, **settings)
    return engine, published


def records(published):
    return [record for step in published for record in step.requests]


SAMPLINGS = [{}, {"temperature": 1.2, "seed": 11, "top_p": 0.95}]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_each_of_the_two_is_what_it_is_alone(model, dictionary, sampling):
    monitor = tiny.monitor_spec(threshold=0.1, window=3, min_tokens=2)
    asked = pair_request(model, sampling=sampling, monitors=(monitor,), include_prompt=True, top_features=4)
    engine = tiny.engine(model, dictionary)
    submission = submit_pair(engine, asked)
    run_to_end(engine)
    steered, baseline = sides(submission)
    alone = run_one(model, dictionary, replace(asked, with_baseline=False))
    unsteered = run_one(model, dictionary, replace(asked, with_baseline=False, steering=()))
    assert steered.ids != baseline.ids  # or there would be nothing to compare
    for got, wanted in ((steered, alone), (baseline, unsteered)):
        assert (got.ids, got.text, len(got.tokens)) == (wanted.ids, wanted.text, len(wanted.tokens))
        for token, other in zip(got.tokens, wanted.tokens, strict=True):
            assert token.readings == pytest.approx(other.readings, rel=1e-4, abs=1e-5)
            assert token.steered_readings == pytest.approx(other.steered_readings, rel=1e-4, abs=1e-5)
            assert [s.value for s in token.scores] == pytest.approx([s.value for s in other.scores], rel=1e-4, abs=1e-5)
        assert [(a.monitor, a.state, a.position) for a in got.alerts] == [
            (a.monitor, a.state, a.position) for a in wanted.alerts
        ]
        assert got.finished.reason == wanted.finished.reason
    assert steered.finished.steering.positions_changed > 0 and baseline.finished.steering is None


def test_the_two_begin_together_and_come_interleaved(model, dictionary):
    engine = tiny.engine(model, dictionary, num_slots=2, chunk_tokens=64)  # both prompts in one step
    submission = submit_pair(engine, pair_request(model, max_tokens=6))
    run_to_end(engine)
    events, _ = submission.mailbox.take()
    marks = [isinstance(e, BaselineEvent) for e in events if isinstance(getattr(e, "event", e), TokenEvent)]
    assert marks == [False, True] * 6


def test_a_pair_waits_until_two_slots_are_free_and_keeps_its_turn(model, dictionary):
    engine = tiny.engine(model, dictionary, num_slots=2)
    [first] = submit(engine, request(model, "x", request_id="first", max_tokens=3))
    pair = submit_pair(engine, pair_request(model, max_tokens=3))
    [last] = submit(engine, request(model, "y", request_id="last", max_tokens=3))
    engine.step()
    assert (engine.num_running, engine.admission.num_waiting) == (1, 3)  # nobody overtakes
    run_to_end(engine)
    for submission in (first, last):
        assert Reply(submission).finished is not None
    assert all(side.finished is not None for side in sides(pair))
    assert engine.admission.num_waiting == 0 and engine.scheduler.admit() == []


def test_they_are_counted_once():
    engine, published = counting()
    submit_pair(engine, pair_request(engine.runner.language_model))
    run_to_end(engine)
    [record] = records(published)
    assert (record.outcome, record.completion_tokens, record.request_id) == (Outcome.LENGTH, 16, "r")
    assert record.steering_ops == ["add"]
    assert sum(step.num_tokens for out in published for step in out.steps) == 2 * (len(TEXT) + 16)
    assert engine.state().requests_running == 0


def test_what_policies_did_to_either_is_counted():
    """Or the tokens read, which count both, less those withheld would not be those that clients got."""
    engine, published = counting()
    always = tiny.monitor_spec("always", threshold=-1e3, window=1, min_tokens=4)
    policy = Policy("always", PolicyAction.STOP, hold_tokens=2)
    asked = pair_request(engine.runner.language_model, monitors=(always,), policies=(policy,))
    submission = submit_pair(engine, asked)
    run_to_end(engine)
    [record] = records(published)
    num_read = sum(step.num_tokens for out in published for step in out.steps) - 2 * len(TEXT)
    num_sent = sum(len(side.generated) for side in sides(submission))
    assert record.withheld_tokens == num_read - num_sent == 6
    assert record.policy_actions == ["stop", "stop"]


def test_only_the_unsteered_reply_is_compared_with_a_calibration():
    engine, published = counting()
    asked = pair_request(engine.runner.language_model, monitors=(tiny.monitor_spec(threshold=1e9, min_tokens=2),))
    submission = submit_pair(engine, asked)
    run_to_end(engine)
    _, baseline = sides(submission)
    [record] = records(published)
    [counted] = record.monitored
    assert counted.statistic == baseline.finished.monitors[0].max_statistic
    assert counted.scores == [token.scores[0].value for token in baseline.generated][1:]


@pytest.mark.parametrize("ended", ["steered", "baseline"])
@pytest.mark.parametrize("is_waiting", [True, False])
def test_a_cancel_ends_both(ended, is_waiting):
    engine, published = counting(num_slots=2)
    model = engine.runner.language_model
    if is_waiting:
        submit(engine, request(model, "x", request_id="other", max_tokens=30))
    submission = submit_pair(engine, pair_request(model, max_tokens=60))
    for _ in range(4):
        engine.step()
    engine.admission.cancel(submission if ended == "steered" else submission.twin)
    engine.step()
    assert engine.num_active == is_waiting
    [record] = records(published)
    assert record.outcome is Outcome.CANCELLED


@pytest.mark.parametrize("failing", [0, 1])
def test_if_one_fails_both_do_and_their_slots_are_free(failing):
    """Not finite in one row alone: the request fails with that, and the other row is no failure of its own."""
    engine, published = counting(num_slots=2)
    model = engine.runner.language_model
    submission = submit_pair(engine, pair_request(model, max_tokens=60))
    for _ in range(5):
        engine.step()
    row = next(row for row in engine._roster.rows if row.submission.is_baseline == bool(failing))
    for tensor in engine.runner.cache.values:
        tensor[row.slot, :, :3] = float("nan")
    run_to_end(engine)
    steered, _ = sides(submission)
    assert isinstance(steered.failure, EngineFailed)
    [record] = records(published)
    assert record.outcome is Outcome.ENGINE_ERROR
    assert sum(len(out.failures) for out in published) == 1
    again = submit_pair(engine, pair_request(model))
    run_to_end(engine)
    assert all(side.finished is not None for side in sides(again))


@pytest.mark.parametrize("lost", ["r", "r-baseline"])
def test_an_alert_of_either_that_is_not_kept_is_what_became_of_the_request(lost):
    """Even if it came at the last token, when the other had ended well."""
    engine, published = counting(keep=lambda raised: {one.event.request_id for one in raised} & {lost})
    at_the_end = tiny.monitor_spec(threshold=-1e3, window=1, min_tokens=16)
    submission = submit_pair(engine, pair_request(engine.runner.language_model, monitors=(at_the_end,)))
    run_to_end(engine)
    assert isinstance(sides(submission)[0].failure, AlertNotKept)
    assert [record.outcome for record in records(published)] == [Outcome.ALERT_NOT_KEPT]


def test_a_shutdown_ends_both_well():
    engine, published = counting()
    submission = submit_pair(engine, pair_request(engine.runner.language_model, max_tokens=60))
    for _ in range(4):
        engine.step()
    engine.finish_all()
    run_to_end(engine)
    assert [side.finished.reason.value for side in sides(submission)] == ["shutdown", "shutdown"]
    assert [record.outcome for record in records(published)] == [Outcome.SHUTDOWN]


def test_both_count_in_the_queue(model, dictionary):
    engine = tiny.engine(model, dictionary, num_slots=2, max_requests=1)
    submit_pair(engine, pair_request(model))
    with pytest.raises(QueueFull):
        engine.admission.reserve(2)
    assert engine.admission.num_waiting == 2
    engine.admission.reserve()
    engine.admission.unreserve()
    tokens = tiny.engine(model, dictionary, num_slots=2, max_prompt_tokens=2 * len(TEXT))
    submit_pair(tokens, pair_request(model))
    with pytest.raises(QueueFull, match="prompt tokens wait already"):
        submit_pair(tokens, pair_request(model))
    assert tokens.admission.num_waiting == 2


def test_the_twin_has_no_steering_of_any_kind(model):
    policies = (Policy("a", PolicyAction.STEER), Policy("b", PolicyAction.STOP), Policy("c", PolicyAction.ANNOTATE))
    asked = pair_request(model, policies=policies, policy_steering={"a": (PUSH,)})
    twin = baseline_of(asked)
    assert (twin.steering, twin.policy_steering, twin.policies) == ((), {}, policies[1:])
    assert (twin.sampling, twin.prompt_ids, twin.request_id) == (asked.sampling, asked.prompt_ids, "r-baseline")


def test_differences_equal_those_of_the_replies_alone(model, dictionary):
    asked = pair_request(model, include_prompt=True)
    engine = tiny.engine(model, dictionary)
    submission = submit_pair(engine, asked)
    run_to_end(engine)
    events, _ = submission.mailbox.take()
    comparison = TwinComparison(asked)
    sent = [event for i in range(0, len(events), 3) for event in comparison.take(events[i : i + 3])]
    assert [isinstance(event, FinishedEvent) for event in sent] == [False] * (len(sent) - 1) + [True]
    assert len(sent) == len(events) - 1
    report = sent[-1].twin
    steered = run_one(model, dictionary, replace(asked, with_baseline=False))
    baseline = run_one(model, dictionary, replace(asked, with_baseline=False, steering=()))
    assert (report.text, report.baseline_text) == (steered.text, baseline.text)
    pairs = zip(steered.ids, baseline.ids, strict=True)
    assert report.first_difference_position == len(asked.prompt_ids) + next(
        i for i, (a, b) in enumerate(pairs) if a != b
    )
    for i, one in enumerate(report.features):
        before, plain = ([t.readings[i] for t in side.generated] for side in (steered, baseline))
        after = [t.steered_readings[i] for t in steered.generated]
        means = [sum(values) / len(values) for values in (before, plain, after)]
        assert [one.mean, one.baseline_mean, one.steered_mean] == pytest.approx(means, rel=1e-4, abs=1e-6)
        peaks = [max(values) for values in (before, plain, after)]
        assert [one.max, one.baseline_max, one.steered_max] == pytest.approx(peaks, rel=1e-4, abs=1e-6)
    assert [one.latent for one in report.features] == list(asked.watched)


@pytest.mark.parametrize(
    ("ids", "others", "wanted"),
    [
        ([1, 2], [1, 2], None),
        ([1, 2], [1, 2, 3], 19),
        ([], [4], 17),
        # A token that a policy withheld stands in its place all the same.
        ([1, None, 3], [1, 2, 3], None),
        ([1, None, None, 4, 5], [1, 2, 3, 4, 6], 21),
        ([1, None], [1, 2, 3], 19),
        ([1, 2, 3], [None, None, 4], 19),
    ],
)
def test_where_two_replies_differ(model, dictionary, ids, others, wanted):
    """An early end is a difference; what was withheld is none."""
    asked = pair_request(model)
    assert len(asked.prompt_ids) == 17
    plain = run_one(model, dictionary, replace(asked, with_baseline=False))

    def events(told):
        token = plain.generated[0]
        tokens = [replace(token, index=17 + i, id=one) for i, one in enumerate(told) if one is not None]
        return [*tokens, replace(plain.finished, completion_tokens=len(told))]

    *_, end = TwinComparison(asked).take([*events(ids), *map(BaselineEvent, events(others))])
    assert end.twin.first_difference_position == wanted


# --- through the server ---


async def test_the_stream_is_marked_and_has_one_end():
    async with serving.serving() as server, serving.connect(server) as client:
        options = {"max_tokens": 12, "ignore_eos": True, "monitors": [ALWAYS, NEVER]}
        events = [e async for e in client.generate(TEXT, steering=[STEERING], baseline=True, **options)]
        assert isinstance(events[0], Started) and isinstance(events[-1], Finished)
        assert sum(isinstance(event, Finished) for event in events) == 1
        of_baseline = [event.event for event in events if isinstance(event, Baseline)]
        [started] = [event for event in of_baseline if isinstance(event, Started)]
        assert started.request_id == events[0].request_id + "-baseline"
        assert started.seed == events[0].seed
        assert any(isinstance(event, Alert) for event in of_baseline)
        assert not [c for monitor in started.monitors for c in monitor.cautions if "steered" in c]
        reply = gather(events)
        plain = await client.complete(TEXT, **options)
        steered = await client.complete(TEXT, steering=[STEERING], **options)
        assert [t.id for t in reply.baseline.tokens] == [t.id for t in plain.tokens]
        assert [t.id for t in reply.tokens] == [t.id for t in steered.tokens] != [t.id for t in plain.tokens]
        assert reply.baseline.readings("lying") == pytest.approx(plain.readings("lying"), rel=1e-4, abs=1e-5)
        twin = reply.finished.twin
        assert (twin.text, twin.baseline_text) == (steered.text, plain.text)
        assert twin.baseline.usage == plain.finished.usage and twin.baseline.twin is None
        assert twin.baseline.steering is None and reply.finished.steering.positions_changed == 12
        for one, mine, other in zip(twin.monitors, steered.finished.monitors, plain.finished.monitors, strict=True):
            assert one.max_score == pytest.approx(mine.max_score, rel=1e-4)
            assert one.baseline_max_score == pytest.approx(other.max_score, rel=1e-4)
            assert (one.fired, one.baseline_fired) == (mine.fired, other.fired)
        await serving.eventually(lambda: serving.outcomes(server) == {"length": 3})
        assert serving.sample(server, "telltale_steered_requests_total", op="add") == 2
        assert serving.sample(server, "telltale_alert_requests_total", monitor=ALWAYS) == 3
        assert (
            serving.sample(server, "telltale_alerts_total", monitor=ALWAYS, severity="critical", role="assistant") == 4
        )


def message(**fields):
    sampling = types_pb2.SamplingParams(max_tokens=4, ignore_eos=True)
    return generation_pb2.GenerateRequest(text=TEXT, sampling=sampling, baseline=True, **fields)


async def test_tokens_of_a_baseline_that_nobody_knows_are_no_tokens_of_the_reply():
    """A client of before sees an event that it does not know, not a second reply mixed into the first."""
    async with serving.serving() as server, serving.connect(server) as client:
        request_message = await client.generate_request(TEXT, steering=[STEERING], baseline=True, max_tokens=4)
        kinds = []
        async with aclosing(client.stream(request_message)) as responses:
            async for response in responses:
                kinds.append(response.WhichOneof("event"))
        assert kinds.count("started") == kinds.count("finished") == 1 and kinds[-1] == "finished"
        assert "baseline" in kinds


async def test_the_command_line_shows_both_side_by_side(capsys):
    async with serving.serving() as server, serving.connect(server) as client:
        argv = ["generate", TEXT, "--target", serving.target(server), "--max-tokens", "8", "--ignore-eos", "--baseline"]
        steer = ["--steer", "feature=lying,op=add,strength=4,unit=relative,scope=generated"]
        assert await cli.execute(cli.build_parser().parse_args([*argv, *steer])) == 0
        shown = capsys.readouterr()
        reply = await client.complete(TEXT, steering=[STEERING], max_tokens=8, ignore_eos=True)
        assert shown.out.strip() == rendering.sanitize(reply.text).strip()  # the reply alone
        for word in (
            "steered",
            "baseline (length)",
            "baseline: [ALERT critical: always",
            "lying",
            "tokens differ from",
        ):
            assert word in shown.err
        assert await cli.execute(cli.build_parser().parse_args(argv)) == 2
        assert "baseline: must come with steering" in capsys.readouterr().err
        assert await cli.execute(cli.build_parser().parse_args(["info", "--target", serving.target(server)])) == 0
        told = capsys.readouterr().out
        for word in ("NO RECONSTRUCTION GUARD", "fidelity", "not measured", "drift: not measured"):
            assert word in told


@pytest.mark.parametrize(
    ("slots", "steering", "wanted"),
    [
        (4, [], "baseline: must come with steering, or a policy that steers, to be compared with. Got neither"),
        (1, [STEERING], "baseline: must be unset on a server with one slot. Got true"),
    ],
)
async def test_what_can_not_be_compared_is_refused_by_name(slots, steering, wanted):
    async with serving.serving(slots=slots, max_queued_requests=1) as server, serving.connect(server) as client:
        with pytest.raises(errors.InvalidRequest, match=wanted):
            await client.complete(TEXT, steering=steering, baseline=True, max_tokens=4)
        assert server.engine.admission.num_waiting == 0


async def test_a_policy_that_steers_is_steering_enough():
    policy = ClientPolicy(monitor=ALWAYS, action="steer", steering=[STEERING])
    async with serving.serving() as server, serving.connect(server) as client:
        options = {"max_tokens": 16, "ignore_eos": True}
        reply = await client.complete(TEXT, policies=[policy], baseline=True, **options)
        assert reply.finished.steering.positions_changed == 13  # from the token after the third
        assert reply.baseline.text == (await client.complete(TEXT, **options)).text


async def test_a_client_that_leaves_frees_both_slots():
    async with serving.serving(slots=2) as server, serving.connect(server) as client:
        events = client.generate(TEXT, steering=[STEERING], baseline=True, max_tokens=200, ignore_eos=True)
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Token):
                    break
        await serving.eventually(lambda: serving.outcomes(server) == {"cancelled": 1})
        assert server.engine.num_active == 0
