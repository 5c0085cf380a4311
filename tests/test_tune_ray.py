"""tune over a real Ray cluster of two nodes: where trials run, and what is left of a search that was killed."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tuning import command, run_plainly, write_harvests

from discovery import tune, tune_ray
from discovery.errors import TuneError

pytestmark = [
    # Ray leaves the sockets and log files of its own processes to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

STORE_BYTES = 80 * 2**20
ROOT = Path(__file__).parents[1]
MOMENTS = 5000
"""Calls and returns in a driver's own code while the search of `command` runs are somewhat more."""


@pytest.fixture(scope="module")
def harvests(tmp_path_factory):
    return write_harvests(tmp_path_factory.mktemp("harvests"))


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one processor each."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": STORE_BYTES, "include_log_monitor": False}
    made = Cluster()
    add_node(made, node | {"include_dashboard": False, "no_monitor": True})
    add_node(made, node)
    made.wait_for_nodes(timeout=300)
    yield made
    made.shutdown()


def add_node(cluster, settings):
    """Ray gives a node half a minute to start, which a busy machine may not."""
    for _ in range(10):
        try:
            return cluster.add_node(**settings)
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    raise AssertionError("no node of Ray has started")


@pytest.fixture(scope="module")
def two_nodes(cluster, harvests, tmp_path_factory):
    """(flags, exit code) of a search that ran on both, one of whose trials diverges."""
    space = ["learning_rate=grid:3e-3,1e18,1e-2,2e-2", "sparsity_weight=grid:0.3"]
    more = ["--max-grad-norm", "1e30", "--batch-size", "128", "--scheduler", "fifo"]
    argv = command(harvests, tmp_path_factory.mktemp("nodes"), *more, space=space)
    return argv, tune.main([*argv, "--address", cluster.address])


def results_of(argv):
    return json.loads((Path(argv[argv.index("--output") + 1]) / "results.json").read_text())


def test_trials_run_on_both_nodes(cluster, two_nodes):
    argv, exit_code = two_nodes
    assert exit_code == 0
    trials = results_of(argv)["trials"]
    used = {node for trial in trials for node in trial["nodes"]}
    assert cluster.head_node.node_id in used and len(used) > 1


def test_a_trial_that_fails_is_named_and_the_others_go_on(two_nodes):
    trials = results_of(two_nodes[0])["trials"]
    assert [trial["status"] for trial in trials] == ["completed", "failed", "completed", "completed"]
    error = trials[1]["error"]
    assert "the loss must be finite" in error and "learning_rate 1e+18 may be too high" in error


def test_a_trial_that_ends_in_any_other_way_is_named_and_not_begun_again(cluster, harvests, tmp_path, monkeypatch):
    """What a node finds of the search is damaged, after the command has read it."""
    check_room = tune_ray._check_room

    def damage(resources):
        check_room(resources)
        (tmp_path / "search.json").write_text("{")

    monkeypatch.setattr(tune_ray, "_check_room", damage)
    more = ["--batch-size", "128", "--address", cluster.address]
    argv = command(harvests, tmp_path, *more, space=["learning_rate=grid:3e-3,1e-2"])
    with pytest.raises(TuneError, match="no trial of 2 has completed"):
        tune.main(argv)
    for trial in results_of(argv)["trials"]:
        assert trial["status"] == "failed"
        assert re.fullmatch(r"on node \w+: JSONDecodeError: Expecting property name.*", trial["error"])


def test_a_trial_must_fit_on_a_node(cluster, harvests, tmp_path):
    argv = command(harvests, tmp_path, "--address", cluster.address, "--cpus-per-trial", "2")
    with pytest.raises(TuneError, match=r"--cpus-per-trial 2 .*but the nodes have 1 CPU and 0 GPU; 1 CPU and 0 GPU"):
        tune.main(argv)


def run_killed(when, number, argv):
    """The command as a process, killed at a decision."""
    path = os.pathsep.join(str(folder) for folder in (ROOT, ROOT / "protos", ROOT / "tests"))
    command = [sys.executable, str(ROOT / "tests" / "killed_tune.py"), when, str(number), *argv]
    ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True)
    return ran.returncode


