"""The engine against slower, obvious references: `generate`, one offline pass, and the same request run alone."""

import threading
import time
from dataclasses import replace

import pytest
import tiny
import tiny_packs
import torch

from monitors.components import Inputs
from monitors.pack_tensors import PackTensor
from monitors.policy import Policy, PolicyAction
from monitors.reference import reply_scores, token_scores
from sae_runtime.hook_point import HookPoint
from sae_runtime.probes import Probe
from sae_runtime.steering_spec import PositionScope, SteeringOp, SteeringSpec, StrengthUnit
from service.engine import Engine
from service.errors import AlertNotKept, DeadlineExceeded, EngineFailed, NotReady, QueueFull, SlowConsumer
from service.published import Published
from service.records import Outcome
from service.request import (
    AlertEvent,
    FinishedEvent,
    FinishReason,
    Replay,
    Request,
    SamplingParams,
    StartedEvent,
    TokenEvent,
)
from service.submission import Submission

WATCHED = (3, 17, 40)


def request(model, text="The sea was calm.", *, request_id="r", max_tokens=12, **fields):
    sampling = fields.pop("sampling", {})
    return Request(
        request_id=request_id,
        prompt_ids=tuple(model.tokenizer(text).input_ids),
        sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True, **sampling),
        watched=WATCHED,
        **fields,
    )


def submit(engine: Engine, *requests: Request) -> list[Submission]:
    for _ in requests:
        engine.admission.reserve()
    return [engine.admission.submit(r) for r in requests]


class Reply:
    """All that came back for one request."""

    def __init__(self, submission: Submission) -> None:
        self.events, self.failure = submission.mailbox.take()
        self.tokens = [e for e in self.events if isinstance(e, TokenEvent)]
        self.generated = [t for t in self.tokens if not t.is_prompt]
        self.ids = [t.id for t in self.generated]
        self.text = "".join(t.text for t in self.generated)
        self.alerts = [e.alert for e in self.events if isinstance(e, AlertEvent)]
        self.finished = next((e for e in self.events if isinstance(e, FinishedEvent)), None)


def run(engine: Engine, *requests: Request) -> list[Reply]:
    submissions = submit(engine, *requests)
    engine.step()
    while engine.num_active:
        engine.step()
    return [Reply(s) for s in submissions]


def run_one(model, dictionary, req: Request, **settings) -> Reply:
    return run(tiny.engine(model, dictionary, **settings), req)[0]


def generate(model, req: Request) -> list[int]:
    prompt = torch.tensor([req.prompt_ids])
    out = model.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=req.sampling.max_tokens,
        do_sample=False,
        repetition_penalty=req.sampling.repetition_penalty,
        eos_token_id=None,
        pad_token_id=2,
    )
    return out[0, len(req.prompt_ids) :].tolist()


