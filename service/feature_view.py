"""How the command line shows latents: lists, one in full, what a search found. Pure functions to rich's types.

In an example a token's background says how strongly the latent reads there, against its largest reading; the token
that it is about is underlined, and where there are no colours it stands between » and «. All text passes `sanitize`.
"""

from collections.abc import Iterator, Sequence

import yaml
from rich.color import Color
from rich.style import Style
from rich.table import Table
from rich.text import Text

from service.client_features import (
    Example,
    Explanation,
    Feature,
    FeatureMatch,
    Histogram,
    LatentStatistics,
    TokenEffect,
)
from service.rendering import FAINTEST_RATIO, blend, color_of, sanitize

_BARS = "▁▂▃▄▅▆▇█"
_OPEN, _CLOSE = "»", "«"


def table(features: Sequence[Feature]) -> Table:
    """A row for each latent."""
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    numbers = ("latent", "scale", "density", "max", "detection")
    for column in ("latent", "name", "scale", "density", "max", "detection", "validated", "default", "about"):
        grid.add_column(column, justify="right" if column in numbers else "left")
    for feature in features:
        statistics, said = feature.statistics, feature.explanation
        grid.add_row(
            str(feature.index),
            Text(one_line(feature.name)),
            f"{feature.reference_scale:.3g}" if feature.name else "",
            f"{statistics.density_ratio:.3%}" if statistics else "",
            f"{statistics.max_reading:.3g}" if statistics else "",
            f"{said.detection.balanced_accuracy:.2f} of {said.detection.num_windows}"
            if said and said.detection
            else "",
            ("yes" if feature.validated else "no") if feature.name else "",
            ("yes" if feature.default_watched else "no") if feature.name else "",
            Text(one_line(feature.description or (said.title if said else ""))),
        )
    return grid


def whole(feature: Feature, *, num_examples: int, with_marks: bool) -> Iterator[Text]:
    """Everything about one latent, part by part. `with_marks` where there are no colours."""
    yield _heading(feature)
    if feature.description:
        yield Text(sanitize(feature.description))
    if feature.name:
        watched = ", watched by default" if feature.default_watched else ""
        yield Text(f"reference scale {feature.reference_scale:.3g}{watched}")
    if feature.explanation is not None:
        yield from _said(feature.explanation)
    if feature.statistics is not None:
        yield from _figures(feature.statistics)
    yield Text(f"one unit of it adds {feature.decoder_norm:.3g} to the residual's norm")
    for verb, effects in (("promotes", feature.promoted), ("suppresses", feature.suppressed)):
        if effects:
            yield Text(f"{verb} {_effects(effects)}")
    if feature.examples and num_examples > 0:
        yield Text("\nlargest readings in text that may be quoted", style="bold")
    for example in feature.examples[: max(num_examples, 0)]:
        yield example_line(example, _largest(feature, example), with_marks=with_marks)
    if feature.evidence:
        yield Text("\nevidence for the name", style="bold")
        yield Text(_yaml(dict(feature.evidence)))


def matches(found: Sequence[FeatureMatch], *, with_marks: bool) -> Iterator[Text]:
    """What a search found, best first, each with where the words stand."""
    if not found:
        yield Text("no latent has all of these words", style="dim")
    for match in found:
        feature = match.feature
        line = _heading(feature)
        line.append(f"  {match.score:.3g}", style="dim")
        if match.matched:
            line.append("  in " + ", ".join(field.replace("_", " ") for field in match.matched), style="dim")
        yield line
        for example in feature.examples:
            yield example_line(example, _largest(feature, example), with_marks=with_marks)


def example_line(example: Example, scale: float, *, with_marks: bool) -> Text:
    """One example on one line: reading, text, source. `scale` is the reading that has the full colour."""
    line = Text(f"{example.reading:8.3g}  ")
    for index, token in enumerate(example.tokens):
        is_focus, text = index == example.focus, one_line(token.text)
        if is_focus and with_marks:
            word = text.lstrip(" ")
            text = text[: len(text) - len(word)] + _OPEN + word + _CLOSE
        line.append(text, _style(token.reading / scale if scale > 0 else 0.0, is_focus=is_focus))
    return line.append(f"  {one_line(example.source)}", style="dim")


def one_line(text: str) -> str:
    """Sanitised, line ends and tabs as signs."""
    return sanitize(text).replace("\n", "⏎").replace("\t", "⇥")


def _style(ratio: float, *, is_focus: bool) -> Style:
    style = Style(underline=is_focus)
    if ratio < FAINTEST_RATIO:
        return style
    return style + Style(color="black", bgcolor=Color.from_rgb(*blend(color_of(0), 0.8 * min(ratio, 1.0))))


def _heading(feature: Feature) -> Text:
    line = Text(f"{feature.index:>6}  ").append(one_line(feature.label) or "(no name)", style="bold")
    if feature.name:
        line.append(" (validated)" if feature.validated else " (not validated)")
    return line


def _said(said: Explanation) -> Iterator[Text]:
    """What the latent is said to be about; both scores where they were measured."""
    scores = [
        f"{name} {score.balanced_accuracy:.2f} on {score.num_windows} windows"
        for name, score in (("detection", said.detection), ("fuzzing", said.fuzzing))
        if score
    ]
    measured = f" ({', '.join(scores)}; 0.5 is chance)" if scores else " (not scored)"
    yield Text(f"said to be: {one_line(said.title)}").append(f"  by {one_line(said.explainer)}{measured}", style="dim")
    if said.summary:
        yield Text(one_line(said.summary))


def _figures(statistics: LatentStatistics) -> Iterator[Text]:
    if not statistics.num_active:
        yield Text(f"never active at {statistics.num_tokens:,} tokens")
        return
    bars = f"  {_bars(statistics.histogram)}" if statistics.histogram else ""
    yield Text(
        f"active at {statistics.num_active:,} of {statistics.num_tokens:,} tokens ({statistics.density_ratio:.3%}), "
        f"mean {statistics.mean_reading:.3g}, largest {statistics.max_reading:.3g}{bars}"
    )
    if statistics.sources:
        shares = ", ".join(f"{one_line(part.source)} {part.share_ratio:.0%}" for part in statistics.sources)
        yield Text(f"in {shares}")


def _bars(histogram: Histogram) -> str:
    """The histogram, a bar for an octave, between its outermost edges."""
    top = max(histogram.counts)
    bars = "".join(_BARS[round(count / top * (len(_BARS) - 1))] if count else " " for count in histogram.counts)
    return f"{histogram.edges[0]:.3g} {bars} {histogram.edges[-1]:.3g}"


def _effects(effects: Sequence[TokenEffect]) -> str:
    return ", ".join(f"'{one_line(effect.text)}' {effect.logit:+.2f}" for effect in effects)


def _largest(feature: Feature, example: Example) -> float:
    return feature.statistics.max_reading if feature.statistics else example.reading


def _yaml(value: dict[str, object]) -> str:
    return sanitize(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)).rstrip("\n")
