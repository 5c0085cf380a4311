"""One HTML page of an evaluation: what the monitor is, every figure beside its baselines, plots, and what it got wrong.

Self-contained: plotly's script is in the page, which opens without a network. Text of replies is escaped.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.io import to_html

from discovery.binomial import share_words
from discovery.evaluation_report import PAGE_STYLE, PLOT_CONFIG, plain
from discovery.evaluation_run import Evaluation
from discovery.failure_gallery import ShownReply
from discovery.four_columns import COLUMNS
from discovery.monitor_figures import predictor
from monitors.pack import MonitorPack

_ROC_BASELINES = ("bag_of_words", "reply_length")
_SPARK_WIDTH, _SPARK_HEIGHT = 320, 60


class Spark(NamedTuple):
    """A reply's score over its tokens, as points of a small drawing."""

    points: str
    threshold_y: float | None
    """Where the warning level stands, if it is within the drawing."""


def render(evaluation: Evaluation, galleries: dict[str, list[ShownReply]]) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("discovery"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"interval": interval, "figure": figure, "share": share_words, "spark": spark}
    plots = _plots(evaluation)
    html = {
        name: to_html(plain(plot), full_html=False, include_plotlyjs=number == 0, config=PLOT_CONFIG)
        for number, (name, plot) in enumerate(plots.items())
    }
    return environment.get_template("monitor.html").render(
        style=PAGE_STYLE,
        record=evaluation.record,
        predictors=_predictors(evaluation),
        columns=list(COLUMNS),
        plots=html,
        galleries=galleries,
        warning=_warning(evaluation.pack),
        spark_size=(_SPARK_WIDTH, _SPARK_HEIGHT),
    )


def _predictors(evaluation: Evaluation) -> list[tuple[str, list[Any]]]:
    """(name, its figures in each set): the monitor first."""
    sets = evaluation.record["sets"].values()
    names = ["monitor"]
    for of_set in sets:
        names += [name for name in (*of_set["own"], *of_set["baselines"]) if name not in names]

    def of(found: dict[str, Any], name: str) -> Any:
        return found if name == "monitor" else found["own"].get(name) or found["baselines"].get(name)

    return [(name, [of(of_set, name) for of_set in sets]) for name in names]


def _warning(pack: MonitorPack) -> float | None:
    """The score above which a warning is raised in the first stratum."""
    if pack.thresholds is None or pack.thresholds.levels.warning is None:
        return None
    return pack.thresholds.strata[0].offset + pack.thresholds.levels.warning.offset


# --- words ----------------------------------------------------------------------------------------------------------


def interval(estimate: dict[str, float] | None) -> str:
    """A figure with its interval."""
    return "-" if estimate is None else f"{estimate['mean']:.3f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def figure(value: float | None) -> str:
    """A figure alone."""
    return "-" if value is None else f"{value:.3f}"


def spark(reply: ShownReply, warning: float | None) -> Spark:
    """Score over tokens, drawn into `_SPARK_WIDTH` by `_SPARK_HEIGHT`; nothing of a reply that is all off scale."""
    scores = [token.score for token in reply.tokens]
    if not scores:
        return Spark("", None)
    low, high = min(scores), max(scores)
    if warning is not None and low - (high - low) <= warning <= high + (high - low):
        low, high = min(low, warning), max(high, warning)
    spread = (high - low) or 1.0

    def y(score: float) -> float:
        return round(_SPARK_HEIGHT - 4 - (score - low) / spread * (_SPARK_HEIGHT - 8), 1)

    step = _SPARK_WIDTH / max(len(scores) - 1, 1)
    points = " ".join(f"{index * step:.1f},{y(score)}" for index, score in enumerate(scores))
    is_inside = warning is not None and low <= warning <= high
    return Spark(points, y(warning) if warning is not None and is_inside else None)


# --- plots ----------------------------------------------------------------------------------------------------------


