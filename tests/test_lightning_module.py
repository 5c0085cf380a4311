"""lightning_module: the same run as the plain loop, whatever kills it and wherever."""

import random
import signal
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import killed
import pytest
import torch
from full_disk import room_for
from killed_training import PRELOAD, WRITING, fit_into, run_killed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training import buffers_of, changed, settings_for, write_harvest

from discovery.dictionary_trainer import Trainer
from discovery.errors import HarvestError, TrainError
from discovery.lightning_module import fit
from discovery.train_checkpoint import checkpoint_path, checkpoint_paths, load_checkpoint
from sae_runtime.checkpoint import load_sae


@pytest.fixture(scope="module")
def harvest(tmp_path_factory):
    return write_harvest(tmp_path_factory.mktemp("harvest"))


@pytest.fixture(scope="module")
def buffers(harvest):
    return buffers_of(harvest)


def plain(settings, buffers):
    trainer = Trainer(settings, buffers)
    for _ in trainer.steps():
        pass
    return trainer


def same_weights(one, other):
    state = other.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("activation", ["batchtopk", "jumprelu"])
def test_it_is_the_plain_loop(buffers, tmp_path, activation):
    settings = settings_for(activation, num_steps=25)
    run = Trainer(settings, buffers)
    fit(run, tmp_path)
    assert same_weights(run.sae, plain(settings, buffers).sae)
    assert run.num_steps_done == 25


class Killed(Exception):
    pass


@pytest.mark.parametrize("stop", [3, 10, 24])
@pytest.mark.parametrize("activation", ["batchtopk", "jumprelu"])
def test_a_run_that_broke_off_goes_on_bit_by_bit(buffers, tmp_path, activation, stop):
    settings = settings_for(activation, num_steps=25)
    broken = Trainer(settings, buffers)
    compute = broken.compute_gradients

    def dying(resid_BD):
        if broken.num_steps_done == stop:
            raise Killed
        return compute(resid_BD)

    broken.compute_gradients = dying
    with pytest.raises(Killed):
        fit(broken, tmp_path, checkpoint_every=5)
    resumed = Trainer(settings, buffers)
    fit(resumed, tmp_path, checkpoint_every=5)
    whole = plain(settings, buffers)
    assert same_weights(resumed.sae, whole.sae)
    assert resumed.place == whole.place
    assert torch.equal(resumed.silent_tokens_F, whole.silent_tokens_F)
    assert [path.name for path in checkpoint_paths(tmp_path)] == ["step-00000020.ckpt", "step-00000025.ckpt"]


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(buffers, tmp_path, capsys):
    settings = changed(num_steps=25)
    fit(Trainer(settings, buffers), tmp_path, checkpoint_every=5)
    path = checkpoint_path(tmp_path, 25)
    path.write_bytes(path.read_bytes()[:-1000])
    resumed = Trainer(settings, buffers)
    fit(resumed, tmp_path, checkpoint_every=5)
    assert same_weights(resumed.sae, plain(settings, buffers).sae)
    assert "going on from step-00000020.ckpt" in capsys.readouterr().err


def test_a_finished_run_is_taken_as_it_is(buffers, tmp_path):
    settings = changed(num_steps=10)
    fit(Trainer(settings, buffers), tmp_path)
    again = Trainer(settings, buffers)
    fit(again, tmp_path)
    assert again.num_steps_done == 10
    assert same_weights(again.sae, plain(settings, buffers).sae)


def test_another_recipe_is_refused(buffers, tmp_path):
    fit(Trainer(changed(num_steps=2), buffers), tmp_path)
    with pytest.raises(TrainError, match=r"step-00000002.ckpt belongs to a run with other.*num_steps was 2, is 3"):
        fit(Trainer(changed(num_steps=3), buffers), tmp_path)


@pytest.mark.parametrize(
    ("num_shards", "facts", "per_buffer", "message"),
    [
        (5, {"contexts_sha256": "1" * 64}, 2, "source 1: contexts_sha256 was .*, is 1{64}$"),
        (5, {"model_sha256": "1" * 64}, 2, "source 1: model_sha256 was 0{64}, is 1{64}$"),
        (5, {"quantization": "nf4"}, 2, "source 1: quantization was none, is nf4$"),
        (5, {"dtype": "bfloat16"}, 2, "source 1: dtype was None, is bfloat16$"),
        (5, {"hook_point": "layers.2.output"}, 2, "source 1: hook_point was layers.1.output, is layers.2.output$"),
        (6, {}, 2, "shards was 5, is 6"),
        (5, {}, 1, "source 1: per_buffer was 2, is 1$"),
    ],
)
def test_other_data_in_the_same_place_is_refused(tmp_path, num_shards, facts, per_buffer, message):
    folder = write_harvest(tmp_path / "harvest")
    fit(Trainer(changed(num_steps=2), buffers_of(folder)), tmp_path / "run")
    write_harvest(folder, num_shards=num_shards, **facts)
    again = Trainer(changed(num_steps=2), buffers_of(folder, per_buffer))
    with pytest.raises(
        TrainError, match=f"step-00000002.ckpt belongs to a run with other settings or data: .*{message}"
    ):
        fit(again, tmp_path / "run")


