"""The pass that collects examples, in a process of its own: killed with SIGKILL at a moment of one's choice, or with
no room on its disk.

A moment is a number of Python's calls, of functions in C too: it can lie anywhere, half-way through the writing of the
state and of the file as well, and comes again at every run.
"""

import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path

_KEPT_READY = ["discovery.examples", "tiny_examples", "killed_examples"]


def run_killed(folder: Path, output: Path, moment: int | None, *, most_bytes: int | None = None) -> int:
    """Exit code of a pass over `folder`'s harvest, killed at `moment`; without one it gets through.

    An uninterrupted pass writes the number of its calls to `calls` beside the output. With `most_bytes` the operating
    system lets no file become larger; what the pass says of it is in `error`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_KEPT_READY)
    process = context.Process(target=_run, args=(folder, output, moment, most_bytes))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _run(folder: Path, output: Path, moment: int | None, most_bytes: int | None) -> None:
    if most_bytes is None:
        return _collect(folder, output, moment)
    from discovery.errors import ExampleError

    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
    try:
        return _collect(folder, output, moment)
    except ExampleError as error:
        output.with_name("error").write_text(str(error))
        sys.exit(1)


def _collect(folder: Path, output: Path, moment: int | None) -> None:
    import tiny_examples
    import torch

    from discovery.examples import collect, finish
    from discovery.text_pieces import HarvestedText
    from sae_runtime.checkpoint import load_sae

    torch.set_num_threads(1)
    text = HarvestedText([folder / "harvest"], tiny_examples.document_sources())
    this = tiny_examples.example_pass(load_sae(folder / "dictionary"), text)
    num_calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal num_calls
        num_calls += event in ("call", "c_call")
        if num_calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    finish(this, collect(this, output, checkpoint_pieces=1), output)
    sys.setprofile(None)
    output.with_name("calls").write_text(str(num_calls))
