"""benchmarks.serving: what it makes of times and of rounds, and one small run from end to end."""

import fcntl
import json
import sys

import native_models as native
import pytest

from benchmarks import serving
from benchmarks.serving_client import rate
from benchmarks.serving_peers import LlamaCpp
from benchmarks.serving_rounds import Sizes, percentile, prompt_of, turn, unsteadiness
from benchmarks.serving_summary import chunks, cost, facts, ratio, spread, summarize
from service.config import Settings


def test_the_rate_of_streams_leaves_out_their_first_tokens():
    # From the mean time of the first tokens, 1, to the last of all, 5: four tokens besides the first ones.
    assert rate([[0.5, 2.0, 4.0], [1.5, 3.0, 5.0]]) == pytest.approx(1.0)


def test_a_percentile_is_one_of_the_values():
    values = [float(each) for each in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.01, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0], 0.99) == percentile([3.0], 0.001) == 3.0


def test_gaps_count_as_read_in_if_they_overlap_the_reading():
    # Read from 2.5 to 4: gaps 2-3 and 3-6 overlap it; those before and behind don't.
    found = unsteadiness([[0.0, 1.0, 2.0, 3.0, 6.0, 6.5]], (2.5, 4.0))
    assert found == {"p99_reading": 3.0, "median_otherwise": 1.0, "p99_run": 3.0, "median_run": 1.0}


def test_gaps_that_touch_the_reading_are_not_in_it():
    found = unsteadiness([[0.0, 1.0, 9.0, 11.0]], (1.0, 9.0))
    assert (found["p99_reading"], found["median_otherwise"]) == (8.0, 1.0)


def test_a_stream_has_no_gap_to_another():
    found = unsteadiness([[0.0, 1.0], [0.5, 2.0], [100.0, 101.0]], (0.6, 0.7))
    assert found["p99_run"] == 1.5 and found["median_otherwise"] == 1.0


def test_a_prompt_is_as_long_as_asked():
    assert prompt_of([7, 8, 9], 7) == [7, 8, 9, 7, 8, 9, 7]


ROUNDS = [
    {"a": 1.0, "b": 2.0},
    {"a": 30.0, "b": 100.0},
    {"a": 9.0, "b": 10.0},
]


def test_ratios_are_those_of_a_round():
    # 0.5, 0.3 and 0.9; of the medians, 9 to 10, it would be 0.9.
    assert ratio(ROUNDS, "a", "b") == 0.5
    assert cost(ROUNDS, "a", "b") == 0.5
    assert spread(ROUNDS, "a", "b") == [0.3, 0.9]


def figures(**changes: float) -> dict[str, float]:
    """Of a round, no two alike."""
    found = {"read_bandwidth": 4e10, "prefill_seconds": 0.5, "monitored_1": 100.0, "unmonitored_1": 125.0}
    found |= {"monitored_4": 350.0, "unmonitored_4": 400.0, "monitored_16": 700.0, "unmonitored_16": 800.0}
    found |= {"generate_1": 25.0, "generate_16": 200.0}
    found |= {"unsteered_alone": 100.0, "steered_alone": 90.0}
    found |= {"neighbour_of_unsteered": 50.0, "neighbour_of_steered": 49.0}
    for chunk, seconds in ((64, 0.04), (256, 0.16)):
        found |= {f"first_token_seconds_{chunk}": 0.4 - seconds, f"long_prompt_seconds_{chunk}": 2.0}
        found |= {f"p99_reading_{chunk}": seconds, f"median_otherwise_{chunk}": 0.02}
        found |= {f"p99_run_{chunk}": seconds / 2, f"median_run_{chunk}": 0.01}
    return found | changes


