"""A call in a process of its own, killed with SIGKILL at a moment of one's choice."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

_WATCHED = ("discovery.", "sae_runtime.", "safetensors.", "killed")


class Ended(NamedTuple):
    """How the process ended."""

    was_killed: bool
    num_moments: int
    """Calls and returns in our code until then, those of C functions included: each is a moment to be killed at."""


def run_killed(
    prepare: Callable[..., Callable[[], object]],
    *args: object,
    stop: int | None = None,
    preload: list[str],
    within: tuple[str, ...] = (),
) -> Ended:
    """What `prepare(*args)` returns, run until moment number `stop` or to its end. Fails if it ends in any other way.

    With `within`, functions of ours by name, moments are those while one of them runs, calls inside libraries included.

    A server process imports `preload` once and forks: importing takes longer than running here.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(preload)
    moments = context.Value("q", 0, lock=False)
    process = context.Process(target=_run, args=(prepare, args, stop, moments, within))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return Ended(process.exitcode != 0, moments.value)


def _run(
    prepare: Callable[..., Any], args: tuple[object, ...], stop: int | None, moments: Any, within: tuple[str, ...]
) -> None:
    import torch

    torch.set_num_threads(1)
    target = prepare(*args)
    depth = 0

    def count(frame: FrameType, event: str, _arg: object) -> None:
        nonlocal depth
        is_ours = frame.f_globals.get("__name__", "").startswith(_WATCHED)
        is_marked = is_ours and frame.f_code.co_name in within
        depth += is_marked and event == "call"
        if depth or (is_ours and not within):
            if moments.value == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            moments.value += 1
        depth -= is_marked and event == "return"

    sys.setprofile(count)
    target()
    sys.setprofile(None)
