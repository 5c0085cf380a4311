"""A server with a journal under load, which says where it listens, and is killed.

The process is forked from one that has imported everything: importing takes far longer than what is tested.
"""

import asyncio
import multiprocessing
import random
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

PRELOADED = ["service.server", "service.client", "transformers.models.llama.modeling_llama", "tokenizers.decoders"]
"""What takes long to import; the process that forks finds no modules of the tests."""
STREAMS = 3
LONGEST_SECONDS = 0.5


def main(path: Path, url: str | None, said: Connection) -> None:
    """The server's side: runs until it is killed."""
    import torch
    from serving import serving

    torch.set_num_threads(1)

    async def serve() -> None:
        forward = {} if url is None else {"journal_forward": url}
        async with serving(journal=str(path), **forward) as server:
            said.send(server.grpc_port)
            await asyncio.Event().wait()

    asyncio.run(serve())


async def killed_server(path: Path, rng: random.Random, url: str | None = None) -> list[str]:
    """Ids of the alerts that clients saw before the server was killed, at a moment of `rng`'s choice."""
    from serving import eventually

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=main, args=(path, url, sender))
    process.start()
    sender.close()
    port = await asyncio.to_thread(receiver.recv)
    seen: list[str] = []
    clients = [asyncio.create_task(_watch(port, seen))]
    clients += [asyncio.create_task(_load(port, seed, seen)) for seed in range(STREAMS)]
    try:
        # From the first alert on: before there is nothing to lose, and how long that takes is the machine's business.
        await eventually(lambda: seen, seconds=60.0)
        await asyncio.sleep(rng.uniform(0.0, LONGEST_SECONDS))
        assert process.exitcode is None, "the server failed"
    finally:
        process.kill()
        # They end by themselves: with an error, once they have read what had arrived.
        await asyncio.gather(*clients)
        await asyncio.to_thread(process.join)
        process.close()
        receiver.close()
    return seen


async def _load(port: int, seed: int, seen: list[str]) -> None:
    from serving import NO_RETRIES

    from service.client import TelltaleClient
    from service.client_events import Alert
    from service.errors import ServiceError

    rng = random.Random(seed)
    async with TelltaleClient(f"127.0.0.1:{port}", retry=NO_RETRIES) as client:
        with suppress(ServiceError):
            while True:
                length = rng.randrange(4, 30)
                async for event in client.generate("The sea" * rng.randrange(1, 9), max_tokens=length, ignore_eos=True):
                    if isinstance(event, Alert):
                        seen.append(event.alert_id)


async def _watch(port: int, seen: list[str]) -> None:
    from serving import NO_RETRIES

    from service.client import TelltaleClient
    from service.errors import ServiceError

    async with TelltaleClient(f"127.0.0.1:{port}", retry=NO_RETRIES) as client:
        with suppress(ServiceError):
            async for alert in client.watch_alerts():
                seen.append(alert.alert_id)
