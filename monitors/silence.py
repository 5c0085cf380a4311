"""Has a monitor's input gone silent? A latent that never fires, or a probe that always says the same.

A latent that is active at a share p of tokens fires in runs, since texts have topics. If runs of mean length c come
independently, n tokens hold a Poisson number of them with mean n p / c, so that

    P(no firing in n tokens) = exp(-n p / c)

(Aldous, Probability Approximations via the Poisson Clumping Heuristic, 1989). With c = 1 that bounds the (1 - p)^n of
independent tokens; a larger c asks for more tokens before it calls a latent silent. Here c is CLUMP_TOKENS, a choice on
the safe side, not a measurement. `n` is the run of tokens since the latent last fired, so that one that stops is found
too. p is what the dictionary's catalogue says of ordinary text: traffic without the topic is silent for a reason other
than a fault, and looks the same.

A probe has no density: a direction's value at two tokens is never the same to the last bit, but for requests that are
alike and go in step. So a token is held against the last one of the pass before, and MAX_SAME in a row that are alike
are no chance.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

CLUMP_TOKENS = 50
SILENT_BELOW = 1e-4
"""Probability below which silence is not chance any more."""
MAX_SAME = 100


class InputState(StrEnum):
    """What is known of an input."""

    ALIVE = "alive"
    UNTESTED = "untested"
    """Too few tokens yet to tell silence from rarity."""
    SILENT = "silent"
    UNKNOWN = "unknown"
    """It has never fired, and how often it should is not known."""


def silence_probability(num_tokens: int, density: float) -> float:
    """P(no firing in that many tokens) of a latent that is active at a share `density` of them."""
    return math.exp(-num_tokens * density / CLUMP_TOKENS)


@dataclass(slots=True)
class InputActivity:
    """An input under traffic. An active token is one at which a latent fires, or a probe's value is a new one."""

    name: str
    feature: int | None
    """The latent; None for a probe."""
    density: float | None
    """Of a latent, where it is known; above 0."""
    num_tokens: int = 0
    num_active: int = 0
    num_silent: int = 0
    """Tokens since the last active one."""

    def add(self, num_tokens: int, num_active: int, num_since: int) -> None:
        """Count tokens in, of which the last `num_since` were not active."""
        self.num_tokens += num_tokens
        self.num_active += num_active
        self.num_silent = num_since if num_active else self.num_silent + num_tokens

    @property
    def probability(self) -> float | None:
        """Of a silence as long as this one; None if there is nothing to tell it by."""
        return None if self.density is None else silence_probability(self.num_silent, self.density)

    @property
    def state(self) -> InputState:
        probability = self.probability
        if self.feature is None:
            is_silent = self.num_silent >= MAX_SAME
        else:
            is_silent = probability is not None and probability < SILENT_BELOW
        if is_silent:
            return InputState.SILENT
        if self.num_active:
            return InputState.ALIVE
        return InputState.UNTESTED if self.feature is None or probability is not None else InputState.UNKNOWN
