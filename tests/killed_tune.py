"""python killed_tune.py WHEN NUMBER FLAGS...: `telltale lab tune FLAGS`, killed with SIGKILL at a decision.

WHEN is `before` or `after` the decision has been written down, NUMBER which one it is, from 1.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from discovery import tune, tune_scheduler


def main(when: str, number: str, argv: list[str]) -> None:
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
