"""Tests that need a tool which is missing: skipped where one develops, failed in CI."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
NEEDING_TOOLS = """
from browser import needs_browser, open_page
from postgres import _program


@needs_browser
def test_page(tmp_path):
    (tmp_path / "page.html").write_text("<p>")
    open_page(tmp_path / "page.html", tmp_path / "profile")


def test_database():
    _program("initdb-of-no-version")
"""


@pytest.mark.parametrize(("required", "wanted"), [("", "2 skipped"), ("1", "2 failed")])
def test_a_missing_tool_fails_where_tools_are_required(tmp_path, required, wanted):
    (tmp_path / "test_tools_here.py").write_text(NEEDING_TOOLS)
    environment = os.environ | {"PATH": str(tmp_path), "REQUIRE_TEST_TOOLS": required, "PYTHONPATH": _paths()}
    flags = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(tmp_path)]
    command = [sys.executable, "-m", "pytest", *flags, str(tmp_path / "test_tools_here.py")]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert wanted in ran.stdout.splitlines()[-1], ran.stdout
    if required == "1":
        for tool in ("chromium", "initdb-of-no-version"):
            assert f"{tool} is not installed, and REQUIRE_TEST_TOOLS is set" in ran.stdout


def _paths() -> str:
    return os.pathsep.join([str(TESTS), *filter(None, sys.path)])


def test_ci_requires_them():
    script = (TESTS.parent / ".ci" / "run").read_text(encoding="utf-8")
    assert "export REQUIRE_TEST_TOOLS=1" in script
    for package in ("chromium", "prometheus", "prometheus-alertmanager", "postgresql"):
        assert f" {package}" in script
