"""The command line against a real port: what it prints, where, and how it ends."""

import argparse
import asyncio
import json
import re
import struct
import subprocess
import sys
import types
from pathlib import Path

import grpc
import pytest
from fake_server import Failure, FakeServer, invalid, reply
from telltale.v1 import generation_pb2, types_pb2

from sae_runtime.errors import CheckpointError, ModelError
from service import cli, cli_inspect, cli_steering, client_request, errors
from service.client_request import AlertCondition, AllOf, AnyOf, Hold, Policy, Steering
from service.errors import ConfigError
from service.options import describe

pytestmark = pytest.mark.usefixtures("fake")

DOCS = Path(__file__).parent.parent / "docs"
REPLY_TEXT = "Hello\\x1b[2J ✓\n"


@pytest.fixture(scope="module")
async def server():
    async with FakeServer() as server:
        yield server


@pytest.fixture
async def fake(server, monkeypatch):
    await server.reset()
    monkeypatch.setenv("TELLTALE_TARGET", server.target)
    return server


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for variable in ("NO_COLOR", "FORCE_COLOR", "TELLTALE_API_KEY", "TELLTALE_TLS_CA", "TELLTALE_CONFIG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("COLUMNS", "120")


async def run(*argv: str) -> int:
    """`main`, in the event loop that the server runs in."""
    return await cli.execute(cli.build_parser().parse_args(argv))


def usage_error(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.build_parser().parse_args(argv)
    assert caught.value.code == cli.EXIT_USAGE
    return capsys.readouterr().err.splitlines()[-1]


# generate


async def test_a_pipe_gets_the_reply_alone(capsys):
    assert await run("generate", "x") == 0
    out, err = capsys.readouterr()
    assert out == REPLY_TEXT
    for part in (
        "Readings are unverified: other weights.",
        "[ALERT warning: lying 0.75 (threshold 0.5) at 3, from 2, not validated]",
        "75%",
        "lying: max score 0.75 (threshold 0.5)",
        "length · 2 prompt tokens · 3 tokens · 30.0 tokens/s",
        f"seed {2**63}",
        "steering changed 3 positions, by 0.5 of the residual's norm on average and 1.5 at most",
    ):
        assert part in err


async def test_a_reply_that_ends_without_a_line_end_gets_one(fake, capsys):
    fake.reply = lambda: [*reply()[:3], reply()[-1]]
    await run("generate", "x")
    assert capsys.readouterr().out == "Hello\\x1b[2J\n"


async def test_colour_can_be_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    await run("generate", "x", "--color", "always")
    out = capsys.readouterr().out
    assert "\x1b[30;48;2;224;134;64mllo\\x1b[2J\x1b[0m" in out  # 0.75 of the way from white to the first colour
    assert "\x1b[2J" not in out


@pytest.mark.parametrize("argv", [["--color", "never"], []])
async def test_no_color_is_honoured(capsys, monkeypatch, argv):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    await run("generate", "x", *argv)
    assert "48;2" not in capsys.readouterr().out


async def test_on_a_terminal_alerts_stand_inline(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    await run("generate", "x", "--color", "never")
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[1:4] == [
        "Hello\\x1b[2J",
        "[ALERT warning: lying 0.75 (threshold 0.5) at 3, from 2, not validated]",
        " ✓",
    ]
    assert err == ""


async def test_json_is_the_wire_contract_line_by_line(capsys):
    assert await run("generate", "x", "--json") == 0
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert [list(event) for event in events] == [["started"], ["tokens"], ["alert"], ["tokens"], ["finished"]]
    assert events[0]["started"]["seed"] == str(2**63)
    assert events[1]["tokens"]["tokens"][1]["readings"] == [3.0, 0.5]
    assert events[1]["tokens"]["tokens"][0]["is_prompt"] is False  # present, though false
    assert events[4]["finished"]["reason"] == "FINISH_REASON_LENGTH"
    assert "\x1b" not in out
    assert err == ""


async def test_the_flags_become_the_request(fake):
    argv = ["--watch", "hedging", "--watch", "12", "--monitor", "lying", "--top", "3", "--include-prompt", "--logprobs"]
    argv += ["--max-tokens", "5", "--temperature", "0.5", "--seed", "1", "--stop", "A", "--stop", "B", "--ignore-eos"]
    argv += ["--steer", "feature=honesty,op=add,strength=2", "--steer", "feature=3,op=scale,strength=0"]
    argv += ["--policy", "monitor=lying,action=stop", "--label", "job", "--no-defaults"]
    await run("generate", "x", *argv)
    expected = generation_pb2.GenerateRequest(
        text="x",
        sampling=types_pb2.SamplingParams(max_tokens=5, temperature=0.5, seed=1, stop=["A", "B"], ignore_eos=True),
        watch=types_pb2.Watch(
            features=[9, 12],
            monitors=["lying"],
            top_features=3,
            include_prompt=True,
            include_logprobs=True,
            no_defaults=True,
        ),
        policies=[types_pb2.Policy(monitor="lying", action=types_pb2.POLICY_ACTION_STOP)],
        label="job",
    )
    raw, everywhere = types_pb2.STRENGTH_UNIT_RAW, types_pb2.POSITION_SCOPE_ALL
    expected.steering.add(feature=12, op=types_pb2.STEERING_OP_ADD, strength=2, unit=raw, scope=everywhere)
    expected.steering.add(feature=3, op=types_pb2.STEERING_OP_SCALE, strength=0, unit=raw, scope=everywhere)
    assert fake.requests[-1] == expected


async def test_no_flags_leave_all_to_the_server(fake):
    await run("generate", "x")
    expected = generation_pb2.GenerateRequest(text="x", watch=types_pb2.Watch())
    assert fake.requests == [expected]


async def test_the_prompt_can_come_from_standard_input(fake, monkeypatch, tmp_path):
    (tmp_path / "prompt").write_text("from a pipe\n")
    with (tmp_path / "prompt").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        await run("generate", "-")
    assert fake.requests[-1].text == "from a pipe\n"


# Ends


async def test_an_unknown_feature_lists_the_near_ones(capsys):
    assert await run("generate", "x", "--watch", "lyng") == cli.EXIT_USAGE
    assert capsys.readouterr().err == "telltale: No such feature 'lyng'. Did you mean lying?\n"


async def test_an_invalid_request_names_its_fields(fake, capsys):
    fake.failures = [invalid(("sampling.top_p", "must be in (0, 1]. Got 2."))]
    assert await run("generate", "x", "--top-p", "2") == cli.EXIT_USAGE
    assert "sampling.top_p: must be in (0, 1]. Got 2." in capsys.readouterr().err


async def test_a_failure_is_one_line_and_exit_code_1(fake, capsys):
    fake.failures = [Failure(grpc.StatusCode.INTERNAL, "broken \x1b[2J")]
    assert await run("generate", "x") == cli.EXIT_FAILED
    assert capsys.readouterr().err == "telltale: INTERNAL: broken \\x1b[2J\n"


async def test_what_came_before_a_failure_is_shown(fake, capsys):
    fake.fail_after = (2, Failure(grpc.StatusCode.INTERNAL, "broken"))
    assert await run("generate", "x") == cli.EXIT_FAILED
    out, err = capsys.readouterr()
    assert out == "Hello\\x1b[2J\n"
    assert err.endswith("telltale: INTERNAL: broken\n")


async def test_the_api_key_comes_from_a_file_or_the_environment(fake, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TELLTALE_API_KEY", "from-env")
    await run("info")
    assert fake.metadata["authorization"] == "Bearer from-env"
    (tmp_path / "key").write_text("from-file\n")
    await run("info", "--api-key-file", str(tmp_path / "key"))
    assert fake.metadata["authorization"] == "Bearer from-file"
    (tmp_path / "key").write_text("two\nkeys\n")
    capsys.readouterr()
    assert await run("info", "--api-key-file", str(tmp_path / "key")) == cli.EXIT_USAGE
    assert "must hold one key" in capsys.readouterr().err


async def test_the_whole_program():
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service.cli", "generate", "x", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert out.decode() == REPLY_TEXT


def test_client_and_help_need_no_torch():
    code = (
        "import sys, service.client, service.cli\n"
        "try: service.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


# chat


async def test_one_message_is_one_request(fake, capsys):
    assert await run("chat", "--system", "be brief", "--message", "hi") == 0
    messages = fake.requests[-1].chat.messages
    assert [(message.role, message.content) for message in messages] == [("system", "be brief"), ("user", "hi")]
    assert capsys.readouterr().out == REPLY_TEXT


async def test_a_conversation_remembers_until_it_is_reset(fake, monkeypatch, tmp_path):
    (tmp_path / "lines").write_text("one\ntwo\n/reset\n\nthree\n/quit\nnever\n")
    with (tmp_path / "lines").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert await run("chat") == 0
    asked = [[message.content for message in request.chat.messages] for request in fake.requests]
    assert asked == [["one"], ["one", "Hello\x1b[2J ✓\n", "two"], ["three"]]


async def test_a_message_that_failed_is_forgotten(fake, monkeypatch, tmp_path, capsys):
    fake.failures = [invalid(("chat", "too long"))]
    (tmp_path / "lines").write_text("one\ntwo\n")
    with (tmp_path / "lines").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert await run("chat", "--json") == 0
    assert [message.content for message in fake.requests[-1].chat.messages] == ["two"]
    assert "chat: too long" in capsys.readouterr().err


# Other commands


async def test_score_shows_the_text_with_alerts_after_their_tokens(fake, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    (tmp_path / "text").write_text("abc")
    assert await run("score", str(tmp_path / "text"), "--color", "never") == 0
    lines = capsys.readouterr().out.splitlines()
    assert fake.requests[-1].text == "abc"
    assert lines[:3] == ["Readings are unverified: other weights.", "abc", lines[2]]
    assert lines[2].startswith("[ALERT warning: lying")
    assert any("lying" in line and "100%" in line for line in lines)  # position 0, which read 99, left out


async def test_score_reads_conversations(fake, tmp_path, capsys):
    path = tmp_path / "chat.json"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "u"}]}))
    assert await run("score", str(path), "--json") == 0
    assert fake.requests[-1].chat.messages[0].content == "u"
    assert json.loads(capsys.readouterr().out)["request_id"] == "r2"


@pytest.mark.parametrize("text", ["plain", "[]", '{"a": 1}', '[{"role": "user"}]', '[{"role": "user", "content": 1}]'])
def test_json_that_is_no_conversation_is_text_unless_said_otherwise(text):
    assert cli_inspect.parse_scored(text, "auto") == text
    with pytest.raises(ConfigError, match="--as chat"):
        cli_inspect.parse_scored(text, "chat")


async def test_a_file_that_is_not_there_is_wrong_usage(capsys):
    assert await run("score", "/no/such") == cli.EXIT_USAGE
    assert capsys.readouterr().err == "telltale: /no/such can't be read: No such file or directory.\n"


async def test_features_are_listed_and_shown(capsys):
    assert await run("features", "list") == 0
    out = capsys.readouterr().out
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [["7", "lying"], ["9", "hedging"], ["12", "honesty"]]
    assert await run("features", "list", "--json") == 0
    assert [json.loads(line)["index"] for line in capsys.readouterr().out.splitlines()] == [7, 9, 12]
    assert await run("features", "get", "lying") == 0
    assert "auroc: 0.9" in capsys.readouterr().out
    assert await run("features", "get", "lying", "--json") == 0
    assert json.loads(capsys.readouterr().out)["evidence"]["auroc"] == 0.9
    assert await run("features", "get", "honest") == cli.EXIT_USAGE
    assert "Did you mean honesty?" in capsys.readouterr().err


async def test_all_latents_are_listed_in_an_order(capsys, fake):
    assert await run("features", "list", "--all", "--order", "max_reading", "--limit", "2") == 0
    request = fake.requests[0]
    assert (request.include_unnamed, request.order, request.page_size) == (True, 3, 2)
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert first.split() == ["7", "lying", "4", "3.000%", "8", "0.75", "of", "40", "yes", "no", "lies"]
    assert second.split() == ["9", "hedging", "0", "no", "yes", "doubts"]


async def test_a_latent_is_shown_with_its_examples(capsys):
    assert await run("features", "get", "7") == 0
    out = capsys.readouterr().out
    assert "active at 30 of 1,000 tokens (3.000%), mean 2, largest 8  1 ▅ █ 8" in out
    assert "said to be: what is not true  by somebody (detection 0.75 on 40 windows; 0.5 is chance)" in out
    assert "Lies\\x1b[2J." in out and "\x1b" not in out
    assert "promotes ' lies' +1.25" in out and "in novels 75%" in out
    assert "       8  A »lie«,⏎  novels" in out
    assert await run("features", "get", "7", "--examples", "0", "--color", "always") == 0
    assert "»lie«" not in capsys.readouterr().out


async def test_on_a_terminal_examples_are_coloured(capsys):
    assert await run("features", "get", "7", "--color", "always") == 0
    out = capsys.readouterr().out
    assert "»" not in out and re.search(r"\x1b\[4;30;[\d;]+m lie", out)


async def test_latents_are_found(capsys, fake):
    assert await run("features", "search", "white", "lies", "--limit", "2") == 0
    assert fake.requests[0].text == "white lies"
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "     7  lying (validated)  9  in name, active tokens"
    assert out[1] == "       8  A »lie«,⏎  novels"
    assert out[2] == "     9  hedging (not validated)  8  in unspecified"
    assert await run("features", "search", "x", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["feature"]["index"], line["score"]) for line in lines] == [(7, 9.0), (9, 8.0), (12, 7.0)]
    assert await run("features", "search", "--like", "hedging") == 0
    assert fake.requests[-1].like_feature == 9
    for wrong in ((), ("x", "--like", "3")):
        assert await run("features", "search", *wrong) == cli.EXIT_USAGE
        assert "search takes words or --like. Got" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-3"])
