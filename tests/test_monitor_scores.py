"""monitor_scores: what the streaming code makes of replies is what the definitions say."""

import math
from dataclasses import replace

import numpy as np
import pytest
import tiny_packs
from scipy.sparse import csr_array

from discovery.benign_replies import BenignRows
from discovery.calibration_run import CalibrationSettings, calibrated
from discovery.conversations import Conversation
from discovery.errors import MonitorLabError
from discovery.monitor_scores import reading_plan, score_replies, scoring_spec
from discovery.reply_readings import ReplyReadings
from discovery.scored_tokens import Reply
from monitors.components import Inputs
from monitors.drift import Reference
from monitors.reference import reply_scores, reply_statistic, token_scores


def readings(counts=(1, 9, 70), probes=2, latents=8, seed=0):
    rng, num = np.random.default_rng(seed), sum(counts)
    f_NF = rng.exponential(size=(num, latents)) * (rng.random((num, latents)) < 0.4)
    empty = np.zeros((num, 0), np.float32)
    return ReplyReadings(
        counts_I=np.array(counts),
        mean_ILD=np.zeros((len(counts), 0, 0), np.float32),
        token_ND=empty,
        probes_NP=rng.normal(size=(num, probes)).astype(np.float32),
        log_prob_N=np.zeros(0, np.float32),
        entropy_N=np.zeros(0, np.float32),
        off_scale_N=np.zeros(num, bool),
        latents_NF=csr_array(f_NF.astype(np.float32)),
    )


PROBES = [
    tiny_packs.probe_component("one", direction="one", center=0.3, scale=2.0),
    tiny_packs.probe_component("two", direction="two", hook_point="layers.3.output"),
]
PACKS = {
    "feature": tiny_packs.pack(),
    "features": tiny_packs.pack(components=[tiny_packs.feature_component(6, 1, transform="log1p")]),
    "probe": tiny_packs.pack(components=PROBES[:1]),
    "conjunction": tiny_packs.pack(components=PROBES),
    "both": tiny_packs.pack(components=[PROBES[1], tiny_packs.feature_component(2)]),
    "uncalibrated": tiny_packs.pack(components=PROBES, thresholds=None, calibration=None),
}


@pytest.mark.parametrize("name", PACKS)
def test_statistics_are_those_of_the_definitions(name):
    pack, made = PACKS[name], readings()
    spec, names = scoring_spec(pack), [probe.name for probe in pack.probes()]
    scored = score_replies(pack, made)
    assert scored[0].statistic == -math.inf  # one token, of two that it takes
    for reply, found in enumerate(scored):
        rows = made.rows(reply)
        f_TF = made.latents_NF[rows].toarray()
        tokens = [
            Inputs(dict(enumerate(f.tolist())), dict(zip(names, values.tolist(), strict=False)))
            for f, values in zip(f_TF, made.probes_NP[rows], strict=True)
        ]
        by_token = token_scores(spec, tokens)
        assert found.scores == tuple(reply_scores(spec, by_token))
        wanted = reply_statistic(spec, by_token)
        assert found.statistic == (-math.inf if wanted is None else wanted)
        assert len(found.components) == len(pack.components)
        for index, component in enumerate(spec.components):
            means = [np.mean(by_token[index][max(0, t - 3) : t + 1]) for t in range(len(tokens))]
            values = [component.standardised(mean) for mean in means]
            np.testing.assert_allclose(found.components[index], values)
            largest = found.component_statistic(index, spec.min_tokens)
            assert largest == pytest.approx(max(values[1:], default=-math.inf))
        np.testing.assert_allclose(
            found.final_mean,
            spec.combination.score(
                [c.standardised(np.mean(row)) for c, row in zip(spec.components, by_token, strict=True)]
            ),
        )


def test_levels_are_what_the_alarm_says_and_without_thresholds_there_are_none():
    scored = score_replies(PACKS["probe"], readings())
    assert [reply.level for reply in scored] == ["warning" if reply.statistic > 0.5 else None for reply in scored]
    assert {reply.level for reply in score_replies(PACKS["uncalibrated"], readings())} == {None}


def test_tokens_off_scale_are_not_scored():
    made = readings((6, 9))
    made.off_scale_N[[2, 7]] = True
    kept = np.flatnonzero(~made.off_scale_N)
    clean = readings((6, 9)).take([0, 1])
    shorter = replace(
        clean,
        counts_I=np.array([5, 8]),
        probes_NP=clean.probes_NP[kept],
        latents_NF=clean.latents_NF[kept],
        token_ND=clean.token_ND[kept],
        off_scale_N=np.zeros(13, bool),
    )
    for pack in PACKS.values():
        assert score_replies(pack, made) == score_replies(pack, shorter)
    everything = replace(clean, off_scale_N=np.ones(15, bool))
    assert [reply.statistic for reply in score_replies(PACKS["conjunction"], everything)] == [-math.inf] * 2


