"""The wire contract: stubs that are those of the protos, and protos that keep their rules."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tools

PROTOS = Path(__file__).parents[1] / "protos"
GENERATED = ["*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py"]


def run(*command: str | Path, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, **options)


@pytest.fixture(scope="module")
def buf() -> str:
    path = shutil.which("buf", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if path is None:
        tools.missing("buf")
    return path


def generated(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for pattern in GENERATED for path in folder.rglob(pattern)}


def test_the_stubs_are_those_of_the_protos(tmp_path):
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    result = run("bash", PROTOS / "generate.sh", env=os.environ | {"PYTHON": sys.executable, "OUT": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    fresh, stored = generated(tmp_path), generated(PROTOS)
    assert len(fresh) == 3 * len(list(PROTOS.rglob("*.proto")))
    assert sorted(fresh) == sorted(stored)
    # A line that differs may come from another release of grpcio-tools than constraints.txt has.
    assert [name for name in fresh if fresh[name] != stored[name]] == []


def test_buf_accepts_the_protos(buf):
    result = run(buf, "lint", cwd=PROTOS)
    assert result.returncode == 0, result.stdout + result.stderr


COMMENTED = [
    ("// Divisor of the logits", "telltale/v1/types.proto"),
    ("// A request to generate.", "telltale/v1/generation.proto"),
    ("// The model ended its reply.", "telltale/v1/generation.proto"),
    ("// Streams the alerts of all requests", "telltale/v1/monitor.proto"),
    ("// What to go on from.", "telltale/v1/generation.proto"),
]


@pytest.mark.parametrize(("comment", "file"), COMMENTED)
def test_what_has_no_comment_is_refused(buf, tmp_path, comment, file):
    """Fields, messages, enum values, methods and oneofs alike."""
    shutil.copytree(PROTOS, tmp_path / "protos")
    path = tmp_path / "protos" / file
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.strip().startswith(comment)]
    assert len(kept) == len(lines) - 1
    path.write_text("".join(kept))
    result = run(buf, "lint", cwd=tmp_path / "protos")
    assert result.returncode != 0
    assert "comment" in result.stdout
