"""explain: who sees which examples, what is asked, how answers are scored, and that a second run does what is left."""

import ast
import json
import random
import re
import sqlite3

import pytest
import tiny
import torch
from chat_server import chat_server, completion, error
from example_file import NUM_LATENTS, write_example_file
from serving import manifest
from sklearn.metrics import balanced_accuracy_score
from tiny_files import write_features

from discovery import explain
from discovery.chat_model import ChatReply
from discovery.errors import ExampleError, ExplainError, LabError, ReplyError
from discovery.example_split import ExampleSplit, SplitSettings, Window, in_turn, is_shown
from discovery.example_store import ExampleStore
from discovery.explain_run import MAX_LOST_IN_A_ROW
from discovery.explanation import Account, explanation_prompt, mark
from discovery.explanation_book import ExplanationBook
from discovery.explanation_score import (
    Question,
    Score,
    detection_questions,
    fuzzing_questions,
    judge_prompt,
    model_judge,
    score,
)
from discovery.latent_record import Explanation
from discovery.result_lines import claimed
from discovery.token_rule import TOKEN_RULE, fit_tokens, normalised, rule_explanation, rule_judge
from monitors.errors import WatchlistError
from sae_runtime.checkpoint import load_manifest, save_sae

ACCOUNT = {
    "dominant_tokens": ["sea", "ship"],
    "pattern": "The words sea and ship.",
    "summary": "Seafaring.",
    "context": "Made-up texts.",
    "title": "The sea",
}


@pytest.fixture
def store_path(tmp_path):
    write_example_file(tmp_path / "examples.sqlite")
    return tmp_path / "examples.sqlite"


@pytest.fixture
def split(store_path):
    with ExampleStore.open(store_path) as store:
        yield ExampleSplit(store, SplitSettings(num_shown=10, num_scored=12))


@pytest.fixture
def server():
    with chat_server() as running:
        running.otherwise = oracle
        yield running


def oracle(body):
    """A model that explains latent 0, and follows its explanation to the letter."""
    system, user = body["messages"][0]["content"], body["messages"][1]["content"]
    if "dominant_tokens" in system:
        return completion(json.dumps(ACCOUNT))
    texts = re.findall(r"^\d+\. (.*)$", user, re.MULTILINE)
    spans = [re.findall(r"<<(.*?)>>", text) for text in texts]
    if "are marked instead" in system:
        labels = [int(all(word.strip() in ("sea", "ship") for word in marked)) for marked in spans]
    else:
        labels = [int(" sea" in text or " ship" in text) for text in texts]
    return completion(json.dumps({"labels": labels}))


# --- who sees what --------------------------------------------------------------------------------------------------


def test_a_latent_that_fires_inside_characters_gets_a_title_too():
    """Its tokens are shown as nothing: the character goes on in the next one."""
    assert rule_explanation(0, (), "").title == "Inside a character"
    assert rule_explanation(0, ("sea", "ship"), "").title == "Tokens “sea”, “ship”"


def test_shown_and_held_out_share_no_document_and_no_text(store_path):
    with ExampleStore.open(store_path) as store:
        documents = {}
        for _, example in store.examples(0):
            documents.setdefault("".join(example.pieces), set()).add(is_shown(example.document, 0))
        split = ExampleSplit(store, SplitSettings(num_shown=50, num_scored=50))(0)
        other = ExampleSplit(store, SplitSettings(num_shown=50, num_scored=50, seed=1))(0)
    assert len(split.shown) + len(split.held_out) == 60
    assert all(documents[window.text] == {True} for window in split.shown)
    assert all(documents[window.text] == {False} for window in split.held_out)
    assert {w.text for w in other.shown} != {w.text for w in split.shown}
    assert len(split.shown_silent) + len(split.held_out_silent) == 40
    assert {is_shown(document, 0) for document in range(1, 61)} == {True, False}


