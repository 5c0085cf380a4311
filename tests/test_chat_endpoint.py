"""chat_endpoint, against a real HTTP server: what is sent, tried again, ends a run, and is never shown."""

import json
from contextlib import asynccontextmanager
from email.utils import format_datetime

import httpx
import pytest
from chat_server import Answer, ChatServer, chat_server, completion, error
from pydantic import BaseModel, ConfigDict

from discovery.call_limits import Meter, Pace, SpendingLimits
from discovery.call_retries import AnswerTime
from discovery.chat_endpoint import (
    KEY_VARIABLE,
    ChatEndpoint,
    EndpointSettings,
    key_from_environment,
    portable_schema,
)
from discovery.chat_model import ChatReply, ask, first_object, parse
from discovery.errors import BudgetError, EndpointError, ExplainError, ReplyError
from discovery.explanation import Account

KEY = "sk-secret-0123456789"
QUESTION = [{"role": "user", "content": "What is it?"}]
SCHEMA = {"type": "object", "properties": {"word": {"type": "string", "maxLength": 5}}, "additionalProperties": False}


class Word(BaseModel):
    model_config = ConfigDict(extra="forbid")
    word: str


@pytest.fixture
def server():
    with chat_server() as running:
        yield running


class Waits(list):
    """Takes the place of sleeping."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


@asynccontextmanager
async def endpoint(server: ChatServer, *, url=None, waits=None, pace=None, meter=None, **settings):
    settings = {"model": "m", "key": KEY, "timeout_seconds": 20} | settings
    made = EndpointSettings(url=url or server.url, **settings)
    async with ChatEndpoint(made, pace=pace, meter=meter, sleep=Waits() if waits is None else waits) as opened:
        yield opened


async def reply(server, **settings) -> ChatReply:
    async with endpoint(server, **settings) as model:
        return await model.reply(QUESTION, SCHEMA, 50)


async def fails(server, kind, match, **settings) -> str:
    with pytest.raises(kind, match=match) as caught:
        await reply(server, **settings)
    assert KEY not in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


# --- what is sent ---------------------------------------------------------------------------------------------------


async def test_a_call_has_model_messages_limit_schema_and_key(server):
    server.turns = [completion('{"word": "sea"}')]
    assert await reply(server) == ChatReply('{"word": "sea"}', False)
    (sent,) = server.requests
    assert (sent["model"], sent["messages"], sent["max_tokens"], sent["temperature"]) == ("m", QUESTION, 50, 0.0)
    assert sent["response_format"]["type"] == "json_schema"
    wanted = {"type": "object", "properties": {"word": {"type": "string"}}, "additionalProperties": False}
    assert sent["response_format"]["json_schema"] == {"name": "answer", "strict": True, "schema": wanted}
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


async def test_without_a_key_no_header_is_sent(server):
    await reply(server, key=None)
    assert "authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("tail", "path"),
    [
        ("/v1", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/openai?api-version=2", "/openai/chat/completions?api-version=2"),
        ("", "/chat/completions"),
    ],
)
async def test_the_address_is_found_however_the_url_ends(server, tail, path):
    await reply(server, url=f"http://127.0.0.1:{server.port}{tail}")
    assert server.paths == [path]


def test_the_key_is_read_from_its_own_variable_alone(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert key_from_environment() is None
    monkeypatch.setenv(KEY_VARIABLE, f" {KEY}\n")
    assert key_from_environment() == KEY
    monkeypatch.setenv(KEY_VARIABLE, "schlüssel")
    with pytest.raises(EndpointError, match=f"{KEY_VARIABLE} must be printable ASCII"):
        key_from_environment()
    assert KEY not in repr(EndpointSettings(url="http://x/v1", model="m", key=KEY))


def test_the_portable_schema_keeps_structure_and_drops_lengths():
    portable = portable_schema(Account.model_json_schema())
    assert set(portable["properties"]) == set(Account.model_fields) == set(portable["required"])
    assert portable["additionalProperties"] is False
    assert portable["properties"]["dominant_tokens"] == {"type": "array", "items": {"type": "string"}}
    assert "ength" not in json.dumps(portable) and "maxItems" not in json.dumps(portable)
    choice = {"type": "array", "items": {"type": "integer", "enum": [0, 1]}, "minItems": 2}
    assert portable_schema(choice) == {"type": "array", "items": {"type": "integer", "enum": [0, 1]}}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"url": "localhost:8080"}, "http or https"),
        ({"url": "ftp://x/v1"}, "http or https"),
        ({"url": "http://user:pw@x/v1"}, "no user and password"),
        ({"url": "http://x:99999/v1"}, "http or https"),
        ({"url": "http://[::1/v1"}, "http or https"),
        ({"url": "http://x/v1", "key": "schlüssel"}, f"{KEY_VARIABLE} must be printable ASCII"),
        ({"url": "http://x/v1", "max_attempts": 0}, "max_attempts"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, match):
    with pytest.raises(EndpointError, match=match) as caught:
        EndpointSettings(model="m", **settings)
    assert "pw" not in str(caught.value) and "schl" not in str(caught.value)


# --- servers differ -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 422])
async def test_a_refused_response_format_is_followed_by_the_next_one_for_good(server, status):
    def only_json_object(body):
        kind = body.get("response_format", {})
        plain = kind == {"type": "json_object"}
        return completion("{}") if plain else error(status, "response_format is not supported")

    server.otherwise = only_json_object
    async with endpoint(server) as model:
        await model.reply(QUESTION, SCHEMA, 50)
        kinds = [body["response_format"]["type"] for body in server.requests]
        assert kinds == ["json_schema", "json_object", "json_object"]
        assert "schema" in server.requests[1]["response_format"]
        await model.reply(QUESTION, SCHEMA, 50)
    assert len(server.requests) == 4


async def test_a_server_without_response_format_is_asked_without(server):
    server.otherwise = lambda body: error(400) if "response_format" in body else completion('{"word": "x"}')
    assert (await reply(server)).text == '{"word": "x"}'


async def test_a_request_that_is_wrong_in_every_form_costs_its_latent_alone(server):
    server.otherwise = error(400, "the prompt is too long")
    said = await fails(server, ReplyError, "HTTP 400: the prompt is too long")
    assert said.count("the prompt is too long") == 1


async def test_other_names_of_parameters_are_learnt(server):
    def picky(body):
        if "max_tokens" in body:
            return error(400, "Unsupported parameter: use 'max_completion_tokens' instead.")
        return error(400, "'temperature' does not support 0") if "temperature" in body else completion("{}")

    server.otherwise = picky
    async with endpoint(server) as model:
        await model.reply(QUESTION, SCHEMA, 50)
        assert server.requests[-1]["max_completion_tokens"] == 50
        # What was refused was not the form of the answer.
        assert server.requests[-1]["response_format"]["type"] == "json_schema"
        await model.reply(QUESTION, SCHEMA, 50)
    assert len(server.requests) == 4


# --- what passes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
async def test_what_passes_is_tried_again_after_growing_times(server, status):
    server.turns, waits = [error(status)] * 3, Waits()
    await reply(server, waits=waits)
    assert len(server.requests) == 4
    assert [low <= wait <= 2 * low for wait, low in zip(waits, [1, 2, 4], strict=True)] == [True] * 3


async def test_retry_after_is_honoured_in_seconds_and_as_a_date(server, monkeypatch):
    from datetime import UTC, datetime, timedelta

    now = datetime(2030, 1, 1, tzinfo=UTC)
    monkeypatch.setattr("discovery.chat_endpoint.time.time", now.timestamp)
    date = format_datetime(now + timedelta(seconds=30), usegmt=True)
    server.turns = [error(429, Retry_After="7"), error(503, Retry_After=date), error(429, Retry_After="soon")]
    waits = Waits()
    await reply(server, waits=waits)
    assert waits[:2] == [7.0, 30.0]
    assert 4 <= waits[2] <= 8


async def test_a_server_that_asks_for_too_long_ends_the_run(server):
    server.otherwise, waits = error(429, "slow down", Retry_After="3600"), Waits()
    await fails(server, EndpointError, "slow down; it asks to wait for 3600 s", waits=waits)
    assert waits == [] and len(server.requests) == 1


@pytest.mark.parametrize(
    "turn",
    [
        Answer(body=b'{"choices": [{"mess'),
        Answer(body=b"<html>Bad gateway</html>"),
        Answer(body=b"\xff\xfe\x00"),
        Answer(body=b'{"choices": []}'),
        Answer(body=b'{"choices": [null]}'),
        Answer(body=b"[]"),
        Answer(body=b'{"error": {"message": "upstream is gone"}}'),
        Answer(body=completion("{}").body, drops=True),
    ],
    ids=["cut-json", "html", "bytes", "no-choices", "null-choice", "list", "error-with-200", "broken-off"],
)
async def test_answers_that_are_none_are_tried_again(server, turn):
    server.turns, meter = [turn], Meter()
    await reply(server, meter=meter)
    assert len(server.requests) == 2
    # The first may have been billed, so it counts with its most.
    assert (meter.calls, meter.num_estimated, meter.completion_tokens) == (2, 1, 50 + 10)


async def test_silence_is_cut_short_and_counted_with_its_most(server):
    server.turns, meter = [Answer(holds=True)], Meter()
    await reply(server, timeout_seconds=0.3, meter=meter)
    assert meter.completion_tokens == 50 + 10


async def test_after_silence_the_next_answer_may_take_twice_as_long_and_it_is_said(server):
    server.turns, lines, waits = [Answer(holds=True), Answer(holds=True)], [], Waits()
    settings = EndpointSettings(url=server.url, model="m", timeout_seconds=0.2, max_attempts=3)
    async with ChatEndpoint(settings, sleep=waits, notice=lines.append) as endpoint:
        await endpoint.reply([{"role": "user", "content": "q"}], SCHEMA, 50)
        assert endpoint.answer_time.seconds == 0.8
    assert [line.partition(" in ")[0] for line in lines] == [
        f"endpoint {server.url} can't be reached: no answer within {waited} s (--timeout), the next one may take "
        f"{longer} s; attempt {attempt} of 3"
        for attempt, waited, longer in ((2, 0.2, 0.4), (3, 0.4, 0.8))
    ]


def test_what_is_wrong_with_an_answer_is_one_readable_line():
    schema_again = {"title": 3, "maxLength": 40, "type": "string"}
    with pytest.raises(ReplyError) as caught:
        parse(json.dumps(schema_again), Account)
    assert str(caught.value) == (
        "it lacks dominant_tokens, pattern, summary, context; nobody asked for maxLength, type; "
        "title: Input should be a valid string"
    )
    with pytest.raises(ReplyError, match=r"nobody asked for field_0, .*field_7 and 12 more$"):
        fields = {"dominant_tokens": [], "pattern": "a", "summary": "b", "context": "c", "title": "d"}
        parse(json.dumps(fields | {f"field_{n}": 1 for n in range(20)}), Account)


def test_an_answers_time_grows_to_eight_times_and_once_for_calls_side_by_side():
    time = AnswerTime.of(120.0)
    time.lengthen(120.0)
    time.lengthen(120.0)
    assert time.seconds == 240.0
    for _ in range(5):
        time.lengthen(time.seconds)
    assert time.seconds == 960.0


async def test_an_unreachable_endpoint_is_named_after_the_last_attempt():
    with chat_server() as gone:
        pass
    waits, meter = Waits(), Meter()
    message = await fails(gone, EndpointError, "can't be reached", waits=waits, meter=meter, max_attempts=3)
    assert gone.url in message and len(waits) == 2
    assert meter.used.total == 0


async def test_what_stays_broken_ends_the_run(server):
    server.otherwise = error(500, "out of order")
    await fails(server, EndpointError, "HTTP 500: out of order", max_attempts=2)
    assert len(server.requests) == 2


# --- what does not pass ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 404, 302])
async def test_what_does_not_pass_is_not_tried_again(server, status):
    server.otherwise = error(status, f"Incorrect API key provided: {KEY}")
    message = await fails(server, EndpointError, f"HTTP {status}")
    assert "***" in message
    assert (KEY_VARIABLE in message) == (status in (401, 403))
    assert len(server.requests) == 1


async def test_an_empty_purse_is_no_reason_to_wait(server):
    body = json.dumps({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}).encode()
    server.otherwise = Answer(429, body)
    await fails(server, EndpointError, "exceeded your quota")
    assert len(server.requests) == 1


async def test_a_refusal_and_a_filter_cost_their_latent_alone(server):
    server.turns = [completion(None, message={"refusal": "I can't"}), completion("", finish_reason="content_filter")]
    meter = Meter()
    await fails(server, ReplyError, "the model refuses: I can't", meter=meter)
    assert meter.used == (100, 10)  # billed, and the server says how much
    await fails(server, ReplyError, "content filter")


async def test_a_query_in_the_url_is_not_shown(server):
    server.otherwise = error(404)
    message = await fails(server, EndpointError, "404", url=f"{server.url}?key=topsecret")
    assert "topsecret" not in message


# --- limits ---------------------------------------------------------------------------------------------------------


async def test_usage_is_the_servers_and_else_an_estimate(server):
    server.turns, meter = [completion("{}"), completion("{}", usage=None)], Meter()
    async with endpoint(server, meter=meter) as model:
        await model.reply(QUESTION, SCHEMA, 50)
        assert (meter.used, meter.num_estimated) == ((100, 10), 0)
        await model.reply(QUESTION, SCHEMA, 50)
    assert meter.num_estimated == 1 and meter.completion_tokens == 60 and meter.prompt_tokens > 100


async def test_a_call_that_could_cost_too_much_is_not_made(server):
    meter = Meter(SpendingLimits(max_tokens_total=400))
    async with endpoint(server, meter=meter) as model:
        await model.reply(QUESTION, SCHEMA, 200)
        with pytest.raises(BudgetError, match="max_tokens_total is 400: 110 tokens are used"):
            await model.reply(QUESTION, SCHEMA, 290)
        await model.reply(QUESTION, SCHEMA, 50)
    assert len(server.requests) == 2


async def test_every_attempt_goes_through_the_pace(server):
    server.turns = [error(500)] * 2
    waits = Waits()
    now = [0.0]

    async def sleep(seconds):
        waits.append(seconds)
        now[0] += seconds

    pace = Pace(requests_per_minute=1, clock=lambda: now[0], sleep=sleep)
    await reply(server, pace=pace)
    assert waits == [60.0, 60.0]


# --- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"word": "sea"}',
        '```json\n{"word": "sea"}\n```',
        'Sure! Here it is: {"word": "sea"} I hope that helps {"word": "no"}',
        '<think>{"word": "wrong"}</think>{"word": "sea"}',
        'curly { brackets } first {"word": "sea"}',
    ],
)
def test_json_is_found_in_what_stands_around_it(text):
    assert parse(text, Word).word == "sea"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("I can't say.", 'must hold a JSON object, got "I can\'t say."'),
        ("", "must hold a JSON object"),
        ('{"word": "se', "must hold a JSON object"),
        ('{"words": "sea"}', "it lacks word"),
        ('{"word": 1}', "word: Input should be a valid string"),
        ("[1]", "must hold a JSON object"),
        ("{" * 5000, "must hold a JSON object"),
    ],
)
def test_what_is_wrong_with_an_answer_is_said(text, match):
    with pytest.raises(ReplyError, match=match):
        parse(text, Word)
    assert first_object('x {"a": {"b": 1}}') == {"a": {"b": 1}}


async def test_a_wrong_answer_is_complained_about_and_mended(server):
    server.turns = [completion('{"words": "sea"}'), completion('{"word": "sea"}')]
    async with endpoint(server) as model:
        asked = await ask(model, QUESTION, Word, max_tokens=50)
    assert (asked.answer.word, asked.num_repairs) == ("sea", 1)
    before, complaint = server.requests[1]["messages"][-2:]
    assert before == {"role": "assistant", "content": '{"words": "sea"}'}
    assert "it lacks word" in complaint["content"]


async def test_a_cut_off_answer_gets_more_room(server):
    server.turns = [completion('{"word": "se', finish_reason="length"), completion('{"word": "sea"}')]
    async with endpoint(server) as model:
        await ask(model, QUESTION, Word, max_tokens=50)
    assert [body["max_tokens"] for body in server.requests] == [50, 100]
    assert server.requests[1]["messages"] == QUESTION


async def test_an_answer_that_stays_wrong_is_given_up(server):
    server.otherwise = completion("no", finish_reason="length")
    async with endpoint(server) as model:
        with pytest.raises(ReplyError, match="got 'no' \\(cut off after 200 tokens, 50 at first\\)"):
            await ask(model, QUESTION, Word, max_tokens=50)
    assert len(server.requests) == 3


async def test_errors_are_of_the_tree(server):
    assert issubclass(EndpointError, ExplainError) and issubclass(ReplyError, ExplainError)
    server.otherwise = error(401)
    with pytest.raises(ExplainError):
        await reply(server)
    assert not issubclass(ExplainError, httpx.HTTPError)
