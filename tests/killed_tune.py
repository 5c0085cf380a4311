"""python killed_tune.py WHEN NUMBER FLAGS...: `telltale lab tune FLAGS`, killed with SIGKILL at a decision or anywhere.

WHEN is `before` or `after` the decision has been written down, NUMBER which one it is, from 1. Or WHEN is `moment`, and
NUMBER counts calls and returns in the search's own modules, those of C functions included, from when trials begin on.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from discovery import tune, tune_scheduler

_OURS = ("discovery.tune", "discovery.line_files", "sae_runtime.whole_files")


def kill_at_moment(number: int) -> None:
    """Have this process killed at that moment after `run_search` has been called."""
    from discovery import tune_ray

    left, run_search = number, tune_ray.run_search

    def count(frame: FrameType, _event: str, _arg: object) -> None:
        nonlocal left
        if frame.f_globals.get("__name__", "").startswith(_OURS):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def watched(*args: Any) -> None:
        sys.setprofile(count)
        run_search(*args)

    tune_ray.run_search = watched


def main(when: str, number: str, argv: list[str]) -> None:
    if when == "moment":
        kill_at_moment(int(number))
        sys.exit(tune.main(argv))
    append, left = tune_scheduler.append_line, int(number)

    def dying(path: Path, record: dict[str, Any]) -> None:
        nonlocal left
        left -= 1
        if left == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        append(path, record)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    tune_scheduler.append_line = dying  # type: ignore[assignment]
    sys.exit(tune.main(argv))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
