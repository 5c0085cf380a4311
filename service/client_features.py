"""A dictionary's latents, as the client hands them on.

Conventions as in `client_events`. Knows nothing of gRPC.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

FeatureOrder = Literal["index", "density", "max_reading", "detection"]
MatchedField = Literal[
    "unspecified", "name", "description", "title", "summary", "dominant_tokens", "active_tokens", "context"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceShare:
    """Part of the corpus."""

    source: str
    share_ratio: float
    """Share of the latent's active tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Counts of active tokens by reading."""

    edges: tuple[float, ...]
    """One more than there are bins."""
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentStatistics:
    """What a latent did over the catalogue's corpus, position 0 and massive activations left out."""

    num_tokens: int
    num_active: int
    density_ratio: float
    """num_active / num_tokens."""
    max_reading: float
    mean_reading: float
    """Over the active tokens."""
    sources: tuple[SourceShare, ...] = ()
    """Where the active tokens come from, largest share first; only `get_feature` has it."""
    histogram: Histogram | None = None
    """Only `get_feature` has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplanationScore:
    """How well an explanation does on windows that its author did not see."""

    balanced_accuracy: float
    """0.5 is chance."""
    num_windows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What is said of a latent, and how far that can be trusted."""

    title: str
    summary: str
    dominant_tokens: tuple[str, ...]
    explainer: str
    """A model's name, or `token rule`."""
    detection: ExplanationScore | None
    """Of telling texts with the latent from others; None if it was not measured."""
    fuzzing: ExplanationScore | None
    """Of telling rightly from wrongly marked tokens; None if it was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleToken:
    """A token of an example, and the latent's reading there."""

    text: str
    reading: float
    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A token at which a latent was read, with the tokens around it."""

    reading: float
    """At the focus."""
    source: str
    focus: int
    """Index in `tokens`."""
    tokens: tuple[ExampleToken, ...]

    @property
    def text(self) -> str:
        """The window as text."""
        return "".join(token.text for token in self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEffect:
    """What one unit of a latent's reading does to a token's logit."""

    text: str
    logit: float
    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """A latent, and what is known of it."""

    index: int
    name: str
    description: str
    reference_scale: float
    validated: bool
    default_watched: bool
    evidence: Mapping[str, Any]
    """Empty in lists; `get_feature` has it."""
    decoder_norm: float
    statistics: LatentStatistics | None
    """None if the server has no latent catalogue."""
    explanation: Explanation | None
    examples: tuple[Example, ...]
    """Largest reading first; none in lists, in a search the one with most words of the query."""
    promoted: tuple[TokenEffect, ...]
    suppressed: tuple[TokenEffect, ...]

    @property
    def label(self) -> str:
        """What to call it: its name, else its explanation's title, else nothing."""
        return self.name or (self.explanation.title if self.explanation else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMatch:
    """A latent that was found."""

    feature: Feature
    score: float
    """To be compared within one search; in a search by likeness the cosine."""
    matched: tuple[MatchedField, ...]
    """Where words of the query stand; empty in a search by likeness."""
