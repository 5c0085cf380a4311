"""grpc_chat: the project's own server as the model that explains, over a real wire."""

import asyncio
import json

import grpc
import pytest
import serving
from telltale.v1 import generation_pb2

from discovery.call_limits import Meter, SpendingLimits
from discovery.call_retries import AnswerTime, PassingFault, Patience
from discovery.chat_model import ask
from discovery.errors import BudgetError, EndpointError, ReplyError
from discovery.explanation import Account
from discovery.grpc_chat import GrpcChat

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name the sea."}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


HANGS = object()


class Naps:
    """Sleeps that take no time."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def url(server) -> str:
    return f"grpc://{serving.target(server)}"


async def test_a_reply_is_what_the_server_generates_and_is_counted():
    async with serving.serving() as server, GrpcChat(url(server)) as chat:
        assert chat.name == "tiny (telltale)"
        reply = await chat.reply(MESSAGES, SCHEMA, 12)
        told = f"{MESSAGES[0]['content']}\nThe answer must follow this JSON schema: {json.dumps(SCHEMA)}"
        messages = [{"role": "system", "content": told}, MESSAGES[1]]
        async with serving.connect(server) as client:
            wanted = await client.complete(messages, max_tokens=12, temperature=0)
        assert reply.text == wanted.text
        assert reply.truncated == (wanted.finished.reason == "length")
        assert (chat.meter.calls, chat.meter.num_estimated) == (1, 0)
        used = wanted.finished.usage
        assert chat.meter.used == (used.prompt_tokens, used.completion_tokens)


async def test_an_answer_in_no_shape_is_given_up():
    async with serving.serving() as server, GrpcChat(url(server)) as chat:
        with pytest.raises(ReplyError, match="must hold a JSON object"):
            await ask(chat, MESSAGES, Account, max_tokens=6, num_repairs=0, schema=SCHEMA)


async def test_a_prompt_that_does_not_fit_costs_its_latent_alone():
    async with serving.serving() as server, GrpcChat(url(server)) as chat:
        long = [{"role": "user", "content": "x" * 400}]
        with pytest.raises(ReplyError, match="INVALID_ARGUMENT"):
            await chat.reply(long, SCHEMA, 8)
        assert chat.meter.used.total == 0


async def test_the_budget_holds():
    meter = Meter(SpendingLimits(max_tokens_total=20))
    async with serving.serving() as server, GrpcChat(url(server), meter=meter) as chat:
        with pytest.raises(BudgetError, match="max_tokens_total is 20"):
            await chat.reply(MESSAGES, SCHEMA, 12)
        assert serving.outcomes(server) == {}


async def test_a_key_is_sent_and_its_lack_ends_the_run(tmp_path):
    (tmp_path / "keys").write_text("secret-key-1\n")
    async with serving.serving(api_keys_file=str(tmp_path / "keys")) as server:
        with pytest.raises(EndpointError, match="answered UNAUTHENTICATED") as caught:
            async with GrpcChat(url(server), key="another"):
                pass
        assert not isinstance(caught.value, PassingFault) and "another" not in str(caught.value)
        async with GrpcChat(url(server), key="secret-key-1") as chat:
            await chat.reply(MESSAGES, SCHEMA, 2)


async def test_a_server_that_is_not_there_is_named_after_the_last_attempt():
    naps = Naps()
    with pytest.raises(EndpointError, match=r"grpc://127\.0\.0\.1:9 answered UNAVAILABLE"):
        async with GrpcChat("grpc://127.0.0.1:9", patience=Patience(3, sleep=naps)):
            pass
    assert len(naps.seconds) == 2


class Scripted:
    """A server that fails as it is told: the real protocol, none of our code."""

    def __init__(self, *turns) -> None:
        self.turns = list(turns)

    async def __aenter__(self):
        self.server = grpc.aio.server()
        self.server.add_generic_rpc_handlers((self.handlers(),))
        self.url = f"grpc://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        await self.server.start()
        return self

    async def __aexit__(self, *_):
        await self.server.stop(None)

    def handlers(self):
        async def info(_request, _context):
            return generation_pb2.GetServerInfoResponse()

        async def generate(_request, context):
            for event in self.turns.pop(0):
                if event is HANGS:
                    await asyncio.Event().wait()
                if isinstance(event, tuple):
                    await context.abort(event[0], event[1], event[2:])
                yield event

        requests = generation_pb2.GetServerInfoRequest.FromString, generation_pb2.GenerateRequest.FromString
        return grpc.method_handlers_generic_handler(
            "telltale.v1.GenerationService",
            {
                "GetServerInfo": grpc.unary_unary_rpc_method_handler(
                    info, requests[0], lambda m: m.SerializeToString()
                ),
                "Generate": grpc.unary_stream_rpc_method_handler(
                    generate, requests[1], lambda m: m.SerializeToString()
                ),
            },
        )


def said(text: str, reason=generation_pb2.FINISH_REASON_EOS):
    token = generation_pb2.GenerateResponse()
    token.tokens.tokens.add(text=text)
    finished = generation_pb2.GenerateResponse()
    finished.finished.reason = reason
    return token, finished


async def test_what_passes_is_tried_again_after_the_time_the_server_asks_for():
    naps = Naps()
    turns = (
        [(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", ("retry-after-ms", "1500"))],
        [said("half")[0], (grpc.StatusCode.UNAVAILABLE, "gone")],
        [said("half")[0]],
        said("half", generation_pb2.FINISH_REASON_SHUTDOWN),
        said("whole"),
    )
    async with Scripted(*turns) as server, GrpcChat(server.url, patience=Patience(5, sleep=naps)) as chat:
        reply = await chat.reply(MESSAGES, SCHEMA, 4)
    assert reply == ("whole", False)
    assert naps.seconds[0] == 1.5 and len(naps.seconds) == 4
    # Calls that broke off may have been worked on: they count with their most.
    assert chat.meter.num_estimated == 4


async def test_silence_is_cut_short():
    async with Scripted([HANGS]) as server, GrpcChat(server.url, patience=Patience(1)) as chat:
        chat._endpoint.answer_time = AnswerTime.of(0.2)  # only now: the first call should have its time
        wanted = r"DEADLINE_EXCEEDED: no answer within 0\.2 s \(--timeout\), the next one may take 0\.4 s"
        with pytest.raises(PassingFault, match=wanted):
            await chat.reply(MESSAGES, SCHEMA, 4)


async def test_after_silence_the_next_answer_may_take_twice_as_long_and_it_is_said():
    lines = []
    patience = Patience(3, sleep=Naps(), notice=lines.append)
    async with Scripted([HANGS], said("late")) as server, GrpcChat(server.url, patience=patience) as chat:
        chat._endpoint.answer_time = AnswerTime(0.2, 20.0)
        assert (await chat.reply(MESSAGES, SCHEMA, 4)).text == "late"
        assert chat._endpoint.answer_time.seconds == 0.4
    (line,) = lines
    assert "no answer within 0.2 s (--timeout)" in line and "attempt 2 of 3 in " in line


@pytest.mark.parametrize(
    "wrong", ["grpc://", "grpc://host", "grpc://host:x", "http://host:1", "grpc://me:key@host:1", "grpc://host:1/v1"]
)
def test_addresses_that_are_none_are_refused(wrong):
    with pytest.raises(EndpointError, match="must be grpc://HOST:PORT"):
        GrpcChat(wrong)
