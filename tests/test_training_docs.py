"""docs/training.md says what was measured."""

import json
from pathlib import Path

import pytest

from benchmarks import growth_table
from benchmarks.peers.training import table

PAGE = Path(__file__).parents[1] / "docs" / "training.md"


MAKERS = [table.with_tables, growth_table.with_tables]


@pytest.mark.parametrize("with_tables", MAKERS)
def test_the_page_has_the_tables_of_the_results_as_they_are_now(with_tables):
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page) == page, "run `make docs`"


@pytest.mark.parametrize("with_tables", MAKERS)
def test_a_page_without_markers_is_refused(with_tables):
    with pytest.raises(ValueError, match="must hold the lines"):
        with_tables("# Training\n")


def test_each_benchmark_has_its_table(tmp_path):
    """Whatever has been run is shown; of a file with several lines the last one."""
    speed = {"plain": 300, "decoder": 400, "harvest": 900}
    ratios = {"harvest_to_plain_speed_ratio": 3.0, "harvest_to_decoder_speed_ratio": 2.25}
    harvest = {"tokens": 6402, "tokens_per_second": speed, **ratios}
    crossover = {"rows": [{"active_share": 1 / 16, "dense": 0.5, "sparse": 0.25}]}
    (tmp_path / "harvest.json").write_text(json.dumps(harvest) + "\n")
    (tmp_path / "sparse_crossover.json").write_text("1/16 dense 0.5\n" + json.dumps(crossover) + "\n")
    page = growth_table.with_tables(f"{growth_table.TABLE_BEGIN}\n{growth_table.TABLE_END}\n", tmp_path)
    assert "| prefill of 6,402 tokens |" in page and "sorted" not in page
    assert "| the same without logits | 400 | 2.25 |" in page
    assert "| 1/16 | 0.50 | 0.25 |" in page
    assert "exponent" not in page
