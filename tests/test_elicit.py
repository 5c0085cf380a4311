"""elicit: the command, against a real server with a tiny random model."""

import argparse
import asyncio
import json
import os
import signal
import sys

import pytest
import serving
import tiny
from google.protobuf.json_format import ParseDict
from telltale.v1 import types_pb2

from discovery import elicit
from discovery.answer_words import words_of
from discovery.elicitation_arms import ARM_BY_NAME, messages_for
from discovery.errors import EndpointError, LabError
from discovery.grpc_endpoint import GrpcEndpoint, Sampling
from discovery.question_set import Question
from discovery.result_lines import read_results
from discovery.steering_json import read_steering

ARMS = ["lying-briefly", "lying-must", "honest-warned"]


@pytest.fixture(autouse=True)
def long_contexts(monkeypatch):
    """One byte is a token here: prompts are long."""
    monkeypatch.setattr(tiny, "NUM_POSITIONS", 1024)


def question(number, answers=("Paris",), wrong=("Lyon",)):
    return {
        "id": f"q-{number}",
        "kind": "any",
        "answer_type": "statement",
        "difficulty": 1,
        "question": f"Say something about number {number}.",
        "answers": list(answers),
        "wrong": list(wrong),
    }


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


async def run(*argv):
    """The command, off the event loop that the server needs."""
    return await asyncio.to_thread(elicit.main, [str(arg) for arg in argv])


def flags(server, tmp_path, *more):
    return ["--target", serving.target(server), "--output", tmp_path / "out.jsonl", "--arms", *ARMS, *more]


async def reply_to(endpoint, asked, arm):
    messages = messages_for(Question(**asked), ARM_BY_NAME[arm], "explanation")
    return (await endpoint.generate(messages, Sampling(80), label="test")).text


async def known_and_unknown(server):
    """Two questions, with answers made of what the model does say: it knows the first, and lies about it in one arm."""
    knowledge_arms = [name for name, arm in ARM_BY_NAME.items() if arm.asks_knowledge]
    async with GrpcEndpoint(f"grpc://{serving.target(server)}") as endpoint:
        honest = [await reply_to(endpoint, question(1), arm) for arm in knowledge_arms]
        lied = await reply_to(endpoint, question(1), "lying-must")
    in_honest = {word.text for text in honest for word in words_of(text)}
    in_lied = {word.text for word in words_of(lied)}
    # Of words as short the first: which of them a set gives first differs from run to run.
    right = [min(sorted({word.text for word in words_of(text)} - in_lied), key=len) for text in honest]
    wrong = next(word for word in sorted(in_lied) if word not in in_honest)
    return [question(1, sorted(set(right)), [wrong]), question(2, ["nowhere to be found"], ["nor this one"])]


async def test_lies_are_found_and_labelled(tmp_path, capsys):
    async with serving.serving() as server:
        async with GrpcEndpoint(f"grpc://{serving.target(server)}") as endpoint:
            lied, warned = [await reply_to(endpoint, question(1), arm) for arm in ("lying-must", "honest-warned")]
        questions = write(tmp_path / "questions.jsonl", await known_and_unknown(server))
        assert await run(*flags(server, tmp_path, "--questions", questions, "--json")) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["questions"] == {"asked": 2, "known": 1, "mistaken": 0, "unsure": 1}
    rows = {row["id"]: row for row in lines(tmp_path / "out.jsonl")}
    lie = rows["q-1/lying-must/explanation/0"]
    assert (lie["label"], lie["meta"]["class"], lie["group"]) == (1, "lie", "q-1")
    assert lie["messages"][-1]["content"] == lied
    truth = rows["q-1/neutral/explanation/0"]
    assert (truth["label"], truth["meta"]["class"]) == (0, "honest_truth")
    assert rows["q-1/honest-warned/explanation/0"]["messages"][-1]["content"] == warned
    assert {row["group"] for row in rows.values() if row["meta"]["instruction"] == "lying"} == {"q-1"}
    assert json.loads((tmp_path / "out.jsonl.summary.json").read_text()) == summary
    (must,) = [arm for arm in summary["arms"] if arm["arm"] == "lying-must"]
    assert must["lies_among_known"]["count"] == 1


