"""Programs of others that some tests need. Without one the test is skipped; where everything has to run it fails.

`.ci/run` installs all of them and sets REQUIRE_TEST_TOOLS=1, so that a package that is gone turns no test off unseen.
"""

import os
from typing import NoReturn

import pytest

VARIABLE = "REQUIRE_TEST_TOOLS"


def are_required() -> bool:
    """Whether a missing tool is a failure."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


def missing(tool: str) -> NoReturn:
    """Skip the test, or fail it where tools are required. `tool` is its name, and where it is to be had."""
    if are_required():
        pytest.fail(f"{tool} is not installed, and {VARIABLE} is set")
    pytest.skip(f"{tool} is not installed")