def test_a_list_of_none_is_refused(capsys, number):
    for words in (("list",), ("search", "x")):
        error = usage_error(capsys, "features", *words, "--limit", number)
        assert f"argument --limit: must be 1 or more. Got {number}." in error


async def test_the_end_of_the_alerts_is_a_failure(fake, capsys):
    assert await run("watch", "--monitor", "lying") == cli.EXIT_FAILED
    out, err = capsys.readouterr()
    assert out == "r1 'job' [ALERT warning: lying 0.75 (threshold 0.5) at 3, from 2, not validated]\n"
    assert err == "telltale: the server ended the stream of alerts.\n"
    assert list(fake.requests[-1].monitors) == ["lying"]
    await run("watch", "--json")
    assert json.loads(capsys.readouterr().out)["state"] == "ALERT_STATE_FIRING"


async def test_info_says_what_can_be_trusted(capsys):
    assert await run("info") == 0
    out = " ".join(capsys.readouterr().out.split())
    for part in (
        "1.2.3",
        "tiny (none",
        "passes native kernels",
        "UNVERIFIED: other weights",
        "4 slots of 512 tokens",
        "monitor lying (warning, NOT VALIDATED)",
        "threshold from: 1 % of benign replies",
    ):
        assert part in out
    await run("info", "--json")
    info, monitors = map(json.loads, capsys.readouterr().out.splitlines())
    assert (info["version"], monitors["monitors"][0]["validated"]) == ("1.2.3", False)


