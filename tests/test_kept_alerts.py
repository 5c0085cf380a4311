"""A server's alerts are in its journal before anybody is told, truly and whole; what can't be kept is not told."""

import asyncio
import base64
import struct
from contextlib import aclosing, asynccontextmanager, suppress

import pytest
import serving as serving_module
import tiny
import tiny_packs
from full_disk import room_for
from serving import ALWAYS, NEVER, connect, eventually, healthz, outcomes, sample, serving

from monitors.alert_record import Enclosure, HashedText, KeptText, SteeringRef
from monitors.journal import Journal
from monitors.journal_reader import JournalReader
from monitors.text_key import TextKey
from service.client_events import Alert, Baseline, Token
from service.client_request import Policy, Steering
from service.errors import AlertNotKept
from service.grpc_server import ALERTS, GENERATION

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me of the sea. 語"}]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "alerts.sqlite"


@asynccontextmanager
async def keeping(path, **settings):
    """(server, client, reader) around a journal."""
    async with serving(journal=str(path), **settings) as server, connect(server) as client:
        with JournalReader.open(path) as reader:
            yield server, client, reader


async def test_no_client_sees_an_alert_before_it_is_in_the_journal(path):
    async with keeping(path) as (server, client, reader):

        async def stream(number):
            seen = []
            async with aclosing(client.generate(f"Sea {number}", max_tokens=24, ignore_eos=True)) as events:
                async for event in events:
                    if isinstance(event, Alert):
                        kept = reader.find(event.alert_id)
                        assert kept is not None
                        assert kept.record.position == event.position and kept.record.state == event.state
                        seen.append(event.alert_id)
            return seen

        async def watch():
            async with aclosing(client.watch_alerts()) as alerts:
                async for alert in alerts:
                    assert reader.find(alert.alert_id) is not None
                    watched.append(alert.alert_id)

        watched: list[str] = []
        watching = asyncio.create_task(watch())
        await eventually(lambda: server.delivery._watchers)  # from here on it misses nothing
        seen = [alert_id for ids in await asyncio.gather(*map(stream, range(6))) for alert_id in ids]
        await eventually(lambda: watching.done() or len(watched) == len(seen))
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        assert len(seen) == len(set(seen)) >= 6
        assert sorted(watched) == sorted(seen)
        assert {kept.record.id for kept in reader.all_alerts()} == set(seen)
        assert all(each.holds for each in reader.verify())


async def test_a_step_waits_for_the_disk_once(path, monkeypatch):
    appended = []
    append = Journal.append
    monkeypatch.setattr(Journal, "append", lambda self, alerts: appended.append(len(alerts)) or append(self, alerts))
    async with keeping(path) as (_, client, _):
        replies = await asyncio.gather(
            *(client.complete("The sea", max_tokens=8, ignore_eos=True, monitors=[ALWAYS]) for _ in range(4))
        )
    assert sum(appended) == sum(len(reply.alerts) for reply in replies)
    assert max(appended) > 1 and 0 not in appended


