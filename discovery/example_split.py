"""A latent's examples, divided: some for whoever explains it, others for whoever checks the explanation.

The division is by document, from a hash of its number and a seed, so it depends on nothing else; no document is on both
sides, and a held-out window whose text was shown too (boilerplate occurs in many documents) is left out. Active windows
come from the largest readings and from all quantiles of them; silent ones are the store's random windows in which the
latent fires at no token.
"""

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import NamedTuple, TypeVar

from discovery.errors import ExplainError
from discovery.example_store import ExampleStore
from discovery.latent_record import Background, Example, LatentRecord

MARK_RATIO = 0.25
"""Of a window's largest reading: a token that reads less is not counted among those the latent fires on."""

T = TypeVar("T")


class Window(NamedTuple):
    """A piece of text as a latent reads it."""

    pieces: tuple[str, ...]
    """The tokens' texts."""
    readings: tuple[float, ...]
    """Of the latent, at each token; all 0 where it is silent."""

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def firing(self) -> tuple[int, ...]:
        """Indices of the tokens it fires on, faint ones left out."""
        floor = MARK_RATIO * max(self.readings, default=0.0)
        return tuple(i for i, reading in enumerate(self.readings) if reading > 0 and reading >= floor)


@dataclass(frozen=True, slots=True)
class SplitSettings:
    """How many windows of each kind, at most."""

    num_shown: int = 16
    """Active ones for the explainer."""
    num_scored: int = 20
    """Active ones held out, and as many silent ones."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_shown < 1 or self.num_scored < 1:
            raise ExplainError(f"num_shown and num_scored must be 1 or more, got {self}")

    def as_dict(self) -> dict[str, int]:
        """All that the division depends on."""
        return asdict(self)

    def shown_by(self) -> dict[str, int]:
        """What decides which windows the explainer sees."""
        return {"seed": self.seed, "num_shown": self.num_shown}


class LatentExamples(NamedTuple):
    """One latent's windows, divided."""

    latent: int
    max_reading: float
    """Over the whole corpus."""
    shown: tuple[Window, ...]
    shown_silent: tuple[Window, ...]
    held_out: tuple[Window, ...]
    held_out_silent: tuple[Window, ...]


def is_shown(document: int, seed: int) -> bool:
    """Whether windows of `document` are for the explainer; so it is for half of them."""
    return hashlib.sha256(f"{seed}/{document}".encode()).digest()[0] < 128


class ExampleSplit:
    """Divides the examples of any latent of a store. The random windows are read once."""

    def __init__(self, store: ExampleStore, settings: SplitSettings) -> None:
        self.settings = settings
        self._store = store
        self._backgrounds = list(store.backgrounds())

    def __call__(self, latent: int) -> LatentExamples:
        """The windows of `latent`; sides can be empty."""
        settings, record = self.settings, self._store.latent(latent)
        shown = _take(_by_strength(record, shown=True, seed=settings.seed), settings.num_shown)
        seen = {window.text for window in shown}
        held_out = _take(_by_strength(record, shown=False, seed=settings.seed), settings.num_scored, seen)
        silent = [background for background in self._backgrounds if latent not in background.active]
        return LatentExamples(
            latent=latent,
            max_reading=record.max,
            shown=tuple(shown),
            shown_silent=tuple(self._silent(silent, latent, shown=True)),
            held_out=tuple(held_out),
            held_out_silent=tuple(self._silent(silent, latent, shown=False)),
        )

    def _silent(self, silent: list[Background], latent: int, *, shown: bool) -> list[Window]:
        """Random windows: others for each latent, so that no odd one spoils the scores of all."""
        side = [background for background in silent if is_shown(background.document, self.settings.seed) == shown]
        random.Random(f"{self.settings.seed}/{latent}").shuffle(side)
        windows = (Window(background.pieces, (0.0,) * len(background.pieces)) for background in side)
        return _take(windows, self.settings.num_scored)


def _by_strength(record: LatentRecord, *, shown: bool, seed: int) -> list[Window]:
    """Active windows of one side: in turn one of the largest, one of the strongest quantile, down to the weakest."""
    kinds: list[Sequence[Example]] = [record.top, *reversed(record.quantiles)]
    sides = [[example for example in kind if is_shown(example.document, seed) == shown] for kind in kinds]
    # The largest are sorted; every other kind is a random sample in order of size. Shuffled, so that taking some of a
    # bin is taking a sample of it.
    for number, side in enumerate(sides[1:]):
        random.Random(f"{seed}/{record.latent}/{number}").shuffle(side)
    windows = (Window(example.pieces, example.readings) for example in in_turn(sides))
    return [window for window in windows if window.firing]  # a faint reading can be 0 in the store's 16 bits


def in_turn(lists: Iterable[Sequence[T]]) -> list[T]:
    """The first of each list, then the second of each, to the last of the longest."""
    nothing = object()
    return [item for row in zip_longest(*lists, fillvalue=nothing) for item in row if item is not nothing]  # type: ignore[misc]


def _take(windows: Iterable[Window], num: int, seen: set[str] | None = None) -> list[Window]:
    """The first `num` windows with a text of their own."""
    seen, taken = set(seen or ()), list[Window]()
    for window in windows:
        if len(taken) < num and window.text not in seen:
            seen.add(window.text)
            taken.append(window)
    return taken