def test_a_text_that_was_shown_is_not_held_out(store_path):
    connection = sqlite3.connect(store_path)
    same = connection.execute("SELECT token_ids, readings FROM examples WHERE latent = 0 LIMIT 1").fetchone()
    with connection:
        connection.execute("UPDATE examples SET token_ids = ?, readings = ? WHERE latent = 0", same)
    connection.close()
    with ExampleStore.open(store_path) as store:
        split = ExampleSplit(store, SplitSettings())(0)
    assert (len(split.shown), len(split.held_out)) == (1, 0)


def test_windows_come_from_all_kinds_in_turn_and_silent_ones_are_silent(split):
    examples = split(0)
    assert len(examples.shown) == 10 and len(examples.held_out) == 12
    assert len(examples.held_out_silent) == 12
    assert in_turn(["abc", "d", "ef"]) == list("adebfc")
    assert not any(" sea" in window.text for window in examples.shown_silent + examples.held_out_silent)
    assert any(" sea" in window.text for window in split(3).held_out_silent)
    assert split(0) == examples
    assert split(1).shown == () and split(1).held_out == ()


def test_faint_readings_are_not_marked():
    assert Window(("a", "b", "c", "d"), (8.0, 1.9, 2.0, 0.0)).firing == (0, 2)
    assert Window(("a",), (0.0,)).firing == ()


# --- what is asked --------------------------------------------------------------------------------------------------


def test_neighbours_are_marked_together_and_marks_in_the_text_are_defused():
    window = Window((" a", " b", "\n", "<<", " c"), (0.0, 1.0, 1.0, 0.0, 1.0))
    assert mark(window, window.firing) == " a<< b⏎>>< <<< c>>"


def test_the_explainer_sees_shown_windows_alone(split):
    examples = split(0)
    prompt = explanation_prompt(examples)[1]["content"]
    assert all(mark(window, window.firing) in prompt for window in examples.shown)
    for window in examples.held_out + examples.held_out_silent:
        assert window.text.strip() not in prompt.replace("<<", "").replace(">>", "")
    assert '"sea" 8' in prompt and '"ship" 4' in prompt


@pytest.mark.parametrize(
    "change", [{"title": "  "}, {"dominant_tokens": ["x"] * 9}, {"extra": 1}, {"title": "x" * 101}]
)
def test_an_account_is_checked(change):
    Account.model_validate(ACCOUNT)
    with pytest.raises(ValueError):
        Account.model_validate(ACCOUNT | change)


# --- scores ---------------------------------------------------------------------------------------------------------


def test_detection_asks_about_as_many_of_each_and_hides_which(split):
    questions = detection_questions(split(0))
    assert [q.truth for q in questions].count(1) == [q.truth for q in questions].count(0) == 12
    assert all((q.truth == 1) == bool(q.window.firing) for q in questions)
    assert [q.truth for q in questions] != sorted(q.truth for q in questions)
    assert questions == detection_questions(split(0)) != detection_questions(split(0), seed=1)
    text = judge_prompt(rule_explanation(0, ["sea"], ""), questions)[1]["content"]
    assert "<<" not in text


def test_fuzzing_marks_as_many_silent_tokens_in_half_of_the_windows(split):
    questions = fuzzing_questions(split(0))
    assert [q.truth for q in questions].count(1) == [q.truth for q in questions].count(0) == 6
    for q in questions:
        assert len(q.marked) == len(q.window.firing)
        reads = [q.window.readings[i] > 0 for i in q.marked]
        assert all(reads) if q.truth else not any(reads)
    assert len({q.window.text for q in questions}) == 12


async def test_the_score_is_sklearns_balanced_accuracy(split):
    questions, rng = detection_questions(split(0)), random.Random(0)
    given = []

    async def coin(batch):
        labels = [int(rng.random() < 0.7) for _ in batch]
        given.extend(labels)
        return labels

    found = await score(questions, coin, batch_size=5)
    assert found.n == len(given) == 24
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score([q.truth for q in questions], given))
    assert found.as_dict()["num_positive"] == 12


