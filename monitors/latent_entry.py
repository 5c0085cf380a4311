"""What the latent catalogue says of one latent.

A reading is 0 where the latent is silent, and at tokens that are not read: position 0 and massive activations.
"""

import math
from dataclasses import dataclass

_Z = 1.96


@dataclass(frozen=True, slots=True)
class QuotedExample:
    """A token at which a latent was read, its *focus*, with the tokens around it; text that may be quoted."""

    reading: float
    """At the focus."""
    source: str
    focus: int
    """Index in the three tuples below."""
    token_ids: tuple[int, ...]
    pieces: tuple[str, ...]
    """Texts of the tokens; together they are the window's text."""
    readings: tuple[float, ...]
    """Of the latent at every token, rounded to half precision."""

    @property
    def text(self) -> str:
        """The window as text."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Effect:
    """What one unit of a latent's reading adds to a token's logit, the mean over the vocabulary taken off."""

    token_id: int
    text: str
    logit: float
    """Rounded to half precision."""


@dataclass(frozen=True, slots=True)
class Score:
    """Balanced accuracy of an explanation on windows that its author did not see; 0.5 is chance."""

    balanced_accuracy: float
    num_windows: int

    @property
    def lower_bound(self) -> float:
        """Lower end of Wilson's 95 % interval: what scores are ordered by, so that few windows do not come first."""
        share, num = self.balanced_accuracy, self.num_windows
        spread = _Z * math.sqrt(share * (1 - share) / num + _Z**2 / (4 * num**2))
        return (share + _Z**2 / (2 * num) - spread) / (1 + _Z**2 / num)


@dataclass(frozen=True, slots=True)
class Said:
    """An explanation: what somebody, a model or a rule says a latent is about."""

    title: str
    summary: str
    """Empty where it could quote text that may not be quoted."""
    dominant_tokens: tuple[str, ...]
    explainer: str
    detection: Score | None
    fuzzing: Score | None


@dataclass(frozen=True, slots=True)
class LatentFigures:
    """How often and how strongly a latent fires; what latents are ordered by."""

    num_active: int
    """Tokens at which it was active, of the catalogue's `num_tokens`."""
    max: float
    """Largest reading."""
    detection: Score | None
    """Its explanation's, if it has one that was measured."""


@dataclass(frozen=True, slots=True)
class LatentEntry:
    """All there is about one latent beside its `LatentFigures`."""

    mean_active: float
    """Mean reading over the active tokens."""
    sources: tuple[tuple[str, float], ...]
    """Share of the active tokens by source, largest first."""
    histogram: tuple[int, ...]
    """Active tokens by reading, one bin to an octave; bin i is [edges[i], edges[i + 1])."""
    promoted: tuple[Effect, ...]
    suppressed: tuple[Effect, ...]
    said: Said | None
    examples: tuple[QuotedExample, ...]
    """Largest reading first."""


SILENT = LatentEntry(0.0, (), (), (), (), None, ())
"""A latent of which there is nothing to say."""
