"""What `telltale serve` does around a server, in this process; `test_process.py` has it as one of its own."""

from contextlib import nullcontext

import serving

from service import run_server
from service.config import NO_JOURNAL, Settings
from service.server import Server


async def test_what_keys_and_values_need_is_taken_once_the_server_is_ready(monkeypatch, capsys):
    parts, taken = serving.parts(), []

    async def run(server, _stop, _hurry) -> int:
        return 0 if await server.close() else 1

    monkeypatch.setattr(run_server, "set_up_logging", lambda _settings: None)
    monkeypatch.setattr(run_server, "lasting", nullcontext)
    monkeypatch.setattr(run_server, "assemble", lambda _settings, **_options: parts)
    monkeypatch.setattr(run_server, "_take_memory", lambda given: taken.append((given, capsys.readouterr().out)))
    monkeypatch.setattr(Server, "run", run)
    assert await run_server.serve(Settings(grpc_port=0, http_port=0, journal=NO_JOURNAL)) == 0
    ((given, said),) = taken
    assert given is parts
    assert said.startswith("telltale is ready: ")