@pytest.mark.parametrize("label", [0, 1])
async def test_whoever_always_says_the_same_is_guessing(split, label):
    async def judge(batch):
        return [label] * len(batch)

    for questions in (detection_questions(split(0)), fuzzing_questions(split(0))):
        assert (await score(questions, judge, 5)).balanced_accuracy == 0.5


async def test_tossing_a_coin_is_guessing(split):
    rng, questions = random.Random(0), (detection_questions(split(0)), fuzzing_questions(split(0)))

    async def judge(batch):
        return [rng.randrange(2) for _ in batch]

    for asked in questions:
        scores = [await score(asked, judge, 5) for _ in range(300)]
        mean = sum(one.balanced_accuracy for one in scores) / len(scores)
        assert mean == pytest.approx(0.5, abs=4 * scores[0].standard_error / len(scores) ** 0.5)


async def test_an_unreadable_answer_is_wrong_on_all_of_its_questions(split):
    questions = detection_questions(split(0))
    calls = []

    async def judge(batch):
        calls.append(len(batch))
        if len(calls) == 2:
            raise ReplyError("no")
        return [q.truth for q in batch]

    found = await score(questions, judge, batch_size=10)
    assert calls == [10, 10, 4]
    assert (found.unparseable, found.found + found.left_alone) == (10, 14)
    assert found.balanced_accuracy < 1


async def test_too_few_questions_make_no_score(split):
    questions = detection_questions(split(2))
    assert len(questions) < 8
    assert await score(questions, rule_judge(["sea"]), batch_size=5) is None


def test_a_perfect_score_is_not_certain():
    assert Score(20, 20, 20, 20).standard_error > 0.02
    assert Score(20, 20, 10, 10).standard_error == pytest.approx((2 * 0.25 / 22) ** 0.5 / 2)


@pytest.mark.parametrize("labels", ["[1]", "[1, 0, 1, 0]", "[1, 0, 2]", '["1", "0", "1"]', "[1.5, 0, 1]", "{}"])
async def test_answers_are_read_strictly(split, labels):
    class Says:
        name = "says"

        async def reply(self, _messages, schema, _max_tokens):
            assert schema["properties"]["labels"]["minItems"] == 3
            return ChatReply(f'{{"labels": {labels}}}')

    judge = model_judge(Says(), rule_explanation(0, ["sea"], ""), max_tokens=10)
    with pytest.raises(ReplyError):
        await judge(detection_questions(split(0))[:3])


def test_a_judge_knows_the_explanation(split):
    explanation = Account.model_validate(ACCOUNT).as_explanation(0, "m", "")
    questions = fuzzing_questions(split(0))[:2]
    system, user = (message["content"] for message in judge_prompt(explanation, questions))
    assert "The sea" in user and "Seafaring." in user and "Made-up texts." in user and "2 texts:" in user
    for q in questions:
        assert mark(q.window, q.marked) in user
    assert "marked instead" in system


# --- the token rule -------------------------------------------------------------------------------------------------


async def test_the_token_rule_finds_the_tokens_and_scores_as_it_should(split):
    examples = split(0)
    tokens = fit_tokens(examples)
    assert tokens == ("sea", "ship")
    found = await score(detection_questions(examples), rule_judge(tokens), 100)
    assert found.balanced_accuracy == 1.0
    assert (await score(fuzzing_questions(examples), rule_judge(tokens), 100)).balanced_accuracy == 1.0
    # Half of the rule finds what has its token.
    half = await score(detection_questions(examples), rule_judge(["ship"]), 100)
    ships = sum(" ship" in window.text for window in examples.held_out)
    assert half.balanced_accuracy == pytest.approx((ships / 12 + 1) / 2)


async def test_a_latent_about_what_follows_is_no_matter_of_tokens(split):
    examples = split(3)
    found = await score(detection_questions(examples), rule_judge(fit_tokens(examples)), 100)
    assert found.balanced_accuracy < 0.85