def test_the_same_data_by_another_path_goes_on(tmp_path, monkeypatch):
    settings = changed(num_steps=10)
    folder = write_harvest(tmp_path / "harvest")
    fit(Trainer(changed(num_steps=10), buffers_of(folder)), tmp_path / "run", checkpoint_every=5)
    checkpoint_path(tmp_path / "run", 10).unlink()
    folder.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    resumed = Trainer(settings, buffers_of(Path("moved")))
    fit(resumed, tmp_path / "run")
    assert same_weights(resumed.sae, plain(settings, buffers_of(tmp_path / "moved")).sae)


def test_a_full_disk_ends_the_run_by_name_and_it_goes_on_later(buffers, tmp_path):
    settings = changed(num_steps=25)
    run = Trainer(settings, buffers)
    compute = run.compute_gradients
    with ExitStack() as disk:

        def fill_disk(resid_BD):
            if run.num_steps_done == 8:
                disk.enter_context(room_for(checkpoint_path(tmp_path, 5).stat().st_size // 2))
            return compute(resid_BD)

        run.compute_gradients = fill_disk
        with pytest.raises(TrainError, match=r"step-00000010.ckpt can't be written: .*step-00000005.ckpt is kept"):
            fit(run, tmp_path, checkpoint_every=5)
    resumed = Trainer(settings, buffers)
    fit(resumed, tmp_path, checkpoint_every=5)
    assert same_weights(resumed.sae, plain(settings, buffers).sae)


def test_a_shard_that_rots_ends_the_run_by_name_and_it_goes_on_when_replaced(tmp_path):
    folder = write_harvest(tmp_path / "harvest")
    settings = changed(num_steps=25)
    buffers = buffers_of(folder)
    whole = plain(settings, buffers)
    run = Trainer(settings, buffers)
    damaged = folder / "shard-00003.safetensors"
    good = damaged.read_bytes()
    damaged.write_bytes(good[:2000])
    with pytest.raises(HarvestError, match=r"shard-00003.safetensors is no readable shard"):
        fit(run, tmp_path / "run", checkpoint_every=1)
    damaged.write_bytes(good)
    resumed = Trainer(settings, buffers)
    fit(resumed, tmp_path / "run")
    assert same_weights(resumed.sae, whole.sae)


def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(harvest, buffers, tmp_path):
    """SIGKILL: no handler, no flush. The command, in a process of its own, until it gets through."""
    settings = changed(num_steps=60)
    whole = plain(settings, buffers)
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(settings).items()]
    argv += ["--source", f"{harvest}:2", "--output", str(tmp_path / "run"), "--checkpoint-every", "7"]
    for stop in sorted(random.Random(4).sample(range(60), 4)):
        assert run_killed(argv, stop) == -signal.SIGKILL
    assert run_killed(argv, None) == 0
    found = load_checkpoint(checkpoint_path(tmp_path / "run", 60))["state_dict"]
    for name, tensor in whole.sae.state_dict().items():
        assert torch.equal(found[f"sae.{name}"], tensor), name
    assert load_sae(tmp_path / "run").manifest.training["tokens_seen"] == 60 * 128
    rows = [row.split(",") for row in (tmp_path / "run" / "log.csv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["step", "10", "20", "30", "40", "50", "60"]
    assert float(rows[-1][1]) == pytest.approx(1 - last_fvu(settings, buffers))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/l0")] == [10, 20, 30, 40, 50, 60]


def same(one, other):
    """Whether two checkpoints hold the same, bit by bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def rows_of(folder):
    """log.csv without the seconds."""
    rows = [row.split(",") for row in (folder / "log.csv").read_text().splitlines()]
    return [row[:5] + row[6:] for row in rows]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("what", ["checkpoint", "log line"])
def test_killed_while_it_writes_it_ends_as_if_it_had_not_been(harvest, tmp_path, what, seed):
    """SIGKILL between any two calls of ours, of torch's saving, of TensorBoard and of the operating system."""
    ways = {"preload": PRELOAD, "within": WRITING[what]}
    whole = killed.run_killed(fit_into, harvest, tmp_path / "whole", 30, **ways)
    assert not whole.was_killed and whole.num_moments > 100
    third, source = whole.num_moments // 3, random.Random(seed)
    # Late in the run; then soon after it goes on, while what was left behind is being put right.
    for moment in (third + source.randrange(2 * third), source.randrange(third // 2)):
        assert killed.run_killed(fit_into, harvest, tmp_path / "killed", 30, stop=moment, **ways).was_killed
    assert not killed.run_killed(fit_into, harvest, tmp_path / "killed", 30, **ways).was_killed
    for step in (25, 30):
        one, other = (load_checkpoint(checkpoint_path(tmp_path / name, step)) for name in ("whole", "killed"))
        for part in ("state_dict", "optimizer_states", "position"):
            assert same(one[part], other[part]), part
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob("*.partial"))
    events = EventAccumulator(str(tmp_path / "killed" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/l0")] == [10, 20, 30]


def last_fvu(settings, buffers):
    return list(Trainer(settings, buffers).steps())[-1].fvu
