"""dictionary_trainer: every recipe learns, keeps its constraints, and goes on bit by bit."""

import math

import pytest
import tiny
import torch
from training import D, F, buffers_of, changed, go_on, settings_for, state_of, write_harvest

from discovery.buffers import START
from discovery.dictionary_trainer import Trainer
from discovery.errors import TrainError
from discovery.finished_dictionary import finish
from sae_runtime.checkpoint import load_sae

ACTIVATIONS = ["relu", "topk", "batchtopk", "jumprelu", "gated"]


@pytest.fixture(scope="module")
def buffers(tmp_path_factory):
    return buffers_of(write_harvest(tmp_path_factory.mktemp("harvest")))


def train(settings, buffers):
    trainer = Trainer(settings, buffers)
    return trainer, list(trainer.steps())


def quick(activation, **fields):
    """Two hundred steps bring the penalised recipes from half of the latents to a few."""
    weights = {"relu": 1.0, "jumprelu": 0.5, "gated": 0.5}
    if activation in weights:
        fields = {"sparsity_weight": weights[activation], "num_steps": 200} | fields
    return settings_for(activation, **fields)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_learns(buffers, activation):
    settings = quick(activation)
    trainer, figures = train(settings, buffers)
    assert trainer.num_steps_done == settings.num_steps
    assert figures[-1].fvu < 0.3
    if settings.has_fixed_l0:
        assert figures[-1].l0 == pytest.approx(4, abs=0.3)
    else:
        assert figures[-1].l0 < 0.5 * figures[0].l0
    norm_F = trainer.sae.W_dec.norm(dim=-1)
    assert torch.allclose(norm_F, torch.ones(F), atol=1e-5) == settings.has_unit_decoder


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "gated"])
def test_lambda_is_steered_to_the_l0_asked_for(buffers, activation):
    settings = quick(activation, l0_target=5.0, num_steps=300)
    trainer, figures = train(settings, buffers)
    mean_l0 = sum(step.l0 for step in figures[-50:]) / 50
    assert mean_l0 == pytest.approx(5, rel=0.3)
    assert trainer.sparsity_weight != settings.sparsity_weight


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "gated"])
def test_a_stronger_penalty_leaves_fewer_latents_active(buffers, activation):
    weak, strong = (train(quick(activation, sparsity_weight=weight), buffers)[1][-1] for weight in (0.2, 2.0))
    assert strong.l0 < weak.l0
    assert strong.fvu > weak.fvu


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_either_precision_learns_the_same(buffers, precision):
    _, figures = train(quick("relu", precision=precision, num_steps=150), buffers)
    _, exact = train(quick("relu", precision="fp32", num_steps=150), buffers)
    assert figures[-1].fvu == pytest.approx(exact[-1].fvu, rel=0.1)


def test_projected_gradient_is_orthogonal_to_its_row(buffers):
    trainer = Trainer(quick("gated"), buffers)
    trainer.step(buffers.load(0, 0)[:128])
    # Adam has not touched .grad, and normalising changed the rows by far less than this.
    along = (trainer.sae.W_dec.grad * trainer.sae.W_dec.detach()).sum(-1).abs()
    assert float(along.max()) < 0.05 * float(trainer.sae.W_dec.grad.norm(dim=-1).max())


@pytest.mark.parametrize("stop", [1, 37, 59])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_run_that_goes_on_is_the_same_run(buffers, activation, stop):
    """With resampling and steering, which have state of their own; through the file format of checkpoints."""
    penalised = activation in ("relu", "jumprelu", "gated")
    settings = settings_for(
        activation,
        revival="resample",
        resample_every=20,
        dead_after_tokens=500,
        **({"l0_target": 4.0, "sparsity_weight": 1.0} if penalised else {}),
    )
    whole, _ = train(settings, buffers)
    stopped = Trainer(settings, buffers)
    for _ in stopped.steps():
        if stopped.num_steps_done == stop:
            break
    resumed = Trainer(settings, buffers)
    go_on(resumed, state_of(stopped), "here")
    for _ in resumed.steps():
        pass
    for name, tensor in whole.sae.state_dict().items():
        assert torch.equal(tensor, resumed.sae.state_dict()[name]), name
    assert whole.sparsity_weight == resumed.sparsity_weight
    assert torch.equal(whole.silent_tokens_F, resumed.silent_tokens_F)