def test_more_tokens_are_taken_only_where_they_help(split):
    examples = split(0)
    common = Window((" sea", " the"), (8.0, 7.0))
    assert fit_tokens(examples._replace(shown=(common,) * 4)) == ("sea",)
    assert normalised(" Sea") == "sea" and normalised("\n") == "\n"
    assert fit_tokens(examples._replace(shown=())) == ()


async def test_fuzzing_by_rule_wants_half_of_the_marks():
    window = Window((" sea", " the", " old"), (1.0, 0.0, 0.0))
    judge = rule_judge(["sea"])
    assert await judge([Question(window, (0, 1), 1), Question(window, (1, 2), 0), Question(window, (), 1)]) == [1, 0, 1]


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def dictionary(tmp_path):
    folder = tmp_path / "dictionary"
    made = save_sae(tiny.sae(), manifest(), folder)
    write_features(folder, made.sae_sha256)
    return folder


@pytest.fixture
def command(tmp_path, dictionary, server, capsys, monkeypatch):
    """Runs the command over the example file; returns (exit code, records of --json, stderr)."""
    path = tmp_path / "made.sqlite"
    write_example_file(path, sae_sha256=load_manifest(dictionary).sae_sha256)
    monkeypatch.setattr("discovery.chat_endpoint.asyncio.sleep", no_sleep)
    server.path = path

    def run(*more, endpoint=None, model="m", json_=True):
        argv = [str(dictionary), "--store", str(path), "--endpoint", endpoint or server.url, "--scored", "12"]
        code = explain.main([*argv, *(["--model", model] if model else []), *(["--json"] if json_ else []), *more])
        captured = capsys.readouterr()
        records = [json.loads(line) for line in captured.out.splitlines()] if json_ else captured.out
        return code, records, captured.err

    return run


async def no_sleep(_seconds):
    pass


def test_a_run_explains_scores_and_compares(command, server):
    code, (first, third, totals), _ = command("--latents", "0", "1", "3")
    assert code == 0
    assert first["latent"] == 0 and first["title"] == "The sea" and first["model"] == "m"
    assert (first["detection"], first["detection_n"]) == (1.0, 24)
    assert (first["fuzzing"], first["fuzzing_n"]) == (1.0, 12)
    assert first["token_rule"]["title"] == "Tokens “sea”, “ship”"
    # An explanation of another latent is no good for this one.
    assert third["detection"] < 0.7
    assert (totals["explained"], totals["scored"], totals["silent"], totals["lost"]) == (2, 2, 1, {})
    assert totals["calls"] == len(server.requests)
    assert totals["detection"]["num_latents"] == 2
    with ExampleStore.open(server.path) as store:
        stored = store.explanation(0)
        assert isinstance(stored, Explanation) and stored.title == "The sea" and stored.detection == 1.0
        assert [match.latent for match in store.search("seafaring")] == [0, 3]


def test_what_is_done_is_kept_and_costs_nothing(command, server):
    command("--latents", "0")
    num = len(server.requests)
    code, records, _ = command("--latents", "0")
    assert code == 0 and len(server.requests) == num
    assert records[-1]["kept"] == 1 and records[0]["detection"] == 1.0


def test_an_unscored_explanation_is_only_scored(command, server):
    command("--latents", "0", "--no-scores")
    assert len(server.requests) == 1
    _, records, _ = command("--latents", "0")
    assert sum("dominant_tokens" in body["messages"][0]["content"] for body in server.requests) == 1
    assert records[0]["detection"] == 1.0 and records[-1]["explained"] == 0


