"""Tables, and a page with plots, of what `benchmarks.growth` measured.

    python -m benchmarks.growth --output growth.json
    python -m benchmarks.growth_table growth.json [--plot growth.html]

The last column is the exponent between a row and the one before it: 1 is growth in proportion, 0 none at all.
"""

import argparse
import json
import math
from itertools import groupby
from pathlib import Path
from typing import Any

AXES = ("tokens", "width", "documents")


def groups(rows: list[dict[str, Any]]) -> list[tuple[tuple[str, str], list[dict[str, Any]]]]:
    """(kind, axis) -> its rows, smallest first."""

    def key(row: dict[str, Any]) -> tuple[str, str]:
        return row["kind"], row["axis"]

    return [(name, sorted(group, key=lambda row: row[row["axis"]])) for name, group in groupby(rows, key)]


def exponent(before: dict[str, Any], row: dict[str, Any], field: str) -> float:
    """d log field / d log size between two rows."""
    axis = row["axis"]
    return math.log(max(row[field], 1e-9) / max(before[field], 1e-9)) / math.log(row[axis] / before[axis])


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| | grows | to | wall s | processor s | peak MiB | exponent: time, memory |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for (kind, axis), group in groups(rows):
        for index, row in enumerate(group):
            powers = (
                ""
                if index == 0
                else ", ".join(
                    f"{exponent(group[index - 1], row, field):.2f}" for field in ("processor_seconds", "peak_mib")
                )
            )
            lines.append(
                f"| {kind} | {axis} | {row[axis]:,} | {row['seconds']:.2f} | {row['processor_seconds']:.2f} "
                f"| {row['peak_mib']:,.0f} | {powers} |"
            )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """One page, both axes logarithmic: seconds above, memory below, a column for each axis."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(2, len(AXES), column_titles=list(AXES), row_titles=["processor seconds", "peak MiB"])
    for (kind, axis), group in groups(rows):
        for line, field in enumerate(("processor_seconds", "peak_mib"), start=1):
            figure.add_trace(
                go.Scatter(x=[row[axis] for row in group], y=[row[field] for row in group], name=f"{kind}, {axis}"),
                row=line,
                col=AXES.index(axis) + 1,
            )
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    figure.write_html(path, include_plotlyjs=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("growth", type=Path, help="what benchmarks.growth --output wrote")
    parser.add_argument("--plot", type=Path, help="also write a page with plots")
    args = parser.parse_args()
    rows = json.loads(args.growth.read_text())["rows"]
    if args.plot:
        plot(rows, args.plot)
    print(table(rows))


if __name__ == "__main__":
    main()
