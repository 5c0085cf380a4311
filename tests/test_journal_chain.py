"""The chain: what was written verifies, and whatever is done to a row is found, at the first row it was done to."""

import hashlib
import itertools
import json
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from alerts import START, alert, text
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors.alert_record import AlertRecord, Message
from monitors.canonical_json import sha256_of
from monitors.errors import JournalError
from monitors.journal_chain import EMPTY, Fault, Head, NotedHead, Row, row_of, verified
from monitors.journal_entry import GENESIS, Acknowledgement, Entry, Retention, Review, parsed, written
from monitors.time_ids import new_id

JOURNAL, OTHER = new_id(), new_id()


def chain(entries: Sequence[Entry], journal: str = JOURNAL) -> list[Row]:
    rows: list[Row] = []
    for entry in entries:
        previous = rows[-1].hash if rows else GENESIS
        rows.append(row_of(written(entry, journal=journal, seq=len(rows) + 1, previous=previous)))
    return rows


def head_of(rows: Sequence[Row]) -> Head:
    return Head(rows[-1].seq, rows[-1].hash) if rows else EMPTY


def said_of(alert_record: AlertRecord, number: int) -> Entry:
    about = {"id": new_id(), "time": START + timedelta(days=1, seconds=number), "alert_id": alert_record.id}
    if number % 2:
        return Acknowledgement(**about, by="ann")
    return Review(**about, monitor="deception", level="warning", verdict="false", reviewer="ann", note="a joke")


def mixed(num_entries: int) -> list[Entry]:
    """Alerts, each third followed by an acknowledgement or a review."""
    entries: list[Entry] = []
    for number in range(num_entries):
        last = entries[-1] if entries else None
        is_said = number % 3 == 2 and isinstance(last, AlertRecord)
        entries.append(said_of(last, number) if is_said else alert(number))
    return entries


ROWS = chain(mixed(12))
HEAD = head_of(ROWS)
REWRITTEN = chain(mixed(12))
"""Another chain of the same journal."""

CHARS = 'ab \n\t"\\\0\x7f\u2028é語😀'
"""With whatever JSON, UTF-8 or a database could stumble over."""


def test_a_journal_from_before_reasoning_was_kept_still_verifies_and_goes_on():
    rows: list[Row] = []
    for number in range(3):
        previous = rows[-1].hash if rows else GENESIS
        line = written(alert(number), journal=JOURNAL, seq=number + 1, previous=previous).text
        if number < 2:
            assert line.count(',"reasoning":null') == 1
            line = line.replace(',"reasoning":null', "")
        rows.append(row_of(parsed(line)))
    assert verified(JOURNAL, rows, head_of(rows)).holds
    assert parsed(rows[0].text).entry.text.reasoning is None


def test_a_journal_from_before_scores_of_components_were_kept_still_verifies_and_is_spelt_as_it_was():
    line = written(alert(), journal=JOURNAL, seq=1, previous=GENESIS)
    assert line.text.count(',"score":1.5}') == line.text.count(',"score":1.0}') == 1
    old = line.text.replace(',"score":1.5}', "}").replace(',"score":1.0}', "}")
    rows = [row_of(parsed(old)), row_of(written(alert(1), journal=JOURNAL, seq=2, previous=sha256_of(old)))]
    assert verified(JOURNAL, rows, head_of(rows)).holds
    entry = parsed(old).entry
    assert [part.score for part in entry.components] == [None, None]
    assert written(entry, journal=JOURNAL, seq=1, previous=GENESIS).text == old


def test_a_journal_from_before_it_was_kept_how_passes_were_run_still_verifies_and_is_spelt_as_it_was():
    line = written(alert(), journal=JOURNAL, seq=1, previous=GENESIS)
    assert line.text.count('"passes":"transformers",') == 1
    old = line.text.replace('"passes":"transformers",', "")
    rows = [row_of(parsed(old)), row_of(written(alert(1), journal=JOURNAL, seq=2, previous=sha256_of(old)))]
    assert verified(JOURNAL, rows, head_of(rows)).holds
    entry = parsed(old).entry
    assert entry.passes == ""
    assert written(entry, journal=JOURNAL, seq=1, previous=GENESIS).text == old


