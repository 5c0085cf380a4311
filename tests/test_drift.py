"""The last replies of a monitor against its calibration, held to counting everything anew."""

import random

import pytest
import tiny_packs

from monitors.drift import MIN_REPLIES, DriftWindow, FinishedReply, Reference
from monitors.errors import MonitorError
from monitors.pack import MonitorPack
from monitors.pack_parts import PackCalibration
from monitors.stability import bin_counts, expected_index, stability_index


def replies(generator, count, shift=0.0):
    made = []
    for _ in range(count):
        scores = [generator.gauss(shift, 1) for _ in range(generator.randint(5, 30))]
        made.append(FinishedReply("watcher", max(scores), scores))
    return made


def reference(generator, count=400):
    return Reference.of([(reply.statistic, reply.scores) for reply in replies(generator, count)])


def test_the_window_holds_the_last_replies_and_nothing_else():
    generator = random.Random(0)
    known = reference(generator)
    window, seen = DriftWindow(known, num_replies=250), replies(generator, 700, 0.3)
    for i, reply in enumerate(seen, start=1):
        window.add(reply)
        drift, last = window.drift(), seen[max(i - 250, 0) : i]
        assert drift.num_replies == len(last)
        if i % 50 == 0:
            of_replies = bin_counts(known.statistic.edges, [one.statistic for one in last])
            of_tokens = bin_counts(known.token_score.edges, [score for one in last for score in one.scores])
            enough = len(last) >= MIN_REPLIES
            assert drift.statistic == (stability_index(known.statistic.counts, of_replies) if enough else None)
            assert drift.token_score == (stability_index(known.token_score.counts, of_tokens) if enough else None)
            assert drift.expected == (expected_index(10, 400, len(last)) if enough else None)


def test_what_has_not_moved_stays_below_and_what_has_goes_above():
    generator = random.Random(1)
    known = reference(generator)
    still, moved = DriftWindow(known), DriftWindow(known)
    for one, other in zip(replies(generator, 500), replies(generator, 500, 0.8), strict=True):
        still.add(one)
        moved.add(other)
    assert still.drift().statistic < 0.1 and still.drift().token_score < 0.02
    assert moved.drift().statistic > 0.2 and moved.drift().token_score > 0.2


def test_a_pack_keeps_its_reference(tmp_path):
    known = reference(random.Random(2))
    calibration = PackCalibration(method="by_hand", source="A test.", figures={"reference": known.as_json()})
    tiny_packs.pack(calibration=calibration).save(tmp_path / "a.pack.yaml")
    assert MonitorPack.load(tmp_path / "a.pack.yaml").calibration.reference == known
    assert tiny_packs.pack().calibration.reference is None


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"statistic": {"edges": [1.0], "counts": [1]}}, "figures.reference.statistic.counts: wanted 2 counts, got 1"),
        ({"token_score": 3}, "figures.reference.token_score: wanted an object of two lists"),
        ({"more": 1}, "figures.reference: wanted an object of statistic and token_score"),
    ],
)
def test_a_broken_reference_is_refused_by_name(change, wanted):
    facts = reference(random.Random(2)).as_json() | change
    with pytest.raises(MonitorError, match=wanted):
        PackCalibration(method="by_hand", source="A test.", figures={"reference": facts})


def test_a_gate_that_is_shut_nearly_always_is_told_from_one_that_opens():
    """A cascade's score is the same number while its gate is shut."""
    generator = random.Random(3)

    def cascade(share_open):
        scores = [generator.gauss(2, 1) if generator.random() < share_open else -3.0 for _ in range(20)]
        return FinishedReply("watcher", max(scores), scores)

    known = Reference.of([(one.statistic, one.scores) for one in (cascade(0.002) for _ in range(600))])
    for share_open, has_moved in ((0.002, False), (0.1, True)):
        window = DriftWindow(known)
        for _ in range(400):
            window.add(cascade(share_open))
        drift = window.drift()
        assert (drift.statistic > 0.2, drift.token_score > 0.2) == (has_moved, has_moved)


def test_values_that_are_all_the_same_are_no_reference():
    assert Reference.of([(1.0, [1.0, 1.0])] * 5) is None
    assert Reference.of([]) is None
