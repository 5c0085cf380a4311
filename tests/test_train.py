"""train: gradients are autograd's, a resumed run is the same run, and it learns."""

import pytest
import tiny
import torch
from safetensors.torch import save_file

from discovery.shard_stream import START, Place, Source, load_buffer, stream_batches
from discovery.sparse_gradients import backpropagate, select_active, strongest
from discovery.train import (
    Trainer,
    TrainError,
    TrainSettings,
    add_aux_gradients,
    calibrate_threshold,
    finish,
    run,
)
from sae_runtime.checkpoint import load_sae

D, F, N = 16, 64, 600
SETTINGS = TrainSettings(
    num_latents=F,
    k=4,
    num_steps=60,
    batch_size=128,
    learning_rate=1e-2,
    warmup_steps=5,
    aux_k=8,
    dead_after_tokens=1000,
)
MANIFEST = (
    '{"settings": {"model_name": "tiny", "model_sha256": "'
    + "0" * 64
    + '", "quantization": "none", "hook_point": "layers.1.output", "bos_policy": "tokenizer", "sources": {"made": 1}}}'
)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    """Sparse combinations of 48 directions around a mean: what a dictionary can learn."""
    folder = tmp_path_factory.mktemp("harvest")
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(48, D, generator=generator), dim=-1)
    for shard in range(5):
        active = torch.rand(N, 48, generator=generator) < 0.06
        resid_ND = (active * torch.rand(N, 48, generator=generator) * 9) @ directions + 3.0
        save_file({"resid_ND": resid_ND.bfloat16()}, folder / f"shard-{shard:05d}.safetensors")
    (folder / "manifest.json").write_text(MANIFEST)
    return Source.parse(f"{folder}:2")


def changed(**fields: object) -> TrainSettings:
    return TrainSettings(**{name: getattr(SETTINGS, name) for name in SETTINGS.__slots__} | fields)


@pytest.mark.parametrize("over_batch", [False, True])
def test_gradients_are_those_of_autograd(over_batch):
    sae = tiny.sae("topk").requires_grad_(True)
    x_BD = torch.randn(50, tiny.D_MODEL, generator=torch.Generator().manual_seed(2))
    mean_D = x_BD.mean(0)
    result = backpropagate(sae, x_BD, mean_D, 5, over_batch=over_batch)
    ours = {name: parameter.grad.clone() for name, parameter in sae.named_parameters()}
    sae.zero_grad()
    kept_BF = torch.zeros(50, tiny.NUM_LATENTS)
    kept_BF[result.active.tokens_N, result.active.latents_N] = 1
    f_BF = ((x_BD - sae.b_dec) @ sae.W_enc + sae.b_enc) * kept_BF
    loss = (x_BD - f_BF @ sae.W_dec - sae.b_dec).square().sum() / (x_BD - mean_D).square().sum()
    loss.backward()
    # Pre-activations are bf16 there: 2^-9 relative, so about that much in the result.
    assert result.fvu == pytest.approx(loss.item(), rel=5e-3)
    for name, parameter in sae.named_parameters():
        assert (ours[name] - parameter.grad).norm() <= 0.02 * parameter.grad.norm(), name


def test_strongest_is_topk():
    pre_BF = torch.randn(20, 512, generator=torch.Generator().manual_seed(0))
    for num in (4, 16, 64, 100):
        values_BC, indices_BC = strongest(pre_BF, num)
        assert torch.equal(values_BC.sort(descending=True).values, pre_BF.topk(num).values)
        assert torch.equal(pre_BF.gather(1, indices_BC), values_BC)


def test_active_set_per_token_and_over_the_batch():
    pre_BF = torch.randn(20, 512, generator=torch.Generator().manual_seed(0))
    each = select_active(pre_BF, 6, over_batch=False)
    assert torch.bincount(each.tokens_N).tolist() == [6] * 20
    together = select_active(pre_BF, 6, over_batch=True)
    assert len(together.values_N) == 120
    assert together.threshold == pytest.approx(float(pre_BF.flatten().topk(120).values[-1]))
    negative = select_active(-pre_BF.abs(), 6, over_batch=True)
    assert len(negative.values_N) == 0


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_it_learns_and_rows_keep_norm_1(source, activation):
    trainer = Trainer(changed(activation=activation), [source])
    figures = list(trainer.steps())
    assert figures[-1].fvu < 0.5 * figures[0].fvu
    assert figures[-1].l0 == pytest.approx(4, abs=0.3)
    assert torch.allclose(trainer.sae.W_dec.norm(dim=-1), torch.ones(F), atol=1e-5)
    assert trainer.num_steps_done == 60


def test_projected_gradient_is_orthogonal_to_its_row(source):
    trainer = Trainer(SETTINGS, [source])
    trainer.step(load_buffer([source], 0, 0)[:128])
    # Adam has not touched .grad, and normalising changed the rows by far less than this.
    W_dec = trainer.sae.W_dec.detach()
    along = (trainer.sae.W_dec.grad * W_dec).sum(-1).abs()
    assert float(along.max()) < 0.05 * float(trainer.sae.W_dec.grad.norm(dim=-1).max())


