"""Harvesting and training on a GPU: what they give on a CPU, and a run that goes on where it was."""

import pytest
import tiny
import torch
from lightning.pytorch.callbacks import Callback
from training import buffers_of, go_on, settings_for, state_of, write_harvest

from discovery.corpus import Context
from discovery.dictionary_trainer import Trainer
from discovery.finished_dictionary import finish
from discovery.harvest import harvest
from discovery.lightning_module import fit
from discovery.shards import load_shard, shard_path
from sae_runtime.checkpoint import load_sae
from sae_runtime.language_model import wrap_model

pytestmark = pytest.mark.gpu

CONTEXTS = [Context(list(range(3 + n, 20 + 3 * n)), n, 0, "made") for n in range(8)]


class Devices(Callback):
    """Notes where the dictionary was during each step."""

    def __init__(self):
        self.seen = set()

    def on_train_batch_end(self, _trainer, pl_module, *_):
        self.seen.add(pl_module.sae.W_enc.device.type)


def test_residuals_of_a_gpu_are_those_of_a_cpu(tmp_path):
    cpu = tiny.language_model()
    harvest(cpu, tiny.HOOK_POINT, CONTEXTS, tmp_path / "cpu")
    moved = wrap_model(
        cpu.model.to("cuda"),
        cpu.tokenizer,
        name="tiny",
        sha256="0" * 64,
        quantization="none",
        dtype=torch.float32,
        device="cuda",
    )
    harvest(moved, tiny.HOOK_POINT, CONTEXTS, tmp_path / "cuda")
    ours, wanted = (load_shard(shard_path(tmp_path / device, 0)) for device in ("cuda", "cpu"))
    torch.testing.assert_close(ours.resid_ND.float(), wanted.resid_ND.float(), rtol=2**-6, atol=1e-2)
    for one, other in zip(ours[1:], wanted[1:], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("activation", ["relu", "topk", "batchtopk", "jumprelu", "gated"])
def test_a_recipe_learns_what_it_learns_on_a_cpu_and_goes_on(tmp_path, activation):
    buffers = buffers_of(write_harvest(tmp_path / "harvest"))
    settings = settings_for(activation, precision="fp32", num_steps=40, revival="resample", resample_every=10)
    on_cpu = Trainer(settings, buffers)
    *_, wanted = on_cpu.steps()
    stopped = Trainer(settings, buffers, device="cuda")
    for _ in stopped.steps():
        if stopped.num_steps_done == 25:
            break
    resumed = Trainer(settings, buffers, device="cuda")
    go_on(resumed, state_of(stopped), "here")
    *_, figures = resumed.steps()
    assert figures.fvu == pytest.approx(wanted.fvu, rel=0.1)
    under_lightning = Trainer(settings, buffers, device="cuda")
    devices = Devices()
    fit(under_lightning, tmp_path / "run", checkpoint_every=15, callbacks=[devices])
    # Afterwards Lightning takes the dictionary back to the host, where `finish` wants it.
    assert devices.seen == {"cuda"} and under_lightning.num_steps_done == 40
    finish(under_lightning, tmp_path / "run", name="gpu", target_l0=4)
    assert load_sae(tmp_path / "run").activation == activation
