"""Half a pass and the other half are a whole one."""

import pytest
import tiny
import torch

from discovery.resumed_pass import first_half, second_half
from discovery.steering_bench import Bench, edit_rows
from sae_runtime.hook_point import HookPoint
from sae_runtime.steering import SteeringOp, SteeringSpec
from sae_runtime.tap import Tap

IDS = [0, 5, 9, 70, 31, 200, 44]


@pytest.mark.parametrize("hook_point", [HookPoint(1, "output"), HookPoint(2, "input"), HookPoint(3, "output")])
def test_two_halves_equal_a_whole_pass(model, dictionary, hook_point):
    tap = Tap(model.model, hook_point, tiny.D_MODEL)
    bench = Bench(model, tap, dictionary, tiny.limits(dictionary))
    steering = bench.steering([SteeringSpec(3, SteeringOp.ADD, 8.0)], len(IDS))
    changes = [None, lambda resid_TD: steering.apply(resid_TD, 0)]
    with torch.inference_mode(), tap.step(2 * len(IDS), edit_rows(changes)) as record:
        logits_BTV = model.model(torch.tensor([IDS, IDS])).logits
    resid_TD = first_half(bench, IDS)
    torch.testing.assert_close(resid_TD, record.resid_BTD[0])
    positions = [0, 3, 6]
    found_BPV = second_half(bench, torch.stack([resid_TD, steering.apply(resid_TD, 0)]), positions)
    torch.testing.assert_close(found_BPV, logits_BTV[:, positions].log_softmax(-1), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found_BPV[0], found_BPV[1], atol=1e-2)
    tap.remove()


def test_the_model_is_whole_again_even_after_an_error(model, dictionary):
    tap = Tap(model.model, tiny.HOOK_POINT, tiny.D_MODEL)
    bench = Bench(model, tap, dictionary, tiny.limits(dictionary))
    before = tiny.logits(model.model)
    with pytest.raises(Exception, match=r"shape|size|dimension|normalized"):
        second_half(bench, torch.zeros(1, 3, tiny.D_MODEL + 1), [0])
    assert torch.equal(tiny.logits(model.model), before)
    tap.remove()
