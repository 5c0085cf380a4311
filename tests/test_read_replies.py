"""read_replies: equal to one pass of transformers per reply, whatever the batch; killed and gone on with; cached."""

import numpy as np
import pytest
import tiny
import torch

from discovery import read_replies as module
from discovery.errors import MonitorLabError
from discovery.read_replies import ReadingPlan, ReadProbe, all_points, read_replies
from discovery.reply_readings import load_readings
from discovery.scored_tokens import Reply
from sae_runtime.checkpoint import Manifest, load_sae, save_sae
from sae_runtime.errors import TapError
from sae_runtime.hook_point import HookPoint


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sae")
    manifest = Manifest(
        name="tiny",
        model_name="tiny",
        model_sha256="0" * 64,
        quantization="none",
        hook_point="layers.1.output",
        d_model=tiny.D_MODEL,
        num_latents=tiny.NUM_LATENTS,
        activation="topk",
        k=8,
    )
    save_sae(tiny.sae(), manifest, folder)
    return load_sae(folder)


def close(found, wanted):
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=1e-3, atol=1e-3)


def replies(num=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(num):
        length = 5 + 3 * number
        tokens = torch.randint(3, 200, (length,), generator=generator).tolist()
        scored = sorted({1 + number % 2, length // 2, length - 1})
        made.append(Reply(tuple(tokens), tuple(scored)))
    return made


def probe(layer, seed=5):
    generator = torch.Generator().manual_seed(seed + layer)
    return ReadProbe(HookPoint(layer), torch.randn(tiny.D_MODEL, generator=generator), 0.5 * layer)


def plan(model, loaded):
    return ReadingPlan(
        mean_points=all_points(model),
        token_point=HookPoint(2),
        probes=(probe(0), probe(3), probe(1)),
        sae=loaded,
        predictions=True,
    )


@torch.inference_mode()
def reference(model, reply, loaded):
    """hidden_states (without the last, which is normed) and logits of one reply, alone."""
    hidden = {}
    handles = [
        block.register_forward_hook(
            lambda _m, _a, out, n=n: hidden.update({n: out[0] if isinstance(out, tuple) else out})
        )
        for n, block in enumerate(model.model.model.layers)
    ]
    logits_TV = model.model(torch.tensor([reply.tokens])).logits[0]
    for handle in handles:
        handle.remove()
    scored = list(reply.scored)
    resid = {n: tensor[0, scored] for n, tensor in hidden.items()}
    log_probs = logits_TV.log_softmax(-1)[[p - 1 for p in scored]]
    return resid, log_probs, loaded.encode(resid[1])


@pytest.mark.parametrize("batch_tokens", [1, 60, 4096])
def test_readings_are_those_of_each_reply_alone(model, loaded, batch_tokens):
    made = replies()
    readings = read_replies(model, made, plan(model, loaded), batch_tokens=batch_tokens)
    assert readings.counts_I.tolist() == [len(reply.scored) for reply in made]
    for index, reply in enumerate(made):
        resid, log_probs, latents = reference(model, reply, loaded)
        rows = readings.rows(index)
        assert not readings.off_scale_N[rows].any()
        for layer in range(tiny.NUM_LAYERS):
            close(torch.from_numpy(readings.mean_ILD[index, layer]), resid[layer].mean(0))
        close(torch.from_numpy(readings.token_ND[rows]), resid[2])
        for column, read in enumerate((probe(0), probe(3), probe(1))):
            wanted = resid[read.hook_point.layer] @ read.direction_D + read.bias
            close(torch.from_numpy(readings.probes_NP[rows, column]), wanted)
        said = [reply.tokens[position] for position in reply.scored]
        wanted = log_probs[range(len(said)), said]
        close(torch.from_numpy(readings.log_prob_N[rows]), wanted)
        entropy = torch.distributions.Categorical(logits=log_probs).entropy()
        close(torch.from_numpy(readings.entropy_N[rows]), entropy)
        found = torch.from_numpy(readings.latents_NF[rows].toarray())
        close(found, latents)
        mean = torch.from_numpy(readings.mean_latents()[[index]].toarray()[0])
        close(mean, latents.mean(0))
        mean = readings.mean_over_tokens(readings.probes_NP)[index]
        np.testing.assert_allclose(mean, readings.probes_NP[rows].mean(0), rtol=1e-5)


def test_massive_activations_are_those_of_the_dictionarys_norm(model, loaded):
    made = replies()
    norms = np.concatenate([reference(model, reply, loaded)[0][1].norm(dim=-1).numpy() for reply in made])
    usual = float(np.sort(norms)[-3]) / 5
    loaded.manifest = loaded.manifest.model_copy(update={"resid_norm_mean": usual * 0.999})
    readings = read_replies(model, made, ReadingPlan(sae=loaded))
    loaded.manifest = loaded.manifest.model_copy(update={"resid_norm_mean": None})
    assert readings.off_scale_N.tolist() == (norms > 5 * usual * 0.999).tolist() and readings.off_scale_N.sum() == 3


def test_what_is_not_asked_for_is_not_there(model):
    readings = read_replies(model, replies(), ReadingPlan(mean_points=(HookPoint(0),)))
    num = int(readings.counts_I.sum())
    assert readings.mean_ILD.shape == (7, 1, tiny.D_MODEL)
    assert readings.token_ND.shape == readings.probes_NP.shape == (num, 0)
    assert readings.latents_NF.shape == (num, 0) and not len(readings.log_prob_N) and not len(readings.entropy_N)


def test_blocks_behind_the_last_hook_point_are_not_run_and_come_back(model):
    blocks = model.model.model.layers
    hooks_before = [list(block._forward_hooks) for block in blocks]  # other tests tap this model too
    ran = []
    handle = blocks[3].register_forward_hook(lambda *_: ran.append(1))
    read_replies(model, replies(), ReadingPlan(mean_points=(HookPoint(2),)))
    assert not ran and len(model.model.model.layers) == tiny.NUM_LAYERS
    read_replies(model, replies(), ReadingPlan(predictions=True))
    handle.remove()
    assert ran
    assert [list(block._forward_hooks) for block in model.model.model.layers] == hooks_before


def test_one_residual_may_be_read_under_both_of_its_names(model):
    both = ReadingPlan(mean_points=(HookPoint(1), HookPoint(2, "input")))
    found = read_replies(model, replies(3), both)
    np.testing.assert_array_equal(found.mean_ILD[:, 0], found.mean_ILD[:, 1])


def test_some_replies_can_be_taken(model, loaded):
    made, wanted = replies(), [5, 0, 3]
    taken = read_replies(model, made, plan(model, loaded)).take(wanted)
    alone = read_replies(model, [made[index] for index in wanted], plan(model, loaded))
    for name in ("counts_I", "mean_ILD", "token_ND", "probes_NP", "log_prob_N", "entropy_N"):
        close(getattr(taken, name), getattr(alone, name))
    close(taken.latents_NF.toarray(), alone.latents_NF.toarray())
    assert taken.take([]).num_replies == 0


def test_a_pass_that_was_killed_goes_on_and_gives_the_same(model, loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 3)
    made, whole = replies(8), plan(model, loaded)
    uncached = read_replies(model, made, whole)
    chunks = []
    read_chunk = module._read_chunk

    def counting(lm, chunk, *rest):
        if len(chunks) == 2:
            raise KeyboardInterrupt
        chunks.append(chunk)
        return read_chunk(lm, chunk, *rest)

    monkeypatch.setattr(module, "_read_chunk", counting)
    with pytest.raises(KeyboardInterrupt):
        read_replies(model, made, whole, cache=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    chunks.clear()
    resumed = read_replies(model, made, whole, cache=tmp_path)
    assert [len(chunk) for chunk in chunks] == [2]
    for name in ("counts_I", "mean_ILD", "token_ND", "probes_NP", "log_prob_N", "entropy_N"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(uncached, name))
    assert (resumed.latents_NF != uncached.latents_NF).nnz == 0


def test_the_cache_knows_what_its_readings_depend_on(model, loaded, tmp_path):
    made = replies(2)
    longer = [made[0], Reply(made[1].tokens, made[1].scored[:-1])]
    plans = [plan(model, loaded), ReadingPlan(probes=(probe(0),)), ReadingPlan(probes=(probe(0)._replace(bias=1.0),))]
    for number, (of, asked) in enumerate([(made, plans[0]), (longer, plans[0]), (made, plans[1]), (made, plans[2])]):
        read_replies(model, of, asked, cache=tmp_path)
        assert len(list(tmp_path.glob("*.safetensors"))) == number + 1
    (tmp_path / next(tmp_path.glob("*")).name).write_bytes(b"damaged")
    for of, asked in [(made, plans[0]), (longer, plans[0]), (made, plans[1]), (made, plans[2])]:
        read_replies(model, of, asked, cache=tmp_path)
    assert all(load_readings(path) is not None for path in tmp_path.glob("*.safetensors"))


def test_nothing_to_read_and_residuals_that_are_not_finite_are_named():
    with pytest.raises(MonitorLabError, match="replies: there must be conversations with a scored token, got none"):
        read_replies(tiny.language_model(), [], ReadingPlan())
    broken = tiny.language_model()
    broken.model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    read_replies(broken, replies(), ReadingPlan(mean_points=(HookPoint(0),)))
    with pytest.raises(MonitorLabError, match=r"residuals at layers\.1\.output must be finite"):
        read_replies(broken, replies(), ReadingPlan(mean_points=(HookPoint(1),)))
    with pytest.raises(TapError, match=r"layers\.9"):
        read_replies(tiny.language_model(), replies(), ReadingPlan(mean_points=(HookPoint(9),)))
