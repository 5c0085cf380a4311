"""One HTML page of a search: FVU against L0 with the Pareto front, each trial's way there, and the table.

Self-contained: plotly's script is in the page, which opens without a network.
"""

import math
from html import escape
from importlib import metadata
from typing import Any

import plotly.graph_objects as go
from plotly.io import to_html

from discovery.evaluation_report import PAGE_STYLE, PLOT_CONFIG, plain
from discovery.tune_ledger import COMPLETED, FAILED, STOPPED, Row, best_of
from discovery.tune_search import Search
from discovery.tune_table import ranked, train_command

PAGE_FILE = "index.html"

_SYMBOLS = {COMPLETED: "circle", STOPPED: "x-thin-open"}
_GREY = "#888"


def render(search: Search, rows: list[Row]) -> str:
    """The page."""
    plots = [front_plot(search, rows), history_plot(search, rows)]
    parts = [
        to_html(plain(plot), full_html=False, include_plotlyjs=number == 0, config=PLOT_CONFIG, div_id=name)
        for number, (name, plot) in enumerate(zip(("front", "history"), plots, strict=True))
    ]
    name, best = escape(search.folder.name), best_of(rows)
    command = f"<pre>{escape(train_command(search, search.plans[best.number]))}</pre>" if best else "<p>None yet.</p>"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title><link rel="icon" href="data:,">'
        f"<style>{PAGE_STYLE} pre {{ white-space: pre-wrap; }}</style><h1>{name}</h1>{_facts(search, rows)}"
        "<h2>FVU against L0</h2><p>At each trial's last report, on residuals that no trial was trained on. The line is "
        "the Pareto front: no completed trial explains more with as few latents. Crosses were stopped early.</p>"
        f"{parts[0]}<h2>How each trial got there</h2>{parts[1]}"
        f"<h2>Best recipe</h2>{command}<h2>Trials</h2>{result_table(search, rows)}</html>"
    )


def _facts(search: Search, rows: list[Row]) -> str:
    settings = search.settings
    counts = {status: sum(row.status == status for row in rows) for status in dict.fromkeys(row.status for row in rows)}
    facts = {
        "trials": ", ".join(f"{count} {status}" for status, count in counts.items()),
        "searched": "; ".join(settings.space),
        "the same for all": ", ".join(f"{name}={value}" for name, value in settings.fixed.items()) or "defaults",
        "recipe": settings.activation,
        "made small": search.objective.words(),
        "scheduler": f"{settings.scheduler}, {settings.reports} reports a trial",
        "trained on": ", ".join(settings.sources),
        "measured on": f"{', '.join(settings.validation)}, up to {settings.validation_tokens:,} tokens",
        "made with": f"telltale-llm {metadata.version('telltale-llm')}",
    }
    return "<ul>" + "".join(f"<li>{escape(k)}: <code>{escape(v)}</code></li>" for k, v in facts.items()) + "</ul>"


def front_plot(search: Search, rows: list[Row]) -> go.Figure:
    """FVU and L0 of every trial that has reported; the first searched field as colour."""
    plot = go.Figure()
    field = next(iter(search.plans[0].fields), "")
    for status in (STOPPED, COMPLETED):
        shown = [row for row in rows if row.status == status]
        if shown:
            _add_trials(plot, shown, status, field)
    front = sorted((row.last.l0, row.last.fvu) for row in rows if row.is_on_front and row.last is not None)
    if front:
        xs, ys = zip(*front, strict=True)
        plot.add_scatter(x=xs, y=ys, mode="lines", line={"shape": "hv", "dash": "dot"}, name="Pareto front")
    if search.objective.name == "fvu" and search.objective.l0_limit:
        limit = search.objective.l0_limit
        plot.add_vline(x=limit, line={"dash": "dash", "color": _GREY})
        # On a logarithmic axis an annotation, unlike a line, is placed by the logarithm.
        plot.add_annotation(x=math.log10(limit), y=1, yref="paper", text="limit", showarrow=False, xanchor="left")
    plot.update_xaxes(type="log", title="L0: active latents per token")
    plot.update_yaxes(type="log", title="FVU: share of variance unexplained")
    plot.update_layout(legend={"orientation": "h", "y": 1.1})
    return plot


def _add_trials(plot: go.Figure, rows: list[Row], status: str, field: str) -> None:
    lasts = [row.last for row in rows if row.last is not None]
    values = [row.fields.get(field) for row in rows]
    marker: dict[str, Any] = {"size": 11, "symbol": _SYMBOLS[status], "color": _GREY, "line": {"width": 1}}
    if status == COMPLETED and all(isinstance(value, int | float) for value in values):
        marker |= {"color": values, "colorscale": "Viridis", "colorbar": {"title": {"text": field.replace("_", " ")}}}
    plot.add_scatter(
        x=[last.l0 for last in lasts],
        y=[last.fvu for last in lasts],
        mode="markers",
        marker=marker,
        name=status,
        text=[_words(row) for row in rows],
        hovertemplate="%{text}<br>FVU %{y:.4f}, L0 %{x:.1f}<extra></extra>",
    )


def _words(row: Row) -> str:
    fields = "<br>".join(escape(f"{name} {value}") for name, value in row.fields.items())
    return f"trial {row.number}<br>{fields}"


def history_plot(search: Search, rows: list[Row]) -> go.Figure:
    """The objective over tokens, a line a trial; grey ones were stopped."""
    plot = go.Figure()
    for row in rows:
        if row.reports:
            plot.add_scatter(
                x=[report.tokens for report in row.reports],
                y=[report.score for report in row.reports],
                mode="lines+markers",
                line={} if row.status == COMPLETED else {"color": _GREY, "width": 1},
                name=f"trial {row.number}",
                text=[_words(row)] * len(row.reports),
                hovertemplate="%{text}<br>%{y:.4f} after %{x} tokens<extra></extra>",
            )
    plot.update_xaxes(title="tokens trained on")
    plot.update_yaxes(type="log", title=search.objective.words())
    return plot


def result_table(search: Search, rows: list[Row]) -> str:
    """Best first, as HTML."""
    fields = list(search.plans[0].fields)
    heads = ["trial", *(name.replace("_", " ") for name in fields), "state", "reports", "score", "FVU", "L0", "silent"]
    lines = []
    for row in ranked(rows):
        last = row.last
        figures = (
            [f"{last.score:.4f}", f"{last.fvu:.4f}", f"{last.l0:.1f}", f"{last.dead_ratio:.2%}"] if last else [""] * 4
        )
        state = f"{row.status}: {row.error}" if row.status == FAILED else row.status
        cells = [row.number, *(row.fields[name] for name in fields)]
        cells += [state + (", on the front" if row.is_on_front else ""), len(row.reports), *figures]
        lines.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"
