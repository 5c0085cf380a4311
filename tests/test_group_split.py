"""group_split: nothing that belongs together is on two sides, whatever else is there."""

import numpy as np
import pytest

from discovery.conversations import Conversation
from discovery.errors import MonitorLabError
from discovery.group_split import folds, group_digest, joined_groups, split_groups

LONG = "The Earth's atmosphere protects us from harmful radiation."


def said(group, text="Yes.", label=1, *, dataset="a", arm=""):
    messages = ({"role": "user", "content": "?"}, {"role": "assistant", "content": text})
    return Conversation(f"{group}-{text}-{label}", dataset, messages, 0, len(text), label, group, {"arm": arm})


def pairs(num, **fields):
    return [said(f"g{n}", label=label, **fields) for n in range(num) for label in (0, 1)]


def test_groups_with_the_same_long_text_are_one_and_short_answers_join_nothing():
    rows = [
        said("plain-1", LONG),
        said("system-1", f" {LONG} "),
        said("system-1", "And more."),
        said("other", "Yes."),
        said("another", "Yes."),
        said("plain-1", LONG, dataset="b"),
    ]
    assert joined_groups(rows) == ["a/plain-1"] * 3 + ["a/other", "a/another", "a/plain-1"]


def test_a_chain_of_texts_is_one_group():
    rows = [said("x", LONG + "1"), said("y", LONG + "1"), said("y", LONG + "2"), said("z", LONG + "2"), said("w")]
    assert joined_groups(rows) == ["a/x"] * 4 + ["a/w"]


def test_parts_are_whole_groups_of_about_the_shares():
    rows = pairs(400)
    groups = joined_groups(rows)
    split = split_groups(rows, groups, development_share=0.2, held_out_share=0.3)
    parts = [{groups[i] for i in part} for part in (split.train, split.development, split.held_out)]
    assert sorted(np.concatenate([split.train, split.development, split.held_out]).tolist()) == list(range(800))
    assert sum(map(len, parts)) == 400
    assert [round(len(part) / 400, 1) for part in parts] == [0.5, 0.2, 0.3]


def test_a_groups_part_does_not_depend_on_who_else_is_there():
    def held_out(rows, seed=0):
        split = split_groups(rows, joined_groups(rows), seed=seed)
        return {rows[i].group for i in split.held_out}

    few, many = pairs(40), pairs(200)
    assert held_out(few) == held_out(many) & {row.group for row in few}
    assert held_out(few, seed=1) != held_out(few)


@pytest.mark.parametrize(("dataset", "prefix"), [("\ud800", ""), ("a", "\ud800")])
def test_half_a_surrogate_in_a_name_is_split_like_any_other(dataset, prefix):
    """JSON can hold one, and so can a group that is read from it."""
    rows = [said(f"{prefix}g{n}", label=label, dataset=dataset) for n in range(60) for label in (0, 1)]
    split = split_groups(rows, joined_groups(rows))
    parts = [split.train, split.development, split.held_out]
    assert all(map(len, parts)) and sorted(np.concatenate(parts).tolist()) == list(range(120))


def test_arms_held_out_by_name_are_held_out_whatever_their_group():
    rows = [*pairs(60, arm="must"), *pairs(60, arm="reward")]
    split = split_groups(rows, joined_groups(rows), held_out_arms=["reward"])
    assert {rows[i].arm for i in (*split.train, *split.development)} == {"must"}
    assert {rows[i].arm for i in split.held_out} == {"must", "reward"}


@pytest.mark.parametrize(("development", "held_out"), [(0.5, 0.5), (0.0, 0.3), (0.2, -0.1)])
def test_shares_that_leave_nothing_are_refused(development, held_out):
    with pytest.raises(MonitorLabError, match=f"got {held_out} and {development}"):
        split_groups(pairs(9), ["g"] * 18, development_share=development, held_out_share=held_out)


def test_a_part_with_one_label_is_refused_by_name():
    rows = [said(f"g{n}", label=0) for n in range(50)]
    with pytest.raises(MonitorLabError, match=r"train groups must have both labels, got \[0\]"):
        split_groups(rows, joined_groups(rows))


def test_folds_are_whole_groups_and_cover_everything_once():
    rows = pairs(30)
    labels, groups = np.array([row.label for row in rows]), [row.group for row in rows]
    seen = []
    for fitting, validation in folds(labels, groups, 5, 0):
        assert not {groups[i] for i in fitting} & {groups[i] for i in validation}
        seen += validation.tolist()
    assert sorted(seen) == list(range(60))
    with pytest.raises(MonitorLabError, match="at least 40 training groups with label 0, got 30"):
        list(folds(labels, groups, 40, 0))


def test_a_groups_digest_says_the_set_too():
    assert group_digest("a/g") == group_digest("a/g") != group_digest("b/g")
    assert len(group_digest("a/\ud800")) == 12
