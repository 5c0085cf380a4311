"""An alert's request done again gives the alert again, and what differs is said."""

import asyncio
import json
from dataclasses import replace

import pytest
import serving as serving_module
import tiny
import tiny_packs
from alerts import alert, text
from serving import connect, eventually, outcomes, sample, serving
from tiny_files import write_dictionary, write_features, write_model, write_packs

from monitors.alert_record import Enclosure, ModelRef, PackRef, SteeringRef
from monitors.journal import Journal
from monitors.text_key import TextKey
from sae_runtime.reasoning import THINK, Delimiters
from service import cli
from service.alert_view import replay_lines
from service.client import TelltaleClient
from service.client_request import Policy, Steering
from service.errors import InvalidRequest, NotPossible, NotReady
from service.replay import ReplayHost, differences, plan
from service.replay_result import SeriesDifference

CHAT = [{"role": "user", "content": "Tell me of the sea."}]
PROBE_LATENTS = tuple(range(8))


def packs():
    """One that reads latents, fires and clears again and again; one with a probe; one that scores users' words; and one
    that scores plain text."""
    loud = tiny_packs.thresholds(4.0, 12.0)
    latents = tiny_packs.feature_component(*PROBE_LATENTS)
    return [
        tiny_packs.pack("restless", [latents], thresholds=loud, window=3, cooldown_tokens=0),
        tiny_packs.pack("probing", [tiny_packs.probe_component()], thresholds=tiny_packs.thresholds(0.2), window=2),
        tiny_packs.pack("listening", [latents], thresholds=loud, window=3, roles=("user", "assistant")),
        tiny_packs.pack("reading", [latents], thresholds=loud, window=3, roles=("text",)),
    ]


@pytest.fixture(scope="module")
async def server(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(serving_module, "monitor_packs", packs)
    parts = serving_module.parts
    patch.setattr(serving_module, "parts", lambda **options: with_probes(parts(**options), packs()))
    async with serving(journal=str(tmp_path_factory.mktemp("replay") / "alerts.sqlite")) as server:
        yield server
    patch.undo()


def with_probes(parts, packs):
    probes = [
        tiny.Probe(probe.name, tiny.HookPoint.parse(probe.hook_point), probe.direction, probe.bias)
        for pack in packs
        for probe in pack.probes()
    ]
    return replace(parts, runner=tiny.model_runner(tiny.language_model(), tiny.sae(), probes=probes))


@pytest.fixture
async def client(server):
    async with connect(server) as client:
        yield client


STEERED = {
    "steering": [
        Steering(direction=5, op="add", strength=1.5, scope="generated"),
        Steering(direction=[0.25] * tiny.D_MODEL, op="add", strength=0.25, unit="relative", scope="prompt"),
        Steering(direction=9, op="scale", strength=0.0, window=(3, 60)),
    ],
    "policies": [
        Policy(monitor="restless", action="steer", steering=[Steering(direction=7, op="add", strength=2.0)]),
        Policy(monitor="probing", action="steer", steering=[Steering(direction=3, op="set", strength=4.0)]),
    ],
}


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.5, "top_p": 0.9, "seed": 2**64 - 1}, {"temperature": 1.0} | STEERED]
)
async def test_every_alert_of_a_generation_is_reproduced(server, client, options):
    bystanders = [client.complete(f"By the way {i}", max_tokens=40, ignore_eos=True, temperature=1.0) for i in range(2)]
    asked = client.complete(CHAT, max_tokens=40, ignore_eos=True, watch=[3, 17, 5, 7], **options)
    reply, *_ = await asyncio.gather(asked, *bystanders)
    assert {alert.monitor for alert in reply.alerts} >= {"restless", "probing"}
    head = server.journal.journal.reader.heads()
    counted, read = traffic(server), sample(server, "telltale_forward_tokens_total")
    last = {told.monitor: told for told in reply.alerts}
    for told in {told.alert_id: told for told in (*reply.alerts[:2], *last.values())}.values():
        replay = await client.journal.replay(told.alert_id)
        assert replay.differences == ()
        for comparison in (replay.read, replay.generated):
            if comparison is None:  # a user's words
                assert told.position < reply.started.prompt_tokens
                continue
            assert comparison.reproduced, (told, comparison)
            assert comparison.tolerance == 0.001 and comparison.first_difference is None and comparison.raised_again
            length = told.position - told.span_start + 1
            assert {series.num_compared for series in comparison.series} == {length}
            kinds = {series.kind for series in comparison.series}
            assert kinds >= {"feature", "score"} and ("probe" in kinds) == (told.monitor == "probing")
    # A replay is no traffic: nothing of it is kept or counted.
    assert server.journal.journal.reader.heads() == head
    assert traffic(server) == counted
    assert sample(server, "telltale_forward_tokens_total") == sample(server, "telltale_tapped_tokens_total") > read


