"""What is known of one latent: its figures, its examples, what it promotes, and what is said of it.

An *example* is one token, its *focus*, with the tokens around it and the latent's reading at each of them. A reading is
0 where the latent is silent, and at tokens that are not read: position 0 and massive activations.
"""

from typing import NamedTuple


class Example(NamedTuple):
    """One token at which a latent was read, and what stands around it."""

    value: float
    """The reading at the focus."""
    source: str
    document: int
    """First 63 bits of the document's sha256."""
    position: int
    """Of the focus in its context, from 0."""
    focus: int
    """Index of the focus in the three tuples below."""
    token_ids: tuple[int, ...]
    readings: tuple[float, ...]
    """Of this latent at every token, rounded to fp16."""
    pieces: tuple[str, ...]
    """The tokens' texts: together they are the window's text. A character's last token has all of it."""

    @property
    def text(self) -> str:
        """The window as text."""
        return "".join(self.pieces)


class Background(NamedTuple):
    """A random window, and which latents fire anywhere in it: where a latent is *not* active."""

    source: str
    document: int
    position: int
    focus: int
    token_ids: tuple[int, ...]
    pieces: tuple[str, ...]
    active: frozenset[int]

    @property
    def text(self) -> str:
        """The window as text."""
        return "".join(self.pieces)


class TokenEffect(NamedTuple):
    """What one unit of a latent's reading adds to a token's logit, the mean over the vocabulary taken off."""

    token_id: int
    text: str
    logit: float


class Explanation(NamedTuple):
    """What somebody or a model says a latent is about. Fields are the columns of table `explanations`."""

    latent: int
    title: str
    summary: str = ""
    pattern: str = ""
    dominant_tokens: tuple[str, ...] = ()
    context: str = ""
    model: str = ""
    """Who says so."""
    detection: float | None = None
    """Score in [0, 1]: balanced accuracy of telling texts with the latent from others by the explanation alone."""
    detection_n: int = 0
    fuzzing: float | None = None
    """The same for telling rightly from wrongly marked tokens."""
    fuzzing_n: int = 0
    created: str = ""
    """ISO 8601."""


class LatentRecord(NamedTuple):
    """All there is about one latent."""

    latent: int
    num_tokens: int
    """Tokens read, position 0 and massive activations left out."""
    num_active: int
    max: float
    """Over all texts, whether they may be quoted or not."""
    mean_active: float
    histogram: tuple[int, ...]
    """Active tokens by reading; bin i is [edges[i], edges[i + 1]) of the store's `histogram_edges`."""
    sources: dict[str, float]
    """Share of the active tokens by source, largest first."""
    top: tuple[Example, ...]
    """Largest readings first; one per context, and one of those with the same text before the focus."""
    quantiles: tuple[tuple[Example, ...], ...]
    """A uniform sample of the active tokens, cut into bins by reading, weakest bin first."""
    promoted: tuple[TokenEffect, ...]
    suppressed: tuple[TokenEffect, ...]
    explanation: Explanation | None

    @property
    def density(self) -> float:
        """Share of tokens at which the latent is active."""
        return self.num_active / max(self.num_tokens, 1)


class Glance(NamedTuple):
    """The least that tells a latent from others."""

    latent: int
    num_active: int
    text: str
    """The window of its largest reading that may be quoted; empty if there is none."""


class Match(NamedTuple):
    """A latent found by text."""

    latent: int
    title: str | None
    where: str
    """`explanation` or `examples`."""
    text: str
    """The explanation's summary, or the example in which the words stand."""
