"""How the command line shows readings: colours, legend, alerts, footer. Pure functions from events to rich's types.

A token's background says how strongly it read: the watched feature with the largest reading / reference scale gives
the colour, that ratio the saturation. Position 0 is off scale and stays plain. All text that comes from the model or
the server passes `sanitize`: a model can write escape sequences, and a terminal would obey them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from service.client_catalog import SaeInfo, WatchedFeature
from service.client_events import Alert, Finished, MonitorSummary, Timings, Token
from service.client_monitors import Monitor

RGB = tuple[int, int, int]

# Okabe and Ito's colours, which colour-blind people can tell apart. A ninth feature takes the first again.
PALETTE: tuple[RGB, ...] = (
    (213, 94, 0),
    (0, 114, 178),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (240, 228, 66),
    (128, 128, 128),
)
LEGEND_ROWS = 8
FAINTEST_RATIO = 0.05
"""Below this share of the reference scale a token stays plain: a page of near-white boxes shows nothing."""

# Beside control characters: line and paragraph separators, and what reorders or hides text (bidi controls, tags).
_HIDDEN = {0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_TAGS = range(0xE0000, 0xE0080)


def sanitize(text: str) -> str:
    """`text` with everything but newline and tab that a terminal acts on, or hides, spelt out: ESC becomes `\\x1b`."""
    return "".join(_spell(char) if _is_unsafe(ord(char)) else char for char in text)


def _is_unsafe(code: int) -> bool:
    is_control = (code < 0x20 and code not in (0x09, 0x0A)) or 0x7F <= code < 0xA0
    return is_control or code in _HIDDEN or code in _TAGS or 0xD800 <= code < 0xE000


def _spell(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@dataclass(frozen=True, slots=True)
class Peak:
    """The largest reading of a watched feature so far, position 0 left out."""

    value: float = 0.0
    token: Token | None = None
    """Where it was read; None if nowhere above 0."""


@dataclass(frozen=True, slots=True)
class Strongest:
    """The watched feature that stands out most at a token."""

    position: int
    """Among the watched features."""
    ratio: float
    """Reading / reference scale, above 0."""


def raise_peaks(peaks: Sequence[Peak], token: Token) -> list[Peak]:
    """`peaks` after one more token."""
    if token.is_first_position or token.off_scale or not token.readings:
        return list(peaks)
    return [
        Peak(value, token) if value > peak.value else peak for peak, value in zip(peaks, token.readings, strict=True)
    ]


def scales(watched: Sequence[WatchedFeature], peaks: Sequence[Peak]) -> list[float]:
    """What reading counts as full: the reference scale. Without one, twice the peak so far.

    Twice, because nobody knows then what is high: such a feature gets half a colour at most, and outshines no feature
    that is high by its scale.
    """
    return [feature.reference_scale or 2 * peak.value for feature, peak in zip(watched, peaks, strict=True)]


def strongest(token: Token, full: Sequence[float]) -> Strongest | None:
    """The feature with the largest reading / scale, the first one of equals; None if there is nothing to see."""
    if token.is_first_position or token.off_scale:
        return None
    ratios = [reading / scale if scale > 0 else 0.0 for reading, scale in zip(token.readings, full, strict=True)]
    top = max(range(len(ratios)), key=ratios.__getitem__, default=None)
    return None if top is None or not ratios[top] > 0 else Strongest(top, ratios[top])


def color_of(position: int) -> RGB:
    """The colour of a watched feature."""
    return PALETTE[position % len(PALETTE)]


def blend(color: RGB, ratio: float) -> RGB:
    """From white at 0 to `color` at 1 and above."""
    share = min(max(ratio, 0.0), 1.0)
    red, green, blue = (round(255 + (part - 255) * share) for part in color)
    return red, green, blue


def token_style(token: Token, full: Sequence[float]) -> Style:
    """Background by the strongest reading; prompt tokens in italics, to tell them from the reply."""
    style = Style(italic=True) if token.is_prompt else Style()
    top = strongest(token, full)
    if top is None or top.ratio < FAINTEST_RATIO:
        return style
    background = blend(color_of(top.position), top.ratio)
    return style + Style(color=_contrasting(background), bgcolor=Color.from_rgb(*background))


def token_segments(token: Token, full: Sequence[float]) -> list[Segment]:
    """The token's text, sanitised. Line ends stay unstyled, or the terminal would paint the rest of the line."""
    style = token_style(token, full)
    lines = sanitize(token.text).split("\n")
    segments = [segment for line in lines for segment in (Segment("\n"), Segment(line, style))][1:]
    return [segment for segment in segments if segment.text]


