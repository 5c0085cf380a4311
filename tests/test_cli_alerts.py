"""`telltale alerts`: each command on a journal's file, as a person and as a program reads it."""

import json
import re
import sqlite3

import pytest
from alerts import alert, text

from monitors.alert_record import Component, Message, Series
from monitors.journal import Journal
from monitors.journal_chain import EMPTY, Verification
from monitors.text_key import TextKey
from service import cli
from service.alert_view import verification_line
from service.replay_result import COARSE_TOLERANCE, TOLERANCES


@pytest.fixture
def path(tmp_path, monkeypatch):
    path = tmp_path / "alerts.sqlite"
    monkeypatch.setenv("TELLTALE_JOURNAL", str(path))
    monkeypatch.setenv("COLUMNS", "200")
    return path


@pytest.fixture
def records(path):
    records = [
        alert(0),
        alert(1, monitor="stance", level="critical", label="odd \x1b[2J"),
        alert(2, state="cleared"),
    ]
    with Journal.open(path) as journal:
        journal.append(records)
    return records


def run(capsys, *words):
    """(exit code, stdout, stderr)"""
    code = cli.main(["alerts", *words])
    return code, *capsys.readouterr()


def said(capsys, *words):
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    return out


def test_a_list_is_newest_first_and_filtered(records, capsys):
    first, *rows = said(capsys, "list").splitlines()
    assert " ".join(first.split()) == "time id monitor level score threshold tokens label review taken"
    assert [row.split()[2] for row in rows] == [record.id for record in records[::-1]]
    assert "odd \\x1b[2J" in rows[1] and "cleared" in rows[0]
    for flags, wanted in (
        (("--monitor", "stance"), records[1:2]),
        (("--level", "warning", "--state", "firing"), records[:1]),
        (("--request", "request-1"), records[2:]),
        (("--since", "2026-03-01T12:00:01Z", "--until", "2026-03-01T12:00:02+00:00"), records[1:2]),
        (("--since", "5m"), []),
        (("--no-reviewed", "--label", "nightly"), [records[2], records[0]]),
        (("--acknowledged",), []),
    ):
        found = json.loads(said(capsys, "list", "--json", *flags))["alerts"]
        assert [each["id"] for each in found] == [record.id for record in wanted]


def test_a_list_goes_on_where_it_ended(records, capsys):
    code, out, err = run(capsys, "list", "--limit", "2")
    assert code == 0 and len(out.splitlines()) == 3
    token = err.removeprefix("more: --page ").strip()
    (found,) = json.loads(said(capsys, "list", "--json", "--page", token))["alerts"]
    assert found["id"] == records[0].id


def test_an_alert_is_shown_with_its_text_and_what_is_said_of_it(records, capsys):
    said(capsys, "ack", records[0].id, "--by", "bob", "--note", "on it")
    receipt = json.loads(said(capsys, "review", records[0].id, "--verdict", "false", "--reviewer", "ann", "--json"))
    assert receipt["seq"] == 5
    out = said(capsys, "show", records[0].id)
    for part in (
        f"{records[0].id}, entry 1 of journal",
        "deception (NOT VALIDATED), pack 1.2, sha256 aaaaaaaaaaaa",
        "firing, warning, score 1.25 against 1",
        "disbelief 0.75 (score 1.5), stance 0.5 (score 1), latent 2242 0.125",
        "scale 0 raw, generated, by request",
        "18446744073709551615, temperature 0.7, at most 64 tokens",
        "0.1.0, passes: transformers",
        "Tell me something.",
        " a lie that nobody beli»eved«",
        "taken by bob: on it",
        "false, says ann",
    ):
        assert part in out
    found = json.loads(said(capsys, "show", records[0].id, "--json"))
    assert (found["reviews"][0]["verdict"], found["seq"]) == ("false", 1)


def test_a_part_whose_score_was_not_kept_is_shown_without(path, capsys):
    with Journal.open(path) as journal:
        journal.append([record := alert(components=(Component(name="stance", contribution=0.5),), features=())])
    assert re.search(r"parts +stance 0\.5 *$", said(capsys, "show", record.id), re.MULTILINE)


def test_names_in_a_file_from_elsewhere_are_neither_obeyed_nor_markup(path, capsys):
    odd = Series(name="[/b]\x1b[1m", kind="score", values=(0.5, 1.5))
    with Journal.open(path) as journal:
        journal.append([record := alert(readings=(odd,))])
    out = said(capsys, "show", record.id)
    assert "[/b]" in out and "\x1b" not in out
    said_of = Verification("\x1b[31m", 0, None, EMPTY, None)
    assert "\x1b" not in verification_line(said_of).plain


