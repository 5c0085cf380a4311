"""A steering study as a page: curves over the strengths, the figures, and the texts side by side.

A token's colour is what the unsteered model reads in the finished text there, against the feature's reference scale, or
against the largest reading of the study where nobody has said what a large one is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from discovery.page_site import Link, Site, SiteFacts
from discovery.page_views import Run, level_of, visible
from discovery.steering_summary import Criterion, Point
from discovery.steering_table import explanation, number, share, strength_words, unit_words

_HEADINGS = (
    "strength", "|delta|/|h|", "perplexity", "times unsteered", "own perplexity", "repetition", "reading",
    "its maximum", "steered", "express it", "promoted", "broken", "verdict",
)  # fmt: skip


class TextView(NamedTuple):
    """One continuation."""

    title: str
    runs: list[Run]


class ColumnView(NamedTuple):
    """All continuations of one prompt at one strength."""

    strength: str
    verdict: str
    texts: list[TextView]


class PromptView(NamedTuple):
    """One prompt, strengths side by side."""

    text: str
    is_chat: bool
    columns: list[ColumnView]


class RowView(NamedTuple):
    """One strength's figures."""

    cells: list[str]
    verdict: str


class StudyView(NamedTuple):
    """The page."""

    name: str
    sentence: str
    plots: list[dict[str, Any]]
    headings: tuple[str, ...]
    rows: list[RowView]
    notes: list[str]
    prompts: list[PromptView]


def write_page(
    folder: Path,
    settings: dict[str, Any],
    continuations: Sequence[dict[str, Any]],
    points: Sequence[Point],
    criterion: Criterion,
) -> None:
    """Write the study to `folder`. PageError if something else lies there."""
    name = settings["target"]["name"]
    footer = f"Dictionary {settings['sae_sha256']} for {settings['model']['name']} at {settings['hook_point']}."
    facts = SiteFacts(f"steering {name}", footer, [Link("index.html", "Study")], has_search=False)
    view = study_view(settings, continuations, points, criterion)
    with Site(folder, facts) as site:
        site.write_plotly()
        strengths = [strength_words(point.strength) for point in points]
        data = {"strengths": strengths, "unit": f"strength, in {unit_words(settings)}", "plots": view.plots}
        site.write_data("assets/steering-data.js", "STEERING", data)
        site.write_page("index.html", "steering.html", study=view)


def study_view(
    settings: dict[str, Any],
    continuations: Sequence[dict[str, Any]],
    points: Sequence[Point],
    criterion: Criterion,
) -> StudyView:
    """Everything that the page shows."""
    grid, scale = settings["grid"], settings["target"]["reference_scale"]
    largest = max((reading for record in continuations for reading in record["reread"]), default=0.0)
    verdicts = {point.strength: point.verdict for point in points}
    return StudyView(
        name=settings["target"]["name"],
        sentence=(
            f"{settings['model']['name']} at {settings['hook_point']}, operation {grid['op']}; a strength of 1 is "
            f"{unit_words(settings)}."
        ),
        plots=plots(points),
        headings=_HEADINGS,
        rows=[RowView(_cells(point), point.verdict) for point in points],
        notes=explanation(settings, points, criterion),
        prompts=[
            PromptView(
                visible(prompt["text"]), prompt["is_chat"], columns(continuations, index, verdicts, scale or largest)
            )
            for index, prompt in enumerate(settings["prompts"])
        ],
    )


def columns(
    continuations: Sequence[dict[str, Any]], prompt: int, verdicts: dict[float | None, Any], scale: float
) -> list[ColumnView]:
    """One prompt's continuations by strength."""
    return [
        ColumnView(
            strength_words(strength),
            verdict,
            [
                text_view(record, scale)
                for record in continuations
                if record["prompt"] == prompt and record["strength"] == strength
            ],
        )
        for strength, verdict in verdicts.items()
    ]


def text_view(record: dict[str, Any], scale: float) -> TextView:
    """One continuation, tokens coloured by the re-reading."""
    runs = [
        Run(visible(piece), level_of(reading, scale), False, f"{reading:.2f}")
        for piece, reading in zip(record["pieces"], record["reread"], strict=True)
    ]
    drawn = "greedy" if record["seed"] is None else f"seed {record['seed']}"
    return TextView(f"{drawn}; perplexity {number(record['perplexity']) or 'none'}", runs)


def plots(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The pictures, by what they show."""

    def line(name: str, field: str, color: str, *, dashed: bool = False) -> dict[str, Any]:
        values = [getattr(point, field) for point in points]
        return {"name": name, "values": values, "color": color, "dashed": dashed}

    return [
        {
            "title": "Perplexity of the text",
            "log": True,
            "lines": [
                line("under the unsteered model", "perplexity", "--down"),
                line("under the steered one", "steered_perplexity", "--bar", dashed=True),
            ],
        },
        {
            "title": "Mean reading",
            "log": False,
            "lines": [
                line("of the text, by the unsteered model", "reread", "--up"),
                line("largest of each text", "reread_max", "--bar", dashed=True),
                line("after steering", "steered_reading", "--hot"),
            ],
        },
        {
            "title": "Share of texts",
            "log": False,
            "lines": [
                line("that express the feature", "expressed_ratio", "--up"),
                line("that are broken", "broken_ratio", "--down"),
                line("of their n-grams that repeat", "repetition", "--bar", dashed=True),
            ],
        },
        {
            "title": "Size of the push: |delta| / |h|",
            "log": False,
            "lines": [
                line("mean", "relative_norm", "--bar"),
                line("largest", "max_relative_norm", "--hot", dashed=True),
            ],
        },
    ]


def _cells(point: Point) -> list[str]:
    readings = (point.reread, point.reread_max, point.steered_reading)
    return [
        strength_words(point.strength),
        f"{point.relative_norm:.3f}",
        *map(number, (point.perplexity, point.perplexity_ratio, point.steered_perplexity)),
        share(point.repetition),
        *(f"{reading:.2f}" for reading in readings),
        *map(share, (point.expressed_ratio, point.promoted_ratio, point.broken_ratio)),
    ]