async def test_monitors_are_listed_and_shown(capsys):
    assert await run("monitors", "list") == 0
    listed = capsys.readouterr().out
    assert "monitor lying (warning, NOT VALIDATED)" in listed
    assert "limits: It reads the instruction." in listed
    assert "pack: feature, version 2, sha256 cdcdcdcdcdcd" in listed
    assert "auroc" not in listed
    assert await run("monitors", "get", "lying") == 0
    assert "auroc: 0.9" in capsys.readouterr().out
    await run("monitors", "get", "lying", "--json")
    assert json.loads(capsys.readouterr().out)["evidence"] == {"auroc": 0.9}
    assert await run("monitors", "get", "nobody") == cli.EXIT_USAGE
    assert capsys.readouterr().err.startswith("telltale: ")


async def test_health_is_an_exit_code(fake, capsys):
    assert await run("health") == 0
    await fake.set_ready(False)
    assert await run("health", "--timeout", "2") == cli.EXIT_FAILED
    assert capsys.readouterr().err == "telltale: the server is not ready after 2 s: NOT_SERVING.\n"


# serve


def test_serve_prints_its_config(capsys, monkeypatch):
    monkeypatch.setenv("TELLTALE_SLOTS", "8")
    assert cli.main(["serve", "--no-reflection", "--print-config"]) == 0
    out = capsys.readouterr().out
    assert "slots: 8  # TELLTALE_SLOTS\n" in out
    assert "reflection: false  # --no-reflection\n" in out