def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(cluster, harvests, tmp_path):
    wanted = run_plainly(command(harvests, tmp_path / "plain"))
    assert "stopped" in wanted and "completed" in wanted
    argv = [*command(harvests, tmp_path / "killed"), "--max-concurrent", "1", "--address", cluster.address]
    assert run_killed("before", 7, argv) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "results.csv").exists()
    assert tune.main(argv) == 0
    assert (tmp_path / "killed" / "results.csv").read_text() == wanted
    decisions = [(tmp_path / name / "decisions.jsonl").read_text() for name in ("plain", "killed")]
    assert decisions[0] == decisions[1]


@pytest.mark.parametrize("seed", [11, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5))])
def test_a_search_killed_at_random_moments_again_and_again_goes_on(cluster, harvests, tmp_path, seed):
    """Each process is killed at a moment drawn from within a whole search's, until one comes to the end."""
    wanted = run_plainly(command(harvests, tmp_path / "plain"))
    argv = [*command(harvests, tmp_path / "killed"), "--max-concurrent", "1", "--address", cluster.address]
    moments = random.Random(seed)
    ends = [run_killed("moment", moments.randint(1, MOMENTS), argv) for _ in range(2)]
    assert set(ends) <= {0, -signal.SIGKILL} and ends[0] == -signal.SIGKILL, ends
    assert tune.main(argv) == 0
    assert (tmp_path / "killed" / "results.csv").read_text() == wanted


@pytest.mark.slow
@pytest.mark.parametrize(("when", "number"), [("before", 1), ("after", 1), ("after", 5), ("after", 9), ("before", 12)])
def test_whenever_it_is_killed(harvests, tmp_path, when, number):
    """On a Ray of its own, which dies with it."""
    wanted = run_plainly(command(harvests, tmp_path / "plain"))
    argv = [*command(harvests, tmp_path / "killed"), "--max-concurrent", "1"]
    assert run_killed(when, number, argv) == -signal.SIGKILL
    assert tune.main(argv) == 0
    assert (tmp_path / "killed" / "results.csv").read_text() == wanted


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_is_begun_again(cluster, harvests, tmp_path, monkeypatch):
    import psutil

    killed = []

    def kill(progress, *, trial, result, **_):
        if result.get("number") == 2 and not killed:
            held = str(progress.search.trial_folder(trial.config["trial"]) / "lock")
            killed.extend(p for p in psutil.process_iter() if held in opened_by(p))
            for worker in killed:
                worker.kill()

    def opened_by(process):
        try:
            return [file.path for file in process.open_files()]
        except psutil.Error:  # it has ended meanwhile
            return []

    monkeypatch.setattr(tune_ray._Progress, "on_trial_result", kill)
    argv = [*command(harvests, tmp_path / "killed"), "--max-concurrent", "1", "--address", cluster.address]
    assert tune.main(argv) == 0 and killed
    assert (tmp_path / "killed" / "results.csv").read_text() == run_plainly(command(harvests, tmp_path / "plain"))


@pytest.mark.slow
def test_a_time_budget_leaves_trials_for_another_run(cluster, harvests, tmp_path, capsys):
    argv = [*command(harvests, tmp_path), "--max-concurrent", "1", "--address", cluster.address]
    assert tune.main([*argv, "--time-budget", "0.1"]) == 0
    assert "trials unfinished: the same command goes on" in capsys.readouterr().err
    assert tune.main(argv) == 0
    assert "unfinished" not in (tmp_path / "results.csv").read_text()


def test_ray_sends_nothing_out():
    import ray._common.usage.usage_lib as usage

    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert not usage.usage_stats_enabled()


@pytest.mark.parametrize(
    ("address", "message"),
    [("127.0.0.1:1", "can't be reached at --address 127.0.0.1:1: .*refused"), ("here", "must be HOST:PORT or auto")],
)
def test_a_cluster_that_is_not_there_is_named(harvests, tmp_path, address, message):
    with pytest.raises(TuneError, match=message):
        tune.main(command(harvests, tmp_path, "--address", address))