def legend(watched: Sequence[WatchedFeature], peaks: Sequence[Peak]) -> Table:
    """Per watched feature: its colour, its name, its peak, and the token that read it.

    Of more than LEGEND_ROWS features only those that read most, against their scale, are listed; the rest are counted.
    """
    shown = _most_active(watched, peaks)
    num_left_out = len(watched) - len(shown)
    caption = f"and {num_left_out} more that read less" if num_left_out else None
    table = Table(
        box=None, padding=(0, 2, 0, 0), header_style="dim", caption=caption, caption_justify="left", caption_style="dim"
    )
    for column in ("", "feature", "max", "of scale", "at"):
        table.add_column(column, justify="right" if column in ("max", "of scale") else "left")
    for position in shown:
        feature, peak = watched[position], peaks[position]
        name = sanitize(feature.label) + ("" if feature.validated else " (not validated)")
        swatch = Text("  ", style=Style(bgcolor=Color.from_rgb(*color_of(position))))
        of_scale = f"{peak.value / feature.reference_scale:.0%}" if feature.reference_scale > 0 else "unknown"
        at = f"{peak.token.index} {_quoted(peak.token.text)}" if peak.token else ""
        table.add_row(swatch, Text(name), f"{peak.value:.3g}", of_scale, Text(at))
    return table


def _most_active(watched: Sequence[WatchedFeature], peaks: Sequence[Peak]) -> list[int]:
    """Positions in the watch list to show, in its order; without a scale a reading counts as it is."""
    if len(watched) <= LEGEND_ROWS:
        return list(range(len(watched)))
    shares = [peak.value / (feature.reference_scale or 1.0) for feature, peak in zip(watched, peaks, strict=True)]
    ranked = sorted(range(len(watched)), key=lambda position: shares[position], reverse=True)
    return sorted(position for position in ranked[:LEGEND_ROWS] if shares[position] > 0)


def alert_line(alert: Alert) -> Text:
    """One alert in one line, without its request."""
    sign = f"ALERT {alert.severity}" if alert.state == "firing" else "cleared"
    text = (
        f"[{sign}: {sanitize(alert.monitor)} {alert.score:.3g} (threshold {alert.threshold:.3g}) "
        f"at {alert.position}, from {alert.span_start}{_whose(alert.role)}{_parts(alert)}"
        f"{', beyond calibrated lengths' if alert.beyond_calibration else ''}"
        f"{_off(alert.off_distribution_tokens)}"
        f"{'' if alert.validated else ', not validated'}{_consequence(alert)}]"
    )
    return Text(text, style="bold red" if alert.state == "firing" else "dim")


def _consequence(alert: Alert) -> str:
    """The policies that it made apply, and what they withheld."""
    told = f", policy {sanitize(', '.join(alert.policies))}" if alert.policies else ""
    if alert.withheld is None:
        return told
    text = "" if alert.withheld.text is None else f": {_quoted(alert.withheld.text)}"
    return f"{told}, {alert.withheld.tokens} tokens from {alert.withheld.first_position} withheld{text}"