def test_a_wrong_option_is_one_line_and_exit_code_2(capsys):
    assert cli.main(["serve", "--grpc-port", "70000"]) == cli.EXIT_USAGE
    assert capsys.readouterr().err == (
        "telltale: --grpc-port: must be less than or equal to 65535. Got '70000'.\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("outcome", "code", "message"),
    [
        (0, 0, ""),
        (ModelError("no model 'x'"), cli.EXIT_FAILED, "telltale: no model 'x'\n"),
        (CheckpointError("tensor W_enc is missing"), cli.EXIT_FAILED, "telltale: tensor W_enc is missing\n"),
        (OSError(98, "Address already in use"), cli.EXIT_FAILED, "telltale: [Errno 98] Address already in use\n"),
        (ConfigError("api_keys_file holds no key"), cli.EXIT_USAGE, "telltale: api_keys_file holds no key\n"),
    ],
)
def test_what_stops_the_server_from_starting_is_one_line(capsys, monkeypatch, outcome, code, message):
    async def serve(settings):
        assert settings.grpc_port == 0
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    module = types.ModuleType("service.run_server")
    module.serve = serve
    monkeypatch.setitem(sys.modules, "service.run_server", module)
    assert cli.main(["serve", "--grpc-port", "0"]) == code
    assert capsys.readouterr().err == message