async def test_a_record_holds_what_happened(path):
    vector = [0.25] * tiny.D_MODEL
    steering = [
        Steering(direction=5, op="add", strength=0.5, scope="generated", window=(0, 200)),
        Steering(direction=vector, op="add", strength=0.125, unit="relative"),
    ]
    options = {
        "max_tokens": 12, "temperature": 1.5, "top_p": 0.75, "top_k": 100, "seed": 2**63 + 5, "ignore_eos": True,
        "stop": ["never said"], "label": "nightly", "steering": steering, "watch": [17, 3], "include_prompt": True,
    }  # fmt: skip
    policy = Policy(monitor=ALWAYS, action="steer", steering=[Steering(direction=7, op="scale", strength=0.0)])
    async with keeping(path) as (server, client, reader):
        reply = await client.complete(CHAT, policies=[policy], **options)
        kept = {alert.alert_id: reader.find(alert.alert_id).record for alert in reply.alerts}
        catalog, version = server.engine.runner.language_model, server.version
    assert len(kept) >= 1
    tokens = {token.index: token for token in (*reply.prompt, *reply.tokens)}
    for alert in reply.alerts:
        record = kept[alert.alert_id]
        assert (record.request_id, record.label, record.monitor) == (alert.request_id, "nightly", ALWAYS)
        assert (record.state, record.level, record.position) == (alert.state, alert.severity, alert.position)
        assert (record.span_start, record.role) == (alert.span_start, "assistant")
        assert record.score == pytest.approx(alert.score) and record.threshold == pytest.approx(alert.threshold)
        assert record.time.timestamp() == pytest.approx(alert.time_seconds, abs=1e-6)
        assert record.pack.sha256 == alert.pack_sha256 and record.server_version == version
        assert record.model.sha256 == catalog.identity.weights_sha256 and record.sae.hook_point == "layers.1.output"
        drawn = record.generation
        assert (drawn.seed, drawn.max_tokens, drawn.top_k, drawn.ignore_eos) == (2**63 + 5, 12, 100, True)
        assert (drawn.temperature, drawn.top_p) == (1.5, 0.75)
        span = range(record.span_start, record.position + 1)
        for series in record.readings[:2]:
            assert [tokens[p].reading(series.feature) for p in span] == list(series.values)
            assert series.steered_values == tuple(
                tokens[p].steered_readings[(17, 3).index(series.feature)] for p in span
            )
        assert [series.name for series in record.readings] == ["hedging", "lying", ALWAYS]
        scores = [next(s.value for s in tokens[p].scores if s.monitor == ALWAYS) for p in span]
        assert list(record.readings[2].values) == pytest.approx(scores)
        ids = [tokens[p].id for p in range(record.position + 1)]
        assert [*record.text.prompt_ids, *record.text.reply_ids] == ids and record.text.stop == ("never said",)
        assert [(m.role, m.content) for m in record.text.messages[:2]] == [(m["role"], m["content"]) for m in CHAT]
        assert record.text.messages[2].role == "assistant"
    first = kept[reply.alerts[0].alert_id]
    packed = base64.b64encode(struct.pack(f"<{tiny.D_MODEL}f", *vector)).decode()
    assert first.action == "steer"
    assert first.steering == (
        SteeringRef(feature=5, op="add", strength=0.5, unit="raw", scope="generated", window=(0, 200)),
        SteeringRef(vector=packed, op="add", strength=0.125, unit="relative", scope="all"),
    )


@pytest.mark.parametrize("rule", ["min", "max", "mean"])
async def test_what_every_component_read_is_kept_whichever_decides(path, monkeypatch, rule):
    parts = [
        tiny_packs.feature_component(*range(0, tiny.NUM_LATENTS, 2), name="even"),
        tiny_packs.feature_component(*range(1, tiny.NUM_LATENTS, 2), name="odd", scale=0.25),
    ]
    both = tiny_packs.pack("both", parts, rule=rule, thresholds=tiny_packs.thresholds(1e-6), window=2)
    monkeypatch.setattr(serving_module, "monitor_packs", lambda: [both])
    async with keeping(path) as (_, client, reader):
        reply = await client.complete("The sea", max_tokens=8, ignore_eos=True)
        told, record = reply.alerts[0], reader.find(reply.alerts[0].alert_id).record
    assert [part.name for part in record.components] == ["even", "odd"]
    assert [part.score for part in record.components] == pytest.approx([part.score for part in told.components])
    scores = [score for token in reply.tokens for score in token.scores if token.index == told.position]
    assert [part.score for part in record.components] == pytest.approx(scores[0].components)
    assert 0 not in scores[0].components


async def test_a_cleared_alert_names_the_one_it_ends_and_later_ones_know_what_policies_did(path, monkeypatch):
    restless = tiny_packs.pack(
        "restless",
        [tiny_packs.feature_component(*range(8))],
        thresholds=tiny_packs.thresholds(4.0, 12.0),
        window=2,
        cooldown_tokens=0,
    )
    monkeypatch.setattr(serving_module, "monitor_packs", lambda: [restless])
    policy = Policy(monitor="restless", action="steer", steering=[Steering(direction=7, op="add", strength=0.5)])
    async with keeping(path) as (_, client, reader):
        reply = await client.complete(
            "The sea", max_tokens=120, ignore_eos=True, temperature=2.0, seed=3, policies=[policy]
        )
        records = [reader.find(alert.alert_id).record for alert in reply.alerts]
    assert [record.state for record in records].count("cleared") > 1
    last = None
    for record in records:
        assert record.cleared_id == (last if record.state == "cleared" else None)
        last = record.id if record.state == "firing" else None
    assert records[0].steering == ()
    for record in records[1:]:
        (switched_on,) = record.steering
        assert (switched_on.source, switched_on.active_from) == ("policy:restless", records[0].position + 1)
    # A policy comes to apply once: later alerts lead to nothing more.
    assert records[0].action == "steer"
    assert {record.action for record in records[1:]} == {"annotate"}


