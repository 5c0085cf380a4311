"""A causal test on a GPU: the effects are those of a CPU."""

import json

import numpy as np
import planted
import pytest
import tiny
import torch

from discovery.causal_ablation import Draws, Read, ablate, active_positions
from discovery.causal_pinning import draw_controls, gains
from discovery.causal_texts import file_contrast
from discovery.resumed_pass import first_half
from discovery.steering_bench import Bench
from sae_runtime.language_model import wrap_model
from sae_runtime.tap import Tap

pytestmark = pytest.mark.gpu


def effects(device, path):
    """(effects of ablation, gains of pinning, controls drawn) on one text."""
    lm = planted.language_model()
    lm = wrap_model(
        lm.model.to(device),
        lm.tokenizer,
        name="tiny",
        sha256="0" * 64,
        quantization="none",
        dtype=torch.float32,
        device=device,
    )
    sae = planted.sae()
    limits = tiny.limits(sae)
    tap = Tap(lm.model, tiny.HOOK_POINT, tiny.D_MODEL)
    bench = Bench(lm, tap, sae.to(device), limits)
    text = file_contrast([path], lm.tokenizer, 64).positive[0]
    resid_TD = first_half(bench, list(text.tokens))
    read = Read(text, resid_TD, bench.sae.encode(resid_TD).to_sparse())
    positions = active_positions(read, planted.CAUSE)
    density_F = (read.latents() > 0).float().mean(0)
    draws = Draws.of(density_F, 20, seed=1)
    found = ablate(bench, read, planted.CAUSE, positions, measured=positions, typical=[3, 4], draws=draws)
    pinned = gains(bench, text, [planted.CAUSE, planted.DETECTOR], pin=0.4, num_tokens=10)
    tap.remove()
    return found, pinned, draw_controls(density_F, [planted.CAUSE], 5, seed=0)


def test_effects_of_a_gpu_are_those_of_a_cpu(tmp_path):
    path = tmp_path / "qu.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in planted.texts()))
    (ours, gained, drawn), (wanted, wanted_gains, wanted_drawn) = (effects(device, path) for device in ("cuda", "cpu"))
    for name in ("cross_entropy", "kl", "topic_tokens", "relative_norm"):
        np.testing.assert_allclose(getattr(ours, name), getattr(wanted, name), rtol=1e-2, atol=1e-3, err_msg=name)
    assert gained == pytest.approx(wanted_gains, rel=1e-2, abs=1e-3) and drawn == wanted_drawn