contents = st.text(st.sampled_from(CHARS), max_size=12)
floats = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def alerts(draw):
    """An alert of any content that can be kept."""
    reply = draw(contents)
    span = sorted((draw(st.integers(0, len(reply))), draw(st.integers(0, len(reply)))))
    time = draw(st.datetimes(datetime(1970, 1, 1), datetime(9000, 1, 1))).replace(tzinfo=UTC)
    spoken = text(
        messages=(Message(role="text", content=reply),),
        span_from_char=span[0],
        span_to_char=span[1],
        prompt_ids=tuple(draw(st.lists(st.integers(0, 2**31), max_size=5))),
    )
    return alert(time=time, score=draw(floats), threshold=draw(floats), label=draw(contents), text=spoken)


@settings(max_examples=40)
@given(entries=st.lists(alerts(), max_size=6))
def test_what_is_written_is_read_back_and_holds(entries):
    rows = chain(entries)
    assert [parsed(row.text).entry for row in rows] == entries
    result = verified(JOURNAL, rows, head_of(rows))
    assert result.holds and (result.num_rows, result.head) == (len(entries), head_of(rows))


@settings(max_examples=40)
@given(entry=alerts())
def test_a_line_has_one_spelling(entry):
    line = written(entry, journal=JOURNAL, seq=1, previous=GENESIS)
    assert "\n" not in line.text
    assert json.dumps(json.loads(line.text), sort_keys=True, separators=(",", ":")).isascii()
    again = parsed(line.text)
    assert written(again.entry, journal=JOURNAL, seq=1, previous=GENESIS).text == line.text
    assert hashlib.sha256(line.text.encode()).hexdigest() == line.hash == again.hash


def test_half_a_surrogate_pair_is_replaced_and_whole_ones_are_not():
    assert alert(label="\ud800 and 😀 \udfff").label == "\ufffd and 😀 \ufffd"


def test_sha256sum_alone_can_follow_the_chain(tmp_path):
    for row, following in itertools.pairwise(ROWS):
        (tmp_path / "line").write_text(row.text, encoding="utf-8")
        out = subprocess.run(["sha256sum", tmp_path / "line"], capture_output=True, text=True, check=True).stdout
        assert out.split()[0] == json.loads(following.text)["previous"]


# What is done to rows

places = st.integers(0, len(ROWS) - 1)
inner = st.integers(0, len(ROWS) - 2)


@given(at=places, data=st.data())
def test_a_changed_character_is_found(at, data):
    row = ROWS[at]
    position = data.draw(st.integers(0, len(row.text) - 1))
    char = data.draw(st.sampled_from('x7é\n"}').filter(lambda char: char != row.text[position]))
    changed = row._replace(text=row.text[:position] + char + row.text[position + 1 :])
    finding = verified(JOURNAL, [*ROWS[:at], changed, *ROWS[at + 1 :]], HEAD).finding
    assert finding is not None and (finding.fault, finding.seq) == (Fault.CHANGED, row.seq)


@given(at=inner)
def test_a_row_written_anew_is_found_by_the_one_that_follows(at):
    entry = parsed(ROWS[at].text).entry
    softened = entry.model_copy(update={"time": entry.time + timedelta(seconds=1)})
    previous = ROWS[at - 1].hash if at else GENESIS
    new = row_of(written(softened, journal=JOURNAL, seq=at + 1, previous=previous))
    finding = verified(JOURNAL, [*ROWS[:at], new, *ROWS[at + 1 :]], HEAD).finding
    assert finding is not None and (finding.fault, finding.seq) == (Fault.CHANGED, at + 1)


def test_the_last_row_written_anew_is_found_by_the_head():
    new = row_of(written(alert(99), journal=JOURNAL, seq=12, previous=ROWS[10].hash))
    finding = verified(JOURNAL, [*ROWS[:11], new], HEAD).finding
    assert finding is not None and (finding.fault, finding.seq) == (Fault.FORGED_HEAD, 12)


