"""AlertService through the wire: lists and pages, reviews and what they come to, and bad input by name."""

from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import grpc
import grpc.aio
import pytest
from alerts import START, alert
from google.protobuf.timestamp_pb2 import Timestamp
from serving import ALWAYS, connect, eventually, monitor_packs, raw_channel, sample, serving
from telltale.v1 import alert_pb2, alert_pb2_grpc

from monitors.alert_record import Component, PackRef
from monitors.journal import Journal
from monitors.journal_entry import parsed
from monitors.journal_reader import MAX_PAGE
from monitors.time_ids import new_id
from service import client_lookup, feature_servicer, wire_alerts
from service.errors import InvalidRequest, NotFound, NotPossible

NUM = 9


@pytest.fixture(scope="module")
async def server(tmp_path_factory):
    path = tmp_path_factory.mktemp("alerts") / "alerts.sqlite"
    with Journal.open(path) as journal:
        for number in range(NUM):
            changes = {"monitor": "stance", "level": "critical"} if number % 3 == 0 else {}
            state = {"state": "cleared", "cleared_id": new_id()} if number == NUM - 1 else {}
            journal.append([alert(number, **changes, **state)])
    async with serving(journal=str(path)) as server:
        yield server


@pytest.fixture
async def journal(server):
    async with connect(server) as client:
        yield client.journal


@pytest.fixture
async def stub(server):
    async with raw_channel(server) as channel:
        yield alert_pb2_grpc.AlertServiceStub(channel)


@pytest.fixture
def records(server):
    return [kept.record for kept in server.journal.journal.reader.all_alerts()]


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_pages_put_together_are_the_whole_list_newest_first(journal, records):
    found, token = [], ""
    while True:
        page = await journal.list_alerts(page_size=4, page_token=token)
        found += page.alerts
        if not (token := page.next_page_token):
            break
    assert [each.alert.alert_id for each in found] == [record.id for record in records] != []
    assert {each.entry for each in found} == {""}
    async with aclosing(journal.alerts()) as everything:
        assert [each.alert.alert_id async for each in everything] == [record.id for record in records]


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ({"monitors": ["stance"]}, lambda r: r.monitor == "stance"),
        ({"severities": ["critical"], "states": ["firing"]}, lambda r: r.level == "critical" and r.state == "firing"),
        ({"since": START + timedelta(seconds=4)}, lambda r: r.time >= START + timedelta(seconds=4)),
        ({"until": START + timedelta(seconds=4)}, lambda r: r.time < START + timedelta(seconds=4)),
        ({"request_id": "request-1"}, lambda r: r.request_id == "request-1"),
        ({"label": "nightly"}, lambda _: True),
        ({"label": ""}, lambda _: False),
        ({"acknowledged": True}, lambda _: False),
    ],
)
async def test_filters_leave_what_fits(journal, records, filters, wanted):
    page = await journal.list_alerts(**filters)
    assert [each.alert.alert_id for each in page.alerts] == [record.id for record in records if wanted(record)]


async def test_one_alert_comes_with_the_very_line_of_the_journal(journal, records, server):
    told = await journal.get_alert(records[0].id)
    assert parsed(told.entry).entry == records[0] and parsed(told.entry).hash == told.hash
    assert (told.alert.monitor, told.alert.score) == (records[0].monitor, records[0].score)
    assert [(part.component, part.score, part.contribution, part.score_unknown) for part in told.alert.components] == [
        ("disbelief", 1.5, 0.75, False),
        ("stance", 1.0, 0.5, False),
    ]
    assert told.has_text and told.pack_version == "1.2" and told.cleared_id == records[0].cleared_id
    (head,) = server.journal.journal.reader.heads().values()
    assert told.journal == server.journal.journal.id and told.seq <= head.seq


def test_the_client_asks_for_the_largest_pages_that_the_server_gives():
    assert client_lookup.MAX_PAGE == MAX_PAGE == feature_servicer.MAX_PAGE_SIZE


def test_a_score_that_was_not_kept_is_told_to_be_unknown():
    (part,) = wire_alerts.alert(alert(components=(Component(name="stance", contribution=0.5),))).components
    assert (part.component, part.score, part.score_unknown) == ("stance", 0, True)


async def test_what_people_say_is_kept_and_counted(journal, server):
    mine = alert(100, monitor=ALWAYS, pack=PackRef(version="1", sha256=served_sha256()))
    other = alert(101, monitor=ALWAYS, pack=PackRef(version="1", sha256="f" * 64))
    server.journal.append([mine, other])
    await journal.acknowledge(mine.id, by="ann", note="looking")
    await journal.review(mine.id, verdict="unsure", reviewer="ann")
    await journal.review(mine.id, verdict="false", reviewer="böb", note="quotes a novel")
    await journal.review(other.id, verdict="true", reviewer="böb")
    told = await journal.get_alert(mine.id)
    assert [(said.by, said.note) for said in told.acknowledgements] == [("ann", "looking")]
    assert [(r.verdict, r.reviewer, r.note) for r in told.reviews] == [
        ("unsure", "ann", ""),
        ("false", "böb", "quotes a novel"),
    ]
    assert abs(told.review.time - datetime.now(UTC)) < timedelta(minutes=5)
    page = await journal.list_alerts(verdict="false", reviewed=True, acknowledged=True)
    assert [each.alert.alert_id for each in page.alerts] == [mine.id]
    by_pack = {each.pack_sha256: each for each in await journal.precision() if each.monitor == ALWAYS}
    assert (by_pack[served_sha256()].precision, by_pack["f" * 64].precision) == (0.0, 1.0)
    await server.update_health()
    assert sample(server, "telltale_alert_precision_ratio", monitor=ALWAYS) == 0.0
    assert sample(server, "telltale_alert_reviews", monitor=ALWAYS, verdict="false") == 1
    assert all(each.holds for each in server.journal.journal.reader.verify())