def test_reasoning_is_scored_by_itself_where_the_monitor_asks_for_it():
    """As if answer and thoughts were two replies; for other monitors nothing changes."""
    made, thoughts = readings((6, 9)), [{0, 1, 2}, {2, 3, 8}]
    replies = [Reply(tuple(range(n + 1)), tuple(range(1, n + 1)), frozenset(i + 1 for i in at))
               for n, at in zip((6, 9), thoughts, strict=True)]  # fmt: skip
    pack = PACKS["conjunction"]
    assert score_replies(pack, made, replies) == score_replies(pack, made)
    asking = replace(pack, roles=("assistant", "reasoning"))
    for reply, (found, at) in enumerate(zip(score_replies(asking, made, replies), thoughts, strict=True)):
        rows = list(range(*made.rows(reply).indices(15)))
        parts = {}
        for name, is_thought in (("answer", False), ("thoughts", True)):
            chosen = [row for i, row in enumerate(rows) if (i in at) == is_thought]
            parts[name] = score_replies(pack, one_reply(made, chosen))[0]
        by_role = {run.role: (run.scores, run.statistic) for run in found.runs}
        assert by_role == {
            "assistant": (parts["answer"].scores, of_run(parts["answer"])),
            "reasoning": (parts["thoughts"].scores, of_run(parts["thoughts"])),
        }
        assert found.statistic == max(part.statistic for part in parts.values())
        assert found.num_fired == sum(part.num_fired for part in parts.values())
        assert len(found.scores) == len(rows)
        only = score_replies(replace(pack, roles=("reasoning",)), made, replies)[reply]
        assert only.scores == parts["thoughts"].scores


def of_run(reply):
    return None if math.isinf(reply.statistic) else reply.statistic


def test_traffic_is_compared_with_answers_alone_where_reasoning_is_scored_by_itself():
    """As a server does, which compares what monitors made of the assistant's words."""
    counts = tuple(6 + number % 7 for number in range(60))
    made = readings(counts)
    replies = [Reply(tuple(range(n + 1)), tuple(range(1, n + 1)), frozenset({1, 2})) for n in counts]
    asking = replace(PACKS["conjunction"], roles=("assistant", "reasoning"), min_tokens=2)
    messages = ({"role": "user", "content": "?"}, {"role": "assistant", "content": "Yes."})
    rows = [Conversation(f"r{n}", "benign", messages, 0, 4, 0, f"g{n}", {}) for n in range(len(counts))]
    settings = CalibrationSettings(bounds=(16,), alphas={"warning": 0.3, "critical": 0.2})
    found = calibrated(asking, BenignRows(rows, replies, {}), made, settings)
    scored = score_replies(found, made, replies)
    for reply in scored:
        thoughts, answer = (
            next(run.scores for run in reply.runs if run.role == role) for role in ("reasoning", "assistant")
        )
        assert len(thoughts) == 2 and len(answer) == len(reply.scores) - 2
    answers = [next(run for run in reply.runs if run.role == "assistant") for reply in scored]
    wanted = Reference.of([(run.statistic, run.scores[1:]) for run in answers])
    mixed = Reference.of([(reply.statistic, reply.scores[1:]) for reply in scored])
    assert found.calibration is not None and found.calibration.reference == wanted != mixed


def one_reply(made, rows):
    return replace(
        made,
        counts_I=np.array([len(rows)]),
        mean_ILD=made.mean_ILD[:1],
        probes_NP=made.probes_NP[rows],
        latents_NF=made.latents_NF[rows],
        token_ND=made.token_ND[rows],
        off_scale_N=made.off_scale_N[rows],
    )


def test_a_plan_reads_what_the_monitor_does():
    plan = reading_plan(PACKS["conjunction"], None)
    assert [str(probe.hook_point) for probe in plan.probes] == ["layers.1.output", "layers.3.output"]
    assert plan.probes[0].direction_D.tolist() == [1.0] + [0.0] * 31 and plan.probes[0].bias == 0.5
    with pytest.raises(MonitorLabError, match="reads latents: give --dictionary, got none"):
        reading_plan(PACKS["both"], None)
