"""Asks a served model many things at once, and keeps each reply as soon as it is there."""

import asyncio
from collections.abc import Callable, Iterator, Sequence

from discovery.call_retries import Patience
from discovery.errors import LabError
from discovery.grpc_endpoint import GrpcEndpoint
from discovery.reply_store import Inquiry, ReplyStore
from discovery.steering_json import steering_messages


async def ask_all(
    endpoint: GrpcEndpoint,
    store: ReplyStore,
    inquiries: Sequence[Inquiry],
    *,
    concurrency: int,
    label: str,
    patience: Patience | None = None,
    on_reply: Callable[[], object] = lambda: None,
) -> None:
    """Ask what `store` has no reply to, `concurrency` at a time.

    A fault that does not pass ends the run once the calls in flight have ended, whose replies are kept too; then it is
    raised.
    """
    waiting = iter(store.missing(inquiries))
    faults: list[LabError] = []
    patience = patience or Patience()

    async def ask(inquiry: Inquiry) -> None:
        steering = steering_messages(inquiry.steering)
        reply = await patience.call(
            lambda: endpoint.generate(inquiry.messages, inquiry.sampling, label=label, steering=steering)
        )
        store.add(inquiry, reply)
        on_reply()

    async def work(waiting: Iterator[Inquiry]) -> None:
        for inquiry in waiting:
            if faults:
                return
            try:
                await ask(inquiry)
            except LabError as error:  # raised further, it would cancel the others' calls
                faults.append(error)

    await asyncio.gather(*(work(waiting) for _ in range(concurrency)))
    if faults:
        raise faults[0]
