"""Searching a journal: every filter against a plain loop over all alerts, and pages that nothing shifts."""

import itertools
import random
from datetime import timedelta

import pytest
from alerts import START, alert

from monitors.errors import JournalError
from monitors.journal import Journal
from monitors.journal_precision import precisions, wilson_interval
from monitors.journal_query import Filters, Place, page_token

MONITORS, LEVELS, STATES = ("deception", "stance"), ("info", "warning", "critical"), ("firing", "cleared")


def varied(num):
    """Alerts of every kind, some of them at the same time."""
    kinds = itertools.cycle(itertools.product(MONITORS, LEVELS, STATES))
    return [
        alert(number // 3, monitor=monitor, level=level, state=state, label="ab"[number % 2])
        for number, (monitor, level, state) in zip(range(num), kinds, strict=False)
    ]


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    rng = random.Random(0)
    with Journal.open(tmp_path_factory.mktemp("journal") / "alerts.sqlite") as journal:
        records = varied(48)
        journal.append(rng.sample(records, len(records)))  # in no order: what is forwarded comes late
        for record in records:
            if record.state == "firing" and rng.random() < 0.6:
                for _ in range(rng.randrange(1, 3)):
                    journal.review(record.id, verdict=rng.choice(("true", "false", "unsure")), reviewer="ann")
            if rng.random() < 0.3:
                journal.acknowledge(record.id, by="bob", note="seen")
        yield journal


FILTERS = [
    Filters(),
    Filters(monitors=("stance",)),
    Filters(monitors=MONITORS, levels=("warning", "critical")),
    Filters(states=("cleared",)),
    Filters(since=START + timedelta(seconds=4)),
    Filters(until=START + timedelta(seconds=4)),
    Filters(since=START + timedelta(seconds=2), until=START + timedelta(seconds=9), label="a"),
    Filters(request_id="request-3"),
    Filters(label="b", levels=("info",)),
    Filters(reviewed=True),
    Filters(reviewed=False, states=("firing",)),
    Filters(acknowledged=True),
    Filters(acknowledged=False, reviewed=True),
    Filters(verdict="true"),
    Filters(verdict="unsure", monitors=("deception",)),
    Filters(label="nobody's"),
]


def fits(found, filters):
    """The filters' meaning, spelt out."""
    record = found.record
    return all(
        (
            not filters.monitors or record.monitor in filters.monitors,
            not filters.levels or record.level in filters.levels,
            not filters.states or record.state in filters.states,
            filters.since is None or record.time >= filters.since,
            filters.until is None or record.time < filters.until,
            filters.request_id in (None, record.request_id),
            filters.label in (None, record.label),
            filters.reviewed in (None, bool(found.reviews)),
            filters.acknowledged in (None, bool(found.acknowledgements)),
            filters.verdict is None or (found.review is not None and found.review.verdict == filters.verdict),
        )
    )


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_a_filter_finds_what_a_loop_over_all_finds(journal, filters):
    everything = journal.reader.alerts(page_size=1000).alerts
    assert [found.record.time for found in everything] == sorted((f.record.time for f in everything), reverse=True)
    wanted = [found for found in everything if fits(found, filters)]
    assert list(journal.reader.alerts(filters, page_size=1000).alerts) == wanted
    assert list(journal.reader.all_alerts(filters)) == wanted
    assert (len(wanted) == 0) == (filters.label == "nobody's")


@pytest.mark.parametrize("page_size", [1, 7, 24, 48, 100])
def test_pages_have_every_alert_once_whatever_comes_in_meanwhile(tmp_path, page_size):
    records = varied(48)
    with Journal.open(tmp_path / "alerts.sqlite") as journal:
        journal.append(records)
        seen, token = [], ""
        for turn in itertools.count():
            page = journal.reader.alerts(page_size=page_size, token=token)
            seen += [found.record.id for found in page.alerts]
            journal.append([alert(1000 + turn)])  # newer than all
            if not (token := page.next_token):
                break
    assert sorted(seen) == sorted(record.id for record in records)


def test_a_token_of_another_list_is_refused(journal):
    token = journal.reader.alerts(Filters(label="a"), page_size=3).next_token
    later = Filters(label="a", since=START)  # "since" is often so and so long ago, which moves on from page to page
    assert journal.reader.alerts(later, page_size=5, token=token).alerts
    far = page_token(Filters(), Place(10**30, "x"))  # a token can be made up: its fingerprint is no secret
    wrong_ones = [(Filters(label="b"), token), *((Filters(), wrong) for wrong in ("x", "W10", token[:-4], far))]
    for filters, wrong in wrong_ones:
        with pytest.raises(JournalError, match="page_token: wanted the next_page_token of a list with the same"):
            journal.reader.alerts(filters, token=wrong)
    with pytest.raises(JournalError, match="page_size: wanted 1 to 1000, got 0"):
        journal.reader.alerts(page_size=0)


@pytest.mark.parametrize("label", ["with a \0", "half of a pair: \udc80"])
def test_a_label_is_found_by_the_text_that_was_given_even_if_no_column_can_hold_it(tmp_path, label):
    with Journal.open(tmp_path / "alerts.sqlite") as journal:
        journal.append([odd := alert(label=label), alert(1)])
        assert [found.record.id for found in journal.reader.alerts(Filters(label=label)).alerts] == [odd.id]
        assert journal.reader.alerts(Filters(monitors=(label,))).alerts == ()
        assert journal.reader.find(label) is None


# What is said of alerts


def test_what_is_said_of_an_alert_comes_with_it(tmp_path):
    record = alert()
    with Journal.open(tmp_path / "alerts.sqlite") as journal:
        journal.append([record, alert(1)])
        journal.acknowledge(record.id, by="bob", note="looking")
        for verdict in ("unsure", "false"):
            journal.review(record.id, verdict=verdict, reviewer="ann", note=f"{verdict}!")
        found = journal.reader.find(record.id)
        assert found is not None and found.record == record and found.seq == 1
        assert [(said.by, said.note) for said in found.acknowledgements] == [("bob", "looking")]
        assert [(said.verdict, said.note) for said in found.reviews] == [("unsure", "unsure!"), ("false", "false!")]
        assert found.review is found.reviews[-1] and found.review.pack_sha256 == record.pack.sha256
        assert journal.reader.find("nobody") is None
        (result,) = journal.reader.verify()
    assert result.holds and result.num_rows == 5


def test_only_an_alert_that_fired_can_be_reviewed(tmp_path):
    cleared = alert(state="cleared")
    with Journal.open(tmp_path / "alerts.sqlite") as journal:
        journal.append([cleared])
        with pytest.raises(JournalError, match="alert_id: wanted an alert that fired"):
            journal.review(cleared.id, verdict="true", reviewer="ann")
        for say in (journal.acknowledge, journal.review):
            with pytest.raises(JournalError, match="alert_id: wanted the id of an alert in this journal, got 'x'"):
                say("x", **({"by": "ann"} if say == journal.acknowledge else {"verdict": "true", "reviewer": "ann"}))
        journal.acknowledge(cleared.id, by="ann")


def test_precision_counts_the_last_verdict_of_each_alert(journal):
    wanted = {}
    for found in journal.reader.all_alerts(Filters(reviewed=True)):
        counts = wanted.setdefault(found.record.monitor, {"true": 0, "false": 0, "unsure": 0})
        counts[found.reviews[-1].verdict] += 1
    measured = precisions(journal.reader.reviews())
    got = {p.monitor: {"true": p.num_true, "false": p.num_false, "unsure": p.num_unsure} for p in measured}
    assert got == wanted
    for each in measured:
        assert each.precision == each.num_true / (each.num_true + each.num_false)
        assert each.interval == wilson_interval(each.num_true, each.num_true + each.num_false)


@pytest.mark.parametrize(
    ("num_true", "num", "interval"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_the_interval_is_wilsons(num_true, num, interval):
    assert wilson_interval(num_true, num) == pytest.approx(interval, abs=5e-5)
    mirrored = wilson_interval(num - num_true, num)
    assert mirrored == pytest.approx((1 - interval[1], 1 - interval[0]), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)