# Steering on the command line


def test_a_steering_spec_is_read_in_full(tmp_path):
    spec = "feature=lying,op=add,strength=8,unit=relative,scope=generated,window=3:10"
    assert cli_steering.parse_steering(spec) == Steering(
        direction="lying", op="add", strength=8.0, unit="relative", scope="generated", window=(3, 10)
    )
    (tmp_path / "v").write_bytes(struct.pack("<2f", 1.0, 2.0))
    assert cli_steering.parse_steering(f"vector=@{tmp_path / 'v'},op=project_out") == Steering(
        direction=struct.pack("<2f", 1.0, 2.0), op="project_out"
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "must be key=value pairs. Got ''."),
        ("lying", "must be key=value pairs. Got 'lying'."),
        ("feature=1,op=ad,strength=1", "op: must be one of add, scale, set, project_out, cap. Got 'ad'."),
        ("feature=1,strength=1", "op: missing."),
        ("op=add,strength=1", "feature: missing; give feature=NAME_OR_INDEX or vector=@FILE."),
        ("feature=1,vector=@x,op=add,strength=1", "feature, vector: give one, not both."),
        ("feature=1,op=add", "strength: missing."),
        ("feature=1,op=add,strength=much", "strength: must be a finite number. Got 'much'."),
        ("feature=1,op=add,strength=nan", "strength: must be a finite number. Got 'nan'."),
        ("feature=1,op=project_out,strength=1", "strength: project_out takes none."),
        ("feature=1,op=add,op=add", "op: given twice."),
        ("feature=,op=add", "feature: must not be empty."),
        ("feature=1,op=add,strength=1,unit=norm", "unit: must be one of raw, relative. Got 'norm'."),
        ("feature=1,op=add,strength=1,scope=reply", "scope: must be one of all, prompt, generated. Got 'reply'."),
        (
            "feature=1,op=add,strength=1,window=5:5",
            "window: must be START:END, two positions with START before END. Got '5:5'.",
        ),
        (
            "feature=1,op=add,strngth=1",
            "strngth: unknown key. Known are feature, vector, op, strength, unit, scope, window.",
        ),
        ("vector=x,op=add,strength=1", "vector: must be @FILE, a file of little-endian 32-bit floats. Got 'x'."),
        ("vector=@/no/such,op=add,strength=1", "vector: /no/such can't be read: No such file or directory."),
    ],
)
def test_a_wrong_steering_spec_names_flag_and_key(capsys, spec, message):
    assert usage_error(capsys, "generate", "x", "--steer", spec) == (
        f"telltale generate: error: argument --steer: {message}"
    )


def test_a_vector_file_holds_whole_floats(tmp_path, capsys):
    (tmp_path / "v").write_bytes(b"12345")
    line = usage_error(capsys, "score", "-", "--steer", f"vector=@{tmp_path / 'v'},op=add,strength=1")
    assert line.endswith("must hold 32-bit floats, 4 bytes each. Got 5 bytes.")


def test_policies_get_their_steering_by_monitor_or_name():
    parse, steer = cli_steering.parse_policy, cli_steering.parse_policy_steering
    merged = cli_steering.merge_policies(
        [parse("monitor=a,action=stop,hold=16"), parse("monitor=b,action=steer"), parse("when=a,name=n,action=steer")],
        [
            steer("monitor=b,feature=1,op=project_out"),
            steer("monitor=b,feature=2,op=cap,strength=1"),
            steer("policy=n,feature=3,op=project_out"),
            steer("monitor=c,feature=4,op=project_out"),
        ],
    )
    assert merged == [
        Policy(monitor="a", action="stop", hold=Hold(tokens=16)),
        Policy(
            monitor="b",
            action="steer",
            steering=[Steering(direction=1, op="project_out"), Steering(direction=2, op="cap", strength=1.0)],
        ),
        Policy(
            condition=AlertCondition(monitor="a"),
            name="n",
            action="steer",
            steering=[Steering(direction=3, op="project_out")],
        ),
        Policy(monitor="c", action="steer", steering=[Steering(direction=4, op="project_out")]),
    ]