def served_sha256():
    return next(pack.content_sha256 for pack in monitor_packs() if pack.name == ALWAYS)


async def test_status_counts_what_is_there(server):
    keeper = server.journal
    await eventually(lambda: keeper.status.num_entries == keeper.journal.reader.extent(keeper.journal.id).num_entries)
    assert keeper.status.num_entries >= NUM


# Bad input


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (alert_pb2.ListAlertsRequest(page_size=1001), "page_size"),
        (alert_pb2.ListAlertsRequest(page_token="nonsense"), "page_token"),
        (alert_pb2.ListAlertsRequest(severities=[0]), "severities[0]"),
        (alert_pb2.ListAlertsRequest(severities=[3, 99]), "severities[1]"),
        (alert_pb2.ListAlertsRequest(states=[0]), "states[0]"),
        (alert_pb2.ListAlertsRequest(verdict=9), "verdict"),
        (alert_pb2.ListAlertsRequest(since=Timestamp(seconds=-5)), "since"),
        (alert_pb2.ListAlertsRequest(until=Timestamp(seconds=10**15)), "until"),
        (alert_pb2.ListAlertsRequest(monitors=["m"] * 65), "monitors"),
    ],
)
async def test_a_list_that_makes_no_sense_is_invalid_by_field(server, request_, field):
    async with connect(server) as client:
        with pytest.raises(InvalidRequest) as caught:
            await client.call(client.journal.stub.ListAlerts, request_)
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_a_token_of_another_list_is_invalid(journal):
    page = await journal.list_alerts(page_size=1)
    with pytest.raises(InvalidRequest, match="next_page_token of a list with the same filters"):
        await journal.list_alerts(page_size=1, page_token=page.next_page_token, monitors=["stance"])


@pytest.mark.parametrize("alert_id", ["", "what", "1", "é" * 40, "01a21b19-2dc5-717b-bd14-841b1bca0632'--"])
async def test_what_is_no_id_is_invalid(stub, alert_id):
    for call in (
        stub.GetAlert(alert_pb2.GetAlertRequest(alert_id=alert_id)),
        stub.AcknowledgeAlert(alert_pb2.AcknowledgeAlertRequest(alert_id=alert_id, by="ann")),
        stub.ReviewAlert(alert_pb2.ReviewAlertRequest(alert_id=alert_id, verdict=1, reviewer="ann")),
        stub.ReplayAlert(alert_pb2.ReplayAlertRequest(alert_id=alert_id)),
    ):
        error = await refused(call)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and "alert_id" in error.details()


async def test_an_alert_that_is_not_there_is_not_found(journal):
    missing = new_id()
    for call in (
        journal.get_alert(missing),
        journal.acknowledge(missing, by="ann"),
        journal.review(missing, verdict="true", reviewer="ann"),
        journal.replay(missing),
    ):
        with pytest.raises(NotFound, match=missing):
            await call


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"verdict": 0}, "verdict"),
        ({"verdict": 7}, "verdict"),
        ({"reviewer": ""}, "reviewer"),
        ({"reviewer": "  "}, "reviewer"),
        ({"reviewer": "a\nb"}, "reviewer"),
        ({"reviewer": "x" * 129}, "reviewer"),
        ({"note": "x" * 4097}, "note"),
    ],
)
async def test_a_review_that_makes_no_sense_is_invalid_by_field(server, records, changes, field):
    fields = {"alert_id": records[1].id, "verdict": 1, "reviewer": "ann"} | changes
    async with connect(server) as client:
        with pytest.raises(InvalidRequest) as caught:
            await client.call(client.journal.stub.ReviewAlert, alert_pb2.ReviewAlertRequest(**fields))
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_only_what_fired_can_be_reviewed(journal, records):
    cleared = next(record for record in records if record.state == "cleared")
    with pytest.raises(NotPossible, match=f"one that cleared.*It ends alert {cleared.cleared_id}"):
        await journal.review(cleared.id, verdict="true", reviewer="ann")


async def test_a_server_without_a_journal_says_so():
    async with serving() as server, connect(server) as client:
        for call in (
            client.journal.list_alerts(),
            client.journal.get_alert(new_id()),
            client.journal.acknowledge(new_id(), by="ann"),
            client.journal.review(new_id(), verdict="true", reviewer="ann"),
            client.journal.precision(),
            client.journal.replay(new_id()),
        ):
            with pytest.raises(NotPossible, match="keeps no alert journal"):
                await call
