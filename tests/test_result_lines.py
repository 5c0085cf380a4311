"""result_lines: a file that is none is told from one with a bad line, which is named."""

import pytest

from discovery.errors import LabError
from discovery.result_lines import ResultLines, read_results


def test_a_line_that_is_no_result_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    lines = ResultLines(path, {"seed": 0})
    for number in range(3):
        lines.append({"number": number})
    path.write_text(path.read_text().replace('{"number": 1}', '{"number": '))
    with pytest.raises(LabError, match=r"results\.jsonl, line 3, must be JSON"):
        read_results(path)
    with pytest.raises(LabError, match=r"results\.jsonl, line 3, must be JSON"):
        ResultLines(path, {"seed": 0})


def test_what_a_kill_cut_short_is_cut_off(tmp_path):
    path = tmp_path / "results.jsonl"
    lines = ResultLines(path, {"seed": 0})
    lines.append({"text": "Größe\u2028"})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"text": "Gr')
    assert read_results(path).num_bytes == len(whole)
    assert ResultLines(path, {"seed": 0}).lines == [{"text": "Größe\u2028"}]
    assert path.read_bytes() == whole
