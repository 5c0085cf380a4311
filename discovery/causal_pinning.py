"""What is gained when one latent is pinned while the model reads a text, beside other latents pinned as hard.

    h' = h + (v - f_k) d_k       SET, with v ||d_k|| = pin * ||h||: the same share of the residual for every latent
    gain(text) = mean over its tokens of log p'(token) - log p(token), behind a neutral opening
    effect     = mean gain of the positive texts - mean gain of the negative ones

A push alone makes every text less likely, so it is the difference that counts: above 0, pinning the latent makes texts
of its topic likelier (or spares them) against others. The controls are live latents drawn at random, pinned by the same
share of the residual: a difference that any of them makes as well is no sign of the topic.

Every text is read once for all latents that are pinned on it.

Shape suffixes: B rows, T positions, D width, P positions, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from discovery.causal_texts import Text
from discovery.errors import SteerError
from discovery.resumed_pass import first_half, second_half
from discovery.steering_bench import Bench
from sae_runtime.steering_spec import ALL_BUT_FIRST, SteeringOp, SteeringSpec, StrengthUnit

OPENINGS = ("Here is a short text:\n\n", "I found this on a sheet of paper:\n\n", "The following was written down:\n\n")
_MAX_DENSITY = 0.2


def pinned_text(bench: Bench, text: Text, num_tokens: int) -> tuple[list[int], list[int]]:
    """(token ids, positions whose next token counts): a neutral opening and the text's first words.

    Which opening depends on the text alone, so that all latents are measured behind the same.
    """
    opening = bench.text_ids(OPENINGS[sum(text.words) % len(OPENINGS)])
    words = list(text.words[:num_tokens])
    return [*opening, *words], list(range(len(opening) - 1, len(opening) + len(words) - 1))


@torch.inference_mode()
def gains(bench: Bench, text: Text, latents: Sequence[int], *, pin: float, num_tokens: int) -> list[float]:
    """The gain of one text under each of `latents`, pinned at every position but the first."""
    ids, positions = pinned_text(bench, text, num_tokens)
    resid_TD = first_half(bench, ids)
    resid_BTD = torch.stack([resid_TD, *(pinned(bench, resid_TD, latent, pin) for latent in latents)])
    next_P = torch.tensor([ids[position + 1] for position in positions], device=resid_BTD.device)
    # What lies behind the last position that counts is not computed.
    logprobs_BPV = second_half(bench, resid_BTD[:, : positions[-1] + 1], positions)
    target_BP = logprobs_BPV.gather(2, next_P.expand(len(logprobs_BPV), -1)[..., None])[..., 0]
    found: list[float] = (target_BP[1:] - target_BP[0]).mean(1).tolist()
    return found


def pinned(bench: Bench, resid_TD: Tensor, latent: int, pin: float) -> Tensor:
    """The residuals with `latent` set to `pin` times their norm."""
    spec = SteeringSpec(latent, SteeringOp.SET, pin, StrengthUnit.RELATIVE, window=ALL_BUT_FIRST)
    return bench.steering([spec], len(resid_TD)).apply(resid_TD, 0)


def draw_controls(density_F: Tensor, excluded: Sequence[int], num: int, seed: int) -> list[int]:
    """`num` latents at random among those that fire in the texts, on at most a fifth of the tokens.

    SteerError if there are fewer.
    """
    usable_F = (density_F > 0) & (density_F <= _MAX_DENSITY)
    usable_F[list(excluded)] = False
    usable = usable_F.nonzero()[:, 0]
    if len(usable) < num:
        raise SteerError(
            f"controls must be {num} latents that fire on up to {_MAX_DENSITY:.0%} of the texts' tokens, "
            f"got {len(usable)} such"
        )
    order = torch.randperm(len(usable), generator=torch.Generator().manual_seed(seed))
    return sorted(usable[order[:num]].tolist())