def footer(finished: Finished, seed: int | None = None) -> Text:
    """Why it ended, how fast it was, and what steering did."""
    reason = finished.reason + (f" {_quoted(finished.matched_stop)}" if finished.matched_stop else "")
    usage = finished.usage
    parts = [reason, f"{usage.prompt_tokens} prompt tokens", f"{usage.completion_tokens} tokens"]
    if finished.withheld_tokens:
        parts.append(f"{finished.withheld_tokens} of them withheld")
    parts += _speed(finished.timings, usage.completion_tokens)
    if seed is not None:
        parts.append(f"seed {seed}")
    lines = [" · ".join(parts)]
    if finished.steering is not None:
        report = finished.steering
        lines.append(
            f"steering changed {report.positions_changed} positions, by {report.mean_relative_norm:.3g} of the "
            f"residual's norm on average and {report.max_relative_norm:.3g} at most"
        )
    return Text("\n".join(lines), style="dim")


def monitor_lines(summaries: Iterable[MonitorSummary], monitors: Iterable[Monitor] = ()) -> list[Text]:
    """One line per monitor that ran. With its definition, the threshold stands beside the score."""
    definitions = {monitor.name: monitor for monitor in monitors}
    return [_monitor_line(summary, definitions.get(summary.monitor)) for summary in summaries]


def unverified_warning(sae: SaeInfo | None) -> Text | None:
    """What to say before readings that can't be trusted; None if they can, or there are none for want of a
    dictionary."""
    if sae is None or sae.verified:
        return None
    why = sanitize("; ".join(sae.mismatches)) or "no reason given"
    return Text(f"Readings are unverified: {why}.", style="bold yellow")


def _quoted(text: str) -> str:
    """Sanitised, and on one line."""
    return "'" + sanitize(text).replace("\n", "\\n").replace("\t", "\\t") + "'"


def _monitor_line(summary: MonitorSummary, definition: Monitor | None) -> Text:
    tokens = f"{summary.scored_tokens} scored tokens"
    if summary.max_score is None:
        score = f"no score yet after {tokens}, too few"
    else:
        threshold = f"{_beyond_length(summary)} (threshold {definition.threshold:.3g})" if definition else ""
        fired = f"fired first at {summary.first_fired_position}" if summary.fired else "did not fire"
        fired += ", rose to critical" if summary.level == "critical" else ""
        fired += ", beyond calibrated lengths" if summary.beyond_calibration else ""
        fired += _off(summary.off_distribution_tokens)
        score = f"max score {summary.max_score:.3g}{threshold} over {tokens}, {fired}"
    unproven = ", not validated" if definition and not definition.validated else ""
    line = f"{sanitize(summary.monitor)}{_whose(summary.role)}: {score}{unproven}"
    return Text(line, style="bold red" if summary.fired else "")


def _beyond_length(summary: MonitorSummary) -> str:
    """What the threshold is for, which is that of short replies, where it is another number than the largest score."""
    if summary.max_statistic in (None, summary.max_score):
        return ""
    return f", {summary.max_statistic:.3g} beyond what its length explains"


def _off(num_tokens: int | None) -> str:
    """How many of the tokens behind a score are not to be trusted, if any."""
    return f", dictionary off distribution at {num_tokens} of them" if num_tokens else ""


def _whose(role: str) -> str:
    """Whose words were scored, unless it is the assistant's, as usual."""
    return "" if role in ("", "assistant") else f" ({sanitize(role)})"


def _parts(alert: Alert) -> str:
    """The components' scores, where there are several."""
    if len(alert.components) < 2:
        return ""
    return "".join(f", {sanitize(part.component)} {part.score:.3g}" for part in alert.components)


def _speed(timings: Timings, num_tokens: int) -> list[str]:
    parts = []
    if timings.decode_seconds and num_tokens:
        parts.append(f"{num_tokens / timings.decode_seconds:.1f} tokens/s")
    if timings.time_to_first_token_seconds is not None:
        parts.append(f"first after {timings.time_to_first_token_seconds:.2f} s")
    return parts


def _contrasting(background: RGB) -> str:
    """Black or white, whichever reads better on it (ITU-R BT.601 luma)."""
    red, green, blue = background
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else "white"
