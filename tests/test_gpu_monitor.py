"""Reading labelled replies on a GPU: what it gives on a CPU."""

import numpy as np
import pytest
import tiny_files
import torch

from discovery.read_replies import ReadingPlan, ReadProbe, all_points, read_replies
from discovery.scored_tokens import Reply
from sae_runtime.checkpoint import load_sae
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import load_language_model

pytestmark = pytest.mark.gpu

REPLIES = [Reply(tuple(3 + (7 * n + i) % 190 for i in range(12 + n)), (3, 5, 11)) for n in range(9)]


def test_readings_of_a_gpu_are_those_of_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny_files.write_dictionary(tmp_path / "sae", tiny_files.write_model(tmp_path / "model"))
    found = {}
    for device in ("cpu", "cuda"):
        lm = load_language_model(str(tmp_path / "model"), quantization="none", dtype="float32", device=device)
        plan = ReadingPlan(
            mean_points=all_points(lm),
            token_point=HookPoint(2),
            probes=(ReadProbe(HookPoint(1), torch.ones(lm.d_model), 0.5),),
            sae=load_sae(tmp_path / "sae", device=lm.device),
            predictions=True,
        )
        found[device] = read_replies(lm, REPLIES, plan)
    for name in ("mean_ILD", "token_ND", "probes_NP", "log_prob_N", "entropy_N"):
        np.testing.assert_allclose(getattr(found["cuda"], name), getattr(found["cpu"], name), rtol=1e-3, atol=1e-3)
    # A latent at the edge of the largest k may change places.
    differs = abs(found["cuda"].latents_NF - found["cpu"].latents_NF)
    assert differs.max() < 0.1