@pytest.mark.parametrize(
    "prompt", ["Some text. 語 is a word.", [*CHAT, {"role": "assistant", "content": " It is wet."}]]
)
async def test_an_alert_in_given_text_is_kept_with_the_text_it_is_about(path, prompt):
    async with keeping(path) as (_, client, reader):
        result = await client.score(prompt)
        records = [reader.find(alert.alert_id).record for alert in result.alerts]
    assert records
    for record in records:
        text = record.text
        assert not record.generated and record.generation is None and text.reply_ids == ()
        assert text.prompt_ids == tuple(token.id for token in result.tokens)
        role, content = ("text", prompt) if isinstance(prompt, str) else ("assistant", " It is wet.")
        assert text.messages[-1].role == role
        # A token of these tests is a byte; a character ends with its last.
        span = b"".join(bytes_of(token) for token in result.tokens[record.span_start : record.position + 1])
        assert text.span == span.decode() and content.startswith(text.messages[-1].content)
        spoken = [p for run in text.spoken for p in range(run.start, run.end)]
        # All of a text is scored as if the assistant had said it.
        said = result.tokens if role == "text" else [token for token in result.tokens if token.role == "assistant"]
        assert spoken == [token.index for token in said]
        assert {run.role for run in text.spoken} == {"assistant"}


@pytest.mark.parametrize(("prompt", "role"), [("The sea is wide.", "text"), (CHAT, "user")])
async def test_an_alert_in_the_prompt_of_a_generation_is_not_kept_as_written_by_the_model(
    path, monkeypatch, prompt, role
):
    every_latent = tiny_packs.feature_component(*range(tiny.NUM_LATENTS))
    both = tiny_packs.pack(
        "both", [every_latent], thresholds=tiny_packs.thresholds(None, 1e-6), window=1, min_tokens=3,
        roles=(role, "assistant"),
    )  # fmt: skip
    monkeypatch.setattr(serving_module, "monitor_packs", lambda: [both])
    async with keeping(path) as (_, client, reader):
        reply = await client.complete(prompt, max_tokens=6, ignore_eos=True)
        told = {alert.role: await client.journal.get_alert(alert.alert_id) for alert in reply.alerts}
        kept = {alert.role: reader.find(alert.alert_id).record for alert in reply.alerts}
    num_prompt = reply.started.prompt_tokens
    assert kept[role].position < num_prompt <= kept["assistant"].position
    assert {whose: record.generated for whose, record in kept.items()} == {role: False, "assistant": True}
    # What encloses reasoning is of replies.
    think = (Enclosure(opening="<think>", closing="</think>"),)
    assert {whose: record.text.reasoning for whose, record in kept.items()} == {role: None, "assistant": think}
    assert {whose: alert.generated for whose, alert in told.items()} == {role: False, "assistant": True}


def bytes_of(token: Token) -> bytes:
    return tiny.byte_tokenizer().decode([token.id]).encode()


async def test_without_text_nothing_of_it_is_kept_and_the_key_lies_beside(path):
    async with keeping(path, journal_text=False) as (_, client, reader):
        reply = await client.complete(CHAT, max_tokens=6, ignore_eos=True)
        record = reader.find(reply.alerts[0].alert_id).record
        assert (await client.server_info()).journal.keeps_text is False
    assert isinstance(record.text, HashedText)
    key_file = path.with_name("alerts.sqlite.key")
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert record.text.key_id == TextKey.load(key_file).id
    assert b"Tell me" not in b"".join(file.read_bytes() for file in path.parent.iterdir())


async def test_without_a_journal_alerts_have_no_id():
    async with serving() as server, connect(server) as client:
        reply = await client.complete("The sea", max_tokens=6, ignore_eos=True)
        assert reply.alerts and {alert.alert_id for alert in reply.alerts} == {""}
        assert (await client.server_info()).journal is None
        assert (await healthz(server))[1]["journal"] is None


# A steered request and its unsteered twin

PAIR = {
    "steering": [Steering(direction=3, op="add", strength=4.0, unit="relative", scope="generated")],
    "baseline": True,
}


