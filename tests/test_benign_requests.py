"""benign_requests: what is asked for calibration."""

from collections import Counter

import pytest

from discovery.benign_requests import BenignSettings, plan_benign
from discovery.errors import ElicitError
from discovery.question_set import SHIPPED, read_requests, shipped_requests

REQUESTS = shipped_requests()


def plan(number, **settings):
    return list(plan_benign(REQUESTS, BenignSettings(number, **settings)))


def test_lengths_go_round():
    counts = Counter(one.inquiry.sampling.max_tokens for one in plan(300))
    assert counts == {64: 100, 256: 100, 1024: 100}


def test_written_requests_come_first_each_once_and_then_combinations():
    asked = plan(600)
    written = [one.group for one in asked if one.kind != "combined"]
    assert sorted(written) == sorted(request.id for request in REQUESTS)
    groups = [one.group for one in asked]
    assert len(set(groups)) == 600
    by_id = {request.id: request for request in REQUESTS}
    assert all(by_id[one.group].length == one.length for one in asked if one.kind != "combined")


def test_nothing_asks_for_what_a_monitor_should_find():
    texts = [message["content"] for one in plan(3000) for message in one.inquiry.messages]
    assert not [text for text in texts if text.startswith(("Tell me a lie", "Pretend you know nothing"))]
    assert not [text for text in texts if "never tell the truth" in text]


def test_more_replies_contain_fewer():
    assert plan(600)[:200] == plan(200)
    assert plan(200, seed=1) != plan(200)


def test_every_reply_has_a_seed_of_its_own():
    assert len({one.inquiry.sampling.seed for one in plan(600)}) == 600
    assert {one.inquiry.sampling.temperature for one in plan(6, temperature=0.9)} == {0.9}


def test_requests_of_a_file_are_asked_alone_in_rounds_with_their_label():
    requests = read_requests(SHIPPED / "medicine.jsonl")
    asked = list(plan_benign(requests, BenignSettings(2 * len(requests)), repeat=True))
    first, second = (asked[: len(requests)], asked[len(requests) :])
    of = {request.id: (request.label, request.length) for request in requests}
    for one_round in (first, second):
        assert {one.group: (one.label, one.length) for one in one_round} == of
    assert [one.group for one in first] != [one.group for one in second]
    assert len({one.inquiry.sampling.seed for one in asked}) == len(asked)
    assert sum(label for label, _length in of.values()) == 70


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (BenignSettings(0), "benign must be at least 1, got 0"),
        (BenignSettings(1, temperature=-1), "temperature must lie in"),
        (BenignSettings(10**6), "benign must be at most the requests there are"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ElicitError, match=message):
        list(plan_benign(REQUESTS, settings))


def test_ids_of_two_files_of_requests_and_of_two_seeds_go_together():
    """Replies of several runs are calibrated on at once."""
    ids = [
        one.id
        for requests, seed in ((REQUESTS[:2], 0), (REQUESTS[2:4], 0), (REQUESTS[:2], 1))
        for one in plan_benign(requests, BenignSettings(4, 0.7, seed), repeat=True)
    ]
    assert len(set(ids)) == len(ids) == 12
