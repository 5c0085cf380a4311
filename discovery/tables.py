"""Where tables go: as wide as the terminal or COLUMNS says, else wide enough for their figures in a file or a pipe."""

import os
import sys
from typing import Any

from rich.console import Console

FILE_WIDTH = 150


def table_console(**options: Any) -> Console:
    """A console on stdout. A file has no width to ask for, and the 80 columns that rich assumes cut figures off."""
    is_told = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console(width=None if is_told else FILE_WIDTH, **options)
