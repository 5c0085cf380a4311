"""benchmarks.peers.serving: what peers share, what is made of their rounds, and what is held against a plain pass."""

import argparse
import fcntl
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from benchmarks.peers.serving import compare, prepare, run, table
from benchmarks.peers.serving.common import SCENARIOS, Scenario, Timed, Work

SCRIPTS = Path(run.__file__).parent
README = Path(__file__).parents[1] / "README.md"
NUM_TOKENS = 12
WATCHED = list(range(8, 24))
STEERED = 5


# --- figures ----------------------------------------------------------------------------------------------------------


def test_decoding_is_timed_from_the_mean_first_token_to_the_last():
    timed = Timed(2, started=10.0)
    timed.times = [[11.0, 12.0, 13.0], [13.0, 14.0, 16.0]]
    assert timed.figures(3) == {
        "decode_tokens_per_second": 2 * 2 / (16 - 12),
        "tokens_per_second": 2 * 3 / (16 - 10),
        "time_to_first_token_seconds": 2.0,
    }


def test_a_request_that_lacks_tokens_has_no_figures():
    timed = Timed(2)
    for request in (0, 0, 1):
        timed.emit(request, 7, None)
    with pytest.raises(ValueError, match=r"must have 2 tokens, got \[2, 1\]"):
        timed.figures(2)


def rounds(*rates):
    return [
        {
            name: {"decode_tokens_per_second": rate, "tokens_per_second": rate / 2, "time_to_first_token_seconds": 0.1}
            for name in SCENARIOS
        }
        for rate in rates
    ]


def test_ratios_are_taken_within_rounds():
    """The machine slows down after the first round, for both: only the ratios of a round say who is faster."""
    ours, peers = rounds(80.0, 20.0, 22.0, 24.0), rounds(40.0, 10.0, 11.0, 48.0)
    assert run.speed_ratios(ours, peers) == dict.fromkeys(SCENARIOS, 2.0)
    assert run.medians(peers)["8"] == {
        "decode_tokens_per_second": 25.5,
        "tokens_per_second": 12.75,
        "time_to_first_token_seconds": 0.1,
    }


def output(peer, rates, **fields):
    return {
        "peer": peer,
        "rounds": rounds(*rates),
        "tokens": {},
        "readings": [],
        "tokens_per_request": 128,
        "prompt_tokens": 20,
        "peak_mib": 1234,
        "threads": 2,
        "versions": {"thing": "1.2", "torch": "2.13.0"},
        "machine": {"processor": "P", "cores": 2, "instructions": ["avx2"]},
        "date": "2026-01-01",
        "dtype": "bfloat16",
        "reads": "all",
        "steers": "a row",
        "alerts": "no",
        **fields,
    }


def check_of(**fields):
    return {"greedy_ratio": 0.98, "tokens_as_telltale_ratio": dict.fromkeys(SCENARIOS, 0.5), **fields}


def test_results_keep_the_rounds_and_not_the_tokens():
    outputs = {"telltale": output("telltale", [60.0, 90.0]), "nnsight": output("nnsight", [30.0, 30.0])}
    results = run.results_of(outputs, {"telltale": check_of(), "nnsight": check_of()})
    assert results["nnsight"]["ours_to_peer_speed_ratio"]["1"] == 2.5
    assert results["nnsight"]["rounds"] == rounds(30.0, 30.0)
    assert "tokens" not in results["nnsight"] and "readings" not in results["nnsight"]


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_readme_has_the_tables_of_the_results_as_they_are_now():
    page = README.read_text(encoding="utf-8")
    assert table.with_tables(page) == page, "run `make docs`"


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="must hold the lines"):
        table.with_tables("# Readme\n")


def test_rows_stand_in_the_order_of_the_peers_with_ratios_to_telltale(tmp_path):
    outputs = {
        "nnsight": output("nnsight", [30.0], date="2026-01-02"),
        "telltale": output("telltale", [60.0]),
        "llama_cpp": output("llama_cpp", [120.0], versions={"llama_cpp_python": "0.9"}),
    }
    readings = {"relative_error": 0.0292, "largest_deviation": 0.0304, "largest_reading": 4.41}
    checks = {"nnsight": check_of(readings=readings), "telltale": check_of(readings=readings), "llama_cpp": check_of()}
    for peer, result in run.results_of(outputs, checks).items():
        (tmp_path / f"{peer}.json").write_text(json.dumps(result))
    page = table.with_tables(f"{table.TABLE_BEGIN}\n{table.TABLE_END}\n", tmp_path)
    speed, scope = [block.splitlines()[2:] for block in page.split("\n\n")[2:4]]
    assert [row.split(" | ")[0] for row in speed] == ["| telltale, through its server", "| llama.cpp", "| nnsight"]
    assert "| 30 | 30 | 30 | 2.00, 2.00, 2.00 | 100 ms, 100 ms | 1,234 MiB |" in speed[2]
    assert " 0.50, 0.50, 0.50 " in speed[1] and "0.9" in scope[1] and " | - | - | " in scope[1]
    assert " | 1.2 | " in scope[2] and "| 2.9% | 0.030 of 4.4 | 98.0% | 50.0%" in scope[2]
    assert "2026-01-01 to 2026-01-02" in page


