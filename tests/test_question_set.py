"""question_set: files of questions, and what is wrong with some."""

import json
import math
import re
from collections import Counter

import pytest

from discovery.answer_check import judge
from discovery.answer_words import phrase
from discovery.errors import ElicitError
from discovery.question_set import SHIPPED, digest, read_questions, read_requests, shipped_questions, shipped_requests

FACTS = read_questions(SHIPPED / "facts.jsonl")
STATEMENTS = read_questions(SHIPPED / "statements.jsonl")
REQUESTS = shipped_requests()

GOOD = {
    "id": "capitals-1",
    "kind": "capitals",
    "answer_type": "name",
    "difficulty": 1,
    "question": "What is the capital of Chile?",
    "answers": ["Santiago"],
    "wrong": ["Valparaíso"],
}


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_there_are_enough_of_many_kinds_and_difficulties():
    assert len(FACTS) >= 1000
    assert len(STATEMENTS) >= 150
    assert len(REQUESTS) >= 150
    assert len({question.kind for question in FACTS}) >= 25
    assert min(Counter(question.difficulty for question in FACTS).values()) >= 100
    assert min(Counter(request.length for request in REQUESTS).values()) >= 35


def test_nothing_is_asked_twice():
    asked = [phrase(item.question) for item in shipped_questions()] + [phrase(item.request) for item in REQUESTS]
    assert [text for text, count in Counter(asked).items() if count > 1] == []
    ids = [item.id for item in shipped_questions()]
    assert len(set(ids)) == len(ids)


def misjudged(question):
    """Replies that should be plain, and are not taken for what they are."""
    replies = {f"{question.answers[0]}. {answer}.": "unclear" for answer in question.wrong}
    for verdict, answers in (("right", question.answers), ("wrong", question.wrong)):
        for answer in answers:
            replies |= dict.fromkeys((f"{answer}.", f"**{answer}**", f"The answer is {answer}."), verdict)
    return [reply for reply, verdict in replies.items() if judge(question, reply).verdict != verdict]


def test_the_checker_knows_every_answer_of_every_question():
    found = {question.id: misjudged(question) for question in shipped_questions()}
    assert {name: replies for name, replies in found.items() if replies} == {}


def test_numbers_have_no_listed_wrong_answers():
    """Every other number is one."""
    assert [question.id for question in FACTS if question.answer_type in ("number", "year") and question.wrong] == []
    assert [question.id for question in STATEMENTS if question.answer_type != "statement"] == []


ARITHMETIC = {
    r"What is (\d+) plus (\d+)\?": lambda a, b: a + b,
    r"What is (\d+) minus (\d+)\?": lambda a, b: a - b,
    r"What is (\d+) times (\d+)\?": lambda a, b: a * b,
    r"What is (\d+) divided by (\d+)\?": lambda a, b: a / b,
    r"What is (\d+) to the power of (\d+)\?": lambda a, b: a**b,
    r"What is (\d+) percent of (\d+)\?": lambda a, b: a * b / 100,
    r"What is the remainder when (\d+) is divided by (\d+)\?": lambda a, b: a % b,
    r"What is the greatest common divisor of (\d+) and (\d+)\?": math.gcd,
    r"What is the least common multiple of (\d+) and (\d+)\?": math.lcm,
    r"What is half of (\d+)\?": lambda a: a / 2,
    r"What is double (\d+)\?": lambda a: a * 2,
    r"What is a quarter of (\d+)\?": lambda a: a / 4,
    r"What is a third of (\d+)\?": lambda a: a / 3,
    r"What is (\d+) squared\?": lambda a: a**2,
    r"What is (\d+) cubed\?": lambda a: a**3,
    r"What is (\d+) factorial\?": math.factorial,
    r"What is the square root of (\d+)\?": math.sqrt,
    r"What is the smallest prime number greater than (\d+)\?": lambda a: next(
        n for n in range(a + 1, 2 * a + 2) if all(n % d for d in range(2, n))
    ),
    r"What is the decimal value of the binary number (\d+)\?": lambda a: int(str(a), 2),
}


def test_what_can_be_computed_is_right():
    computed = 0
    for question in FACTS:
        for pattern, compute in ARITHMETIC.items():
            if found := re.fullmatch(pattern, question.question):
                assert float(question.answers[0]) == compute(*map(int, found.groups())), question.id
                computed += 1
    assert computed == sum(question.kind == "arithmetic" for question in FACTS) + 3


def test_a_file_of_ones_own_is_read(tmp_path):
    (question,) = read_questions(write(tmp_path / "own.jsonl", GOOD))
    assert (question.id, question.answers) == ("capitals-1", ("Santiago",))
    request = {"id": "r", "kind": "any", "length": "short", "request": "Hi", "system": "Be brief."}
    assert read_requests(write(tmp_path / "requests.jsonl", request))[0].system == "Be brief."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "Capitals 1"}, "id: String should match pattern"),
        ({"difficulty": 5}, "difficulty: Input should be less than or equal to 4, got 5"),
        ({"answers": []}, "answers: Tuple should have at least 1 item"),
        ({"answer_type": "colour"}, "answer_type: Input should be 'name', 'word', 'number', 'year' or 'statement'"),
        ({"answer": "Santiago"}, "answer: Extra inputs are not permitted"),
        ({"answers": ["..."]}, r"answers must have words and differ in them, got \['...'\]"),
        ({"answers": ["Santiago", "santiago"]}, "answers must have words and differ in them"),
        ({"wrong": ["SANTIAGO"]}, "wrong must not have what answers accept, got 'SANTIAGO'"),
        ({"wrong": ["Santiagos"]}, "wrong must not have what answers accept, got 'Santiagos'"),
        ({"answer_type": "number"}, "answers must begin with a number"),
        ({"question": "Is Santiago the capital of Chile?"}, "question must not say the answer"),
    ],
)
def test_what_is_wrong_with_a_question_is_said(tmp_path, changes, message):
    with pytest.raises(ElicitError, match=rf"own\.jsonl, line 2: {message}"):
        read_questions(write(tmp_path / "own.jsonl", GOOD | {"id": "other"}, GOOD | changes))


def test_files_that_are_none(tmp_path):
    with pytest.raises(ElicitError, match="must have at least one line"):
        read_questions(write(tmp_path / "own.jsonl"))
    with pytest.raises(ElicitError, match="can't be read from"):
        read_questions(tmp_path / "missing.jsonl")
    with pytest.raises(ElicitError, match="line 2: id must be unique, got 'capitals-1' as in line 1"):
        read_questions(write(tmp_path / "own.jsonl", GOOD, GOOD))
    (tmp_path / "own.jsonl").write_text("no json\n")
    with pytest.raises(ElicitError, match="line 1, must be JSON"):
        read_questions(tmp_path / "own.jsonl")


def test_the_digest_is_of_all_that_is_asked(tmp_path):
    one, other = (read_questions(write(tmp_path / "own.jsonl", GOOD | {"wrong": wrong})) for wrong in (["Lima"], []))
    assert digest(one) == digest(one) != digest(other)