A, B, C = (AlertCondition(monitor=name) for name in "abc")


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("a", A),
        ("(a)", A),
        ("a and b", AllOf([A, B])),
        ("a or b and c", AnyOf([A, AllOf([B, C])])),
        ("(a or b) and c", AllOf([AnyOf([A, B]), C])),
        ("a:critical", AlertCondition(monitor="a", level="critical")),
        ("a@user+system", AlertCondition(monitor="a", roles=("user", "system"))),
        ("ever a:warning@user", AlertCondition(monitor="a", level="warning", roles=("user",), has_fired=True)),
    ],
)
def test_a_condition_is_read_with_and_before_or(text, condition):
    policy = cli_steering.parse_policy(f"when={text},action=stop,hold=window,reveal=yes")
    assert policy == Policy(condition=condition, action="stop", hold=Hold(reveal=True))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("action=stop", "monitor, when: give one of them."),
        ("monitor=a,when=a,action=stop", "monitor, when: give one of them."),
        ("monitor=a,action=halt", "action: must be one of annotate, stop, steer. Got 'halt'."),
        ("monitor=a", "action: missing."),
        ("monitor=a,action=stop,hold=few", "hold: must be a number of tokens, or window. Got 'few'."),
        ("monitor=a,action=stop,reveal=yes", "reveal: needs hold, without which nothing is withheld."),
        ("when=a and,action=stop", "when: must go on with a monitor. Got its end."),
        ("when=(a,action=stop", "when: must go on with `)`. Got its end."),
        ("when=a b,action=stop", "when: must go on with `and` or `or` before 'b'."),
        ("when=and,action=stop", "when: must have a monitor's name, NAME:LEVEL or NAME@ROLE. Got 'and'."),
        (
            "when=ever (a or b),action=stop",
            "when: must have a monitor's name, NAME:LEVEL or NAME@ROLE. Got '('.",
        ),
        ("when=a:high,action=stop", "when: level must be one of warning, critical. Got 'high'."),
        ("when=a@,action=stop", "when: roles must be joined by +. Got 'a@'."),
    ],
)
def test_a_wrong_policy_names_flag_and_key(capsys, spec, message):
    line = usage_error(capsys, "generate", "x", "--policy", spec)
    assert line == f"telltale generate: error: argument --policy: {message}"


async def test_policies_that_make_no_sense_are_wrong_usage(capsys):
    stop, steer = "monitor=a,action=stop", "monitor=a,feature=1,op=project_out"
    assert await run("generate", "x", "--policy", stop, "--policy-steer", steer) == cli.EXIT_USAGE
    assert capsys.readouterr().err == "telltale: a can't both stop and steer.\n"
    assert await run("generate", "x", "--policy", stop, "--policy", stop) == cli.EXIT_USAGE
    assert "two policies are called a" in capsys.readouterr().err
    assert await run("generate", "x", "--policy", "monitor=a,action=steer") == cli.EXIT_USAGE
    assert "needs --policy-steer monitor=a,..." in capsys.readouterr().err
    assert await run("generate", "x", "--policy-steer", "policy=n,feature=1,op=project_out") == cli.EXIT_USAGE
    assert "needs a --policy of that name" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["generate"], ["serve", "--grpc", "1"], ["generate", "x", "--temp", "1"]])
def test_wrong_usage_is_exit_code_2(capsys, argv):
    assert usage_error(capsys, *argv)


# The pages


def all_parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [inner for choice in action.choices.values() for inner in all_parsers(choice)]
    return found


def test_the_page_knows_every_command_and_flag():
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    options = {option.flag for option in describe()} | {f"--{option.key.replace('_', '-')}" for option in describe()}
    flags = {flag for parser in all_parsers(cli.build_parser()) for a in parser._actions for flag in a.option_strings}
    described_there = flags - options - {"-h", "--no-insecure", "--no-allow-unverified"}
    missing = sorted(flag for flag in described_there if flag not in page)
    assert missing == []
    commands = [parser.prog.split()[1] for parser in all_parsers(cli.build_parser())[1:]]
    assert all(f"telltale {command}" in page for command in commands)


def test_the_client_page_knows_every_option_and_exception():
    page = (DOCS / "client.md").read_text(encoding="utf-8")
    assert all(f"`{option}`" in page for option in client_request.GenerateOptions.__optional_keys__)
    kinds = [name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert [name for name in kinds if name not in (*page.split("`"), "ServiceError", "ConfigError")] == []
