"""Holds what a peer wrote against a plain pass over the very same tokens: its readings, its choices, its steering.

The pass is transformers' own, over prompt and reply at once, in the number format that we serve in; its residual is
encoded by our dictionary. A peer goes token by token, so that low bits differ, and a latent at its threshold may be
in or out: `largest_deviation` has both. A reading that stands at its neighbour's token does not pass.

Shape suffixes: T tokens, D model width, W watched latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.serving.common import SCENARIOS, Work
from sae_runtime.language_model import LanguageModel
from sae_runtime.sae import SAE

MOST_READING_ERROR = 0.1
"""Of the readings' norm. Passes of other shapes in bf16 differ by less than that, most of it by latents that are at
their threshold; readings of the tokens beside them differ by as much as they have."""

Tokens = dict[str, list[list[int]]]
"""By scenario, of each request."""


@dataclass(frozen=True)
class Offline:
    """A pass over prompt and reply."""

    readings_TW: Tensor
    """Of the reply's tokens."""
    likeliest: list[int]
    """For each of the reply's tokens the one that this pass would have chosen in its place."""
    mean_logprob: float
    """Of the reply's tokens."""


@torch.inference_mode()
def offline(
    language_model: LanguageModel, sae: SAE, work: Work, prompt: Sequence[int], reply: Sequence[int], *, steer: bool
) -> Offline:
    """Read a reply, steered or not. Readings are of what the model computed, before steering."""
    residuals: list[Tensor] = []

    def hook(_module: Any, _args: Any, output: Any) -> None:
        resid_TD = (output[0] if isinstance(output, tuple) else output)[0]
        residuals.append(resid_TD.clone())
        if steer:
            delta_D = sae.directions(torch.tensor([work.steered_feature]), resid_TD)[0] * work.strength
            resid_TD.copy_((resid_TD.float() + delta_D).to(resid_TD.dtype))

    handle = language_model.model.model.layers[work.layer].register_forward_hook(hook)
    try:
        logits_TV = language_model.model(torch.tensor([[*prompt, *reply]])).logits[0]
    finally:
        handle.remove()
    logprobs_TV = logits_TV[len(prompt) - 1 : -1].float().log_softmax(-1)
    return Offline(
        readings_TW=sae.encode(residuals[0][len(prompt) :])[:, work.watched],
        likeliest=logprobs_TV.argmax(-1).tolist(),
        mean_logprob=float(logprobs_TV.gather(1, torch.tensor(reply)[:, None]).mean()),
    )


def reading_check(got: Sequence[Sequence[float]], wanted_TW: Tensor) -> dict[str, float]:
    """How far readings are from those wanted. ValueError if too far, or if there is next to nothing to compare."""
    got_TW = torch.tensor(got)
    if got_TW.shape != wanted_TW.shape:
        raise ValueError(f"readings must have shape {tuple(wanted_TW.shape)}, got {tuple(got_TW.shape)}")
    num_active = int((wanted_TW > 0).sum())
    if num_active < len(wanted_TW) // 4:
        raise ValueError(f"a quarter of {len(wanted_TW)} tokens must have an active feature, got {num_active}")
    error = float((got_TW - wanted_TW).norm() / wanted_TW.norm())
    if error > MOST_READING_ERROR:
        raise ValueError(f"readings must be within {MOST_READING_ERROR} of those of a plain pass, got {error:.4f}")
    return {
        "relative_error": round(error, 5),
        "largest_deviation": round(float((got_TW - wanted_TW).abs().max()), 4),
        "largest_reading": round(float(wanted_TW.max()), 4),
        "active": num_active,
        "active_in_one_only": int(((got_TW > 0) != (wanted_TW > 0)).sum()),
    }


def equal_share(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]) -> float:
    """Share of places with the same token."""
    pairs = [pair for x, y in zip(a, b, strict=True) for pair in zip(x, y, strict=True)]
    return round(sum(x == y for x, y in pairs) / len(pairs), 4)


def check(
    language_model: LanguageModel, sae: SAE, work: Work, output: dict[str, Any], telltale: Tokens
) -> dict[str, Any]:
    """What is to be said of a peer's output. ValueError for readings or steering that are not what they should be."""
    tokens: Tokens = output["tokens"]
    steered = SCENARIOS["8_steered"].steered
    assert steered is not None

    def read(scenario: str, request: int, *, times: float = 0.0) -> Offline:
        """Steered by so many times what was asked for."""
        strength = replace(work, strength=work.strength * times)
        prompt, reply = work.prompts[request], tokens[scenario][request]
        return offline(language_model, sae, strength, prompt, reply, steer=times != 0)

    plain = [read("8", request).likeliest for request in range(SCENARIOS["8"].num_requests)]
    by_strength = {times: read("8_steered", steered, times=times) for times in (0.0, 0.5, 1.0, 2.0)}
    shares = {
        times: equal_share([tokens["8_steered"][steered]], [found.likeliest]) for times, found in by_strength.items()
    }
    said: dict[str, Any] = {
        "greedy_ratio": equal_share(tokens["8"], plain),
        "steered_greedy_ratio_by_strength": shares,
        "tokens_as_telltale_ratio": {name: equal_share(tokens[name], telltale[name]) for name in SCENARIOS},
    }
    if by_strength[1.0].mean_logprob <= by_strength[0.0].mean_logprob or shares[1.0] < max(shares.values()):
        raise ValueError(f"the steered reply must be likeliest with the steering that was asked for, got {said}")
    if output["readings"]:
        said["readings"] = reading_check(output["readings"], read("1", 0).readings_TW)
    return said
