"""Draws what `benchmarks.serving_growth` measured, a picture for each curve.

    python -m benchmarks.serving_growth_plots [--result benchmarks/results/serving_growth.json]

writes `serving_growth_CURVE.svg` beside the data. The same data give the same bytes. Needs matplotlib.
"""

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULT = Path(__file__).parent / "results" / "serving_growth.json"
LABELS = {
    "streams": "streams at once",
    "width": "latents of the dictionary",
    "watched": "watched features",
    "context": "positions at the end of the reply",
}
_GIB = 2**30


def draw(curve: str, rows: Sequence[dict[str, Any]]) -> str:
    """SVG: tokens per second and, beside it, memory, held and planned."""
    # No random ids, no date; and text as text, which no font on the machine changes.
    with matplotlib.rc_context({"svg.hashsalt": curve, "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        speed, memory = figure.subplots(1, 2)
        for num in sorted({row["streams"] for row in rows}) if curve != "streams" else [None]:
            drawn = [row for row in rows if num is None or row["streams"] == num]
            label = "all streams" if num is None else f"{num} stream" + ("s" if num > 1 else "")
            speed.plot(_values(drawn, "at"), _values(drawn, "tokens_per_second"), marker="o", label=label)
        most = max(row["streams"] for row in rows)
        drawn = [row for row in rows if curve == "streams" or row["streams"] == most]
        for name, label in (("held_bytes", "held"), ("planned_bytes", "planned")):
            memory.plot(_values(drawn, "at"), [row[name] / _GIB for row in drawn], marker="o", label=label)
        for axes, title in ((speed, "tokens/s"), (memory, "GiB")):
            _finish(axes, curve, title, _values(drawn, "at"))
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _values(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows]


def _finish(axes: Axes, curve: str, title: str, places: Sequence[float]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{round(place):,}" for place in places], fontsize=8)
    axes.minorticks_off()
    axes.set_ylim(0, 1.05 * axes.dataLim.ymax)
    axes.set_xlabel(LABELS[curve])
    axes.set_ylabel(title)
    axes.grid(alpha=0.3)
    axes.legend()


def path_of(curve: str, result: Path = RESULT) -> Path:
    return result.with_name(f"{result.stem}_{curve}.svg")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    figures = json.loads(args.result.read_text(encoding="utf-8"))
    for curve in LABELS:
        if curve in figures:
            path_of(curve, args.result).write_text(draw(curve, figures[curve]["points"]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
