"""Does writing along a latent change what the model says? Greedy replies with and without it, for a feature file."""

from dataclasses import dataclass

from discovery.steered_generation import Row, continue_prompt
from discovery.steering_bench import Bench
from sae_runtime.steering_spec import SteeringOp, SteeringSpec


@dataclass(frozen=True, slots=True)
class SteeringTrial:
    """One prompt, continued without and with steering."""

    prompt: str
    strength: float
    """In units of the latent's reading."""
    plain: str
    steered: str


def try_steering(bench: Bench, latent: int, strength: float, prompt: str, num_tokens: int = 40) -> SteeringTrial:
    """Continue a user's `prompt` without and with `strength` of `latent` added.

    It is added from the last prompt token on: the residual there is what the first new token is made of.
    """
    ids = bench.chat_ids(prompt)
    window = (len(ids) - 1, bench.lm.context_length)
    spec = SteeringSpec(latent, SteeringOp.ADD, strength, window=window)
    read = bench.sae.read
    plain, steered = continue_prompt(
        bench, ids, [Row(), Row((spec,))], max_tokens=num_tokens, read=lambda resid_TD: read(resid_TD, [latent])[:, 0]
    )
    decode = bench.lm.tokenizer.decode
    return SteeringTrial(prompt, round(strength, 2), decode(plain.ids), decode(steered.ids))
