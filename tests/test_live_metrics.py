"""What a server's metrics say while streams run: counted for many steps at once, and yet soon."""

import asyncio
from contextlib import asynccontextmanager

from serving import Gate, connect, eventually, sample, serving

from service import bookkeeper
from service.step_batch import MOST_STEPS

NEVER_SECONDS = 3600.0


@asynccontextmanager
async def held(server, client, free_passes: int, max_tokens: int):
    """A stream whose passes hang once so many are done; it goes on behind the block."""
    gate = Gate(server, free_passes=free_passes)
    stream = asyncio.create_task(client.complete("x", max_tokens=max_tokens, ignore_eos=True))
    try:
        yield
    finally:
        gate.open()
        await stream


async def is_counted(server, name: str, wanted: float) -> bool:
    """Once it is; `eventually` gives up after a while."""
    await eventually(lambda: sample(server, name) == wanted)
    return sample(server, name) == wanted


async def test_what_was_read_before_a_pass_that_hangs_is_told():
    """The first step after idling, too: nothing follows it that could tell."""
    async with serving() as server, connect(server) as client:
        for num_before in (0, 3):
            async with held(server, client, free_passes=2, max_tokens=3):  # of the first step: the prompt, and a token
                assert await is_counted(server, "telltale_generation_tokens_total", num_before + 1)


async def test_gauges_are_those_of_the_last_step(monkeypatch):
    """They need not wait to be counted with others."""
    monkeypatch.setattr(bookkeeper, "LONGEST_SECONDS", NEVER_SECONDS)
    async with serving() as server, connect(server) as client, held(server, client, free_passes=2, max_tokens=3):
        assert await is_counted(server, "telltale_requests_running", 1)
        assert sample(server, "telltale_kv_slot_tokens_used") == server.engine.state().kv_tokens_used > 0
        assert sample(server, "telltale_forward_tokens_total") == 0


async def test_so_many_steps_are_counted_at_once(monkeypatch):
    monkeypatch.setattr(bookkeeper, "LONGEST_SECONDS", NEVER_SECONDS)
    async with serving() as server, connect(server) as client, held(server, client, MOST_STEPS, MOST_STEPS + 2):
        assert await is_counted(server, "telltale_generation_tokens_total", MOST_STEPS - 1)


async def test_all_that_a_request_read_is_counted_when_its_end_is_told(monkeypatch):
    monkeypatch.setattr(bookkeeper, "LONGEST_SECONDS", NEVER_SECONDS)
    async with serving() as server, connect(server) as client:
        for number in range(1, 3):
            await client.complete("x", max_tokens=3, ignore_eos=True)
            assert sample(server, "telltale_generation_tokens_total") == 3 * number
