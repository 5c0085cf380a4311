"""From the engine's thread to the event loop: wake-ups that are never lost, watchers that are bounded."""

import asyncio
import threading
from contextlib import aclosing

import pytest
from serving import eventually

from monitors.track import Alert
from service.delivery import MAX_UNREAD_ALERTS, Delivery
from service.errors import EngineFailed, SlowConsumer
from service.published import Published
from service.request import AlertEvent, FinishedEvent, FinishReason, Mailbox, Timings


def event(number: int = 0, monitor: str = "m") -> AlertEvent:
    alert = Alert(
        monitor=monitor, state="firing", level="warning", position=number, span_start=number, score=1.0, threshold=0.5,
        components=(),
    )  # fmt: skip
    return AlertEvent(request_id=str(number), label="", alert=alert, time_seconds=0.0)


def finished() -> FinishedEvent:
    return FinishedEvent(FinishReason.LENGTH, 1, Timings(0, None, None, None, 0), [], 1)


def alerts(*events: AlertEvent) -> Published:
    return Published(alerts=list(events))


async def take(events, number):
    return [await anext(events) for _ in range(number)]


async def test_what_was_put_before_anybody_listened_is_delivered():
    delivery, mailbox = Delivery(), Mailbox()
    mailbox.put([event(1)])
    delivery.publish(Published(mailboxes=[mailbox]))
    async with aclosing(delivery.events(mailbox)) as events:
        assert await anext(events) == [event(1)]
    assert delivery._wakers == {}


async def test_a_thread_that_puts_and_publishes_wakes_the_reader_every_time():
    """Every batch is awaited, so one lost wake-up hangs."""
    delivery, mailbox = Delivery(), Mailbox()
    may_put = threading.Semaphore(0)

    def engine():
        for number in range(300):
            may_put.acquire()
            mailbox.put([event(number)])
            delivery.publish(Published(mailboxes=[mailbox]))

    thread = threading.Thread(target=engine)
    thread.start()
    got = []
    async with asyncio.timeout(20), aclosing(delivery.events(mailbox)) as events:
        for number in range(300):
            may_put.release()
            if number % 3:  # the reader is ahead one time, behind the next
                await asyncio.sleep(0)
            got += await anext(events)
    thread.join()
    assert got == [event(number) for number in range(300)]


async def test_events_come_before_the_failure_that_ended_them():
    delivery, mailbox = Delivery(), Mailbox()
    mailbox.put([event(1)])
    mailbox.put([event(2)])
    mailbox.fail(EngineFailed("id"))
    events = delivery.events(mailbox)
    assert await anext(events) == [event(1), event(2)]
    with pytest.raises(EngineFailed):
        await anext(events)
    assert delivery._wakers == {}


async def test_a_mailbox_wakes_its_own_reader_only():
    delivery, mine, other = Delivery(), Mailbox(), Mailbox()
    async with aclosing(delivery.events(mine)) as my_events, aclosing(delivery.events(other)) as other_events:
        readers = [asyncio.create_task(anext(e)) for e in (my_events, other_events)]
        await eventually(lambda: len(delivery._wakers) == 2)
        mine.put([finished()])
        delivery.publish(Published(mailboxes=[mine, Mailbox()]))
        assert await readers[0] == [finished()]
        assert not readers[1].done()
        readers[1].cancel()
        await asyncio.wait(readers)
    assert delivery._wakers == {}


async def test_everything_published_is_shown_to_the_metrics_on_the_loop():
    seen = []
    delivery = Delivery(lambda published: seen.append((published, threading.current_thread())))
    published = Published()
    await asyncio.to_thread(delivery.publish, published)
    await eventually(lambda: seen)
    assert seen == [(published, threading.main_thread())]


def test_a_closed_loop_is_no_error_for_the_engine():
    seen = []

    async def make():
        return Delivery(seen.append)

    delivery = asyncio.run(make())
    delivery.publish(Published())
    assert delivery._loop.is_closed() and seen == []


# --- alerts ---


async def test_alerts_go_to_all_who_asked_for_them():
    delivery = Delivery()
    async with aclosing(delivery.alerts(())) as everything, aclosing(delivery.alerts({"b"})) as only_b:
        readers = [asyncio.create_task(take(everything, 3)), asyncio.create_task(take(only_b, 1))]
        await eventually(lambda: len(delivery._watchers) == 2)
        delivery.publish(alerts(event(1, "a"), event(2, "b")))
        delivery.publish(alerts(event(3, "c")))
        assert await readers[0] == [event(1, "a"), event(2, "b"), event(3, "c")]
        assert await readers[1] == [event(2, "b")]
    assert delivery._watchers == set()


@pytest.fixture
async def watching():
    """(delivery, the alerts of a watcher that has read one and stands still)"""
    delivery = Delivery()
    async with aclosing(delivery.alerts(())) as stream:
        first = asyncio.create_task(anext(stream))
        await eventually(lambda: delivery._watchers)
        delivery._deliver(alerts(event(0)))
        assert await first == event(0)
        yield delivery, stream


async def test_a_watcher_may_fall_behind_so_far(watching):
    delivery, stream = watching
    delivery._deliver(alerts(*(event(i) for i in range(MAX_UNREAD_ALERTS))))
    assert [e.request_id for e in await take(stream, MAX_UNREAD_ALERTS)] == [str(i) for i in range(MAX_UNREAD_ALERTS)]
    delivery._deliver(alerts(event(7)))
    assert await anext(stream) == event(7)


@pytest.mark.parametrize("num_missed", [1, 2, 3000])
async def test_a_watcher_that_missed_alerts_is_told_so(watching, num_missed):
    """Never by a stream that looks as if it had ended well."""
    delivery, stream = watching
    for i in range(MAX_UNREAD_ALERTS + num_missed):
        delivery._deliver(alerts(event(i)))
    assert max(queue.qsize() for queue in delivery._watchers) <= MAX_UNREAD_ALERTS + 1
    await take(stream, MAX_UNREAD_ALERTS // 2)
    delivery._deliver(alerts(event(1)))  # there is room again, but the gap stays
    await take(stream, MAX_UNREAD_ALERTS // 2)
    with pytest.raises(SlowConsumer, match="1024"):
        await anext(stream)
    assert delivery._watchers == set()


@pytest.mark.parametrize("num_unread", [0, 3, MAX_UNREAD_ALERTS])
async def test_closing_ends_streams_well_after_what_is_unread(watching, num_unread):
    delivery, stream = watching
    delivery._deliver(alerts(*(event(i) for i in range(num_unread))))
    delivery.close_watchers()
    assert len([e async for e in stream]) == num_unread


async def test_closing_ends_streams_after_what_was_published_before(watching):
    """What the engine's thread has handed over waits for its turn on the loop."""
    delivery, stream = watching
    delivery.publish(alerts(event(1)))
    delivery.close_watchers()
    assert [e async for e in stream] == [event(1)]