def traffic(server):
    """What the server has counted of its requests, and of their tokens."""
    counters = ("prompt", "generation", "feature_tokens_observed", "ordinary")
    totals = [f"telltale_{name}{'' if name.endswith('observed') else '_tokens'}_total" for name in counters]
    return (
        outcomes(server),
        sample(server, "telltale_alerts_total", monitor="restless", severity="warning", role="assistant"),
        [sample(server, name) for name in (*totals, "telltale_inter_token_latency_seconds_count")],
        [(one.name, one.num_tokens, one.num_active) for one in server.guards.inputs],
    )


async def test_steering_that_is_left_out_is_found_out(client, monkeypatch):
    """What is compared depends on the steering: else the test above would show nothing of it."""
    reply = await client.complete(
        CHAT, max_tokens=40, ignore_eos=True, temperature=1.0, seed=5, watch=[3, 17], **STEERED
    )
    from service import replay as module

    monkeypatch.setattr(module, "_steering", lambda _refs, _limits: ((), ()))
    results = [await client.journal.replay(told.alert_id) for told in reply.alerts[:3]]
    assert not any(result.read.reproduced for result in results)


async def test_alerts_in_what_a_client_gave_are_read_again(client):
    result = await client.score([*CHAT, {"role": "assistant", "content": " It is wet, and very deep."}],
                                steering=[Steering(direction=5, op="add", strength=1.5)])  # fmt: skip
    assert {alert.role for alert in result.alerts} == {"user", "assistant"}
    for told in result.alerts:
        replay = await client.journal.replay(told.alert_id)
        assert replay.read.reproduced and replay.generated is None


async def test_alerts_in_a_plain_text_are_read_again_as_the_role_that_they_were_raised_on(client):
    result = await client.score("The sea is wet, and very deep.")
    told = {(alert.monitor, alert.role): alert.alert_id for alert in result.alerts}
    assert told.keys() >= {("restless", "assistant"), ("reading", "text")}
    for alert_id in told.values():
        assert (await client.journal.replay(alert_id)).read.reproduced


async def test_a_probe_is_compared_where_its_own_monitor_scored(tmp_path, monkeypatch):
    """Its values are kept wherever any monitor of the request scored, and a replay runs one monitor alone."""
    whole = {"window": 60, "min_tokens": 45, "thresholds": tiny_packs.thresholds(-50.0), "roles": ("user",)}
    packs = [
        tiny_packs.pack("asking", [tiny_packs.probe_component()], **whole),
        tiny_packs.pack("answering", [tiny_packs.probe_component()], thresholds=tiny_packs.thresholds(1e9)),
    ]
    monkeypatch.setattr(serving_module, "monitor_packs", lambda: packs)
    made = with_probes(serving_module.parts(), packs)
    monkeypatch.setattr(serving_module, "parts", lambda **_: made)
    between = {"role": "assistant", "content": "It is wet."}
    async with serving(journal=str(tmp_path / "alerts.sqlite")) as server, connect(server) as client:
        result = await client.score([*CHAT, between, {"role": "user", "content": "And what of the sky above it?"}])
        [told] = result.alerts
        replay = (await client.journal.replay(told.alert_id)).read
    assert told.span_start < next(token.index for token in result.tokens if token.role == "assistant") < told.position
    assert replay.reproduced, replay
    compared = {series.kind: (series.num_compared, series.num_missing) for series in replay.series}
    assert compared["probe"] == compared["score"] == (45, 0)


