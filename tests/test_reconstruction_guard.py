"""Tokens at which the dictionary is off its distribution: marked, counted, and otherwise left as they are."""

import math

import pytest
import serving
import tiny
import tiny_packs
from telltale.v1 import generation_pb2
from test_engine import request, run_one

from sae_runtime.errors import CheckpointError
from sae_runtime.usual_fvu import MIN_TOKENS, UsualFVU
from service.reconstruction_guard import OffDistributionTokens, ReconstructionGuard
from service.request import AlertEvent, StartedEvent, TokenEvent

TEXT = "The sea was calm, and nobody knew why."


def figures(limit: object = 0.5, tokens: object = MIN_TOKENS) -> dict:
    return {"token_fvu": {"tokens": tokens, "quantiles": {"50%": 0.1, "99.9%": limit}}}


def read(model, dictionary, max_fvu, **fields):
    asked = request(model, TEXT, include_prompt=True, max_tokens=20, **fields)
    return run_one(model, dictionary, asked, max_fvu=max_fvu)


def test_tokens_above_the_limit_are_marked_and_nothing_else_changes(model, dictionary):
    monitor = tiny.monitor_spec(threshold=-1.0, window=3, min_tokens=1)
    plain = read(model, dictionary, None, monitors=(monitor,))
    limit = sorted(token.fvu for token in plain.tokens)[len(plain.tokens) // 2]
    guarded = read(model, dictionary, limit, monitors=(monitor,))
    assert [t.off_distribution for t in guarded.tokens] == [t.fvu > limit and t.index > 0 for t in plain.tokens]
    assert sum(t.off_distribution for t in guarded.tokens) > 5
    assert not any(t.off_distribution for t in plain.tokens)
    for one, other in zip(plain.tokens, guarded.tokens, strict=True):
        assert (one.id, one.readings, one.scores, one.fvu) == (other.id, other.readings, other.scores, other.fvu)


def test_alerts_and_summaries_count_them(model, dictionary):
    monitor = tiny.monitor_spec(threshold=-1.0, window=5, min_tokens=7)
    limit = sorted(t.fvu for t in read(model, dictionary, None).generated)[10]
    reply = read(model, dictionary, limit, monitors=(monitor,))
    [alert] = [event for event in reply.events if isinstance(event, AlertEvent)]
    span = range(alert.alert.span_start, alert.alert.position + 1)
    assert len(span) == 5
    assert alert.off_distribution_tokens == sum(t.off_distribution for t in reply.generated if t.index in span) > 0
    found = reply.finished.off_distribution
    started = next(event for event in reply.events if isinstance(event, StartedEvent))
    assert found.num_tokens == sum(t.off_distribution for t in reply.tokens)
    assert found.by_monitor[monitor.name, "assistant"] == sum(t.off_distribution for t in reply.generated)
    assert isinstance(started.last_prompt_token, TokenEvent)


def test_what_a_monitor_leaves_out_is_off_scale_and_not_off_distribution(model, dictionary):
    """By its probe's largest norm, where the dictionary has nothing against the token."""
    strict = tiny_packs.pack("strict", [tiny_packs.probe_component(largest_norm=0.001)])
    probes = [tiny.probe(probe.name, probe.hook_point) for probe in strict.probes()]
    asked = request(model, TEXT, include_prompt=True, max_tokens=10, monitors=(strict.spec(),))
    reply = run_one(model, dictionary, asked, probes=probes, max_fvu=0.0)
    assert {(token.off_scale, token.off_distribution) for token in reply.generated} == {(True, False)}
    # Prompt tokens are scored by nobody, and so left out by nobody.
    assert {(token.off_scale, token.off_distribution) for token in reply.tokens if token.is_prompt} == {
        (True, False),
        (False, True),
    }
    assert reply.finished.monitors[0].num_scored == 0
    assert reply.finished.off_distribution.by_monitor == {("strict", "assistant"): 0}
    assert reply.finished.off_distribution.num_tokens == sum(token.off_distribution for token in reply.tokens)


def test_without_a_limit_nothing_is_counted(model, dictionary):
    reply = read(model, dictionary, None, monitors=(tiny.monitor_spec(threshold=-1.0),))
    assert reply.finished.off_distribution is None
    assert {event.off_distribution_tokens for event in reply.events if isinstance(event, AlertEvent)} == {None}


def test_a_span_counts_one_role_alone_and_nothing_off_scale():
    asked = tiny.monitor_spec(name="asked", roles=("user", "assistant"))
    thinking = tiny.monitor_spec(name="thinking", roles=("assistant", "reasoning"))
    tokens = OffDistributionTokens(0.5, [asked, thinking])
    seen = [
        ("user", 0.9, True),
        ("user", 0.9, False),
        ("assistant", 0.9, False),
        (None, 0.9, False),
        ("user", 0.5, False),
        ("reasoning", 0.9, False),
    ]
    marks = [tokens.observe(i, role, fvu=fvu, off_scale=off) for i, (role, fvu, off) in enumerate(seen)]
    assert marks == [False, True, True, True, False, True]
    assert tokens.in_span(0, 4, "asked", "user") == 1
    assert [tokens.in_span(start, 5, "asked", "assistant") for start in (2, 3)] == [2, 1]  # thoughts are the answer's
    assert [tokens.in_span(start, 5, "thinking", "assistant") for start in (2, 3)] == [1, 0]
    assert tokens.in_span(3, 5, "thinking", "reasoning") == 1
    assert tokens.summary().num_tokens == 4
    assert tokens.summary().by_monitor == {
        ("asked", "user"): 1,
        ("asked", "assistant"): 2,
        ("thinking", "assistant"): 1,
        ("thinking", "reasoning"): 1,
    }


@pytest.mark.parametrize(
    ("metrics", "wanted"),
    [
        (figures(limit="high"), "quantiles.99.9% must be a number of 0 or more, got 'high'"),
        (figures(limit=-1), "quantiles.99.9% must be a number of 0 or more, got -1"),
        (figures(limit=math.nan), "quantiles.99.9% must be a number of 0 or more, got nan"),
        ({"token_fvu": 0.5}, "quantiles.99.9% must be a number of 0 or more, got None"),
        (figures(tokens=10), f"token_fvu.tokens must be at least {MIN_TOKENS}, got 10"),
    ],
)
def test_figures_that_make_no_sense_are_refused_by_name(metrics, wanted):
    with pytest.raises(CheckpointError, match=wanted):
        UsualFVU.of(serving.manifest(metrics=metrics))


def test_a_dictionary_without_figures_says_what_adds_them():
    guard = ReconstructionGuard.of(serving.manifest())
    assert guard.max_fvu is None and "telltale lab import --check" in guard.source


async def test_clients_are_told_and_metrics_count():
    limit = 0.9
    async with (
        serving.serving(metrics={"token_fvu": figures(limit)["token_fvu"]}) as server,
        serving.connect(server) as client,
    ):
        reply = await client.complete(TEXT, max_tokens=12, ignore_eos=True, include_prompt=True)
        tokens = [*reply.prompt, *reply.tokens]
        off = [token for token in tokens if token.off_distribution]
        assert [token.fvu > limit and not token.off_scale for token in tokens] == [t.off_distribution for t in tokens]
        assert 0 < len(off) < len(tokens)
        assert reply.started.reconstruction_guard.active
        assert reply.started.reconstruction_guard.max_fvu == pytest.approx(limit)
        assert reply.started.reconstruction_guard.usual_ratio == pytest.approx(0.001)
        assert reply.finished.off_distribution_tokens == len(off)
        by_monitor = {one.monitor: one.off_distribution_tokens for one in reply.finished.monitors}
        assert set(by_monitor.values()) == {sum(token.off_distribution for token in reply.tokens)}
        await serving.eventually(lambda: serving.sample(server, "telltale_requests_total", outcome="length"))
        assert serving.sample(server, "telltale_off_distribution_tokens_total") == len(off)
        assert serving.sample(server, "telltale_ordinary_tokens_total") == len(tokens) - 1  # position 0
        assert serving.sample(server, "telltale_off_distribution_fvu_limit") == limit
        info = await client.server_info()
        assert info.reconstruction_guard == reply.started.reconstruction_guard


async def test_a_server_without_figures_marks_nothing_and_says_so():
    async with serving.serving() as server, serving.connect(server) as client:
        reply = await client.complete(TEXT, max_tokens=4, ignore_eos=True)
        assert not reply.started.reconstruction_guard.active
        assert "no record of its usual FVU" in reply.started.reconstruction_guard.source
        assert reply.finished.off_distribution_tokens is None
        assert {alert.off_distribution_tokens for alert in reply.alerts} == {None}
        assert math.isnan(serving.sample(server, "telltale_off_distribution_fvu_limit"))
        score = await client.call(client.generation.Score, generation_pb2.ScoreRequest(text=TEXT))
        assert not score.HasField("off_distribution_tokens") and not score.reconstruction_guard.active
