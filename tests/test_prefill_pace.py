"""Prompts are read in chunks that take about as long as a decode pass, by the times that passes report."""

import numpy as np
import pytest

from service.prefill_pace import JUST_BEGUN, LEAST_TOKENS, SHARE, PrefillPace
from service.records import Phase, StepRecord


def record(phase: Phase, num_tokens: int, seconds: float) -> StepRecord:
    return StepRecord(phase, 1, num_tokens, num_tokens, seconds, None, 0, np.zeros((0, 0), dtype=np.float32))


LONG = 10**6
"""Unread tokens that fit into no chunk."""
OLD = 100
"""Tokens of a reply that has not only just begun."""


def pace(decode_seconds: float, seconds_per_token: float) -> PrefillPace:
    made = PrefillPace()
    for _ in range(3):
        made.observe(record(Phase.DECODE, 4, decode_seconds))
        made.observe(record(Phase.PREFILL, 50, 50 * seconds_per_token))
    return made


def test_a_chunk_takes_its_share_of_a_decode_pass():
    assert pace(0.02, 0.001).budget(256, LONG, OLD) == int(SHARE * 20)


def test_nobody_waits_for_a_token_then_the_limit_holds():
    assert pace(0.02, 0.001).budget(256, LONG, None) == 256


@pytest.mark.parametrize(
    ("decode_seconds", "limit", "wanted"), [(10.0, 64, 64), (0.001, 64, LEAST_TOKENS), (0.001, 4, 4)]
)
def test_there_is_a_most_and_a_least(decode_seconds, limit, wanted):
    assert pace(decode_seconds, 0.001).budget(limit, LONG, OLD) == wanted


def test_before_anything_is_known_it_begins_with_the_least():
    made = PrefillPace()
    assert made.budget(256, LONG, OLD) == LEAST_TOKENS
    made.observe(record(Phase.DECODE, 4, 0.02))
    assert made.budget(256, LONG, OLD) == LEAST_TOKENS


def test_it_follows_what_passes_take():
    """As attention over more and more positions makes prompts slower."""
    made = pace(0.02, 0.001)
    for _ in range(40):
        made.observe(record(Phase.PREFILL, 30, 30 * 0.002))
    assert made.budget(256, LONG, OLD) == pytest.approx(SHARE * 10, abs=1)


def test_the_rest_of_a_prompt_tells_nothing():
    """Of a few tokens most of the time is not theirs."""
    made = pace(0.02, 0.001)
    made.observe(record(Phase.PREFILL, LEAST_TOKENS - 1, 1.0))
    assert made.budget(256, LONG, OLD) == int(SHARE * 20)


@pytest.mark.parametrize(
    ("num_unread", "longest", "wanted"),
    [(256, 0, 256), (256, JUST_BEGUN, 256), (256, JUST_BEGUN + 1, int(SHARE * 20)), (257, 0, int(SHARE * 20))],
)
def test_requests_that_arrive_together_begin_together(num_unread, longest, wanted):
    """Not so the rest of a long prompt, which fits into a chunk as well."""
    assert pace(0.02, 0.001).budget(256, num_unread, longest) == wanted