def test_what_a_model_wrote_does_not_reach_the_terminal_as_it_is(path, capsys):
    spoken = Message(role="\x1b[1m", content="x" * 900 + "\x1b]0;owned\x07")
    record = alert(text=text(messages=(spoken,), span_from_char=900, span_to_char=909))
    with Journal.open(path) as journal:
        journal.append([record])
    out = said(capsys, "show", record.id)
    assert "\x1b" not in out and "»\\x1b]0;owned«" in out and "[...]x" in out


def test_text_that_was_not_kept_is_said_to_be(path, tmp_path, capsys):
    record = alert()
    with Journal.open(path, text_key=TextKey.load_or_make(tmp_path / "key")) as journal:
        journal.append([record])
    assert "the text was not kept" in said(capsys, "show", record.id)


def test_precision_is_of_reviews(records, capsys):
    for record, verdict in zip(records, ("true", "false"), strict=False):
        said(capsys, "review", record.id, "--verdict", verdict)
    out = said(capsys, "precision").splitlines()
    assert out[1].split() == ["deception", "a" * 12, "1", "0", "0", "1.000", "0.207", "to", "1.000"]
    assert out[2].split() == ["stance", "a" * 12, "0", "1", "0", "0.000", "0.000", "to", "0.793"]
    first = json.loads(said(capsys, "precision", "--json").splitlines()[0])
    assert (first["precision"], first["num_true"]) == (1.0, 1)


def test_an_empty_journal_holds_and_is_said_to_show_nothing(path, capsys):
    Journal.open(path).close()
    out = said(capsys, "verify")
    assert " holds: 0 entries, head 0:" in out and out.rstrip().endswith("; an empty journal shows nothing")


def test_a_journal_that_holds_says_its_head_and_a_noted_one_is_held_against_it(records, path, capsys):
    out = said(capsys, "verify")
    head = out.split()[-1]
    assert out.startswith("journal ") and " holds: 3 entries, head 3:" in out
    said(capsys, "ack", records[0].id)
    said(capsys, "verify", "--head", head)
    said(capsys, "verify", "--head", head.removeprefix("3:"))
    path.unlink()
    with Journal.open(path) as journal:
        journal.append(records)
    said(capsys, "verify")
    code, out, _ = run(capsys, "verify", "--head", head)
    assert code == 1 and "BROKEN: changed at 3: it has not the noted hash" in out
    code, _, err = run(capsys, "verify", "--head", "abc")
    assert code == 2 and err.startswith("telltale: --head: wanted HASH or SEQ:HASH")


@pytest.mark.usefixtures("records")
def test_a_broken_journal_is_exit_code_1(path, capsys):
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE entries SET level = 'info' WHERE seq = 2")
    connection.close()
    code, out, _ = run(capsys, "verify")
    assert code == 1 and "is BROKEN: changed at 2: its column level says 'info', its line 'critical'" in out
    found = json.loads(run(capsys, "verify", "--json")[1])
    assert (found["holds"], found["fault"], found["seq"]) == (False, "changed", 2)


@pytest.mark.usefixtures("records")
def test_retention_says_what_it_does(capsys):
    assert "would delete 2 entries of" in said(capsys, "retain", "--alerts", "1", "--dry-run")
    assert "deleted 2 entries of" in said(capsys, "retain", "--alerts", "1")
    assert said(capsys, "retain", "--alerts", "1") == "nothing to delete\n"
    assert json.loads(said(capsys, "retain", "--days", "30", "--json"))["reason"] == "older than 30 days"
    said(capsys, "verify")
    code, _, err = run(capsys, "retain")
    assert (code, err) == (cli.EXIT_USAGE, "telltale: retain needs --days or --alerts.\n")


@pytest.mark.parametrize(("format_", "num"), [("jsonl", 2), ("journal", 4), ("labelled", 1), ("parquet", 2)])
def test_exports_go_to_a_file_that_is_whole_or_not_there(records, tmp_path, capsys, format_, num):
    said(capsys, "review", records[0].id, "--verdict", "true")
    out = tmp_path / "out"
    filters = () if format_ == "journal" else ("--state", "firing")
    code, _, err = run(capsys, "export", "--format", format_, "--output", str(out), *filters)
    assert (code, err) == (0, f"{num} written\n")
    if format_ == "parquet":
        assert out.read_bytes().startswith(b"PAR1")
        assert run(capsys, "export", "--format", "parquet")[0] == cli.EXIT_USAGE
    else:
        assert run(capsys, "export", "--format", format_, *filters)[1] == out.read_text()
        assert len(out.read_text().splitlines()) == num


@pytest.mark.usefixtures("records")
def test_a_filter_for_the_journals_own_lines_is_refused(capsys):
    assert run(capsys, "export", "--format", "journal", "--monitor", "stance")[0] == cli.EXIT_USAGE