# --- the scripts' own environments ------------------------------------------------------------------------------------


def test_every_peer_has_a_script_and_all_but_ours_pinned_requirements():
    for peer in run.PEERS:
        assert (SCRIPTS / f"run_{peer}.py").is_file()
    for peer in set(run.PEERS) - {run.OURS}:
        lines = (SCRIPTS / f"requirements-{peer}.txt").read_text().splitlines()
        wanted = [line for line in lines if line and not line.startswith("#")]
        assert wanted and all("==" in line for line in wanted), peer


def test_what_an_operator_set_for_another_server_is_not_taken_over(tmp_path, monkeypatch):
    monkeypatch.setenv("TELLTALE_JOURNAL", str(tmp_path / "operator.sqlite"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for peer in run.PEERS:
        found = run.environment(peer, tmp_path)
        assert "TELLTALE_JOURNAL" not in found and found["OMP_NUM_THREADS"] == "1"


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from common import main

def make(data, work, threads):
    def generate(prompts, steered, emit):
        for request in range(len(prompts)):
            for number in range(work.num_tokens):
                emit(request, 100 * request + number + (steered == request), [0.5, threads])
    return generate

main("telltale", ["numpy"], make, facts={{"dtype": "none"}})
"""


def worker(tmp_path, monkeypatch, script):
    (tmp_path / "run_telltale.py").write_text(script)
    work_of([[1, 2]] * 8).save(tmp_path)
    monkeypatch.setattr(run, "HERE", tmp_path)
    return run.Worker("telltale", sys.executable, argparse.Namespace(data=tmp_path, threads=3), tmp_path)


def test_a_peer_runs_all_scenarios_each_time_it_is_told_to(tmp_path, monkeypatch):
    peer = worker(tmp_path, monkeypatch, SCRIPT.format(folder=str(SCRIPTS)))
    try:
        seen = [peer.round() for _ in range(2)]
        written = peer.finish()
    finally:
        peer.stop()
    assert set(seen[0]) == set(SCENARIOS)
    assert written["rounds"] == seen
    assert written["tokens"]["1"] == [list(range(NUM_TOKENS))]
    assert [reply[0] for reply in written["tokens"]["8_steered"]] == [0, 100, 200, 300, 400, 500, 600, 701]
    assert written["readings"] == [[0.5, 3]] * NUM_TOKENS
    assert written["threads"] == 3 and written["dtype"] == "none" and written["versions"]["numpy"] == np.__version__


def test_a_peer_that_ends_early_is_named_with_its_last_words(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"telltale ended early:(.|\n)*ValueError: no such weights"):
        worker(tmp_path, monkeypatch, "raise ValueError('no such weights')")


def test_a_turn_keeps_others_that_take_turns_out(tmp_path):
    path = tmp_path / "lock"
    with path.open("a") as other:
        with run.turn(path), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with run.turn(None):
        pass


# --- our own script ---------------------------------------------------------------------------------------------------


@pytest.fixture
def run_telltale(monkeypatch):
    """Our script; in place of the server there is a process that says `line` and stays."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import run_telltale

    started, popen = [], subprocess.Popen

    def start(line):
        def instead(_command, **options):
            code = f"import time; print({line!r}, flush=True); time.sleep(600)"
            started.append(popen([sys.executable, "-c", code], **options))
            return started[-1]

        monkeypatch.setattr(run_telltale.subprocess, "Popen", instead)
        return run_telltale

    yield start, started
    for process in started:
        process.kill()
        process.wait()
    for name in ("common", "run_telltale"):
        sys.modules.pop(name, None)


def test_a_server_that_says_no_port_is_ended(run_telltale):
    start, started = run_telltale
    with pytest.raises(KeyError, match="grpc"):
        start("{}").Server(Path(), work_of([[1]]), 1)
    assert started[0].returncode is not None


def test_a_server_that_can_not_be_connected_to_is_ended(run_telltale, monkeypatch):
    start, started = run_telltale
    script = start('{"grpc": 1}')

    async def fails(_self, _port):
        raise OSError("no such server")

    monkeypatch.setattr(script.Server, "_connect", fails)
    with pytest.raises(OSError, match="no such server"):
        script.Server(Path(), work_of([[1]]), 1)
    assert started[0].returncode is not None


def test_a_server_that_does_not_tell_its_numbers_is_ended(run_telltale, monkeypatch, tmp_path):
    start, started = run_telltale
    script = start('{"grpc": 1}')
    work_of([[1]]).save(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run_telltale.py", "--data", str(tmp_path)])

    def fails(_self):
        raise OSError("it has gone")

    monkeypatch.setattr(script.Server, "number_format", fails)
    with pytest.raises(OSError, match="it has gone"):
        script.run()
    assert started[0].returncode is not None


# --- readings and steering --------------------------------------------------------------------------------------------


def work_of(prompts, **fields):
    fields = {"strength": 2.0, "num_tokens": NUM_TOKENS} | fields
    return Work(
        prompts=prompts,
        watched=WATCHED,
        layer=tiny.HOOK_POINT.layer,
        steered_feature=STEERED,
        monitor="",
        model="",
        gguf="",
        **fields,
    )


@pytest.fixture
def small():
    """A dictionary of the embedded one's maths, with a scale."""
    return tiny.sae("batchtopk", scale=0.5)


@pytest.fixture
def scripts(monkeypatch):
    """The peers' modules as their own environments import them."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import run_generate
    import watching

    yield argparse.Namespace(run_generate=run_generate, watching=watching)
    for name in ("common", "watching", "run_generate"):
        sys.modules.pop(name, None)


@pytest.fixture
def watching(scripts, small, tmp_path):
    np.savez(tmp_path / "dictionary.npz", **prepare.dictionary_arrays(small, WATCHED, STEERED, 2.0))
    return scripts.watching.Watching(tmp_path)


def test_watched_latents_read_what_the_dictionary_reads(watching, small):
    resid_BD = torch.randn(50, tiny.D_MODEL, generator=torch.Generator().manual_seed(3))
    wanted_BW = small.encode(resid_BD)[:, WATCHED]
    assert 0 < (wanted_BW > 0).sum() < wanted_BW.numel()
    torch.testing.assert_close(watching.read(resid_BD), wanted_BW)
    steered_BD = resid_BD + 2.0 * small.directions(torch.tensor([STEERED]), resid_BD)
    torch.testing.assert_close(watching.steered(resid_BD), steered_BD)


def test_other_maths_than_the_embedded_dictionary_s_is_refused():
    with pytest.raises(ValueError, match="must be of batchtopk with a scalar, got topk"):
        prepare.dictionary_arrays(tiny.sae("topk"), WATCHED, STEERED, 2.0)


def prompts():
    generator = torch.Generator().manual_seed(4)
    return torch.randint(3, 200, (8, 6), generator=generator).tolist()


@pytest.fixture
def replies(scripts, watching, model):
    """All scenarios of the script around `generate`, on a small model."""
    work = work_of(prompts())
    generate = scripts.run_generate.HookedGenerate(model.model, watching, work)
    found = {}
    for name, scenario in SCENARIOS.items():
        found[name] = Timed(scenario.num_requests)
        generate(work.prompts[: scenario.num_requests], scenario.steered, found[name].emit)
        found[name].figures(NUM_TOKENS)
    return work, found


def output_of(found):
    return {"tokens": {name: timed.tokens for name, timed in found.items()}, "readings": found["1"].readings[0]}


def test_the_hook_reads_and_steers_what_a_plain_pass_does(replies, model, small):
    work, found = replies
    output = output_of(found)
    said = compare.check(model, small, work, output, output["tokens"])
    assert said["greedy_ratio"] == said["steered_greedy_ratio_by_strength"][1.0] == 1.0
    assert said["tokens_as_telltale_ratio"] == dict.fromkeys(SCENARIOS, 1.0)
    assert said["readings"]["relative_error"] < 1e-4 and said["readings"]["active"] > 20
    for request in range(8):
        offline = compare.offline(
            model, small, work, work.prompts[request], output["tokens"]["8"][request], steer=False
        )
        torch.testing.assert_close(
            torch.tensor(found["8"].readings[request]), offline.readings_TW, atol=1e-4, rtol=1e-4
        )


def test_steering_changes_its_own_request_alone(replies):
    _, found = replies
    steered = SCENARIOS["8_steered"].steered
    for request in range(8):
        assert (found["8"].tokens[request] == found["8_steered"].tokens[request]) == (request != steered)


def test_readings_of_the_token_beside_are_refused(replies, model, small):
    work, found = replies
    output = output_of(found)
    readings = output["readings"]
    output["readings"] = readings[1:] + readings[:1]
    with pytest.raises(ValueError, match=r"readings must be within 0.1 of those of a plain pass"):
        compare.check(model, small, work, output, output["tokens"])


def test_steering_that_does_nothing_is_refused(replies, model, small):
    work, found = replies
    output = output_of(found)
    output["tokens"]["8_steered"] = output["tokens"]["8"]
    with pytest.raises(ValueError, match="must be likeliest with the steering that was asked for"):
        compare.check(model, small, work, output, output["tokens"])


def test_steering_by_another_strength_is_refused(replies, model, small):
    work, found = replies
    output = output_of(found)
    with pytest.raises(ValueError, match="must be likeliest with the steering that was asked for"):
        compare.check(model, small, replace(work, strength=work.strength / 2), output, output["tokens"])


def test_readings_that_are_all_silent_prove_nothing():
    with pytest.raises(ValueError, match="a quarter of 8 tokens must have an active feature, got 1"):
        compare.reading_check([[0.0, 0.0]] * 8, torch.tensor([[0.0, 1.0]] + [[0.0, 0.0]] * 7))


def test_a_scenario_has_its_steered_request_among_its_own():
    for scenario in SCENARIOS.values():
        assert isinstance(scenario, Scenario)
        assert scenario.steered is None or 0 <= scenario.steered < scenario.num_requests