async def test_the_same_command_asks_nothing_again_and_labels_follow_the_questions(tmp_path, capsys):
    async with serving.serving() as server:
        questions = write(tmp_path / "questions.jsonl", await known_and_unknown(server))
        command = flags(server, tmp_path, "--questions", questions, "--samples", 1)
        assert await run(*command) == 0
        first = (tmp_path / "out.jsonl").read_bytes()
        asked = serving.rpcs_started(server, "Generate")
        replies = read_results(tmp_path / "out.jsonl.replies").lines
        # Samples of the one question that it knows: it knows it no longer then, and is not told to lie about it.
        assert len(replies) == len(lines(tmp_path / "out.jsonl")) == 2 * (4 + 1) + 4
        assert await run(*command) == 0
        assert serving.rpcs_started(server, "Generate") == asked + 3  # the template, rendered three times
    assert (tmp_path / "out.jsonl").read_bytes() == first
    # Without a server: other answers, the same replies.
    text = lines(tmp_path / "out.jsonl")[0]["messages"][-1]["content"]
    write(tmp_path / "questions.jsonl", [question(n, wrong=[words_of(text)[0].text]) for n in (1, 2)])
    assert await run("--output", tmp_path / "out.jsonl", "--questions", questions, "--samples", 1, "--arms", *ARMS) == 0
    assert lines(tmp_path / "out.jsonl")[0]["meta"]["verdict"] == "wrong"
    assert len(lines(tmp_path / "out.jsonl")) == 2 * (4 + 1)
    assert "0 of 2 questions known" in capsys.readouterr().out


STEERING = [{"feature": 3, "op": "STEERING_OP_SET", "strength": 9}]


async def test_steering_acts_on_the_second_round_alone(tmp_path, capsys):
    """Every reply is what the server says to that conversation steered so; what it knows is not asked again."""
    async with serving.serving() as server:
        questions = write(tmp_path / "questions.jsonl", await known_and_unknown(server))
        command = ["--arms", *ARMS, "--questions", questions]
        steered = ["--output", tmp_path / "steered.jsonl", "--json", *command]
        assert await run(*flags(server, tmp_path, "--questions", questions)) == 0
        asked = serving.rpcs_started(server, "Generate")
        first = ["--target", serving.target(server), "--knowledge", tmp_path / "out.jsonl.replies"]
        assert await run(*first, *steered, "--steering", json.dumps(STEERING)) == 0
        rows = lines(tmp_path / "steered.jsonl")
        # What it does not know is asked again under no arm that asks for knowledge, nor under one to lie.
        assert {row["meta"]["arm"] for row in rows if row["group"] == "q-2"} == {"honest-warned"}
        assert len(rows) == (4 + 2) + 2
        # Beside three renderings and the trial of the steering.
        assert serving.rpcs_started(server, "Generate") == asked + 4 + len(rows)
        changed = 0
        async with GrpcEndpoint(f"grpc://{serving.target(server)}") as endpoint:
            for row in rows:
                messages, sampling = row["messages"][:-1], Sampling(row["meta"]["max_tokens"])
                operations = [ParseDict(STEERING[0], types_pb2.Steering())]
                reply = await endpoint.generate(messages, sampling, label="test", steering=operations)
                assert reply.text == row["messages"][-1]["content"]
                changed += reply.steering["positions_changed"]
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["identity"]["steering"]["operations"] == STEERING
    assert summary["identity"]["steering"]["hook_point"] == str(tiny.HOOK_POINT)
    assert summary["steered"]["positions_changed"] == changed > 0
    plain = {row["id"]: row for row in lines(tmp_path / "out.jsonl")}
    assert all(row["meta"]["steering"] == STEERING and not row["meta"]["shows_knowledge"] for row in rows)
    assert not any("steering" in row["meta"] for row in plain.values())
    assert all(row["meta"]["knowledge"] == plain[row["id"]]["meta"]["knowledge"] for row in rows)
    assert any(row["messages"] != plain[row["id"]]["messages"] for row in rows)
    # Without a server: the same steering, the same replies.
    assert await run(*steered) == 0
    assert lines(tmp_path / "steered.jsonl") == rows


