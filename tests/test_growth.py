"""benchmarks.growth: every kind of work can be done at any size, and the table says how it grows."""

import pytest

from benchmarks import growth, growth_table
from benchmarks.growth import Size


@pytest.mark.parametrize("kind", ["train", "evaluate", "examples", "search"])
def test_each_work_is_done(kind):
    figures = growth.measure(Size(kind, "tokens", tokens=2048, width=128, documents=40 if kind == "search" else 4))
    assert figures.seconds > 0
    assert figures.peak_mib >= figures.before_mib > 0


def test_all_text_is_measured():
    size = Size("examples", "tokens", tokens=3 * 8192 + 512, width=64, documents=49)
    pieces = list(growth.pieces_of(size))
    assert sum(len(piece.resid_ND) for piece in pieces) == size.tokens
    assert len({document for piece in pieces for document in piece.documents_N.tolist()}) == 49


def test_sizes_go_along_each_axis():
    made = growth.sizes([8192, 131072], 1.0)
    tokens = {size.tokens for size in made if size.kind == "harvest" and size.axis == "tokens"}
    assert max(tokens) == 10 * min(tokens)
    assert {size.width for size in made if size.kind == "train" and size.axis == "width"} == {8192, 131072}
    documents = {size.documents for size in made if size.kind == "search" and size.axis == "documents"}
    assert max(documents) == 10 * min(documents)
    assert {size.kind for size in made} == set(growth.WORK)


def row(axis, **fields):
    return {
        "kind": "train",
        "axis": axis,
        "tokens": 100,
        "width": 8,
        "documents": 1,
        "seconds": 1.0,
        "processor_seconds": 2.0,
        "peak_mib": 500,
    } | fields


def test_the_table_has_exponents_within_an_axis_alone():
    rows = [row("tokens"), row("tokens", tokens=1000, processor_seconds=20.0), row("width", width=8)]
    lines = growth_table.table(rows).splitlines()[2:]
    assert [line.split("|")[-2].strip() for line in lines] == ["", "1.00, 0.00", ""]
    assert "| 1,000 | 1.00 | 20.00 | 500 |" in lines[1]


def test_the_page_of_plots_needs_no_network(tmp_path):
    path = tmp_path / "growth.html"
    growth_table.plot([row("tokens"), row("tokens", tokens=1000)], path)
    page = path.read_text()
    assert "train, tokens" in page
    assert '<script src="http' not in page