def offline_readings(model, dictionary, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        hidden = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return dictionary.encode(hidden[tiny.HOOK_POINT.hidden_state_index][0])


TEXTS = [
    "The sea was calm.",
    "x",
    "def f(a):\n    return a",
    "Wörter mit Umlauten",
    "a" * 90,
    "1 2 3",
    "Zzz zzz",
    "end",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("chunk_tokens", [5, 64])
def test_greedy_tokens_equal_generate(model, dictionary, text, chunk_tokens):
    req = request(model, text, max_tokens=40)
    assert run_one(model, dictionary, req, chunk_tokens=chunk_tokens).ids == generate(model, req)


def test_repetition_penalty_equals_generate(model, dictionary):
    req = request(model, max_tokens=40, sampling={"repetition_penalty": 1.3})
    assert run_one(model, dictionary, req).ids == generate(model, req)
    assert generate(model, req) != generate(model, request(model, max_tokens=40))


def test_readings_equal_an_offline_pass_at_every_position(model, dictionary):
    req = request(model, max_tokens=30, include_prompt=True, top_features=5)
    reply = run_one(model, dictionary, req, chunk_tokens=5)
    wanted = offline_readings(model, dictionary, [t.id for t in reply.tokens])
    assert [t.index for t in reply.tokens] == list(range(len(req.prompt_ids) + 30))
    got = torch.tensor([t.readings for t in reply.tokens])
    torch.testing.assert_close(got, wanted[:, list(WATCHED)], rtol=1e-4, atol=1e-5)
    for token, latents in zip(reply.tokens, wanted, strict=True):
        assert token.l0 == int((latents > 0).sum())
        top = latents.topk(5)
        assert [f for f, _ in token.top_features] == top.indices[top.values > 0].tolist()
    last_prompt = next(e for e in reply.events if isinstance(e, StartedEvent)).last_prompt_token
    assert last_prompt.index == len(req.prompt_ids) - 1
    assert last_prompt.readings == reply.tokens[last_prompt.index].readings


def test_reconstruction_figures_equal_an_offline_pass(model, dictionary):
    reply = run_one(model, dictionary, request(model, include_prompt=True))
    with torch.inference_mode():
        hidden = model.model(torch.tensor([[t.id for t in reply.tokens]]), output_hidden_states=True).hidden_states
    x_TD = hidden[tiny.HOOK_POINT.hidden_state_index][0]
    x_hat_TD = dictionary.decode(dictionary.encode(x_TD))
    wanted = (x_TD - x_hat_TD).square().sum(-1) / (x_TD - dictionary.resid_mean).square().sum(-1)
    torch.testing.assert_close(torch.tensor([t.fvu for t in reply.tokens]), wanted, rtol=1e-4, atol=1e-5)


def test_rows_that_join_and_leave_change_nothing(model, dictionary):
    requests = [request(model, t, request_id=str(i), max_tokens=8 + 5 * i) for i, t in enumerate(TEXTS)]
    alone = [run_one(model, dictionary, r) for r in requests]
    busy = tiny.engine(model, dictionary, num_slots=3, chunk_tokens=7)
    submissions = submit(busy, *requests[:2])
    for late in requests[2:]:
        busy.step()
        busy.step()
        submissions += submit(busy, late)
    while busy.num_active:
        busy.step()
    for submission, wanted in zip(submissions, alone, strict=True):
        got = Reply(submission)
        assert got.ids == wanted.ids
        got_readings = torch.tensor([t.readings for t in got.generated])
        torch.testing.assert_close(
            got_readings, torch.tensor([t.readings for t in wanted.generated]), rtol=1e-4, atol=1e-5
        )


def test_rows_stay_side_by_side_when_others_end(model, dictionary):
    """A pass reads the cache in place only if its rows are neighbours; who is moved for that writes on as before."""
    lengths = [3, 20, 5, 20, 9, 4, 12, 7]
    requests = [request(model, t, request_id=t, max_tokens=n) for t, n in zip(TEXTS, lengths, strict=True)]
    alone = [run_one(model, dictionary, r) for r in requests]
    busy = tiny.engine(model, dictionary, num_slots=4)
    forward, seen = busy.runner.forward, []

    def spied(rows, *args, **kwargs):
        seen.append([row.slot for row in rows])
        return forward(rows, *args, **kwargs)

    busy.runner.forward = spied
    replies = run(busy, *requests)
    assert [reply.ids for reply in replies] == [reply.ids for reply in alone]
    assert {len(slots) for slots in seen} == {1, 2, 3, 4}
    for slots in seen:
        assert slots == list(range(slots[0], slots[0] + len(slots)))
    for tensor in (*busy.runner.cache.keys, *busy.runner.cache.values):
        assert not tensor.any(), "slots that were left hold something"


def test_a_seed_draws_the_same_alone_and_in_a_batch(model, dictionary):
    sampling = {"temperature": 1.5, "top_p": 0.9, "top_k": 50, "seed": 7}
    req = request(model, max_tokens=25, sampling=sampling)
    alone = run_one(model, dictionary, req).ids
    others = [request(model, t, request_id=t, sampling={"temperature": 1.0, "seed": 7}) for t in TEXTS[:3]]
    assert run(tiny.engine(model, dictionary), *others, req)[-1].ids == alone
    other_seed = request(model, max_tokens=25, sampling=sampling | {"seed": 8})
    assert run_one(model, dictionary, other_seed).ids != alone


def test_log_probabilities_equal_an_offline_pass(model, dictionary):
    req = request(model, include_prompt=True, include_logprobs=True)
    reply = run_one(model, dictionary, req, chunk_tokens=5)
    ids = [t.id for t in reply.tokens]
    with torch.inference_mode():
        logprobs = model.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    wanted = [float(logprobs[i, token]) for i, token in enumerate(ids[1:])]
    assert reply.tokens[0].logprob is None
    assert [t.logprob for t in reply.tokens[1:]] == pytest.approx(wanted, abs=1e-4)


def test_eos_is_neither_sent_nor_counted(model, dictionary):
    free = run_one(model, dictionary, request(model, max_tokens=40)).ids
    eos = free[6]
    stopping = tiny.language_model()
    object.__setattr__(stopping, "eos_token_ids", frozenset({eos}))
    req = request(model, max_tokens=40)
    req = Request(request_id="e", prompt_ids=req.prompt_ids, sampling=SamplingParams(max_tokens=40), watched=WATCHED)
    reply = run_one(stopping, dictionary, req)
    assert reply.ids == free[: free.index(eos)]
    assert (reply.finished.reason, reply.finished.matched_token_id) == (FinishReason.EOS, eos)
    assert reply.finished.completion_tokens == free.index(eos)


def test_length_ends_with_the_last_token_read(model, dictionary):
    req = request(model, max_tokens=9)
    reply = run_one(model, dictionary, req)
    assert reply.finished.reason is FinishReason.LENGTH
    assert reply.finished.completion_tokens == len(reply.ids) == 9
    assert reply.finished.tapped_tokens == len(req.prompt_ids) + 9
    assert isinstance(reply.events[0], StartedEvent)
    assert isinstance(reply.events[-1], FinishedEvent)
    assert sum(isinstance(e, FinishedEvent) for e in reply.events) == 1


def test_text_is_the_one_shot_decode(model, dictionary):
    reply = run_one(model, dictionary, request(model, "Wörter", max_tokens=60))
    assert reply.text == model.tokenizer.decode(reply.ids, skip_special_tokens=True)


def test_a_stop_string_is_never_sent_even_in_part(model, dictionary):
    free = run_one(model, dictionary, request(model, max_tokens=40))
    stop = free.text[8:12]
    reply = run_one(model, dictionary, request(model, max_tokens=40, sampling={"stop": (stop, "\0\0")}))
    assert reply.text == free.text[: free.text.index(stop)]
    assert (reply.finished.reason, reply.finished.matched_stop) == (FinishReason.STOP_SEQUENCE, stop)


# --- steering ---


def steer(strength=4.0, op=SteeringOp.ADD, feature=5, **fields):
    return SteeringSpec(feature, op, strength, **fields)


def test_steering_changes_its_own_row_and_proves_it(model, dictionary):
    plain = request(model, max_tokens=20)
    steered = request(model, max_tokens=20, include_prompt=True, steering=(steer(40.0, scope=PositionScope.GENERATED),))
    reply = run_one(model, dictionary, steered)
    assert reply.ids != run_one(model, dictionary, plain).ids
    report = reply.finished.steering
    assert report.positions_changed == 20
    assert 0 < report.mean_relative_norm <= report.max_relative_norm
    assert all(bool(t.steered_readings) == (not t.is_prompt) for t in reply.tokens)


def test_a_steered_neighbour_changes_nothing(model, dictionary):
    req = request(model, max_tokens=30)
    alone = run_one(model, dictionary, req)
    wild = [
        request(model, t, request_id=t, max_tokens=30, steering=(steer(40.0, feature=i),))
        for i, t in enumerate(TEXTS[1:4])
    ]
    beside = run(tiny.engine(model, dictionary), *wild[:2], req, wild[2])[2]
    assert beside.ids == alone.ids
    got, wanted = ([t.readings for t in reply.generated] for reply in (beside, alone))
    torch.testing.assert_close(torch.tensor(got), torch.tensor(wanted), rtol=1e-4, atol=1e-5)
    assert all(t.steered_readings == [] for t in beside.generated)


def test_steering_equals_an_offline_pass_with_a_hook(model, dictionary):
    spec = steer(10.0, scope=PositionScope.GENERATED)
    req = request(model, max_tokens=15, include_prompt=True, steering=(spec,))
    reply = run_one(model, dictionary, req, chunk_tokens=5)
    ids = [t.id for t in reply.tokens]
    added_D = 10.0 * dictionary.W_dec[5] / dictionary.scale

    def hook(_module, _args, output):
        resid = (output[0] if isinstance(output, tuple) else output).clone()
        seen.append(resid[0].clone())
        resid[0, len(req.prompt_ids) :] += added_D
        return (resid, *output[1:]) if isinstance(output, tuple) else resid

    seen: list[torch.Tensor] = []
    handle = model.model.model.layers[1].register_forward_hook(hook)
    try:
        with torch.inference_mode():
            logits = model.model(torch.tensor([ids])).logits[0]
    finally:
        handle.remove()
    start = len(req.prompt_ids) - 1
    assert logits[start:-1].argmax(-1).tolist() == reply.ids
    before = dictionary.encode(seen[0])[:, list(WATCHED)]
    torch.testing.assert_close(torch.tensor([t.readings for t in reply.tokens]), before, rtol=1e-4, atol=1e-4)
    after = dictionary.encode(seen[0][start + 1 :] + added_D)[:, list(WATCHED)]
    got = torch.tensor([t.steered_readings for t in reply.generated])
    torch.testing.assert_close(got, after, rtol=1e-4, atol=1e-4)


# --- monitors and policies ---


def firing_monitor(model, dictionary, req, **rule):
    """A monitor over a watched latent that fires on some token of `req`, not the first."""
    free = run_one(model, dictionary, req)
    values = [t.readings[0] for t in free.generated]
    return tiny.monitor_spec(features=(WATCHED[0],), threshold=max(values) * 0.5, window=1, min_tokens=1, **rule), free


def test_stop_policy_stops_on_the_token_that_fired(model, dictionary):
    req = request(model, max_tokens=40)
    spec, free = firing_monitor(model, dictionary, req)
    threshold = spec.thresholds.levels.warning.offset
    first = next(i for i, t in enumerate(free.generated) if t.readings[0] > threshold)
    stopping = request(model, max_tokens=40, monitors=(spec,), policies=(Policy(spec.name, PolicyAction.STOP),))
    reply = run_one(model, dictionary, stopping)
    assert reply.ids == free.ids[: first + 1]
    assert reply.finished.reason is FinishReason.ALERT_STOP
    assert [a.position for a in reply.alerts] == [len(req.prompt_ids) + first]
    kinds = [type(e) for e in reply.events[-3:]]
    assert kinds == [TokenEvent, AlertEvent, FinishedEvent]


def test_steer_policy_steers_from_the_next_position_on(model, dictionary):
    req = request(model, max_tokens=40)
    spec, free = firing_monitor(model, dictionary, req)
    threshold = spec.thresholds.levels.warning.offset
    first = next(i for i, t in enumerate(free.generated) if t.readings[0] > threshold)
    steering = request(
        model,
        max_tokens=40,
        monitors=(spec,),
        policies=(Policy(spec.name, PolicyAction.STEER),),
        policy_steering={spec.name: (steer(30.0),)},
    )
    reply = run_one(model, dictionary, steering)
    # The token after the one that fired was drawn before, so it is the first to be steered and the last unchanged.
    assert reply.ids[: first + 2] == free.ids[: first + 2]
    steered = [bool(t.steered_readings) for t in reply.generated]
    assert steered == [False] * (first + 1) + [True] * (len(steered) - first - 1)
    assert reply.finished.steering.positions_changed == sum(steered)


def test_monitor_scores_equal_the_offline_statistic(model, dictionary):
    spec = tiny.monitor_spec(features=(WATCHED[0], WATCHED[1]), threshold=1e9)
    reply = run_one(model, dictionary, request(model, max_tokens=20, monitors=(spec,)))
    token_scores = [t.readings[0] + t.readings[1] for t in reply.generated]
    rolling = [sum(token_scores[max(0, i - 3) : i + 1]) / min(i + 1, 4) for i in range(20)]
    assert [t.scores[0].value for t in reply.generated] == pytest.approx(rolling, rel=1e-5)
    summary = reply.finished.monitors[0]
    assert summary.max_score == summary.max_statistic == pytest.approx(max(rolling[1:]), rel=1e-5)
    assert summary.num_scored == 20


def test_score_reads_the_prompt_and_scores_the_given_positions(model, dictionary):
    spec = tiny.monitor_spec(features=(WATCHED[0],), threshold=1e9, window=1)
    base = request(model, "What was read before.", monitors=(spec,), include_prompt=True)
    req = Request(
        request_id="s",
        prompt_ids=base.prompt_ids,
        watched=WATCHED,
        monitors=(spec,),
        include_prompt=True,
        score_only=True,
        scored_positions=frozenset(range(5, 9)),
    )
    reply = run_one(model, dictionary, req, chunk_tokens=6)
    assert reply.finished.reason is FinishReason.SCORED
    assert [t.index for t in reply.tokens if t.scores] == [5, 6, 7, 8]
    assert reply.finished.completion_tokens == 0
    wanted = offline_readings(model, dictionary, list(req.prompt_ids))[:, list(WATCHED)]
    torch.testing.assert_close(torch.tensor([t.readings for t in reply.tokens]), wanted, rtol=1e-4, atol=1e-5)


def test_probes_are_scored_as_an_offline_pass_reads_them_alone_and_beside_others():
    """An ensemble of a latent and of probes before, at and behind the dictionary, steered and not, in a busy batch."""
    lm, dictionary = tiny.language_model(), tiny.sae()
    pack = tiny_packs.pack(
        "mixed",
        [
            tiny_packs.probe_component("early", hook_point="layers.0.output", direction="early", scale=2.0),
            tiny_packs.probe_component("here", hook_point="layers.1.output", direction="here", center=-1.0),
            tiny_packs.probe_component("late", hook_point="layers.3.input", direction="late"),
            tiny_packs.feature_component(WATCHED[0], name="latent"),
        ],
        rule="mean",
        tensors={
            name: PackTensor.of(torch.randn(tiny.D_MODEL, generator=torch.Generator().manual_seed(i)).tolist())
            for i, name in enumerate(("early", "here", "late"))
        },
    )
    probes = [Probe(p.name, HookPoint.parse(p.hook_point), p.direction, p.bias) for p in pack.probes()]
    monitors = (pack.spec(),)
    requests = [request(lm, text, request_id=text, max_tokens=16, monitors=monitors) for text in TEXTS[:3]]
    alone = [run(tiny.engine(tiny.language_model(), dictionary, probes=probes), r)[0] for r in requests]
    busy = run(tiny.engine(lm, dictionary, probes=probes), *requests, replace(requests[0], request_id="x", monitors=()))
    for req, single, together in zip(requests, alone, busy, strict=False):
        ids, start = list(req.prompt_ids) + single.ids, len(req.prompt_ids)
        with torch.inference_mode():
            hidden = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        values = {
            p.name: hidden[p.hook_point.hidden_state_index][0] @ torch.tensor(p.direction) + p.bias for p in probes
        }
        reply = [
            Inputs({WATCHED[0]: token.readings[0]}, {name: float(of_T[start + i]) for name, of_T in values.items()})
            for i, token in enumerate(single.generated)
        ]
        wanted = reply_scores(monitors[0], token_scores(monitors[0], reply))
        assert [t.scores[0].value for t in single.generated] == pytest.approx(wanted, rel=1e-3, abs=1e-3)
        assert together.ids == single.ids
        for a, b in zip(single.generated, together.generated, strict=True):
            assert b.scores[0].components == pytest.approx(a.scores[0].components, rel=1e-4, abs=1e-4)
        assert len(single.generated[0].scores[0].components) == 4
    assert [t.scores for t in busy[3].generated] == [[]] * 16


def test_a_monitor_scores_each_role_by_itself(model, dictionary):
    spec = tiny.monitor_spec(features=(WATCHED[0],), threshold=1e9, roles=("user", "assistant"))
    req = request(model, "What was read before.", max_tokens=5, monitors=(spec,), include_prompt=True)
    roles = tuple("user" if 3 <= i < 9 else None for i in range(len(req.prompt_ids)))
    reply = run_one(model, dictionary, replace(req, prompt_roles=roles), chunk_tokens=4)
    assert [t.index for t in reply.tokens if t.is_prompt and t.scores] == [3, 4, 5, 6, 7, 8]
    assert [t.role for t in reply.tokens] == [*roles, *["assistant"] * 5]
    assert [(s.role, s.num_scored) for s in reply.finished.monitors] == [("user", 6), ("assistant", 5)]
    first = reply.generated[0]
    assert first.scores[0].value == pytest.approx(first.readings[0])


# --- faults ---


class FailingModel:
    """Passes calls on to a model, and raises on chosen ones."""

    def __init__(self, model, errors):
        self._model, self._errors, self.num_calls = model, errors, 0

    def __getattr__(self, name):
        return getattr(self._model, name)

    def __call__(self, **kwargs):
        self.num_calls += 1
        error = self._errors(self.num_calls, kwargs)
        if error is not None:
            raise error
        return self._model(**kwargs)


def engine_with_failures(dictionary, errors, **settings):
    model = tiny.language_model()
    object.__setattr__(model, "model", FailingModel(model.model, errors))
    return tiny.engine(model, dictionary, **settings)


def test_a_nan_row_fails_alone_and_leaves_a_clean_slot(model, dictionary):
    requests = [request(model, t, request_id=t, max_tokens=20) for t in TEXTS[:3]]
    alone = [run_one(model, dictionary, r).ids for r in requests]
    engine = tiny.engine(model, dictionary, num_slots=3)
    submissions = submit(engine, *requests)
    for _ in range(6):
        engine.step()
    for tensor in (*engine.runner.cache.keys, *engine.runner.cache.values):
        tensor[1, :, :3] = float("nan")
    while engine.num_active:
        engine.step()
    replies = [Reply(s) for s in submissions]
    assert isinstance(replies[1].failure, EngineFailed)
    assert (replies[0].ids, replies[2].ids) == (alone[0], alone[2])
    assert not any(t.isnan().any() for t in (*engine.runner.cache.keys, *engine.runner.cache.values))
    assert run(engine, *requests)[1].ids == alone[1]


def test_an_exception_in_a_pass_is_tried_row_by_row(model, dictionary):
    requests = [request(model, t, request_id=t, max_tokens=10) for t in TEXTS[:3]]
    alone = [run_one(model, dictionary, r).ids for r in requests]
    poison = requests[1].prompt_ids

    def errors(_call, kwargs):
        ids = kwargs["input_ids"]
        is_decode = ids.shape[1] == 1
        return RuntimeError("secret") if is_decode and alone[1][3] in ids.flatten().tolist() and len(poison) else None

    engine = engine_with_failures(dictionary, errors)
    replies = run(engine, *requests)
    failed = [r for r in replies if r.failure is not None]
    assert failed
    assert all("secret" not in str(r.failure) for r in failed)
    for reply, wanted in zip(replies, alone, strict=True):
        assert reply.ids == wanted[: len(reply.ids)]
        assert (reply.failure is None) == (alone[1][3] not in wanted)


def test_out_of_memory_in_prefill_refuses_that_request_only(model, dictionary):
    engine = engine_with_failures(dictionary, lambda call, _: torch.OutOfMemoryError() if call == 1 else None)
    first, second = run(engine, request(model), request(model, request_id="b"))
    assert isinstance(first.failure, QueueFull)
    assert second.failure is None
    assert second.ids == generate(model, request(model))


def test_a_tap_that_did_not_run_fails_the_request(model, dictionary):
    engine = tiny.engine(tiny.language_model(), dictionary)
    engine.runner.tap.remove()
    reply = run(engine, request(model))[0]
    assert isinstance(reply.failure, EngineFailed)
    assert reply.tokens == []


def test_cancel_frees_the_slot_and_disturbs_nobody(model, dictionary):
    engine = tiny.engine(model, dictionary, num_slots=2)
    requests = [request(model, t, request_id=t, max_tokens=20) for t in TEXTS[:4]]
    submissions = submit(engine, *requests)
    for _ in range(4):
        engine.step()
    engine.admission.cancel(submissions[0])
    engine.admission.cancel(submissions[2])  # still waits
    while engine.num_active:
        engine.step()
    assert engine.admission.num_waiting == 0
    for i in (1, 3):
        assert Reply(submissions[i]).ids == generate(model, requests[i])


def test_a_cancel_during_the_last_pass_wins(model, dictionary):
    published: list[Published] = []
    engine = tiny.engine(model, dictionary, publish=published.append)
    submission = submit(engine, request(model, max_tokens=2))[0]
    engine.step()  # reads the prompt and the first token
    inner = engine.runner.forward

    def forward(*args, **kwargs):
        engine.admission.cancel(submission)
        return inner(*args, **kwargs)

    engine.runner.forward = forward
    engine.step()
    assert [r.outcome for p in published for r in p.requests] == [Outcome.CANCELLED]
    assert Reply(submission).finished is None


@pytest.mark.parametrize("is_replay", [False, True])
def test_alerts_of_a_prompt_that_is_never_read_to_its_end_are_told_unless_it_is_a_replay(model, dictionary, is_replay):
    published: list[Published] = []
    engine = tiny.engine(model, dictionary, publish=published.append, chunk_tokens=3)
    spec = tiny.monitor_spec(threshold=-1e3, window=1, min_tokens=1, roles=("text", "assistant"))
    req = request(model, monitors=(spec,))
    num_prompt = len(req.prompt_ids)
    replay = Replay(num_prompt) if is_replay else None
    [submission] = submit(engine, replace(req, prompt_roles=("text",) * num_prompt, replay=replay))
    engine.step()
    engine.admission.cancel(submission)
    engine.step()
    told = [event.alert.position for out in published for event in out.alerts]
    assert told == ([] if is_replay else [1])


def test_a_cancelled_request_in_the_queue_never_reaches_the_model(model, dictionary):
    engine = engine_with_failures(dictionary, lambda *_: None)
    submission = submit(engine, request(model))[0]
    engine.admission.cancel(submission)
    engine.step()
    assert engine.runner.language_model.model.num_calls == 0
    assert engine.num_active == 0


@pytest.mark.parametrize("steps", [0, 3])
def test_deadlines_hold_in_queue_and_decode(model, dictionary, steps):
    engine = tiny.engine(model, dictionary)
    deadline = time.monotonic() + (1000 if steps else -1)
    req = request(model, max_tokens=50, deadline=deadline)
    submission = submit(engine, req)[0]
    for _ in range(steps):
        engine.step()
    object.__setattr__(req, "deadline", time.monotonic() - 1)
    engine.step()
    assert isinstance(Reply(submission).failure, DeadlineExceeded)
    assert engine.num_active == 0


def test_a_reader_that_does_not_read_loses_its_slot(model, dictionary):
    engine = tiny.engine(model, dictionary, slow_consumer_seconds=0.0)
    slow = submit(engine, request(model, max_tokens=50))[0]
    for _ in range(4):
        engine.step()
    assert isinstance(Reply(slow).failure, SlowConsumer)
    assert engine.num_active == 0


def test_a_request_that_cannot_start_fails_alone(model, dictionary):
    bad = request(model, request_id="bad", steering=(steer(feature=10_000),))
    first, second = run(tiny.engine(model, dictionary, num_slots=1), bad, request(model))
    assert isinstance(first.failure, EngineFailed)
    assert second.ids == generate(model, request(model))


def test_the_queue_is_bounded_in_requests_and_tokens(model, dictionary):
    engine = tiny.engine(model, dictionary, num_slots=1, max_requests=2, max_prompt_tokens=20)
    for _ in range(3):  # one slot and two places
        engine.admission.reserve()
    with pytest.raises(QueueFull, match="2 requests"):
        engine.admission.reserve()
    engine.admission.submit(request(model, "a" * 15))
    with pytest.raises(QueueFull, match="15 of 20"):
        engine.admission.submit(request(model, "b" * 6))
    assert engine.admission.num_waiting == 2


def test_shutdown_finishes_running_and_refuses_waiting_requests(model, dictionary):
    engine = tiny.engine(model, dictionary, num_slots=1)
    running, waiting = submit(engine, request(model, max_tokens=50), request(model, request_id="w"))
    for _ in range(3):
        engine.step()
    engine.finish_all()
    engine.step()
    reply = Reply(running)
    assert reply.finished.reason is FinishReason.SHUTDOWN
    assert reply.finished.completion_tokens == len(reply.ids)
    assert isinstance(Reply(waiting).failure, NotReady)
    with pytest.raises(NotReady):
        engine.admission.reserve()


def test_the_queue_is_worked_off_when_nobody_rings(model, dictionary):
    """Handlers ring when their request ends, which may be too early: the engine must not sleep while others wait."""
    done = threading.Semaphore(0)

    def publish(published):
        for _ in published.requests:
            done.release()

    engine = tiny.engine(model, dictionary, num_slots=1, publish=publish)
    submissions = submit(engine, *(request(model, request_id=str(i), max_tokens=2) for i in range(3)))
    engine.start()
    try:
        assert all([done.acquire(timeout=10) for _ in submissions])
    finally:
        assert engine.stop()


def test_records_add_up(model, dictionary):
    published: list[Published] = []
    engine = tiny.engine(model, dictionary, num_slots=2, publish=published.append, server_watch=WATCHED[:1])
    requests = [request(model, t, request_id=t, max_tokens=9) for t in TEXTS]
    replies = run(engine, *requests)
    steps = [s for p in published for s in p.steps]
    records = [r for p in published for r in p.requests]
    num_tokens = sum(len(r.prompt_ids) + 9 for r in requests)
    assert sum(s.num_tokens for s in steps) == sum(s.num_tapped_tokens for s in steps) == num_tokens
    # Position 0 of every request is left out of the readings.
    assert sum(len(s.readings_NW) for s in steps) == num_tokens - len(requests)
    assert sum(r.prompt_tokens + r.completion_tokens for r in records) == num_tokens
    record_of = {record.request_id: record for record in records}
    assert len(records) == len(record_of) == len(requests)
    for reply, req in zip(replies, requests, strict=True):
        record = record_of[req.request_id]
        ids = [*req.prompt_ids, *reply.ids]
        wanted = offline_readings(model, dictionary, ids)[1:, WATCHED[0]].max()
        assert record.feature_max_W == pytest.approx([float(wanted)], rel=1e-4, abs=1e-5)


def test_a_stop_answers_everybody(model, dictionary):
    engine = tiny.engine(model, dictionary, num_slots=1)
    submissions = submit(engine, *(request(model, request_id=str(i), max_tokens=200) for i in range(3)))
    engine.start()
    assert engine.stop()
    assert all(isinstance(Reply(s).failure, NotReady) for s in submissions)


def test_a_crash_ends_every_request(model, dictionary):
    engine = tiny.engine(model, dictionary)

    def crash():
        raise KeyError("a bug")

    engine._prefill = crash
    submission = submit(engine, request(model))[0]
    engine.start()
    engine._thread.join()  # it ends by itself
    assert isinstance(Reply(submission).failure, EngineFailed)
    assert not engine.is_healthy
    with pytest.raises(NotReady):
        engine.admission.reserve()


def test_a_repeated_pass_draws_and_accounts_once(model, dictionary):
    """After a pass that failed behind the forward, the row-by-row repetition gives what an undisturbed run gives."""
    sampling = {"temperature": 1.5, "seed": 3}
    requests = [
        request(model, t, request_id=t, max_tokens=10, sampling=sampling, steering=(steer(2.0),)) for t in TEXTS[:3]
    ]
    wanted = run(tiny.engine(model, dictionary), *requests)
    engine = tiny.engine(model, dictionary)
    inner, calls = engine.runner.fetch, []

    def fetch(output, extra):
        calls.append(output)
        if len(calls) == 8:  # a decode pass
            raise RuntimeError("copy failed")
        return inner(output, extra)

    engine.runner.fetch = fetch
    got = run(engine, *requests)
    assert [r.ids for r in got] == [r.ids for r in wanted]
    assert [r.finished.steering.positions_changed for r in got] == [len(r.prompt_ids) + 10 for r in requests]


def test_probabilities_that_overflow_fail_their_own_row_only(model, dictionary):
    good = request(model, max_tokens=20, sampling={"temperature": 1.0, "seed": 3})
    wild = request(model, "x", request_id="w", max_tokens=20, sampling={"temperature": 1e-44, "seed": 1})
    alone = run_one(model, dictionary, good).ids
    bad, beside = run(tiny.engine(model, dictionary), wild, good)
    assert isinstance(bad.failure, EngineFailed)
    assert beside.ids == alone


def test_operations_together_stay_under_the_cap(model, dictionary):
    relative = SteeringSpec(5, SteeringOp.ADD, 15.0, StrengthUnit.RELATIVE)
    reply = run_one(model, dictionary, request(model, max_tokens=8, steering=(relative,) * 16))
    assert reply.failure is None
    assert reply.finished.steering.max_relative_norm == pytest.approx(20.0, rel=1e-4)


def test_shutdown_sends_the_text_that_was_held_back(model, dictionary):
    free = run_one(model, dictionary, request(model, max_tokens=40))
    held = free.text[5:9] + "\0"  # begins like the reply, and is never completed
    engine = tiny.engine(model, dictionary)
    submission = submit(engine, request(model, max_tokens=200, sampling={"stop": (held,)}))[0]
    for _ in range(9):
        engine.step()
    engine.finish_all()
    engine.step()
    reply = Reply(submission)
    assert reply.finished.reason is FinishReason.SHUTDOWN
    assert reply.text == model.tokenizer.decode(reply.ids, skip_special_tokens=True)


@pytest.mark.parametrize("chunk_tokens", [1, 4, 64])
def test_steering_switched_on_in_the_prompt_begins_with_the_reply(model, dictionary, chunk_tokens):
    spec = tiny.monitor_spec(
        features=(WATCHED[0],), threshold=-1.0, window=1, min_tokens=1, roles=("text", "assistant")
    )
    req = request(
        model,
        max_tokens=6,
        monitors=(spec,),
        policies=(Policy(spec.name, PolicyAction.STEER),),
        policy_steering={spec.name: (steer(30.0),)},
        include_prompt=True,
    )
    req = replace(req, prompt_roles=("text",) * len(req.prompt_ids))
    reply = run_one(model, dictionary, req, chunk_tokens=chunk_tokens)
    assert reply.finished.steering.positions_changed == 6
    assert [bool(t.steered_readings) for t in reply.tokens] == [not t.is_prompt for t in reply.tokens]


def test_massive_activations_are_flagged_and_not_scored(model, dictionary):
    engine = tiny.engine(model, dictionary)
    usual = engine.runner.reader.largest_norm = 1e-3  # every token is massive
    spec = tiny.monitor_spec(features=(WATCHED[0],), threshold=-1.0, window=1, min_tokens=1)
    reply = run(engine, request(model, max_tokens=6, monitors=(spec,)))[0]
    assert usual and all(t.off_scale and not t.scores for t in reply.generated)
    assert reply.alerts == []
    normal = run_one(model, dictionary, request(model, max_tokens=6, monitors=(spec,), include_prompt=True))
    assert [t.off_scale for t in normal.tokens] == [t.index == 0 for t in normal.tokens]


def test_failures_and_missed_tokens_are_published(model, dictionary):
    published: list[Published] = []
    engine = tiny.engine(tiny.language_model(), dictionary, publish=published.append)
    engine.runner.tap.remove()
    req = request(model, "abc")
    run(engine, req)
    failures = [f for p in published for f in p.failures]
    assert [(f.num_tokens, f.num_tapped_tokens) for f in failures] == [(3, 0)]


def test_a_probe_that_is_not_finite_fails_its_request_and_is_counted(dictionary):
    """As a residual does: the message names an error id, the log the cause."""
    model = tiny.language_model()
    published: list[Published] = []
    probe = tiny.probe("watcher.probe", "layers.1.output")
    engine = tiny.engine(model, dictionary, probes=[probe], publish=published.append)
    read = engine.runner.probes.read
    engine.runner.probes.read = lambda *records: read(*records) * float("nan")
    monitor = tiny_packs.pack("watcher", [tiny_packs.probe_component()]).spec()
    [reply] = run(
        engine,
        request(model, monitors=(monitor,)),
    )
    assert isinstance(reply.failure, EngineFailed) and "Error id" in str(reply.failure)
    assert sum(step.num_nonfinite_tokens for out in published for step in out.steps) > 0
    assert [record.outcome for out in published for record in out.requests] == [Outcome.ENGINE_ERROR]


def cancel(engine: Engine, submission: Submission) -> None:
    engine.admission.cancel(submission)
    while engine.num_active:
        engine.step()


def stop(engine: Engine, _: Submission) -> None:
    engine.stop()
    engine.start()  # finds nothing left to do but to end everything
    assert engine.stop()


def crash(engine: Engine, _: Submission) -> None:
    engine.step = None  # what is called is no function
    engine.start()
    assert engine.stop()


@pytest.mark.parametrize("end", [cancel, stop, crash])
@pytest.mark.parametrize("replay", [None, Replay(num_prompt=90)])
def test_alerts_of_a_prompt_that_was_not_read_to_its_end_are_told_to_watchers_unless_it_is_a_replay(
    model, dictionary, replay, end
):
    """Its stream has not begun: nobody else can be told. A replay's alerts are told to nobody."""
    loud = tiny.monitor_spec(threshold=-1.0, roles=("user",), min_tokens=1)
    req = request(model, "a" * 90, monitors=(loud,), prompt_roles=("user",) * 90, replay=replay)
    told = []
    engine = tiny.engine(model, dictionary, publish=lambda published: told.extend(published.alerts))
    (submission,) = submit(engine, req)
    engine.step()
    assert engine.num_running == 1 and told == []
    end(engine, submission)
    assert engine.num_running == 0
    assert [event.alert.monitor for event in told] == ([] if replay else [loud.name])


def test_alerts_of_a_prompt_that_were_kept_are_told_to_watchers_though_a_later_one_cannot_be(model, dictionary):
    restless = tiny.monitor_spec(
        features=tuple(range(8)), threshold=4.0, window=1, min_tokens=1, cooldown_tokens=0, roles=("text",)
    )
    kept, told, outcomes = [], [], []

    def keep(raised):
        if kept:  # the disk is full by now
            return {each.event.request_id for each in raised}
        kept.extend(each.event.id for each in raised)
        return ()

    def publish(published):
        told.extend(event.id for event in published.alerts)
        outcomes.extend(record.outcome for record in published.requests)

    text = "The sea was calm and very wide that day."
    asked = request(model, text, monitors=(restless,), prompt_roles=("text",) * len(text))
    [reply] = run(tiny.engine(model, dictionary, chunk_tokens=6, publish=publish, keep=keep), asked)
    assert isinstance(reply.failure, AlertNotKept) and reply.events == []
    assert told == kept != []
    assert outcomes == [Outcome.ALERT_NOT_KEPT]