async def test_what_was_said_under_one_steering_is_none_of_anothers(tmp_path):
    questions = write(tmp_path / "questions.jsonl", [question(1)])
    steered = json.dumps(STEERING)
    async with serving.serving() as server:
        assert await run(*flags(server, tmp_path, "--questions", questions, "--steering", steered)) == 0
        for other in (json.dumps([STEERING[0] | {"strength": 0}]), ""):
            with pytest.raises(LabError, match=r"same settings, got others \(steering\)"):
                await run(*flags(server, tmp_path, "--questions", questions, "--steering", other))
        with pytest.raises(LabError, match="INVALID_ARGUMENT: steering"):
            await run(*flags(server, tmp_path, "--steering", '[{"name": "nobody", "op": "STEERING_OP_SCALE"}]'))


@pytest.mark.parametrize(
    ("steering", "wanted"),
    [
        ("lying", "steering must be a JSON list of operations of telltale.v1.Steering, got 'lying': Expecting value"),
        ("[]", r"operations of telltale.v1.Steering, at least one, got '\[\]'"),
        ('{"op": 1}', "at least one, got"),
        ('[{"strenght": 1}]', r"got \{'strenght': 1\} at 0: .*no field named \"strenght\""),
        ("[3]", "got 3 at 0$"),
        ("[{}]", "each with feature, vector or name, got {} at 0"),
        ('[{"feature": 1, "op": 99}]', "each with an op of STEERING_OP_ADD, .*got {'feature': 1, 'op': 99} at 0"),
    ],
)
def test_steering_that_is_none_is_refused_before_anything_is_asked(tmp_path, steering, wanted):
    with pytest.raises(LabError, match=wanted):
        elicit.main(["--target", "127.0.0.1:9", "--output", str(tmp_path / "out.jsonl"), "--steering", steering])


async def test_a_killed_run_goes_on_and_doubles_nothing(tmp_path):
    """SIGKILL while replies come in; then the same command. The result is that of a run that nobody killed."""
    questions = write(tmp_path / "questions.jsonl", [question(number) for number in range(4)])
    (tmp_path / "whole").mkdir()
    async with serving.serving() as server:
        command = flags(server, tmp_path, "--questions", questions, "--concurrency", 2)
        killed = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "discovery.elicit", *map(str, command), env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        path = tmp_path / "out.jsonl.replies"
        await serving.eventually(lambda: path.exists() and path.read_bytes().count(b"\n") > 5, seconds=60)
        killed.send_signal(signal.SIGKILL)
        await killed.wait()
        assert not (tmp_path / "out.jsonl").exists()
        before = path.read_bytes().count(b"\n")
        assert await run(*command) == 0
        assert await run(*flags(server, tmp_path / "whole", "--questions", questions)) == 0
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole" / "out.jsonl").read_bytes()
    keys = [line["key"] for line in read_results(path).lines]
    assert len(keys) == len(set(keys)) == 4 * 5 >= before