async def test_a_replay_that_the_servers_end_cuts_short_is_no_verdict(tmp_path, monkeypatch):
    late = tiny_packs.pack(
        "late", [tiny_packs.feature_component(*range(tiny.NUM_LATENTS))], thresholds=tiny_packs.thresholds(1e-6),
        window=1, min_tokens=30,
    )  # fmt: skip
    monkeypatch.setattr(serving_module, "monitor_packs", lambda: [late])
    async with serving(journal=str(tmp_path / "alerts.sqlite")) as server, connect(server) as client:
        [told] = (await client.complete("The sea", max_tokens=30, ignore_eos=True)).alerts
        inner, passes = server.engine.runner.forward, iter(range(1000))

        def forward(*args, **options):
            if next(passes) == 15:  # in the reply that is written again
                server.engine.finish_all()
            return inner(*args, **options)

        server.engine.runner.forward = forward
        with pytest.raises(NotReady, match="shutting down"):
            await client.journal.replay(told.alert_id)


async def test_another_seed_writes_another_reply_and_is_said_to(server, client):
    reply = await client.complete(CHAT, max_tokens=40, ignore_eos=True, temperature=1.5, seed=1)
    record = server.journal.journal.reader.find(reply.alerts[-1].alert_id).record
    other = changed(record, generation=record.generation.model_copy(update={"seed": 2}))
    server.journal.append([other])
    replay = await client.journal.replay(other.id)
    assert replay.read.reproduced and not replay.generated.reproduced
    assert replay.generated.first_difference >= reply.started.prompt_tokens


async def test_positions_at_which_only_one_has_a_value_are_told_as_what_differs(server, client):
    reply = await client.complete(CHAT, max_tokens=40, ignore_eos=True, watch=[3])
    told = next(alert for alert in reply.alerts if alert.span_start < alert.position)
    record = server.journal.journal.reader.find(told.alert_id).record
    *others, score = record.readings
    other = changed(record, readings=(*others, score.model_copy(update={"values": (None, *score.values[1:])})))
    server.journal.append([other])
    replay = await client.journal.replay(other.id)
    *same, differs = replay.read.series
    assert not replay.read.reproduced and differs.largest_difference < 1e-3 * differs.scale
    assert (differs.name, differs.num_missing, differs.within_tolerance) == (record.monitor, 1, False)
    assert {(each.num_missing, each.within_tolerance) for each in same} == {(0, True)}
    [_, table, *_] = replay_lines(replay)
    missing = next(column for column in table.columns if column.header == "missing")
    assert list(missing.cells) == [*("0" for _ in same), "1"]


def changed(record, **changes):
    """The same alert with something else, as one of its own."""
    from monitors.time_ids import new_id

    return record.model_copy(update={"id": new_id()} | changes)


async def test_what_is_served_now_and_was_not_then_is_named(server, client):
    reply = await client.complete(CHAT, max_tokens=40, ignore_eos=True)
    record = server.journal.journal.reader.find(reply.alerts[0].alert_id).record
    model = ModelRef(**record.model.model_dump() | {"sha256": "e" * 64, "dtype": "bfloat16"})
    pack = PackRef(version="0", sha256="d" * 64)
    other = changed(record, model=model, pack=pack, server_version="0.0.9", passes="native kernels")
    server.journal.append([other])
    replay = await client.journal.replay(other.id)
    said = "\n".join(replay.differences)
    for what in (
        "model sha256: e",
        "model dtype: bfloat16 then, float32 now",
        "pack of ",
        "server version: 0.0.9 then",
        "passes: native kernels then, transformers now",
    ):
        assert what in said
    assert len(replay.differences) == 5 and replay.read.tolerance == 0.1