@settings(max_examples=40)
@given(first=inner, num=st.integers(1, 12))
def test_rows_taken_out_are_found(first, num):
    left = [*ROWS[:first], *ROWS[first + num :]]
    finding = verified(JOURNAL, left, HEAD).finding
    assert finding is not None and (finding.fault, finding.seq) == (Fault.MISSING, first + 1)


@settings(max_examples=40)
@given(one=places, other=places)
def test_rows_that_changed_places_are_found(one, other):
    one, other = sorted((one, other))
    rows = list(ROWS)
    rows[one] = ROWS[other]._replace(seq=one + 1)
    rows[other] = ROWS[one]._replace(seq=other + 1)
    finding = verified(JOURNAL, rows, HEAD).finding
    assert (finding and (finding.fault, finding.seq)) == (None if one == other else (Fault.REORDERED, one + 1))


def test_a_row_of_another_journal_is_found():
    foreign = chain(mixed(3), OTHER)
    finding = verified(JOURNAL, [*ROWS[:2], foreign[2]], Head(3, foreign[2].hash)).finding
    assert finding is not None and (finding.fault, finding.seq) == (Fault.REORDERED, 3)


@pytest.mark.parametrize("column", Row.__annotations__["columns"]._fields)
def test_a_column_that_hides_an_entry_from_searches_is_found(column):
    changed = ROWS[3]._replace(columns=ROWS[3].columns._replace(**{column: "other"}))
    finding = verified(JOURNAL, [*ROWS[:3], changed, *ROWS[4:]], HEAD).finding
    assert finding is not None and (finding.fault, finding.seq) == (Fault.CHANGED, 4)
    assert f"column {column} says 'other'" in finding.detail


@pytest.mark.parametrize("head", [None, Head(12, "f" * 64), Head(3, ROWS[2].hash), EMPTY])
def test_a_forged_head_is_found(head):
    finding = verified(JOURNAL, ROWS, head).finding
    assert finding is not None and finding.fault is Fault.FORGED_HEAD


# Heads noted elsewhere


def noted(rows, at, *, with_seq):
    return NotedHead(rows[at].hash, rows[at].seq if with_seq else None)


@pytest.mark.parametrize("with_seq", [True, False])
def test_every_earlier_head_is_found_in_the_chain(with_seq):
    for at in range(len(ROWS)):
        assert verified(JOURNAL, ROWS, HEAD, noted=noted(ROWS, at, with_seq=with_seq)).holds


def test_a_noted_hash_that_another_row_has_is_not_that_of_the_noted_one():
    for seq in (5, 7):
        found = verified(JOURNAL, ROWS, HEAD, noted=NotedHead(ROWS[5].hash, seq)).finding
        assert found is not None and (found.fault, found.seq) == (Fault.CHANGED, seq)


def test_a_chain_that_was_written_anew_holds_by_itself_and_not_against_a_noted_head():
    assert verified(JOURNAL, REWRITTEN, head_of(REWRITTEN)).holds
    found = verified(JOURNAL, REWRITTEN, head_of(REWRITTEN), noted=noted(ROWS, 6, with_seq=True)).finding
    assert found is not None and (found.fault, found.seq) == (Fault.CHANGED, 7)
    found = verified(JOURNAL, REWRITTEN, head_of(REWRITTEN), noted=noted(ROWS, 6, with_seq=False)).finding
    assert found is not None and found.fault is Fault.FORGED_HEAD


def test_an_end_cut_off_together_with_its_head_is_found_by_a_noted_head():
    cut = ROWS[:8]
    assert verified(JOURNAL, cut, head_of(cut)).holds
    found = verified(JOURNAL, cut, head_of(cut), noted=noted(ROWS, 11, with_seq=True)).finding
    assert found is not None and (found.fault, found.seq) == (Fault.MISSING, 9)