@pytest.mark.parametrize("other", [("--seed", "1"), ("--shown", "3")])
def test_what_was_explained_by_another_division_is_not_scored_on_what_its_author_saw(command, server, other):
    command("--latents", "0", "--no-scores")
    num = len(server.requests)
    with pytest.raises(ExplainError, match=r"latent 0 was explained with --seed 0 --shown 16: .* --replace"):
        command("--latents", "3", "0", *other)
    assert len(server.requests) == num  # refused before anything is paid for
    command("--latents", "0", "--no-scores", *other)  # nothing is scored
    code, records, _ = command("--latents", "0", *other, "--replace")
    assert code == 0 and records[-1]["explained"] == records[-1]["scored"] == 1
    assert records[0]["scores"]["settings"] == records[0]["token_rule"]["settings"] | {"batch_size": 5}
    num = len(server.requests)
    _, records, _ = command("--latents", "0")  # scored is scored
    assert records[-1]["kept"] == 1 and len(server.requests) == num


def test_an_unscored_explanation_of_which_the_division_is_not_known_is_not_scored(command, server):
    command("--latents", "0", "--no-scores")
    with sqlite3.connect(server.path) as connection:  # as files were before it was kept
        connection.execute("DROP TABLE explanation_splits")
    connection.close()
    with pytest.raises(ExplainError, match="latent 0 was explained with a seed that is not known"):
        command("--latents", "0")
    _, records, _ = command("--latents", "0", "--replace")
    assert records[-1]["explained"] == 1 and records[0]["detection"] == 1.0


def test_the_token_rule_is_scored_on_the_windows_that_the_model_is_scored_on(command):
    command("--latents", "0", "3", endpoint="tokens", model=None)
    _, records, _ = command("--latents", "0", "--seed", "1")
    own, rule = records[0]["scores"]["settings"], records[0]["token_rule"]["settings"]
    assert own["seed"] == rule["seed"] == 1
    _, records, _ = command("--latents", "3", "--seed", "1", endpoint="tokens", model=None)
    assert records[0]["token_rule"]["settings"]["seed"] == 1 and records[0]["model"] == TOKEN_RULE


def test_scores_on_other_windows_are_not_compared(command, server):
    command("--latents", "0")
    with ExplanationBook(server.path) as book:
        rule = book.scores(0)
        connection = sqlite3.connect(server.path)
        with connection:
            settings = json.dumps(rule.settings | {"seed": 7})
            connection.execute("UPDATE explanation_scores SET settings = ? WHERE method = ?", (settings, TOKEN_RULE))
        connection.close()
    _, records, _ = command("--latents", "0")
    assert records[-1]["detection"]["num_latents"] == 0 and records[-1]["kept"] == 1


@pytest.mark.parametrize("after", [0, 1, 2, 6, 9])
def test_a_run_that_was_stopped_anywhere_ends_like_one_that_was_not(command, server, dictionary, after):
    _, whole, _ = command("--latents", "0", "3", "--concurrency", "1")
    server.path.unlink()
    write_example_file(server.path, sae_sha256=load_manifest(dictionary).sae_sha256)

    def until(body):
        server.left -= 1
        return oracle(body) if server.left >= 0 else error(401, "the key is gone")

    server.left, server.otherwise = after, until
    code, _, err = command("--latents", "0", "3", "--concurrency", "1")
    assert code == 1
    assert "HTTP 401" in err and "the same command goes on from here" in err
    server.otherwise = oracle
    code, resumed, _ = command("--latents", "0", "3")
    assert code == 0

    def timeless(records):
        return [re.sub(r'"created": "[^"]*"', "", json.dumps(record)) for record in records[:-1]]

    assert timeless(resumed) == timeless(whole)


def test_a_useless_answer_costs_its_latent_alone(command, server):
    def refuses_zero(body):
        about_zero = '"sea" 8' in body["messages"][1]["content"]
        return completion(None, message={"refusal": "no"}) if about_zero else oracle(body)

    server.otherwise = refuses_zero
    code, records, err = command("--latents", "0", "3")
    assert code == 1
    # The token rule's title stands in, and makes way at the next run.
    assert records[0]["model"] == TOKEN_RULE and records[1]["title"] == "The sea"
    assert "latent 0: the model refuses: no" in err and records[-1]["lost"] == {"0": "the model refuses: no"}
    server.otherwise = oracle
    code, records, _ = command("--latents", "0", "3")
    assert code == 0 and records[0]["title"] == "The sea" and records[-1]["kept"] == 1


