"""A steering study for a person at a terminal: a line per strength, and the texts, coloured by what they read."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from discovery.steering_summary import Criterion, Point
from discovery.token_text import printable

_COLOURS = {"works": "green", "broken": "red", "no effect": "dim", "unsteered": "bold", "unknown": "dim"}


def print_study(
    console: Console,
    settings: dict[str, Any],
    continuations: Sequence[dict[str, Any]],
    points: Sequence[Point],
    criterion: Criterion,
) -> None:
    """The table, what its verdicts mean, and the texts of the first continuation of each prompt."""
    console.print(study_table(settings, points))
    for line in explanation(settings, points, criterion):
        console.print(line, highlight=False)
    seed = continuations[0]["seed"]
    for number, prompt in enumerate(settings["prompts"]):
        kind = "user" if prompt["is_chat"] else "prompt"
        console.print(f"\n{kind}: {printable(prompt['text'])}", style="bold", highlight=False)
        for record in continuations:
            if record["prompt"] == number and record["seed"] == seed:
                console.print(text_line(record, settings["target"]["reference_scale"]))


def study_table(settings: dict[str, Any], points: Sequence[Point]) -> Table:
    """A line per strength."""
    title = f"{settings['target']['name']}: {settings['grid']['op']}, strengths in units of {unit_words(settings)}"
    table = Table(title=title)
    headings = ["strength", "|delta|/|h|", "perplexity", "x plain", "own", "repeats", "reading", "its max"]
    for heading in [*headings, "steered", "expressed", "promoted", "broken"]:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for point in points:
        table.add_row(
            strength_words(point.strength),
            f"{point.relative_norm:.3f}",
            number(point.perplexity),
            number(point.perplexity_ratio),
            number(point.steered_perplexity),
            f"{point.repetition:.0%}",
            *(f"{value:.2f}" for value in (point.reread, point.reread_max, point.steered_reading)),
            share(point.expressed_ratio),
            f"{point.promoted_ratio:.1%}",
            f"{point.broken_ratio:.0%}",
            Text(point.verdict, _COLOURS[point.verdict]),
        )
    return table


def explanation(settings: dict[str, Any], points: Sequence[Point], criterion: Criterion) -> list[str]:
    """What the figures are of, in sentences."""
    num, scale = points[0].num, settings["target"]["reference_scale"]
    lines = [
        f"{num} continuation{'' if num == 1 else 's'} at each strength. perplexity: under the unsteered model; own: "
        "under the model that wrote the text. reading: of the finished text by the unsteered model; steered: what the "
        "blocks behind the steering saw. promoted: tokens that the direction itself makes likelier.",
        f"broken: perplexity above {criterion.max_perplexity_ratio:g} times the unsteered one's or repetition above "
        f"its by more than {criterion.max_added_repetition:g}, in at least half of the texts.",
    ]
    if scale:
        lines.append(
            f"works: not broken, and at least {criterion.min_share:.0%} of the texts express the feature (it "
            f"reads {criterion.min_expression:g} of its reference scale {scale:g} at some token), "
            f"{criterion.min_gain:.0%} more than unsteered."
        )
    return lines


def text_line(record: dict[str, Any], scale: float | None) -> Text:
    """One continuation; the redder a token's background, the more the unsteered model reads in it."""
    line = Text(f"{strength_words(record['strength']):>9}  ", "bold")
    for piece, reading in zip(record["pieces"], record["reread"], strict=True):
        level = min(max(reading / scale, 0.0), 1.0) if scale else 0.0
        style = f"black on #{255:02x}{int(235 - 110 * level):02x}{int(200 - 190 * level):02x}" if level > 0.05 else ""
        line.append(printable(piece), style or "not bold")
    return line


def strength_words(strength: float | None) -> str:
    return "unsteered" if strength is None else f"{strength:g}"


def unit_words(settings: dict[str, Any]) -> str:
    """What a strength of 1 is."""
    target, grid = settings["target"], settings["grid"]
    if grid["op"] == "scale":
        return "its current reading (a factor)"
    match grid["unit"]:
        case "reference":
            return f"its reference scale ({target['reference_scale']:g})"
        case "maximum":
            return f"its largest reading in held-out text ({target['maximum']:g})"
        case "relative":
            return "the residual's norm"
        case _:
            return "its reading" if isinstance(target["direction"], int) else "the vector"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.1e}"


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