async def test_how_passes_are_run_is_asked_when_a_record_is_made_and_when_it_is_replayed(server, client, monkeypatch):
    """It changes where CUDA graphs can't be recorded."""
    now = "CUDA graphs"
    monkeypatch.setattr(type(server.engine.runner), "passes", property(lambda _runner: now))
    reply = await client.complete(CHAT, max_tokens=40, ignore_eos=True)
    record = server.journal.journal.reader.find(reply.alerts[0].alert_id).record
    assert record.passes == "CUDA graphs"
    assert (await client.journal.replay(record.id)).differences == ()
    now = "transformers (recording failed)"
    expected = ("passes: CUDA graphs then, transformers (recording failed) now",)
    assert (await client.journal.replay(record.id)).differences == expected


async def test_of_a_record_from_before_it_was_kept_how_passes_were_run_nothing_is_said(server, client):
    reply = await client.complete(CHAT, max_tokens=40, ignore_eos=True)
    old = changed(server.journal.journal.reader.find(reply.alerts[0].alert_id).record, passes="")
    server.journal.append([old])
    assert (await client.journal.replay(old.id)).differences == ()


def test_reasoning_is_told_apart_as_it_was_then_and_other_delimiters_now_are_named(monkeypatch):
    monkeypatch.setattr(serving_module, "monitor_packs", packs)
    model = tiny.language_model()
    words = model.tokenizer("[[so]] yes", add_special_tokens=False).input_ids
    catalog, limits = serving_module.catalog(model), tiny.limits(tiny.sae())
    host = ReplayHost(catalog, model.tokenizer, limits, 256, "0.1.0", lambda: "transformers", (THINK,))
    kept = (Enclosure(opening="[[", closing="]]"),)
    then = [
        "assistant",
        *["reasoning"] * 5,
        *["assistant"] * 4,
    ]  # of an opening in two tokens the first is the answer's

    def replayed(reasoning):
        record = alert(
            monitor="restless", readings=(), text=text(reply_ids=tuple(words), reasoning=reasoning), steering=()
        )
        requests = plan(record, host)
        named = [line for line in differences(record, host) if line.startswith("reasoning")]
        return list(requests.read.prompt_roles[4:]), requests.generated.reasoning, named

    named = "reasoning delimiters: '[[' ']]' then, '<think>' '</think>' now"
    assert replayed(kept) == (then, (Delimiters("[[", "]]"),), [named])
    named = "reasoning delimiters: none then, '<think>' '</think>' now"
    assert replayed(()) == (["assistant"] * 10, (), [named])
    same = (Enclosure(opening=THINK.opening, closing=THINK.closing),)
    # Of a record from before they were kept nothing is known.
    assert replayed(same) == replayed(None) == (["assistant"] * 10, (THINK,), [])


def steering(**changes):
    facts = {"vector": "AACAPw==", "op": "add", "strength": 1.0, "unit": "raw", "scope": "all"}
    return SteeringRef(**(facts | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text": None}, "its text was not kept"),
        ({"monitor": "gone"}, "its monitor 'gone' is not served"),
        ({"text": text(prompt_ids=(1, 2, 3, 5000))}, "token 5000 is beyond the served vocabulary"),
        ({"text": text(prompt_ids=(1, 2), reply_ids=())}, "it has no tokens up to its position"),
        ({"text": text(prompt_ids=(1,) * 300)}, "tokens do not fit into 256"),
        ({"steering": (steering(op="twist"),)}, "steering can't be done here: 'twist' is not a valid SteeringOp"),
        ({"steering": (steering(vector="AAAAAAA="),)}, "steering can't be done here: vector must be whole 32-bit"),
        ({"steering": (steering(vector="no"),)}, "steering can't be done here: Incorrect padding"),
    ],
)
async def test_what_cannot_be_replayed_is_refused_by_name(server, client, changes, reason):
    record = alert(**({"monitor": "restless", "readings": (), "steering": ()} | changes))
    server.journal.append([record])
    with pytest.raises(NotPossible, match=reason):
        await client.journal.replay(record.id)