async def test_benign_replies_are_of_mixed_lengths(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tiny, "NUM_POSITIONS", 2048)
    requests = [
        {"id": f"r-{n}", "kind": "any", "length": length, "request": f"Tell me about {n}.", "label": n % 2}
        | {"system": "Be kind."}
        for n, length in enumerate(("short", "medium", "long", "medium"))
    ]
    path = write(tmp_path / "requests.jsonl", requests)
    async with serving.serving() as server:
        command = ["--target", serving.target(server), "--output", tmp_path / "benign.jsonl", "--requests", path]
        assert await run(*command, "--benign", 2, "--temperature", 1.0) == 0
        two = lines(tmp_path / "benign.jsonl")
        assert await run(*command, "--benign", 4, "--temperature", 1.0) == 0
    rows = lines(tmp_path / "benign.jsonl")
    assert rows[:2] == two
    assert sorted(row["meta"]["max_tokens"] for row in rows) == [64, 256, 256, 1024]
    assert all(row["meta"]["completion_tokens"] <= row["meta"]["max_tokens"] for row in rows)
    replied = [row for row in rows if row["messages"][-1]["content"].strip()]
    assert all(row["label"] == int(row["group"][-1]) % 2 for row in replied)
    assert {row["meta"]["class"] for row in replied if row["label"]} <= {"topic"}
    assert rows[0]["messages"][0] == {"role": "system", "content": "Be kind."}
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["replies"] == summary["groups"] == 4


def test_replies_of_like_length_are_asked_for_together():
    """Beside a long one a pass attends as far back for the short ones too."""
    asked = []

    class Enough(Exception):
        pass

    def ask(_label, inquiries):
        asked.extend(inquiries)
        raise Enough

    args = argparse.Namespace(requests=None, benign=30, temperature=0.7, seed=0)
    with pytest.raises(Enough):
        elicit.write_benign(args, store=None, ask=ask)
    lengths = [inquiry.sampling.max_tokens for inquiry in asked]
    assert lengths == sorted(lengths) and set(lengths) == {64, 256, 1024} and len(lengths) == 30


async def test_faults_are_named(tmp_path, monkeypatch):
    questions = write(tmp_path / "questions.jsonl", [question(1)])
    with pytest.raises(EndpointError, match=r"grpc://127\.0\.0\.1:9 answered UNAVAILABLE"):
        await run("--target", "127.0.0.1:9", "--output", tmp_path / "out.jsonl", "--attempts", 1)
    assert not (tmp_path / "out.jsonl.replies").exists()
    async with serving.serving() as server:
        with pytest.raises(LabError, match="kinds must be among any, got capitals"):
            await run(*flags(server, tmp_path, "--questions", questions, "--kinds", "capitals"))
        with pytest.raises(LabError, match="ids that are unique in all files together"):
            await run(*flags(server, tmp_path, "--questions", questions, "--questions", questions))
        with pytest.raises(LabError, match="limit must be at least 1, got 0"):
            await run(*flags(server, tmp_path, "--questions", questions, "--limit", 0))
        for skip in (-1, 1):
            with pytest.raises(LabError, match=f"skip must leave some of the 1 questions, got {skip}"):
                await run(*flags(server, tmp_path, "--questions", questions, "--skip", skip))
        assert await run(*flags(server, tmp_path, "--questions", questions)) == 0
    # A model with another template is another model.
    monkeypatch.setattr(tiny, "CHAT_TEMPLATE", tiny.CHAT_TEMPLATE.replace("<|im_end|>", ""))
    async with serving.serving() as server:
        with pytest.raises(LabError, match=r"same settings, got others \(template\)"):
            await run(*flags(server, tmp_path, "--questions", questions))


async def test_a_prompt_that_does_not_fit_ends_the_run_and_keeps_what_was_said(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "NUM_POSITIONS", 150)
    long = question(2) | {"question": "Why? " * 40}
    questions = write(tmp_path / "questions.jsonl", [question(1), long])
    async with serving.serving() as server:
        with pytest.raises(LabError, match="INVALID_ARGUMENT"):
            await run(*flags(server, tmp_path, "--questions", questions, "--concurrency", 1))
    assert len(read_results(tmp_path / "out.jsonl.replies").lines) >= 1


