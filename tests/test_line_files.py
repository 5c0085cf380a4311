import math

import pytest
from full_disk import room_for

from discovery.errors import LabError
from discovery.line_files import append_line, read_lines, write_lines


def test_what_a_kill_cut_short_is_not_read_and_does_not_spoil_the_next_line(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert read_lines(path) == []
    append_line(path, {"a": "Größe\u2028"})
    append_line(path, {"a": 2})
    path.write_bytes(path.read_bytes()[:-3])
    assert read_lines(path) == [{"a": "Größe\u2028"}]
    write_lines(path, read_lines(path))
    append_line(path, {"a": 3})
    assert read_lines(path) == [{"a": "Größe\u2028"}, {"a": 3}]


@pytest.mark.parametrize(
    ("line", "wanted"), [(b"\0\0\0", "line 2, must be JSON"), (b"[1]", "line 2, must be a JSON object, got list")]
)
def test_a_line_that_is_no_record_is_named(tmp_path, line, wanted):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(LabError, match=rf"lines\.jsonl, {wanted}"):
        read_lines(path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_are_not_written(tmp_path, value):
    with pytest.raises(LabError, match=r"finite numbers, got \{'score'"):
        append_line(tmp_path / "lines.jsonl", {"score": value})
    assert read_lines(tmp_path / "lines.jsonl") == []


@pytest.mark.parametrize("write", [append_line, lambda path, record: write_lines(path, [record])])
def test_a_full_disk_is_named_and_what_was_there_is_kept(tmp_path, write):
    path = tmp_path / "lines.jsonl"
    append_line(path, {"a": 1})
    with room_for(100), pytest.raises(OSError, match=r"File too large: '.*lines\.jsonl'"):
        write(path, {"a": "long" * 100})
    assert read_lines(path) == [{"a": 1}]