def test_many_useless_answers_in_a_row_end_the_run(command, server, monkeypatch):
    monkeypatch.setattr("discovery.explain_run.MAX_LOST_IN_A_ROW", 2)
    server.otherwise = completion("I would rather not.")
    code, records, err = command("--latents", "0", "3", "2", "--concurrency", "1")
    assert code == 1 and "latents lost in a row" in err
    assert len(records[-1]["lost"]) == 2 < MAX_LOST_IN_A_ROW


def test_the_budget_ends_a_run_and_the_next_one_goes_on(command, server):
    prices = ["--price-prompt", "0.01", "--price-completion", "0.1"]
    # Each call costs 100 prompt tokens and 10 more, by the server's account: 0.002.
    code, records, err = command("--latents", "0", "3", *prices, "--max-cost", "0.1", "--concurrency", "1")
    assert code == 1 and "max_cost is 0.1" in err
    assert 0 < records[-1]["cost"] <= 0.1
    assert records[-1]["cost"] == pytest.approx(0.002 * len(server.requests))
    code, records, _ = command("--latents", "0", "3", *prices, "--max-cost", "5")
    assert code == 0 and records[-1]["lost"] == {}


def test_unparseable_labels_count_as_wrong(command, server):
    server.otherwise = lambda body: oracle(body) if "dominant" in body["messages"][0]["content"] else completion("1 0")
    code, records, _ = command("--latents", "0")
    assert code == 0
    assert records[0]["detection"] == 0.0 and records[0]["scores"]["detection"]["unparseable"] == 24
    assert records[-1]["unparseable"] == 36


def test_other_models_make_way_only_when_asked(command, server):
    command("--latents", "0")
    _, records, _ = command("--latents", "0", model="other")
    assert records[0]["model"] == "m" and records[-1]["kept"] == 1
    _, records, _ = command("--latents", "0", "--replace", model="other")
    assert records[0]["model"] == "other"
    with ExplanationBook(server.path) as book:
        assert book.scores(0, "m").detection["balanced_accuracy"] == 1.0
    num = len(server.requests)
    command("--latents", "0", "--replace", model="other")
    assert len(server.requests) == num


def test_the_token_rule_needs_no_endpoint(command, server):
    code, records, _ = command(endpoint="tokens", model=None)
    assert code == 0 and server.requests == []
    assert {record["latent"] for record in records[:-1]} == {0, 2, 3}
    by_latent = {record["latent"]: record for record in records[:-1]}
    assert by_latent[0]["detection"] == 1.0 and by_latent[0]["dominant_tokens"] == ["sea", "ship"]
    assert by_latent[2]["detection"] is None and by_latent[2]["detection_n"] == 0


def test_of_many_latents_the_first_are_shown_and_of_the_rule_no_comparison_with_itself(command, monkeypatch):
    monkeypatch.setattr("discovery.explanation_report.ROWS_SHOWN", 1)
    _, records, _ = command(endpoint="tokens", model=None)
    explained = [record for record in records if "latent" in record]
    assert len(explained) > 1
    _, text, _ = command(endpoint="tokens", model=None, json_=False)
    assert explained[0]["title"] in text and explained[1]["title"] not in text
    assert f"and {len(explained) - 1:,} more" in text and "tokens of the rule" not in text


def test_the_table_is_for_people(command):
    code, out, err = command("--latents", "0", "3", json_=False)
    assert code == 0
    assert "The sea" in out and "1.00 (n=24)" in out and "“sea”, “ship”" in out
    assert "0.5 is guessing" in out and "explained 2" in err