def test_resumed_run_is_bit_exact(source, tmp_path):
    whole = Trainer(SETTINGS, [source])
    run(whole, tmp_path / "whole")

    class Killed(Exception):
        pass

    killed = Trainer(SETTINGS, [source])
    step = killed.step

    def dying_step(resid_BD):
        if killed.num_steps_done == 37:
            raise Killed
        return step(resid_BD)

    killed.step = dying_step
    with pytest.raises(Killed):
        run(killed, tmp_path / "killed", checkpoint_every=15)
    resumed = Trainer(SETTINGS, [source])
    run(resumed, tmp_path / "killed", checkpoint_every=15)
    for name, tensor in whole.sae.state_dict().items():
        assert torch.equal(tensor, resumed.sae.state_dict()[name]), name
    logs = [
        [row.split(",")[:5] for row in (tmp_path / folder / "log.csv").read_text().splitlines()]
        for folder in ("whole", "killed")
    ]
    assert logs[0] == logs[1]


def test_checkpoint_of_another_recipe_is_refused(source, tmp_path):
    run(Trainer(changed(num_steps=2), [source]), tmp_path)
    with pytest.raises(TrainError, match="other settings"):
        run(Trainer(changed(num_steps=3), [source]), tmp_path)


def test_aux_loss_moves_only_dead_latents(source):
    trainer = Trainer(SETTINGS, [source])
    x_BD = load_buffer([source], 0, 0)[:128].float() * trainer.sae.scale
    result = backpropagate(trainer.sae, x_BD, trainer.sae.b_dec.detach(), 4, over_batch=True)
    before = {name: parameter.grad.clone() for name, parameter in trainer.sae.named_parameters()}
    dead_F = torch.zeros(F, dtype=torch.bool)
    dead_F[[3, 9]] = True
    add_aux_gradients(trainer.sae, x_BD, result.error_BD, dead_F, SETTINGS)
    changed_F = (trainer.sae.W_dec.grad != before["W_dec"]).any(1)
    assert changed_F.nonzero()[:, 0].tolist() == [3, 9]
    assert torch.equal(trainer.sae.b_dec.grad, before["b_dec"])


def test_threshold_gives_the_l0_asked_for(source):
    trainer = Trainer(SETTINGS, [source])
    for _ in trainer.steps():
        pass
    sae = trainer.sae.requires_grad_(False)
    calibrate_threshold(sae, [source], target_l0=3.5)
    resid_ND = load_buffer([source], 0, seed=1)
    assert float((sae.encode(resid_ND) > 0).sum(-1).float().mean()) == pytest.approx(3.5, abs=0.05)


def test_finished_dictionary_loads_as_it_was_trained(source, tmp_path):
    trainer = Trainer(SETTINGS, [source])
    for _ in trainer.steps():
        pass
    manifest = finish(trainer, tmp_path, name="tiny-sae", target_l0=4)
    sae = load_sae(tmp_path)
    assert manifest.hook_point == "layers.1.output" and manifest.training["tokens_seen"] == 60 * 128
    x_ND = load_buffer([source], 3, 0).float()
    explained = 1 - (x_ND - sae.reconstruct(x_ND)).square().sum() / (x_ND - sae.resid_mean).square().sum()
    assert explained > 0.7
    assert sae.manifest.dtype == "bfloat16"
    assert manifest.training["data"] == [{"sources": ["made"], "shards": 5, "per_buffer": 2}]


def test_a_run_can_start_from_a_finished_dictionary(source, tmp_path):
    first = Trainer(SETTINGS, [source])
    for _ in first.steps():
        pass
    finish(first, tmp_path / "first", name="first", target_l0=4)
    sae = load_sae(tmp_path / "first")
    second = Trainer(changed(seed=1), [source], sae)
    explained = next(second.steps()).fvu
    assert explained < 0.3
    manifest = finish(second, tmp_path / "second", name="second", started_from=sae.manifest.training)
    assert manifest.training["started_from"]["recipe"]["seed"] == 0


def test_stream_goes_on_from_any_place(source):
    stream = stream_batches([source], 128, seed=5)
    seen = [next(stream) for _ in range(25)]
    for start in (0, 8, 9, 20):
        place = START if start == 0 else seen[start - 1][1]
        resumed = stream_batches([source], 128, seed=5, place=Place(place))
        for batch_BD, _ in seen[start:]:
            assert torch.equal(next(resumed)[0], batch_BD)


def test_each_shard_is_read_once_per_pass(source):
    rows = torch.cat([load_buffer([source], buffer, 0) for buffer in range(5)])
    # Five buffers of two shards pass over five shards twice.
    _, counts = rows.float().unique(dim=0, return_counts=True)
    assert rows.shape[0] == 2 * 5 * N and counts.min() >= 2


def test_rate_warms_up_and_falls_to_nothing():
    settings = changed(warmup_steps=10, num_steps=100, decay_share=0.5)
    assert settings.rate_at(0) == pytest.approx(1e-3)
    assert settings.rate_at(30) == settings.learning_rate
    assert settings.rate_at(99) == pytest.approx(settings.learning_rate / 50)


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"1\.\.num_latents=64, got 65"):
        changed(k=65)
    with pytest.raises(ValueError, match="topk or batchtopk"):
        changed(activation="relu")