async def test_alerts_of_both_replies_are_kept_and_each_can_be_done_again(path):
    async with keeping(path) as (_, client, reader):
        own, baselines = [], []
        async for event in client.generate("The sea", max_tokens=8, ignore_eos=True, **PAIR):
            if isinstance(event, Baseline) and isinstance(event.event, Alert):
                baselines.append(event.event)
            elif isinstance(event, Alert):
                own.append(event)
        assert own and baselines
        kept = {each.record.id: each.record for each in reader.all_alerts()}
        assert kept.keys() == {alert.alert_id for alert in (*own, *baselines)}
        for alerts, ending, num_operations in ((own, "", 1), (baselines, "-baseline", 0)):
            record = kept[alerts[-1].alert_id]
            assert record.request_id == own[0].request_id + ending
            assert len(record.steering) == num_operations
            replay = await client.journal.replay(record.id)
            assert replay.read.reproduced and replay.generated.reproduced


async def test_if_an_alert_of_one_reply_cannot_be_kept_neither_goes_on(path):
    async with keeping(path) as (server, client, _):
        with room_for(1), pytest.raises(AlertNotKept):
            await client.complete("The sea", max_tokens=30, ignore_eos=True, **PAIR)
        await eventually(lambda: server.engine.num_active == 0)
        assert outcomes(server) == {"alert_not_kept": 1}


# When the disk is full


async def test_what_cannot_be_kept_is_not_told_and_everything_else_goes_on(path):
    async with keeping(path) as (server, client, reader):
        before = await client.complete("The sea", max_tokens=6, ignore_eos=True)
        with room_for(1):
            seen = []
            with pytest.raises(AlertNotKept, match="could not be written to the server's alert journal"):
                async for event in client.generate("The sea", max_tokens=30, ignore_eos=True, include_prompt=True):
                    seen.append(event)
            scored = await asyncio.gather(
                client.complete("A stone", max_tokens=30, ignore_eos=True, monitors=[NEVER]),
                client.score("A stone that was scored"),
                return_exceptions=True,
            )
            await server.update_health()
            status, facts = await healthz(server)
            info = (await client.server_info()).journal
            health = {name: await health_of(server, name) for name in (ALERTS.full_name, GENERATION.full_name)}
        # Neither the alert, nor the token that raised it, whose score would tell.
        assert not [event for event in seen if isinstance(event, Alert)]
        assert not any(score.firing for event in seen if isinstance(event, Token) for score in event.scores)
        assert len(scored[0].tokens) == 30 and isinstance(scored[1], AlertNotKept)
        assert status == 200 and facts["journal"]["writable"] is False and facts["journal"]["write_failures"] == 2
        assert (
            not info.is_writable and info.num_write_failures == 2 and "disk: wanted room to write" in info.write_error
        )
        assert str(path) not in info.write_error
        assert health == {ALERTS.full_name: "NOT_SERVING", GENERATION.full_name: "SERVING"}
        assert sample(server, "telltale_journal_write_failures_total") == 2
        assert sample(server, "telltale_journal_writable") == 0
        assert outcomes(server)["alert_not_kept"] == 2

        after = await client.complete("The sea", max_tokens=6, ignore_eos=True)
        await server.update_health()
        assert await health_of(server, ALERTS.full_name) == "SERVING"
        assert sample(server, "telltale_journal_writable") == 1
        kept = {each.record.id for each in reader.all_alerts()}
        assert kept == {alert.alert_id for reply in (before, after) for alert in reply.alerts}
        await eventually(lambda: server.journal.status.num_entries == len(kept))
        assert all(each.holds for each in reader.verify())


async def health_of(server, name):
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from serving import raw_channel

    async with raw_channel(server) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


async def test_an_alert_no_record_can_be_made_of_fails_its_request_alone(path, monkeypatch, caplog):
    from service import alert_records

    kept_text = alert_records.kept_text

    def broken(tokenizer, raised) -> KeptText:
        if raised.request.label == "bad":
            raise ValueError("no text")
        return kept_text(tokenizer, raised)

    monkeypatch.setattr(alert_records, "kept_text", broken)
    async with keeping(path) as (_, client, reader):
        bad, good = await asyncio.gather(
            client.complete("The sea", max_tokens=8, ignore_eos=True, label="bad"),
            client.complete("The sea", max_tokens=8, ignore_eos=True, label="good"),
            return_exceptions=True,
        )
        assert isinstance(bad, AlertNotKept)
        assert {each.record.id for each in reader.all_alerts()} == {alert.alert_id for alert in good.alerts} != set()
    assert "no record could be made" in caplog.text