def test_another_recipe_or_other_data_is_refused(buffers, tmp_path):
    state = state_of(Trainer(changed(), buffers))
    with pytest.raises(TrainError, match=r"over there belongs to a run with other settings.*k was 4, is 5"):
        go_on(Trainer(changed(k=5), buffers), state, "over there")
    others = buffers_of(write_harvest(tmp_path, seed=1))
    with pytest.raises(TrainError, match=r"over there .*: source 1: contexts_sha256 was .*, is "):
        go_on(Trainer(changed(), others), state, "over there")


def test_a_loss_that_is_no_number_ends_the_run(buffers):
    trainer = Trainer(changed(), buffers)
    with torch.no_grad():
        trainer.sae.b_dec[0] = math.nan
    with pytest.raises(TrainError, match=r"loss must be finite, got nan at step 0.*learning_rate 0\.01"):
        next(trainer.steps())


def test_a_run_can_start_from_a_finished_dictionary(buffers, tmp_path):
    first, _ = train(changed(), buffers)
    finish(first, tmp_path / "first", name="first", target_l0=4)
    sae = load_sae(tmp_path / "first")
    second = Trainer(changed(seed=1), buffers, sae)
    assert next(second.steps()).fvu < 0.3
    manifest = finish(second, tmp_path / "second", name="second", started_from=sae.manifest.training)
    assert manifest.training["started_from"]["recipe"]["seed"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_latents": 32}, "num_latents 32, got 64"),
        ({"activation": "topk"}, "activation topk, got batchtopk"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(buffers, changes, message):
    settings = changed(**changes)
    start = Trainer(changed(), buffers).sae
    with pytest.raises(TrainError, match=message):
        Trainer(settings, buffers, start)
    with pytest.raises(TrainError, match=f"d_model {D}, got {tiny.D_MODEL}"):
        Trainer(changed(), buffers, tiny.sae("batchtopk"))


def test_a_new_run_begins_at_the_start(buffers):
    trainer = Trainer(changed(), buffers)
    assert trainer.place == START and trainer.num_tokens_done == 0 and trainer.num_dead == 0


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_rows_begin_where_their_recipe_has_them(buffers, activation):
    sae = Trainer(settings_for(activation), buffers).sae
    norm = 1.0 if activation in ("jumprelu", "gated") else 0.1
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.full((F,), norm))
    assert torch.equal(sae.W_enc, sae.W_dec.T)


def test_a_small_start_turns_latents_further(buffers):
    """Begun at norm 1, the same steps leave rows near where chance put them."""
    likeness = {}
    for factor in (1.0, 10.0):
        trainer = Trainer(quick("topk", num_steps=20, learning_rate=3e-3), buffers)
        with torch.no_grad():
            trainer.sae.W_dec.mul_(factor)
            trainer.sae.W_enc.mul_(factor)
        before = trainer.sae.W_dec.detach().clone()
        for _ in trainer.steps():
            pass
        likeness[factor] = float(torch.cosine_similarity(before, trainer.sae.W_dec.detach(), dim=-1).mean())
    assert 1 - likeness[1.0] > 5 * (1 - likeness[10.0])


@pytest.mark.parametrize("activation", ["topk", "batchtopk", "jumprelu", "gated"])
def test_a_start_whose_rows_have_other_norms_is_refused(buffers, activation):
    """It ranks, or would be normalised, otherwise than it is served."""
    start = Trainer(settings_for(activation), buffers).sae
    with torch.no_grad():
        start.W_dec.div_(start.W_dec.norm(dim=-1, keepdim=True))
        start.W_dec[5] *= 1.5
    with pytest.raises(TrainError, match=r"rows of norm 1, got norms of 1 to 1\.5"):
        Trainer(settings_for(activation), buffers, start)