@pytest.mark.parametrize("wrong", ["", "x", "a" * 63, "A" * 64, f"-1:{'a' * 64}", f":{'a' * 63}", f"²:{'a' * 64}"])
def test_a_noted_head_that_is_none_is_named(wrong):
    with pytest.raises(JournalError, match=r"^head: wanted HASH or SEQ:HASH"):
        NotedHead.read(wrong)


def test_a_noted_head_is_read():
    assert NotedHead.read("a" * 64) == NotedHead("a" * 64, None)
    assert NotedHead.read(f"12:{'a' * 64}") == NotedHead("a" * 64, 12)


# Retention


def retention(through: Row, num: int, journal: str = JOURNAL) -> Retention:
    return Retention(
        id=new_id(), time=START, journal=journal, through_seq=through.seq, through_hash=through.hash, num_deleted=num,
        reason="older than 90 days",
    )  # fmt: skip


@given(num=st.integers(1, len(ROWS)))
def test_a_prefix_is_missed_unless_a_retention_accounts_for_it(num):
    for deleted, holds in ((ROWS[num - 1], True), (REWRITTEN[num - 1], False)):
        entry = retention(deleted, num)
        left = [*ROWS[num:], row_of(written(entry, journal=JOURNAL, seq=13, previous=HEAD.hash))]
        result = verified(JOURNAL, left, head_of(left))
        assert (result.holds, result.first_seq) == (holds, num + 1)
        assert holds or (result.finding and result.finding[:2] == (Fault.MISSING, 1))


def test_a_retention_kept_in_another_journal_accounts_too():
    kept = retention(ROWS[4], 5)
    assert verified(JOURNAL, ROWS[5:], HEAD, retentions=[kept]).holds
    assert verified(JOURNAL, [], HEAD, retentions=[retention(ROWS[-1], 12)]).holds
    for other in (retention(ROWS[3], 4), retention(ROWS[4], 5, journal=OTHER)):
        assert not verified(JOURNAL, ROWS[5:], HEAD, retentions=[other]).holds


@pytest.mark.parametrize(("seq", "says"), [(5, None), (3, "retention has deleted")])
def test_a_noted_head_that_retention_deleted_can_only_be_checked_at_the_border(seq, says):
    result = verified(
        JOURNAL, ROWS[5:], HEAD, noted=NotedHead(ROWS[seq - 1].hash, seq), retentions=[retention(ROWS[4], 5)]
    )
    assert (result.finding and says and says in result.finding.detail) == (says and True)


# Lines that are none


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 2}, "format: wanted 1, the one that this version reads, got 2"),
        ({"seq": 0}, "seq: wanted greater than or equal to 1, got 0"),
        ({"kind": "rumour"}, "kind: wanted 'alert', 'acknowledgement', 'review' or 'retention', got 'rumour'"),
        ({"extra": 1}, "extra: wanted no such key, got 1"),
        ({"body": {}}, "body.id: wanted a value, got nothing"),
    ],
)
def test_a_line_that_is_none_is_named(changes, says):
    line = json.dumps(json.loads(ROWS[0].text) | changes)
    with pytest.raises(JournalError) as error:
        parsed(line)
    assert says in str(error.value).splitlines()
    fitting = ROWS[0]._replace(text=line, hash=hashlib.sha256(line.encode()).hexdigest())
    finding = verified(JOURNAL, [fitting], Head(1, fitting.hash)).finding
    assert finding is not None and finding.fault is Fault.CHANGED


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"score": float("nan")}, "finite number"),
        ({"span_start": 7}, "span_start must be at most position, 6, got 7"),
        ({"position": 7}, "readings of 'lying' must have 3 values, got 2"),
        ({"time": datetime(2026, 1, 1)}, "with its offset from UTC"),
        ({"level": "loud"}, "'info', 'warning' or 'critical'"),
        ({"id": "1"}, "String should match pattern"),
    ],
)
def test_an_alert_that_makes_no_sense_is_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        alert(**changes)


def test_a_span_beyond_its_text_is_refused():
    with pytest.raises(ValueError, match=r"span must lie within the last message's 27 characters, got \[1, 28\)"):
        text(span_from_char=1, span_to_char=28)