async def test_hidden_text_cannot_be_replayed(server, client):
    record = TextKey(b"x" * 32).hide(alert(monitor="restless"))
    server.journal.append([record])
    with pytest.raises(NotPossible, match="its text was not kept"):
        await client.journal.replay(record.id)


@pytest.mark.parametrize("tolerance", [-0.1, 1.5, float("nan")])
async def test_a_tolerance_that_makes_no_sense_is_invalid(client, tolerance):
    with pytest.raises(InvalidRequest, match=r"tolerance: must lie in \[0, 1\]"):
        await client.journal.replay("01a21b19-2dc5-717b-bd14-841b1bca0632", tolerance=tolerance)


def test_a_series_is_measured_against_its_own_largest_value():
    assert SeriesDifference("a", "feature", 3, 0.01, 10.0).is_within(0.001)
    assert not SeriesDifference("a", "feature", 3, 0.011, 10.0).is_within(0.001)
    assert SeriesDifference("silent", "feature", 3, 0.0, 0.0).is_within(0.001)
    assert not SeriesDifference("a", "probe", 2, 0.0, 10.0, num_missing=1).is_within(0.5)


# The command


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The tiny model on disk, and the config of a server of it."""
    folder = tmp_path_factory.mktemp("served")
    sha256 = write_model(folder / "model", context_length=256)
    made = write_dictionary(folder / "sae", sha256, resid_norm_mean=1000.0)
    write_features(folder / "sae", made.sae_sha256)
    write_packs(folder / "packs", sha256, made.sae_sha256)
    config = {
        "model": str(folder / "model"), "sae": str(folder / "sae"), "monitor_packs": str(folder / "packs"),
        "cache_dir": str(folder / "cache"), "device": "cpu", "dtype": "float32", "threads": 1, "slots": 2,
        "grpc_port": 0, "http_port": 0, "journal": str(folder / "alerts.sqlite"),
    }  # fmt: skip
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder, config


async def test_the_command_replays_on_the_server_and_without_one(files, capsys):
    from service.assembly import assemble
    from service.config import Settings
    from service.journal_keeper import JournalKeeper
    from service.server import Server

    folder, config = files
    settings = Settings(**config)
    server = Server(settings, assemble(settings), JournalKeeper.open(settings))
    await server.start()
    try:
        async with TelltaleClient(f"127.0.0.1:{server.grpc_port}") as client:
            reply = await client.complete(CHAT, max_tokens=8, ignore_eos=True, temperature=1.0)
        alert_id = reply.alerts[0].alert_id
        words = ["alerts", "replay", alert_id]
        code = await run(*words, "--target", f"127.0.0.1:{server.grpc_port}")
        shown = capsys.readouterr().out
        assert code == 0
        assert "read again: reproduced within 0.001" in shown and "written again: reproduced within 0.001" in shown
        await eventually(lambda: server.journal.status.num_entries == len(reply.alerts))
    finally:
        await server.close()
    words += ["--journal", str(folder / "alerts.sqlite"), "--config", str(folder / "config.yaml"), "--json"]
    assert await run(*words) == 0
    replay = json.loads(capsys.readouterr().out)
    assert replay["read"]["reproduced"] and replay["generated"]["reproduced"]
    with Journal.open(folder / "alerts.sqlite") as journal:
        record = journal.reader.find(alert_id).record
        other = changed(record, score=9.0, readings=(record.readings[-1].model_copy(update={"values": (9.0,)}),))
        journal.append([other])
    words[2] = other.id
    assert await run(*words[:-1]) == 1
    assert "read again: NOT REPRODUCED" in capsys.readouterr().out


async def run(*words):
    return await cli.execute(cli.build_parser().parse_args(words))
