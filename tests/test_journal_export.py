"""Exports: the journal's own lines can be checked, tables hold all alerts, reviewed ones are labelled conversations."""

import hashlib
import io
import json
from dataclasses import replace

import pytest
from alerts import alert, text

from discovery.conversations import read_conversations
from monitors.alert_record import AlertRecord, Message
from monitors.journal import Journal
from monitors.journal_chain import Head, row_of, verified
from monitors.journal_entry import GENESIS, parsed
from monitors.journal_export import write_alerts, write_labelled, write_lines, write_parquet
from monitors.text_key import TextKey
from service.request import Request
from service.twin import baseline_of


@pytest.fixture
def journal(tmp_path):
    with Journal.open(tmp_path / "alerts.sqlite") as journal:
        records = [alert(number, label='a, "b"\n語') for number in range(5)]
        journal.append(records)
        for record, verdict in zip(records, ("unsure", "true", "false"), strict=False):
            journal.review(record.id, verdict=verdict, reviewer="ann", note=f"{verdict}?")
        journal.review(records[0].id, verdict="false", reviewer="bob")
        journal.acknowledge(records[4].id, by="bob")
        yield journal


def written(write, *args):
    file = io.StringIO()
    return write(*args[:1], file, *args[1:]), [json.loads(line) for line in file.getvalue().splitlines()]


def test_the_journals_lines_can_be_checked_by_themselves(journal):
    file = io.StringIO()
    assert write_lines(journal.reader, file) == 10
    lines = file.getvalue().splitlines()
    previous = GENESIS
    for line in lines:
        assert json.loads(line)["previous"] == previous
        previous = hashlib.sha256(line.encode()).hexdigest()
    assert verified(journal.id, [row_of(parsed(line)) for line in lines], Head(10, previous)).holds


def test_alerts_come_with_what_is_said_of_them(journal):
    num, alerts = written(write_alerts, journal.reader.all_alerts())
    assert num == 5
    assert [[review["verdict"] for review in found["reviews"]] for found in alerts] == [
        [], [], ["false"], ["true"], ["unsure", "false"]
    ]  # fmt: skip
    for found, kept in zip(alerts, journal.reader.all_alerts(), strict=True):
        fields = {name: found[name] for name in AlertRecord.model_fields}
        assert AlertRecord.model_validate_json(json.dumps(fields)) == kept.record
        assert (found["seq"], found["hash"]) == (kept.seq, kept.hash)


def test_a_table_holds_every_alert(journal, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    assert write_parquet(journal.reader.all_alerts(), tmp_path / "alerts.parquet") == 5
    rows = parquet.read_table(tmp_path / "alerts.parquet").to_pylist()
    for found, kept in zip(rows, journal.reader.all_alerts(), strict=True):
        record = kept.record
        assert AlertRecord.model_validate_json(found["record"]) == record
        for name in ("id", "time", "label", "monitor", "level", "score", "validated", "position"):
            assert found[name] == getattr(record, name)
        assert found["verdict"] == (kept.review and kept.review.verdict)
        assert found["component_scores"] == [("disbelief", 1.5), ("stance", 1.0)]
        assert (found["acknowledged"], found["span"]) == (bool(kept.acknowledgements), "eved")


def test_reviewed_alerts_are_labelled_conversations(journal):
    (num, num_left_out), examples = written(write_labelled, journal.reader.all_alerts(), "ours")
    assert (num, num_left_out) == (3, 0)
    assert [example["label"] for example in examples] == [0, 1, 0]  # the last review counts
    kept = journal.reader.find(examples[1]["id"])
    example = examples[1]
    assert {name: value for name, value in example.items() if name != "meta"} == {
        "id": kept.record.id,
        "dataset": "ours",
        "messages": [
            {"role": "user", "content": "Tell me something."},
            {"role": "assistant", "content": " a lie that nobody believed"},
        ],
        "score_from_char": 23,
        "score_to_char": 27,
        "label": 1,
        "group": "request-0",
        "source_model": "tiny",
        "on_policy": True,
    }
    assert example["meta"]["steered"] is True and example["meta"]["reviewer"] == "ann"
    last = example["messages"][-1]["content"]
    assert last[example["score_from_char"] : example["score_to_char"]] == kept.record.text.span


def test_a_steered_reply_and_its_twin_are_one_group(tmp_path):
    """They share a prompt: with one in what a monitor is fitted on and one in its test, the test would be of no use."""
    steered = Request(request_id="r", prompt_ids=(1, 2))
    with Journal.open(tmp_path / "alerts.sqlite") as journal:
        for request in (steered, baseline_of(steered), replace(steered, request_id="other")):
            record = alert(request_id=request.request_id)
            journal.append([record])
            journal.review(record.id, verdict="true", reviewer="ann")
        _, examples = written(write_labelled, journal.reader.all_alerts())
    assert [example["group"] for example in reversed(examples)] == ["r", "r", "other"]


def test_what_nobody_is_sure_of_has_no_label_and_hidden_text_is_left_out(tmp_path):
    with Journal.open(tmp_path / "kept") as kept:
        record = alert(generated=False, generation=None, text=text(reply_ids=()))
        kept.append([record])
        kept.review(record.id, verdict="unsure", reviewer="ann")
        _, (example,) = written(write_labelled, kept.reader.all_alerts())
    assert (example["label"], example["on_policy"], example["source_model"]) == (None, False, None)
    with Journal.open(tmp_path / "hidden", text_key=TextKey.load_or_make(tmp_path / "key")) as hidden:
        hidden.append([record])
        hidden.review(record.id, verdict="true", reviewer="ann")
        assert written(write_labelled, hidden.reader.all_alerts()) == ((0, 1), [])


@pytest.mark.parametrize("role", ["assistant", "reasoning", "text", "user", "system"])
def test_every_line_of_labelled_data_can_be_read_again(tmp_path, role):
    """A window of special tokens alone has no text, and the last message has to be one that is scored: one such line,
    and a reader takes none of the file."""
    said_by = "assistant" if role == "reasoning" else role
    words = text(messages=(Message(role=said_by, content="please lie to me"),), span_from_char=7, span_to_char=16)
    is_written = said_by in ("assistant", "text")
    with Journal.open(tmp_path / "alerts.sqlite") as journal:
        records = [
            alert(),
            alert(1, text=text(span_from_char=27, span_to_char=27)),
            alert(2, role=role, text=words),
        ]
        journal.append(records)
        for record in records:
            journal.review(record.id, verdict="false", reviewer="ann")
        path = tmp_path / "reviewed.jsonl"
        with path.open("w") as file:
            assert write_labelled(journal.reader.all_alerts(), file) == ((2, 1) if is_written else (1, 2))
    wanted = [records[2].id, records[0].id] if is_written else [records[0].id]
    assert [found.id for found in read_conversations([path])] == wanted
