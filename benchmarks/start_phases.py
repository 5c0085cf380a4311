"""The same server, which tells before it is ready how long the parts of its start took.

    python -m benchmarks.start_phases --grpc-port 0 --http-port 0

Takes the flags of `telltale serve`. The parts are a JSON line on stderr, in seconds:
`{"phases": {"imports": 3.2, ...}}`.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

BEGAN = time.perf_counter()


def main() -> int:
    from service import cli
    from service.lasting import lasting

    with lasting():
        from service import assembly, run_server
        from service.journal_keeper import JournalKeeper
        from service.model_runner import ModelRunner
    seconds = {"imports": time.perf_counter() - BEGAN}

    def timed(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - started

        return wrapped

    JournalKeeper.open = staticmethod(timed("journal", JournalKeeper.open))  # type: ignore[method-assign, assignment]
    ModelRunner.warm_up = timed("warm_up", ModelRunner.warm_up)  # type: ignore[method-assign]
    for phase, name in {
        "model": "load_language_model",
        "dictionary": "load_dictionary",
        "monitors": "_load_monitors",
        "keys_and_values": "_make_cache",
    }.items():
        setattr(assembly, name, timed(phase, getattr(assembly, name)))
    say_ready = run_server._say_ready

    def tell(*arguments: Any) -> None:
        print(json.dumps({"phases": {phase: round(each, 4) for phase, each in seconds.items()}}), file=sys.stderr)
        say_ready(*arguments)

    run_server._say_ready = tell
    return cli.main(["serve", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
