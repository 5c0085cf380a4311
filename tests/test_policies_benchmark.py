"""benchmarks.policies: what is measured is what it says, and the page shows what was measured."""

from pathlib import Path

import pytest
from serving import connect, serving

from benchmarks import policies, policies_table
from benchmarks.policies import Measured, summarize
from service.client_request import Policy

PAGE = Path(__file__).parents[1] / "docs" / "monitors.md"


def of(first, between, throughput):
    return Measured(first, between, throughput)


def test_ratios_are_to_the_replies_beside_it():
    beside = [of(1.0, 0.1, 10.0), of(2.0, 0.1, 8.0), of(1.0, 0.1, 9.0)]
    pairs = list(zip([of(2.0, 0.1, 5.0), of(6.0, 0.2, 8.0), of(4.0, 0.1, 9.0)], beside, strict=True))
    row = summarize("hold", 4, pairs)
    assert (row["first_ratio"], row["between_ratio"]) == ([2.0, 3.0, 4.0], [1.0, 1.0, 2.0])
    assert row["throughput_ratio"] == [0.5, 1.0, 1.0]
    assert (row["first_ms"], row["tokens_per_second"]) == (4000.0, 8.0)


async def test_every_policy_leaves_every_token():
    async with serving() as server, connect(server) as client:
        renamed = {"first": "never", "second": "never"}
        measured = await policies.measure(client, [Policy(monitor=renamed["first"], action="stop")], 2, 6)
        assert measured.first_seconds > 0 and measured.tokens_per_second > 0
        with pytest.raises(AssertionError, match="a policy fired"):
            await policies.measure(client, [Policy(monitor="always", action="stop")], 1, 6)


def test_plain_replies_are_among_what_is_measured():
    measured = policies.policies()
    assert measured["none"] == []
    assert {policy.action for group in measured.values() for policy in group} == {"annotate", "stop", "steer"}
    assert sum(policy.hold is not None for group in measured.values() for policy in group) == 4


def test_the_page_shows_what_was_measured():
    page = PAGE.read_text(encoding="utf-8")
    assert policies_table.with_table(page) == page
    with pytest.raises(ValueError, match="page must hold the lines"):
        policies_table.with_table("no markers")


def test_without_a_result_the_page_says_so(tmp_path):
    page = policies_table.with_table(PAGE.read_text(encoding="utf-8"), tmp_path / "none.json")
    assert "Nothing has been measured yet." in page
