"""product_dtype: a step multiplies in the format that the recipe asks for."""

import pytest
import torch
from training import buffers_of, settings_for, write_harvest

from discovery.dictionary_trainer import Trainer


class Watch(torch.overrides.TorchFunctionMode):
    """Notes the number formats of all products."""

    def __init__(self):
        self.seen = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.addmm, torch.Tensor.matmul, torch.Tensor.__matmul__):
            self.seen.add(args[1].dtype)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("activation", ["topk", "batchtopk", "relu", "gated"])
def test_a_step_multiplies_in_the_format_asked_for(tmp_path, activation, precision):
    settings = settings_for(activation, precision=precision, dead_after_tokens=1)
    trainer = Trainer(settings, buffers_of(write_harvest(tmp_path)))
    trainer.last_l0 = 0  # so that the penalised recipes take the sparse way
    trainer.silent_tokens_F[:5] = 10  # dead: AuxK has products of its own
    with Watch() as watch:
        trainer.step(trainer.buffers.load(0, 0)[:128])
    assert (torch.bfloat16 in watch.seen) == (precision == "bf16")
