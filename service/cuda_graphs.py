"""Records a decode step as two CUDA graphs, cut at the tap, and plays them.

A pass without steering plays both, one behind the other; with steering the residuals are changed in between. Hooks do
not run when a graph is played: what counts is that they ran while it was recorded, and the count that comes back with
every pass shows it.
"""

from collections.abc import Callable
from contextlib import suppress

import torch

from service.decode_step import DecodeStep

_WARM_UP_PASSES = 2


class _SideStream:
    """A stream that forks off at `with`; see `decode_step.Beside`."""

    def __init__(self, main: torch.cuda.Stream) -> None:
        self._main = main
        self._side = torch.cuda.Stream(main.device, priority=0)
        self._inside: torch.cuda.StreamContext | None = None

    def __enter__(self) -> None:
        self._side.wait_stream(self._main)
        self._inside = torch.cuda.stream(self._side)
        self._inside.__enter__()

    def __exit__(self, *error: object) -> None:
        assert self._inside is not None
        self._inside.__exit__(*error)

    def join(self) -> None:
        self._main.wait_stream(self._side)


class Recorder:
    """Records steps. Their graphs share memory, since one plays after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, step: DecodeStep) -> Callable[[Callable[[], None] | None], None]:
        """Run a step a few times, then record it. What is returned plays it, calls its argument in between, if there
        is one, and returns when the device is done. The step's inputs must be filled."""
        # Of high priority, so that blocks come before what is computed beside them.
        stream = torch.cuda.Stream(self._device, priority=-1)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(_WARM_UP_PASSES):
                step.send()
                step.run(cut=lambda: None)  # compiles kernels and makes handles, which can't be recorded
            stream.synchronize()
            lower, upper = self._halves(step, stream)
        torch.cuda.current_stream(self._device).wait_stream(stream)

        def play(between: Callable[[], None] | None) -> None:
            lower.replay()
            if between is not None:
                between()
            upper.replay()
            torch.cuda.current_stream(self._device).synchronize()

        return play

    def _halves(self, step: DecodeStep, stream: torch.cuda.Stream) -> tuple[torch.cuda.CUDAGraph, torch.cuda.CUDAGraph]:
        lower, upper = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        recording = lower

        def begin(graph: torch.cuda.CUDAGraph) -> None:
            # Other threads may use the device meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")

        def cut() -> None:
            nonlocal recording
            lower.capture_end()
            recording = upper
            begin(upper)

        begin(lower)
        try:
            step.send()
            step.run(cut, _SideStream(stream))
            step.receive()
        except BaseException:
            # The stream must not stay in recording; what that says of it is not the reason.
            with suppress(RuntimeError):
                recording.capture_end()
            raise
        upper.capture_end()
        return lower, upper
