"""Does writing along a latent change what the model says? Greedy continuations with and without it.

    h += strength * d      at every generated position, d = W_dec row in residual units

Knows nothing of requests: this is a quick look at one latent, with the tap's own `edit`.

Shape suffixes: B rows (one), T positions, D model width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_runtime.language_model import LanguageModel
from sae_runtime.sae import SAE
from sae_runtime.tap import Tap


@dataclass(frozen=True, slots=True)
class SteeringTrial:
    """One prompt, continued without and with steering."""

    prompt: str
    strength: float
    """In units of the latent's reading."""
    plain: str
    steered: str


@torch.inference_mode()
def continue_greedily(
    lm: LanguageModel, tap: Tap, prompt_ids: list[int], num_tokens: int, added_D: Tensor | None = None
) -> list[int]:
    """The likeliest continuation, `added_D` being added to the residual at the last prompt token and behind it."""

    def edit(resid_BTD: Tensor) -> Tensor:
        assert added_D is not None
        steered_BTD = resid_BTD.clone()
        # The residual of the last prompt token is what the first new token is made of; then each pass has one token.
        steered_BTD[:, -1] += added_D.to(resid_BTD.dtype)
        return steered_BTD

    new_ids: list[int] = []
    feed, cache = prompt_ids, None
    for _ in range(num_tokens):
        with tap.step(len(feed), None if added_D is None else edit):
            output = lm.model(input_ids=torch.tensor([feed]), past_key_values=cache, use_cache=True)
        cache, token = output.past_key_values, int(output.logits[0, -1].argmax())
        if token in lm.eos_token_ids:
            break
        new_ids.append(token)
        feed = [token]
    return new_ids


def try_steering(
    lm: LanguageModel, tap: Tap, sae: SAE, latent: int, strength: float, prompt: str, num_tokens: int = 40
) -> SteeringTrial:
    """Continue a user's `prompt` without and with `strength` of `latent` added."""
    messages = [{"role": "user", "content": prompt}]
    text = lm.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    direction_D = sae.direction(latent, torch.zeros(1, sae.d_model))[0]
    plain = continue_greedily(lm, tap, ids, num_tokens)
    steered = continue_greedily(lm, tap, ids, num_tokens, strength * direction_D)
    return SteeringTrial(prompt, round(strength, 2), lm.tokenizer.decode(plain), lm.tokenizer.decode(steered))
