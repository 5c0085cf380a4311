"""One latent as its page shows it: colours instead of readings, bars instead of counts. Knows nothing of HTML.

A *run* is neighbouring tokens of one colour. A colour is a level from 0, silent, to 10, the latent's maximum.
"""

import math
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from discovery.causal_view import CausalView, causal_view
from discovery.latent_names import LatentNames
from discovery.latent_record import Example, Explanation, LatentRecord, TokenEffect
from monitors.watchlist import NamedFeature

LEVELS = 10
_WIDTH, _HEIGHT = 280, 96


class Run(NamedTuple):
    """Some text of one colour."""

    text: str
    level: int
    is_focus: bool
    reading: str


class ExampleView(NamedTuple):
    """One example."""

    value: float
    source: str
    position: int
    runs: list[Run]


class BinView(NamedTuple):
    """One quantile bin."""

    title: str
    range: str
    examples: list[ExampleView]


class Bar(NamedTuple):
    """One bar of a histogram, in the units of its picture."""

    x: float
    y: float
    width: float
    height: float
    label: str


class Tick(NamedTuple):
    """A number below the axis."""

    x: float
    label: str
    anchor: str


class HistogramView(NamedTuple):
    """The part of a histogram that is not empty."""

    width: int
    height: int
    bars: list[Bar]
    ticks: list[Tick]


class ShareView(NamedTuple):
    """A source's part."""

    name: str
    share: float


class NeighbourView(NamedTuple):
    """A latent that writes alike."""

    latent: int
    name: str
    example: str
    """Where it has no name."""
    cosine: float
    linked: bool
    """Whether it has a page."""


class FeatureView(NamedTuple):
    """What a feature file says."""

    name: str
    description: str
    validated: bool
    evidence: dict[str, Any]
    figures: list[tuple[str, str]]
    transfer: list[dict[str, Any]]
    causal: CausalView | None


class LatentView(NamedTuple):
    """A latent's page."""

    latent: int
    name: str
    before: int | None
    """The latent whose page comes before."""
    after: int | None
    feature: FeatureView | None
    explanation: Explanation | None
    density: str
    num_active: int
    num_tokens: int
    max: float
    mean_active: float
    top: list[ExampleView]
    bins: list[BinView]
    histogram: HistogramView | None
    sources: list[ShareView]
    promoted: Sequence[TokenEffect]
    suppressed: Sequence[TokenEffect]
    neighbours: list[NeighbourView]


def level_of(reading: float, scale: float) -> int:
    """0 where a latent is silent, else 1 to 10 by its share of `scale`."""
    if reading <= 0 or scale <= 0:
        return 0
    return min(LEVELS, max(1, math.ceil(LEVELS * reading / scale)))


def visible(text: str) -> str:
    """Line ends and tabs as signs, so that an example is one paragraph; other control characters as blanks."""
    text = text.replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() else " " for c in text)


def example_view(example: Example, scale: float) -> ExampleView:
    """Tokens as runs; silent ones, of which nothing is to be said, are joined."""
    runs: list[Run] = []
    for index, (piece, reading) in enumerate(zip(example.pieces, example.readings, strict=True)):
        level, is_focus, text = level_of(reading, scale), index == example.focus, visible(piece)
        if level == 0 and not is_focus:
            _add_plain(runs, text)
            continue
        # The blank before a word is left plain: at the end of a line it would be a stub of colour.
        word = text.lstrip(" ") or text
        _add_plain(runs, text[: len(text) - len(word)])
        runs.append(Run(word, level, is_focus, f"{reading:.2f}"))
    # A window that begins with a blank would not be aligned with the others.
    if runs[0].level == 0 and not runs[0].is_focus:
        runs[0] = runs[0]._replace(text=runs[0].text.lstrip(" "))
    return ExampleView(example.value, example.source, example.position, [run for run in runs if run.text])


def _add_plain(runs: list[Run], text: str) -> None:
    if runs and runs[-1].level == 0 and not runs[-1].is_focus:
        runs[-1] = runs[-1]._replace(text=runs[-1].text + text)
    elif text:
        runs.append(Run(text, 0, False, ""))


