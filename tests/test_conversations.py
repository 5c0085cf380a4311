"""conversations: what is read, what is refused, and with which words."""

import gzip
import json

import pytest

from discovery.conversations import by_dataset, read_conversations, require_both_labels
from discovery.errors import LabelledDataError

PROMPT = {"role": "user", "content": "Who?"}


def record(**changes):
    made = {
        "id": "a-1",
        "dataset": "a",
        "messages": [PROMPT, {"role": "assistant", "content": "It was me."}],
        "score_from_char": 3,
        "score_to_char": 6,
        "label": 1,
        "group": "g",
        "source_model": "somebody",
        "on_policy": True,
        "meta": {"class": "lie", "arm": "must"},
    }
    return {key: value for key, value in (made | changes).items() if value != "absent"}


def write(path, *records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def test_a_record_is_read_as_it_is(tmp_path):
    (read,) = read_conversations([write(tmp_path / "a.jsonl", record())])
    assert (read.id, read.dataset, read.label, read.full_group) == ("a-1", "a", 1, "a/g")
    assert (read.class_name, read.arm, read.scored_text) == ("lie", "must", "was")
    assert read.meta["source_model"] == "somebody" and read.meta["on_policy"] is True


def test_what_is_left_out_has_a_default(tmp_path):
    rest = {"messages": record()["messages"], "label": 0, "unknown": 1}
    path = tmp_path / "b.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n" + json.dumps(rest) + "\n")
    (read,) = read_conversations([path])
    assert (read.id, read.dataset, read.scored_text) == ("b-2", "b", "It was me.")
    assert read.class_name == read.arm == ""


def test_without_a_group_those_with_the_same_prompt_are_one(tmp_path):
    def said(number, question, answer):
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return record(id=str(number), group="absent", messages=messages, score_to_char=None)

    rows = [said(1, "Who?", "It was me."), said(2, "Who?", "It was you."), said(3, "What?", "It was me.")]
    text = record(id="t", group=None, messages=[{"role": "text", "content": "It was me."}])
    groups = [read.group for read in read_conversations([write(tmp_path / "a.jsonl", *rows, text)])]
    assert groups[0] == groups[1] != groups[2] and groups[3] == "t"


def test_null_labels_are_left_out_whatever_their_range(tmp_path):
    path = write(tmp_path / "a.jsonl", record(label=None, score_to_char=99), record(id="2"))
    assert [read.id for read in read_conversations([path])] == ["2"]


def test_sets_are_told_apart_within_a_file_and_across_files(tmp_path):
    one = write(tmp_path / "one.jsonl", record(), record(id="2", dataset="b"))
    two = write(tmp_path / "two.jsonl", record(id="3"), record(id="2", dataset="c"))
    assert by_dataset(read_conversations([one, two])) == {"a": [0, 2], "b": [1], "c": [3]}


SAID = {"role": "assistant", "content": "No."}
WRONG = [
    (record(score_from_char=6), "line 2: 0 <= score_from_char < score_to_char <= 10.* got 6 and 6"),
    (record(score_to_char=11), "line 2: .* got 3 and 11"),
    (record(score_from_char=-1), "line 2: .* got -1 and 6"),
    (record(score_from_char="3"), "line 2: score_from_char must be a whole number of characters, got '3'"),
    (record(score_from_char=10, score_to_char="absent"), "line 2: .* got 10 and 10"),
    (record(messages=[PROMPT, SAID | {"content": ""}]), "line 2: .* <= 0, the last message's characters"),
    (record(label=2), "line 2: label must be 1, 0 or null, got 2"),
    (record(label=True), "line 2: label must be 1, 0 or null, got True"),
    (record(label="absent"), "line 2: label must be 1, 0 or null, got nothing"),
    (record(messages="absent"), "line 2: messages must be a list of messages with role and content, got nothing"),
    (record(messages=[]), r"line 2: messages must be messages, got \[\]"),
    (record(messages=[1, 2]), "line 2: messages must be messages with a role and a content, got token ids"),
    (record(messages=[PROMPT, "No."]), "line 2: messages must be messages with a role and a content, got 'No.' at 1"),
    (
        record(messages=[PROMPT, {"role": "robot", "content": "No."}]),
        "line 2: messages.1.role must be .*'robot'",
    ),
    (record(messages=[SAID, PROMPT]), "line 2: messages.1.role must be assistant or text, .* got 'user'"),
    (record(messages=[PROMPT, {"role": "text", "content": "No."}]), "line 2: a message of role text must stand alone"),
    (record(messages=[PROMPT, SAID | {"content": "\ud800 me"}]), "line 2: messages must be text in Unicode"),
    (record(dataset="a\ud800"), "line 2: dataset must be text in Unicode, got a lone surrogate at character 1"),
    (record(meta={"arm": "\ud800"}), "line 2: meta.arm must be text in Unicode, got a lone surrogate at character 0"),
    (record(meta=[]), r"line 2: meta must be an object, got \[\]"),
    (record(id="1"), "line 2: id must be unique in its data set, got '1' as in .*bad.jsonl, line 1"),
    ('{"label": 1', "line 2, must be JSON"),
    ("[1]", "line 2, must be a JSON object, got list"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG, ids=[words[:60] for _, words in WRONG])
def test_what_is_wrong_is_named_with_file_and_line(tmp_path, wrong, words):
    if isinstance(wrong, dict) and wrong.get("label") in (1, 0) and wrong["id"] != "1":
        wrong = wrong | {"id": "2"}
    with pytest.raises(LabelledDataError, match=rf"bad\.jsonl, {words}"):
        read_conversations([write(tmp_path / "bad.jsonl", record(id="1"), wrong)])


def test_a_file_without_a_label_is_named(tmp_path):
    with pytest.raises(LabelledDataError, match=r"none\.jsonl must have conversations with label 1 or 0, got none"):
        read_conversations([write(tmp_path / "none.jsonl", record(label=None))])


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LabelledDataError, match=r"gone\.jsonl can't be read"):
        read_conversations([tmp_path / "gone.jsonl"])


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_is_refused(tmp_path, label):
    read = read_conversations([write(tmp_path / "a.jsonl", record(label=label))])
    with pytest.raises(LabelledDataError, match=f"the file must have .*, got none with label {1 - label} "):
        require_both_labels(read, "the file")
    require_both_labels([*read, *read_conversations([write(tmp_path / "b.jsonl", record(label=1 - label))])], "both")