def test_what_is_said_of_rounds():
    found = summarize([figures()], packed_bytes=10**8)
    assert found["one_stream"] == {
        "tokens_per_second": 100.0,
        "to_generate_ratio": 4.0,
        "to_generate_ratios_of_rounds": [4.0, 4.0],
        "to_read_limit_ratio": 0.25,
        "to_read_limit_ratios_of_rounds": [0.25, 0.25],
    }
    assert found["sixteen_streams"]["to_one_stream_ratio"] == 7.0
    assert found["sixteen_streams"]["to_generate_ratio"] == 3.5
    assert found["monitoring_cost_ratio"] == {1: 0.2, 4: 0.125, 16: 0.125}
    assert found["steering_cost_ratio"] == {"itself": 0.1, "neighbours": 0.02}
    assert {chunk: each["to_prefill_ratio"] for chunk, each in found["first_token"].items()} == {64: 0.72, 256: 0.48}
    steady = found["beside_long_prompt"]
    assert {chunk: each["p99_to_median_while_read_ratio"] for chunk, each in steady.items()} == {64: 2.0, 256: 8.0}
    assert {chunk: each["p99_to_median_of_run_ratio"] for chunk, each in steady.items()} == {64: 2.0, 256: 8.0}
    assert found["tokens_per_second"]["read_limit"] == 400.0
    json.dumps(found)


def test_llama_cpp_is_said_where_it_was_measured():
    found = summarize([figures(llama_cpp_1=80.0, llama_cpp_16=350.0)], packed_bytes=10**8)
    assert found["one_stream"]["to_llama_cpp_ratio"] == 1.25
    assert found["sixteen_streams"]["to_llama_cpp_ratio"] == 2.0
    assert found["tokens_per_second"]["llama_cpp_16"] == 350.0


def test_chunks_are_those_that_were_measured():
    assert chunks([figures()]) == [64, 256]


def test_facts_name_machine_and_versions():
    found = facts()
    assert found["machine"]["processor"] and found["machine"]["cores"] >= 1
    assert set(found["versions"]) == {"python", "torch", "transformers", "grpcio"}


SCRIPT = """
import json, sys
print("a line of a library")
threads = int(sys.argv[sys.argv.index("--threads") + 1])
streams = sys.argv[sys.argv.index("--streams") + 1:]
print(json.dumps({"decode_tokens_per_second": {n: int(n) * threads + 0.5 for n in streams}}))
"""


def test_llama_cpp_is_a_process_of_its_own(tmp_path):
    (tmp_path / "run.py").write_text(SCRIPT)
    found = LlamaCpp(sys.executable, tmp_path / "run.py", tmp_path).rates([1, 16], 8, 3)
    assert found == {1: 3.5, 16: 48.5}


def test_what_stops_llama_cpp_is_said(tmp_path):
    (tmp_path / "run.py").write_text("raise SystemExit('no such model')")
    with pytest.raises(RuntimeError, match="no such model"):
        LlamaCpp(sys.executable, tmp_path / "run.py", tmp_path).rates([1], 8, 2)


def test_llama_cpp_without_its_data_is_refused(capsys):
    with pytest.raises(SystemExit):
        serving.parse(["--llama-cpp", "python"])
    assert "--llama-cpp needs --llama-cpp-data" in capsys.readouterr().err


def test_a_turn_keeps_others_out_until_it_ends(tmp_path):
    with (tmp_path / "lock").open("a") as other:
        with turn(tmp_path / "lock"), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.slow
async def test_a_small_run(monkeypatch):
    native.library()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    args = serving.parse(["--rounds", "1", "--threads", "1", "--chunks", "512"])
    sizes = Sizes(tokens=4, prompt_tokens=32, long_prompt_tokens=64, long_run_tokens=48)
    found = await serving.measure(args, sizes)
    assert found["rounds"] == 1 and found["default_prefill_chunk_tokens"] == Settings().prefill_chunk_tokens
    assert found["one_stream"]["to_generate_ratio"] > 0 and found["one_stream"]["to_read_limit_ratio"] < 1
    assert set(found["beside_long_prompt"]) == {Settings().prefill_chunk_tokens, 512}
    assert "to_llama_cpp_ratio" not in found["one_stream"]
    json.dumps(found)
