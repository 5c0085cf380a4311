"""One HTML page of a dictionary's held-out figures: what it is, the table, and what bends it.

Self-contained: plotly's script is in the page, which opens without a network.
"""

import math
from html import escape
from importlib import metadata
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
from plotly.io import to_html

from discovery.reconstruction import DENSE, ReconstructionSums
from sae_runtime.checkpoint import LoadedSAE

ROWS = {
    "tokens": ("tokens", "{:,.0f}"),
    "massive_tokens_left_out": ("massive tokens left out", "{:,.0f}"),
    "variance_explained": ("variance explained, against the mean", "{:.4f}"),
    "median_token_variance_explained": ("per-token median of it", "{:.4f}"),
    "l0": ("L0: active latents per token", "{:.1f}"),
    "dead_ratio": ("dead latents", "{:.2%}"),
    "dense_ratio": ("dense latents", "{:.2%}"),
    "predictions": ("predictions", "{:,.0f}"),
    "prediction_contexts": ("in contexts", "{:,.0f}"),
    "prediction_contexts_available": ("drawn from", "{:,.0f}"),
    "cross_entropy_clean": ("cross-entropy, clean (nats)", "{:.3f}"),
    "cross_entropy_sae": ("with the dictionary spliced in", "{:.3f}"),
    "cross_entropy_mean_ablated": ("mean-ablated", "{:.3f}"),
    "cross_entropy_zero_ablated": ("zero-ablated", "{:.3f}"),
    "cross_entropy_recovered": ("cross-entropy recovered", "{:.4f}"),
    "cross_entropy_recovered_from_mean": ("recovered, from mean ablation", "{:.4f}"),
    "kl_sae": ("KL(clean || spliced), nats", "{:.4f}"),
    "kl_mean_ablated": ("KL(clean || mean-ablated)", "{:.3f}"),
    "kl_zero_ablated": ("KL(clean || zero-ablated)", "{:.3f}"),
}
"""Figure -> its words and format, in the order of the table."""

_GREY = "#888"
"""Legible on white and on black."""
# Buttons are named one by one: of the library's own choice some lead to servers elsewhere.
PLOT_CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtons": [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
}
PAGE_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } th, td { text-align: right; padding: .2rem .8rem; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; } code { font-size: .85em; overflow-wrap: anywhere; }
"""


def render(
    sae: LoadedSAE,
    figures: dict[str, dict[str, float]],
    sums: dict[str, ReconstructionSums],
    geometry: dict[str, Any],
    comparison: dict[str, Any] | None = None,
) -> str:
    """The page. `figures` and `sums` by set, `geometry` as `geometry_figures` has it.

    `comparison` is what `telltale lab fidelity --json` says.
    """
    plots = [density_plot(sums), cosine_plot(geometry)]
    if comparison is not None:
        plots.append(correlation_plot(comparison))
    parts = [
        to_html(plain(plot), full_html=False, include_plotlyjs=number == 0, config=PLOT_CONFIG)
        for number, plot in enumerate(plots)
    ]
    manifest = sae.manifest
    facts = {
        "model": f"{manifest.model_name} {manifest.quantization}, {manifest.model_sha256}",
        "dictionary": f"{manifest.name}, {manifest.sae_sha256}",
        "hook point": manifest.hook_point,
        "shape": f"{manifest.d_model} to {manifest.num_latents}, {manifest.activation}",
        "measured with": f"telltale-llm {metadata.version('telltale-llm')}",
    }
    listed = "".join(f"<li>{escape(name)}: <code>{escape(value)}</code></li>" for name, value in facts.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(manifest.name)}</title>'
        f"<style>{PAGE_STYLE}</style><h1>{escape(manifest.name)}</h1><ul>{listed}</ul>"
        f"<h2>Held-out figures</h2>{figure_table(figures)}"
        "<p>Position 0 is left out of everything; cross-entropy and KL replace every other token.</p>"
        f"<h2>How often latents fire</h2>{parts[0]}<h2>How close decoder rows lie</h2>{parts[1]}"
        f"{geometry_words(geometry)}"
        + (f"<h2>On another form of the model</h2>{comparison_words(comparison)}{parts[2]}" if comparison else "")
        + "</html>"
    )


def figure_table(figures: dict[str, dict[str, float]]) -> str:
    """The figures as an HTML table, a column for each set."""
    head = "".join(f"<th>{escape(name)}</th>" for name in figures)
    rows = []
    for key, (words, pattern) in ROWS.items():
        if not any(key in of_set for of_set in figures.values()):
            continue
        cells = (pattern.format(of_set[key]) if key in of_set else "" for of_set in figures.values())
        rows.append(f"<tr><td>{words}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def plain(plot: go.Figure) -> go.Figure:
    """The plot on the page's own background, light or dark."""
    axis = {"gridcolor": "rgba(128,128,128,0.25)", "zerolinecolor": "rgba(128,128,128,0.5)"}
    plot.update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font_color=_GREY, height=340)
    plot.update_layout(margin={"l": 60, "r": 20, "t": 40, "b": 50})
    plot.update_xaxes(axis)
    plot.update_yaxes(axis)
    return plot