@pytest.mark.usefixtures("records")
@pytest.mark.parametrize("words", [("show", "x"), ("ack", "x"), ("review", "x", "--verdict", "true")])
def test_an_alert_that_is_not_there_is_wrong_usage(capsys, words):
    assert run(capsys, *words) == (cli.EXIT_USAGE, "", "telltale: No such alert 'x'.\n")


@pytest.mark.parametrize(
    "words", [("list",), ("verify",), ("ack", "x"), ("retain", "--days", "1"), ("upgrade",), ("export",)]
)
def test_a_journal_that_is_not_there_is_named_and_not_made(path, capsys, words):
    code, _, err = run(capsys, *words)
    assert code == cli.EXIT_FAILED and not path.exists()
    assert (
        err
        == f"telltale: cannot use alert journal {path}:\ntelltale: file: wanted an alert journal, got no such file\n"
    )


def test_a_journal_that_a_server_writes_to_can_be_read_and_not_written(records, path, capsys):
    with Journal.open(path):
        said(capsys, "verify")
        code, _, err = run(capsys, "ack", records[0].id)
        assert code == cli.EXIT_FAILED and "(through a running server go by --target HOST:PORT), got process" in err
    assert said(capsys, "upgrade") == f"{path} is up to date\n"


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("list", "--since", "yesterday"), "must be a time like 2026-03-01T12:00Z, or 90m, 24h, 7d. Got 'yesterday'."),
        (("list", "--since", "999999d"), "must be a time like 2026-03-01T12:00Z, or 90m, 24h, 7d. Got '999999d'."),
        (("list", "--limit", "0"), "must be a whole number from 1 to 999999999. Got '0'."),
        (("list", "--limit", "all"), "must be a whole number from 1 to 999999999. Got 'all'."),
        (("retain", "--days", "nan"), "must be a number of days, more than 0 and at most 36500. Got 'nan'."),
        (("retain", "--days", "1e12"), "must be a number of days, more than 0 and at most 36500. Got '1e12'."),
        (("retain", "--days", "week"), "must be a number of days, more than 0 and at most 36500. Got 'week'."),
        (("review", "x", "--verdict", "maybe"), "invalid choice: 'maybe'"),
        (("ack", "x", "--by", " "), "must be a name. Got none."),
    ],
)
def test_wrong_usage_is_named(capsys, words, says):
    with pytest.raises(SystemExit) as error:
        cli.main(["alerts", *words])
    assert error.value.code == cli.EXIT_USAGE and says in capsys.readouterr().err


def test_the_help_of_a_replay_names_the_tolerances_that_are_used(monkeypatch, capsys):
    """In words: to take the numbers from where they are used would load what a replay needs for every command."""
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        cli.main(["alerts", "replay", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert f"by default {TOLERANCES['float32']:g} for float32, {COARSE_TOLERANCE:g} for other formats" in words


def test_the_journal_is_by_default_that_of_the_server_on_the_usual_port(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("TELLTALE_JOURNAL", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    code, _, err = run(capsys, "list")
    assert code == 1 and f"{tmp_path}/telltale/alerts-50051.sqlite" in err and "no such file" in err
    with Journal.open(tmp_path / "telltale" / "alerts-50051.sqlite") as journal:
        journal.append([kept := alert()])
    assert kept.id in said(capsys, "list")


async def test_commands_ask_a_server_and_show_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    from serving import serving, target

    path = tmp_path / "alerts.sqlite"
    async with serving(journal=str(path)) as server:
        server.journal.append([alert(0, label="odd \x1b[2J"), alert(1, state="cleared")])
        first, last = [kept.record for kept in server.journal.journal.reader.all_alerts()][::-1]

        async def asked(*words, code=0):
            args = cli.build_parser().parse_args(["alerts", *words, "--target", target(server)])
            assert await cli.execute(args) == code
            return capsys.readouterr()

        assert "entry 3" in (await asked("review", first.id, "--verdict", "false", "--note", "a novel")).out
        assert "entry 4" in (await asked("ack", first.id, "--by", "ann")).out
        shown = {words: (await asked(*words)).out for words in (("list",), ("show", first.id), ("precision",))}
        told = json.loads((await asked("list", "--json", "--limit", "1")).out)
        assert told["alerts"][0]["alert"]["alert_id"] == last.id and told["next_page_token"]
        assert first.id in (await asked("list", "--page", told["next_page_token"])).out
        assert "one that cleared" in (await asked("review", last.id, "--verdict", "true", code=1)).err
        assert "No such alert" in (await asked("show", "01a21b19-2dc5-717b-bd14-841b1bca0632", code=2)).err
        assert "alert_id: must be an alert's id" in (await asked("show", "what", code=2)).err
    for words, text_ in shown.items():
        args = cli.build_parser().parse_args(["alerts", *words, "--journal", str(path)])
        assert await cli.execute(args) == 0
        assert capsys.readouterr().out == text_