def test_the_key_is_nowhere_but_in_the_header(command, server, monkeypatch, tmp_path):
    monkeypatch.setenv("TELLTALE_EXPLAIN_API_KEY", "sk-very-secret")
    server.turns = [error(400, "sk-very-secret is odd")]
    _, records, err = command("--latents", "0")
    assert server.headers[0]["authorization"] == "Bearer sk-very-secret"
    assert "sk-very-secret" not in err + json.dumps(records)
    assert all(b"sk-very-secret" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_full_disk_is_named_and_the_calls_in_flight_are_waited_for(command, server, monkeypatch):
    save = ExampleStore.save

    def full(store, explanation):
        if explanation.latent == 0 and explanation.model == "m":
            raise sqlite3.OperationalError("database or disk is full")
        save(store, explanation)

    monkeypatch.setattr(ExampleStore, "save", full)
    code, records, err = command("--latents", "0", "3", "--concurrency", "2")
    assert code == 1
    assert "made.sqlite must be writable, got: database or disk is full; the same command goes on from here" in err
    assert records[-1]["stopped"] and records[-1]["calls"] == len(server.requests)
    assert records[1]["latent"] == 3 and records[1]["detection"] is not None  # its calls were paid for


def test_a_call_that_no_pace_allows_ends_the_run_with_its_report(command):
    code, records, err = command("--latents", "0", "3", "--tokens-per-minute", "10")
    assert code == 1 and "tokens per minute must allow" in records[-1]["stopped"] and "must allow" in err


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["--latents", "64"], "latents must be 0 to 3"),
        (["--latents", "2-9"], "latents must be 0 to 3"),
        (["--latents", "seagulls"], r"a feature .hedging, lying, calm.*got 'seagulls'"),
        (["--latents", "3-1"], "got '3-1'"),
        (["--batch-size", "0"], "batch_size must be 1 or more"),
        (["--shown", "0"], "num_shown and num_scored"),
        (["--max-cost", "1"], "max_cost needs prices"),
    ],
)
def test_bad_arguments_are_named(command, argv, match):
    with pytest.raises(ExplainError, match=match):
        command(*argv)


def test_a_file_that_another_process_explains_is_refused(command, server):
    with claimed(server.path), pytest.raises(LabError, match=r"made\.sqlite\.lock is held by another process"):
        command()
    with ExampleStore.open(server.path) as store:
        assert store.explanations() == []


def test_an_endpoint_needs_a_model(command):
    with pytest.raises(ExplainError, match="--model must name"):
        command(model=None)


def test_examples_of_another_dictionary_are_refused(store_path, dictionary):
    before = store_path.read_bytes()
    with pytest.raises(ExampleError, match="sae_sha256 must be"):
        explain.main([str(dictionary), "--store", str(store_path), "--endpoint", "tokens"])
    assert store_path.read_bytes() == before


def test_names_of_another_dictionary_are_refused(command, dictionary):
    """Its features name other latents."""
    write_features(dictionary, "b" * 64)
    with pytest.raises(WatchlistError, match="sae_sha256"):
        command("--latents", "named", endpoint="tokens", model=None)
    (dictionary / "features.json").unlink()
    with pytest.raises(ExplainError, match=r"latents must be 0 to 3, a range, random:N, all, got 'named'"):
        command("--latents", "named", endpoint="tokens", model=None)


def test_latents_are_chosen_by_index_range_name_and_lot(store_path):
    features = {"lying": 3, "calm": 2}
    with ExampleStore.open(store_path) as store:
        assert explain.chosen_latents(["2", "0-1", "2"], store, features) == [2, 0, 1]
        assert explain.chosen_latents(["lying"], store, features) == [3]
        assert explain.chosen_latents(["named"], store, features) == [3, 2]
        assert explain.chosen_latents(["all"], store, {}) == [3, 2, 0, 1]
        lot = explain.chosen_latents(["random:2"], store, {})
        assert len(lot) == 2 and lot == explain.chosen_latents(["random:2"], store, {})
        assert len(explain.chosen_latents(["random:99"], store, {})) == NUM_LATENTS


# --- a model in this process ----------------------------------------------------------------------------------------