def density_plot(sums: dict[str, ReconstructionSums]) -> go.Figure:
    """Latents by density, one outline per set."""
    plot = go.Figure()
    for name, of_set in sums.items():
        histogram = of_set.density_histogram()
        middles = [(a + b) / 2 for a, b in pairwise(histogram.edges)]
        label = f"{name} ({histogram.num_dead} dead)"
        plot.add_scatter(x=[10**m for m in middles], y=histogram.counts, mode="lines", line_shape="hvh", name=label)
    plot.add_vline(x=DENSE, line_dash="dot", line_color=_GREY)
    # Where an axis is logarithmic, annotations have the logarithm for their place.
    plot.add_annotation(
        x=math.log10(DENSE), y=1, yref="paper", text="dense", xanchor="left", yanchor="bottom", showarrow=False
    )
    plot.update_layout(xaxis_title="share of tokens at which it is active", yaxis_title="latents")
    plot.update_xaxes(type="log")
    return plot


def cosine_plot(geometry: dict[str, Any]) -> go.Figure:
    """Each decoder row's largest cosine with another."""
    histogram = geometry["max_cosine_histogram"]
    middles = [(a + b) / 2 for a, b in pairwise(histogram["edges"])]
    plot = go.Figure(go.Bar(x=middles, y=histogram["counts"]))
    plot.update_layout(xaxis_title="largest cosine with another decoder row", yaxis_title="latents")
    return plot


def correlation_plot(comparison: dict[str, Any]) -> go.Figure:
    """Latents by how their readings on two forms of the model correlate."""
    edges, counts = comparison["correlation_histogram"]["edges"], comparison["correlation_histogram"]["counts"]
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    plot = go.Figure(go.Bar(x=middles, y=counts, width=edges[1] - edges[0]))
    plot.update_layout(xaxis_title="correlation of a latent's readings on the two", yaxis_title="latents")
    return plot


def comparison_words(comparison: dict[str, Any]) -> str:
    """The answer and what it rests on."""
    first, second = map(escape, comparison["models"])
    may = "may" if comparison["answer"]["may_be_served"] else "should not"
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in comparison["answer"]["reasons"])
    return f"<p>What was trained on <b>{first}</b> {may} be served on <b>{second}</b>:</p><ul>{reasons}</ul>"


def geometry_words(figures: dict[str, Any]) -> str:
    """What the cosines come to, in a sentence."""
    median = figures["max_cosine_quantiles"]["50%"]
    return (
        f"<p>Median {median:.2f}; random directions would give {figures['max_cosine_random_median']:.2f}. "
        f"{figures['twin_ratio']:.2%} of latents have a twin above 0.9.</p>"
    )
