"""`telltale alerts replay` without a server: the record from a journal's file or database, the model loaded here.

What is loaded is what `telltale serve` would load with the same config file and variables. Nothing is opened, and
nothing is kept.
"""

import argparse
import asyncio
import os
from typing import Any

from monitors.journal_reader import JournalReader
from service.alert_commands import where
from service.cli_terminal import Terminal
from service.config_layers import load_settings
from service.errors import EngineFailed, NotFound


async def run_replay(args: argparse.Namespace) -> int:
    """An alert's request again: 0 if both ways reproduce it, else 1."""
    from service.server_alerts import show_replay
    from service.wire_alerts import MAX_TOLERANCE, replay

    if not 0 <= args.tolerance <= MAX_TOLERANCE:
        from service.errors import ConfigError

        raise ConfigError(f"--tolerance must lie in [0, {MAX_TOLERANCE:g}]. Got {args.tolerance:g}.")
    with JournalReader.open(where(args)) as reader:
        kept = reader.find(args.id)
    if kept is None:
        raise NotFound(f"alert {args.id!r}")
    variables = {name: value for name, value in os.environ.items() if name != "TELLTALE_JOURNAL"}
    settings = load_settings({"config": args.config}, variables)
    result = await asyncio.to_thread(_replayed, kept.record, settings, args.tolerance or None)
    return show_replay(replay(args.id, result), Terminal(args.color), as_json=args.json)


def _replayed(record: Any, settings: Any, tolerance: float | None) -> Any:
    """Loads the model and steps an engine until both replays are done."""
    from importlib import metadata

    from sae_runtime.reasoning import delimiters_of
    from service.admission import Admission
    from service.assembly import assemble
    from service.engine import Engine
    from service.replay import ReplayHost, compared, plan
    from service.request import Event, FinishedEvent, Request
    from service.scheduler import Scheduler

    parts = assemble(settings)
    tokenizer = parts.runner.language_model.tokenizer
    host = ReplayHost(
        parts.catalog,
        tokenizer,
        parts.steering_limits,
        parts.context_length,
        metadata.version("telltale-llm"),
        lambda: parts.runner.passes,
        delimiters_of(tokenizer, settings.reasoning_delimiters),
    )
    requests = plan(record, host)
    engine = Engine(
        parts.runner,
        Scheduler(parts.slots, settings.prefill_chunk_tokens),
        Admission(num_slots=parts.slots, max_requests=1, max_prompt_tokens=parts.context_length),
        steering_limits=parts.steering_limits,
        slow_consumer_seconds=float("inf"),
    )

    def run(request: Request) -> list[Event]:
        engine.admission.reserve()
        submission, events = engine.admission.submit(request), list[Event]()
        while not events or not isinstance(events[-1], FinishedEvent):
            engine.step()
            batch, failure = submission.mailbox.take()
            events += batch
            if failure is not None and not batch:
                raise failure if isinstance(failure, EngineFailed) else EngineFailed("none", str(failure))
        return events

    read = run(requests.read)
    generated = None if requests.generated is None else run(requests.generated)
    return compared(record, host, requests, read, generated, tolerance)