def bin_views(record: LatentRecord) -> list[BinView]:
    """Strongest bin first."""
    views = []
    num_bins = len(record.quantiles)
    for number, examples in reversed(list(enumerate(record.quantiles))):
        if examples:
            title = f"{100 * number / num_bins:.0f} to {100 * (number + 1) / num_bins:.0f} % of its readings"
            extent = f"{examples[-1].value:.2f} to {examples[0].value:.2f}"
            views.append(BinView(title, extent, [example_view(example, record.max) for example in examples]))
    return views


def histogram_view(counts: Sequence[int], edges: Sequence[float]) -> HistogramView | None:
    """Bars from the first bin that is not empty to the last; None if all are."""
    filled = [i for i, count in enumerate(counts) if count]
    if not filled:
        return None
    first, last = filled[0], filled[-1]
    shown = range(first, last + 1)
    width = _WIDTH / len(shown)
    most = max(counts)
    bars = []
    for i in shown:
        # A bin with one token in thousands is to be seen too.
        height = max(_HEIGHT * counts[i] / most, 1.5) if counts[i] else 0.0
        label = f"{edges[i]:.3g} to {edges[i + 1]:.3g}: {counts[i]:,} tokens"
        bars.append(
            Bar(round(width * (i - first), 2), round(_HEIGHT - height, 2), round(width * 0.9, 2), height, label)
        )
    middle = (first + last + 1) // 2
    places = [(first, "start"), (middle, "middle"), (last + 1, "end")] if len(shown) > 3 else [(first, "start")]
    ticks = [Tick(round(width * (i - first), 2), f"{edges[i]:.2g}", anchor) for i, anchor in places]
    return HistogramView(_WIDTH, _HEIGHT, bars, ticks)


_FIGURES = {
    "contrast": "contrast",
    "num_positive": "positive items",
    "num_negative": "negative items",
    "auroc_selection": "AUROC, selection half",
    "auroc_heldout": "AUROC, held out",
    "permuted_best_auroc_heldout": "best of all latents with permuted labels",
    "mean_positive": "mean on positive items",
    "mean_negative": "mean on negative items",
    "max_held_out": "maximum on held-out text",
}


def feature_view(feature: NamedFeature) -> FeatureView:
    """Evidence is free JSON: what is known is given its words, what is not is left to the file."""
    evidence = dict(feature.evidence)
    figures = [(words, str(evidence[key])) for key, words in _FIGURES.items() if evidence.get(key) is not None]
    figures.append(("reference scale", str(feature.reference_scale)))
    transfer = evidence.get("transfer")
    rows = [{"name": name, **row} for name, row in transfer.items()] if isinstance(transfer, dict) else []
    causal = causal_view(evidence["causal"]) if isinstance(evidence.get("causal"), dict) else None
    return FeatureView(feature.name, feature.description, feature.validated, evidence, figures, rows, causal)


def percentage(share: float) -> str:
    """Two digits that say something, one of a very small share; never in exponents."""
    digits = 2 if share >= 1e-4 else 1
    return f"{Decimal(f'{100 * share:.{digits}g}'):f} %"


def latent_view(
    record: LatentRecord,
    names: LatentNames,
    edges: Sequence[float],
    *,
    neighbours: Iterable[NeighbourView] = (),
    before: int | None = None,
    after: int | None = None,
) -> LatentView:
    """Everything a latent's page shows."""
    feature = names.features.get(record.latent)
    return LatentView(
        latent=record.latent,
        name=names.of(record.latent),
        before=before,
        after=after,
        feature=feature_view(feature) if feature else None,
        explanation=record.explanation,
        density=percentage(record.density),
        num_active=record.num_active,
        num_tokens=record.num_tokens,
        max=record.max,
        mean_active=record.mean_active,
        top=[example_view(example, record.max) for example in record.top],
        bins=bin_views(record),
        histogram=histogram_view(record.histogram, edges),
        sources=[ShareView(name, share) for name, share in record.sources.items()],
        promoted=[effect._replace(text=visible(effect.text)) for effect in record.promoted],
        suppressed=[effect._replace(text=visible(effect.text)) for effect in record.suppressed],
        neighbours=list(neighbours),
    )