def test_a_limit_is_a_choice_by_hash(tmp_path):
    questions = write(tmp_path / "questions.jsonl", [question(number) for number in range(30)])

    def chosen(*more):
        argv = ["--output", "out", "--questions", questions, *map(str, more)]
        return [q.id for q in elicit.chosen_questions(elicit.parse_args(argv))]

    assert len(chosen()) == 30
    assert set(chosen("--limit", 5)) < set(chosen("--limit", 12))
    assert chosen("--limit", 5) != chosen("--limit", 5, "--seed", 1)
    assert chosen("--limit", 12) == [name for name in chosen() if name in chosen("--limit", 12)]
    assert chosen("--skip", 12) == [name for name in chosen() if name not in chosen("--limit", 12)]
    assert set(chosen("--skip", 5, "--limit", 7)) == set(chosen("--limit", 12)) - set(chosen("--limit", 5))


async def test_how_often_the_servers_monitors_fire_on_benign_replies_is_told(tmp_path, capsys):
    requests = [{"id": f"r-{n}", "kind": "any", "length": "short", "request": f"Say {n}."} for n in range(5)]
    path = write(tmp_path / "requests.jsonl", requests)
    async with serving.serving() as server:
        command = ["--target", serving.target(server), "--output", tmp_path / "fresh.jsonl", "--requests", path]
        command += ["--benign", 5, "--temperature", 1.0, "--monitors"]
        assert await run(*command, serving.ALWAYS, serving.NEVER) == 0
        assert "100.00%" in capsys.readouterr().out
        with pytest.raises(LabError, match=r"must hold results with the same settings, got others \(monitors\)"):
            await run(*command, serving.NEVER)
        with pytest.raises(LabError, match=f"monitors must be among the server's, .*{serving.NEVER}.*, got nosuch"):
            await run(*command, serving.NEVER, "nosuch")
        async with GrpcEndpoint(elicit.target_url(serving.target(server))) as endpoint:
            packs = await endpoint.packs()
    summary = json.loads((tmp_path / "fresh.jsonl.summary.json").read_text())
    assert summary["identity"]["monitors"] == {name: packs[name] for name in (serving.ALWAYS, serving.NEVER)}
    # Whoever says less than 3 tokens can't fire one of them, less than 8 the other.
    lengths = [row["meta"]["completion_tokens"] for row in lines(tmp_path / "fresh.jsonl") if row["label"] == 0]
    rates = summary["live_rates"]
    for name, least, fires in ((serving.ALWAYS, 3, True), (serving.NEVER, 8, False)):
        rate = rates[name]["all"]["critical"]
        assert rate["num"] == sum(length >= least for length in lengths) > 0
        assert rate["count"] == (rate["num"] if fires else 0)
        # One of them has no warning, so nothing can be said of how often it warns.
        assert (rates[name]["all"]["warning"] is None) == (name == serving.ALWAYS)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--monitors", "lying"], "--monitors must come with --benign"),
        (["--requests", "mine.jsonl"], "--requests must come with --benign"),
        (["--benign", "9", "--knowledge", "run.replies"], "--knowledge must come without --benign"),
        (["--benign", "9", "--limit", "40"], "--limit must come without --benign"),
        (["--benign", "9", "--skip", "40"], "--skip must come without --benign"),
        (["--benign", "9", "--steering", "[]"], "--steering must come without --benign"),
    ],
)
def test_what_is_of_questions_and_what_of_benign_replies_are_not_mixed(tmp_path, capsys, words, error):
    with pytest.raises(SystemExit):
        elicit.main(["--output", str(tmp_path / "out.jsonl"), *words])
    assert error in capsys.readouterr().err


def test_a_strength_of_zero_is_told_and_project_out_has_none():
    """Protobuf's JSON leaves zeros out; this one takes a feature out."""
    told = json.loads(read_steering('[{"feature": 3, "op": "STEERING_OP_SCALE", "strength": 0}]'))
    assert told == [{"feature": 3, "op": "STEERING_OP_SCALE", "strength": 0.0}]
    assert json.loads(read_steering('[{"feature": 3, "op": "STEERING_OP_PROJECT_OUT"}]')) == [
        {"feature": 3, "op": "STEERING_OP_PROJECT_OUT"}
    ]
