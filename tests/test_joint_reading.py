"""joint_reading: what several plans want is read once, and each gets exactly what it would have read alone."""

from dataclasses import fields, replace

import numpy as np
import pytest
import tiny
import tiny_files
import torch

from discovery import joint_reading
from discovery.errors import MonitorLabError
from discovery.joint_reading import JointReader
from discovery.read_replies import ReadingPlan, ReadProbe, read_replies
from discovery.scored_tokens import Reply
from sae_runtime.checkpoint import load_sae, save_sae
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import load_language_model


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    sha = tiny_files.write_model(folder / "model")
    tiny_files.write_dictionary(folder / "sae", sha, resid_norm_mean=1.0)
    lm = load_language_model(str(folder / "model"), dtype="float32", device="cpu")
    return lm, load_sae(folder / "sae")


def probe(layer: int, seed: int) -> ReadProbe:
    return ReadProbe(HookPoint(layer), torch.randn(tiny.D_MODEL, generator=torch.manual_seed(seed)), 0.5)


def plans(sae):
    shared = probe(1, seed=1)
    return [
        ReadingPlan(probes=(shared,)),
        ReadingPlan(mean_points=(HookPoint(3), HookPoint(0)), probes=(probe(2, seed=2), shared), predictions=True),
        ReadingPlan(mean_points=(HookPoint(1),), sae=sae),
        ReadingPlan(probes=(probe(2, seed=2),), judge=sae.manifest),
    ]


def replies(num: int, seed: int = 0) -> list[Reply]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num):
        length = int(rng.integers(4, 20))
        found.append(Reply(tuple(rng.integers(3, 60, length).tolist()), tuple(range(2, length))))
    return found


def assert_same(found, wanted):
    for field in fields(wanted):
        ours, theirs = getattr(found, field.name), getattr(wanted, field.name)
        if field.name == "latents_NF":
            assert ours.shape[1] == theirs.shape[1]
            ours, theirs = ours.toarray(), theirs.toarray()
        assert ours.shape == theirs.shape, field.name
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=field.name)


def test_each_plan_gets_what_it_would_have_read_alone(world):
    lm, sae = world
    asked, chosen = plans(sae), replies(9)
    joint = JointReader(lm, asked)
    for plan in asked:
        assert_same(joint.read(chosen, plan), read_replies(lm, chosen, plan))
    # The dictionary that one goes by judges tokens of no other: nearly all are off scale to this one.
    assert joint.read(chosen, asked[3]).off_scale_N.any() and not joint.read(chosen, asked[0]).off_scale_N.any()


def test_every_reply_is_read_once_whoever_wants_it(world, monkeypatch):
    lm, sae = world
    asked, chosen = plans(sae), replies(9)
    read = []
    real = joint_reading.read_replies
    monkeypatch.setattr(
        joint_reading, "read_replies", lambda lm, some, *a, **k: read.extend(some) or real(lm, some, *a, **k)
    )
    joint = JointReader(lm, asked)
    first = [*chosen[:6], chosen[2]]  # one of them twice
    assert_same(joint.read(first, asked[0]), read_replies(lm, first, asked[0]))
    assert_same(joint.read(chosen[3:], asked[1]), read_replies(lm, chosen[3:], asked[1]))
    assert_same(joint.read(chosen[::-1], asked[2]), read_replies(lm, chosen[::-1], asked[2]))
    assert read == chosen


def test_where_scored_positions_differ_it_is_another_reply(world):
    lm, sae = world
    whole = replies(1)[0]
    both = [whole, whole._replace(scored=whole.scored[1:])]
    plan = plans(sae)[0]
    assert_same(JointReader(lm, [plan]).read(both, plan), read_replies(lm, both, plan))


def test_what_can_not_be_read_together_is_named(world, tmp_path):
    lm, sae = world
    save_sae(tiny.sae(seed=2), tiny_files.manifest(), tmp_path / "other")
    other = load_sae(tmp_path / "other")
    with pytest.raises(MonitorLabError, match="must go by one dictionary, got"):
        JointReader(lm, [ReadingPlan(sae=sae), ReadingPlan(sae=other)])
    with pytest.raises(MonitorLabError, match="every token's residual"):
        JointReader(lm, [ReadingPlan(token_point=HookPoint(1))])
    with pytest.raises(MonitorLabError, match="there must be conversations with a scored token, got none"):
        JointReader(lm, plans(sae)).read([], plans(sae)[0])
    means = ReadingPlan(mean_points=(HookPoint(1),))
    with pytest.raises(MonitorLabError, match="of replies' last tokens must be measured apart from others"):
        JointReader(lm, [means, replace(means, averaged="last")])