def test_a_local_model_answers_in_shape(command, server, monkeypatch, model):
    """The tiny model is random: what it says means nothing, but all of it can be read."""
    monkeypatch.setattr("sae_runtime.language_model.load_language_model", lambda *_a, **_k: model_with_room(model))
    few = ("--latents", "0", "--shown", "1", "--scored", "8", "--batch-size", "8")
    code, records, _ = command(*few, endpoint="local", model=None)
    assert code == 0 and server.requests == []
    assert records[0]["model"] == "tiny (local)" and records[0]["title"]
    assert records[-1]["unparseable"] == 0 and records[0]["detection_n"] == 16
    again = command(*few, "--replace", endpoint="local", model=None)[1]
    assert again[-1]["kept"] == 1


def model_with_room(model):
    from dataclasses import replace

    return replace(model, context_length=100_000)


async def test_a_local_model_chooses_by_logits_alone(model):
    from discovery.local_chat import LocalChat

    chat = LocalChat(model_with_room(model))
    schema = {
        "type": "object",
        "properties": {
            "labels": {"type": "array", "items": {"enum": [0, 1]}, "minItems": 4, "maxItems": 4},
            "words": {"type": "array", "items": {"type": "string", "maxLength": 9}, "maxItems": 3},
            "text": {"type": "string", "maxLength": 30},
        },
    }
    reply = await chat.reply([{"role": "user", "content": "Say so."}], schema, 100)
    answer = json.loads(reply.text)
    assert set(answer) == {"labels", "words", "text"} and set(answer["labels"]) <= {0, 1} and len(answer["labels"]) == 4
    assert 1 <= len(answer["words"]) <= 3 and len(set(answer["words"])) == len(answer["words"])
    assert ast.literal_eval(reply.text.replace("null", "None")) == answer
    assert reply == await chat.reply([{"role": "user", "content": "Say so."}], schema, 100)


def test_a_local_model_chooses_where_the_options_part(model):
    """A token to a byte here: 10 and 11 have their first in common, and 1 ends where they go on."""
    from discovery.local_chat import _Pen

    def reference(prompt, options):
        written, left = "", options
        while len(left) > 1:
            ids = torch.tensor([model.tokenizer(prompt + written).input_ids])
            logits_V = model.model(input_ids=ids).logits[0, -1]
            scores = {}
            for option in left:
                for character in option[len(written)] if len(option) > len(written) else ",]":
                    value = float(logits_V[model.tokenizer(character).input_ids[0]])
                    scores[option] = max(value, scores.get(option, value))
            best = max(scores, key=scores.__getitem__)
            if len(best) == len(written):
                return best
            written += best[len(written)]
            left = [option for option in left if option.startswith(written)]
        return left[0]

    for options in (["10", "11"], ["1", "10", "11", "2"]):
        chosen = []
        for prompt in ("a", "yes", "why [", "7, 8", "labels: [0, ", "no", "zz", "Q"):
            with torch.inference_mode():
                pen = _Pen(model, model.tokenizer(prompt).input_ids)
                chosen.append(pen.choose(options))
                assert chosen[-1] == reference(prompt, options)
                wanted_V = model.model(input_ids=torch.tensor([model.tokenizer(prompt + chosen[-1]).input_ids])).logits
                torch.testing.assert_close(pen._logits(), wanted_V[0, -1], atol=1e-4, rtol=1e-3)
        assert len(set(chosen)) > 1, chosen


async def test_a_local_model_refuses_what_does_not_fit(model):
    from discovery.local_chat import LocalChat

    with pytest.raises(ReplyError, match=r"the prompt has .* tokens, the model takes 156"):
        await LocalChat(model).reply([{"role": "user", "content": "x" * 300}], {"type": "string"}, 100)
    with pytest.raises(ExplainError, match="can't write JSON of type 'number'"):
        await LocalChat(model).reply([{"role": "user", "content": "x"}], {"type": "number"}, 10)