def _plots(evaluation: Evaluation) -> dict[str, go.Figure]:
    plots = {f"roc {name}": roc_plot(evaluation, name) for name in evaluation.sets}
    plots["histograms"] = histogram_plot(evaluation)
    if evaluation.record["calibration_curve"]:
        plots["calibration"] = calibration_plot(evaluation.record["calibration_curve"])
    return plots


def roc_plot(evaluation: Evaluation, name: str) -> go.Figure:
    """Of one set: the monitor, words and length."""
    rows = evaluation.sets[name]
    plot = go.Figure()
    for which in ("monitor", *(baseline for baseline in _ROC_BASELINES if baseline in rows.baselines)):
        false_K, true_K = roc(predictor(rows, which), rows.labels_I)
        plot.add_scatter(x=false_K, y=true_K, mode="lines", name=which)
    plot.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="luck", line={"dash": "dot", "color": "#888"})
    plot.update_layout(xaxis_title="negatives above", yaxis_title="positives above", title=name)
    return plot


def roc(scores_I: Any, labels_I: Any) -> tuple[list[float], list[float]]:
    """(shares of negatives, shares of positives) at or above each score, from the highest down."""
    levels = np.unique(scores_I)[::-1]
    sides = [np.sort(scores_I[labels_I == label]) for label in (0, 1)]
    shares = [1 - np.searchsorted(side, levels, side="left") / max(len(side), 1) for side in sides]
    return [0.0, *shares[0].tolist()], [0.0, *shares[1].tolist()]


def histogram_plot(evaluation: Evaluation) -> go.Figure:
    """Statistics of every set's labels, controls and hard negatives, as shares, with the thresholds."""
    groups: dict[str, Any] = {}
    for name, rows in evaluation.sets.items():
        for label, word in ((1, "positive"), (0, "negative")):
            groups[f"{name}, {word}"] = rows.own["monitor"][rows.labels_I == label]
    groups |= {f"{name} (control)": rows.own["monitor"] for name, rows in evaluation.controls.items()}
    groups |= {f"{name} (hard)": rows.own["monitor"] for name, rows in evaluation.hard_negatives.items()}
    finite = {name: values[np.isfinite(values)] for name, values in groups.items()}
    everything = np.concatenate([*finite.values(), np.zeros(0)])
    edges = np.linspace(everything.min(), everything.max(), 41) if len(everything) else np.linspace(0, 1, 2)
    plot = go.Figure()
    for name, values in finite.items():
        counts = np.histogram(values, edges)[0] / max(len(values), 1)
        middles = ((edges[1:] + edges[:-1]) / 2).tolist()
        plot.add_scatter(x=middles, y=counts.tolist(), mode="lines", line_shape="hvh", name=f"{name} ({len(values)})")
    for level, offset in _offsets(evaluation.pack):
        plot.add_vline(x=offset, line_dash="dot", line_color="#888", annotation_text=level)
    plot.update_layout(xaxis_title="largest excess of a reply's score", yaxis_title="share of replies")
    return plot


def _offsets(pack: MonitorPack) -> Sequence[tuple[str, float]]:
    if pack.thresholds is None:
        return []
    return [(name, level.offset) for name, level in pack.thresholds.levels.named()]


def calibration_plot(curve: list[dict[str, float]]) -> go.Figure:
    """What share of the controls exceeds thresholds that stand for a share of benign replies."""
    alphas, shares = [point["alpha"] for point in curve], [point["share"] for point in curve]
    plot = go.Figure()
    error = {
        "type": "data",
        "symmetric": False,
        "array": [point["high"] - point["share"] for point in curve],
        "arrayminus": [point["share"] - point["low"] for point in curve],
    }
    plot.add_scatter(x=alphas, y=shares, error_y=error, mode="lines+markers", name="controls")
    plot.add_scatter(x=alphas, y=alphas, mode="lines", name="as stated", line={"dash": "dot", "color": "#888"})
    plot.update_layout(xaxis_title="share of benign replies that it stands for", yaxis_title="share of controls above")
    plot.update_xaxes(type="log")
    plot.update_yaxes(type="log")
    return plot
