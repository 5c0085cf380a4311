"""Runs a search's trials on Ray: one machine, or a cluster that is there already.

Ray gives out processors and devices and asks the scheduler; all that is known of a search lies in its own folder
(`tune_search`). Hence a search that goes on is a new Ray run over the trials that have not ended, not `Tuner.restore`:
that would forget ASHA's rungs and depends on a state file that is written in place, which a kill can leave half done.

Nothing is sent out: no usage statistics, no dashboard.
"""

import gc
import logging
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read by Ray when it is imported, or by the processes that it starts.
os.environ.update(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    }
)

import ray
from ray import tune
from tqdm import tqdm

from discovery.errors import LabError, TuneError
from discovery.file_lock import locked
from discovery.tune_ledger import COMPLETED, FAILED, STOPPED, UNFINISHED, best_of, drop_checkpoints, rows_of
from discovery.tune_scheduler import scheduler_for
from discovery.tune_search import Report, Search, load_search

_OBJECT_STORE_BYTES = 100 * 2**20
"""Trials read shards from disk; Ray moves reports alone."""
_CONNECT_SECONDS = 10.0
_STARTS = 5
_PROCESS_DEATHS = 2
"""How often a trial whose process or node was lost is begun again from its checkpoint. Errors of its own are not."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Where and how trials run."""

    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    max_concurrent: int | None = None
    """None: as many as there is room for."""
    address: str | None = None
    """Of a cluster, HOST:PORT or auto; None starts Ray on this machine for the time of the search."""
    time_budget_seconds: float | None = None


def run_search(search: Search, resources: Resources, *, progress: bool = True) -> None:
    """Run all trials that have not ended. Returns when they have, or at the end of the time budget."""
    remaining = [row.number for row in rows_of(search) if row.status in (UNFINISHED, FAILED)]
    if not remaining:
        return
    with _connected(resources):
        _check_room(resources)
        # Ray's record of the run. It wants a place that all nodes see; nothing of it is used again.
        storage = search.folder / "ray"
        shutil.rmtree(storage, ignore_errors=True)
        with _Progress(search, len(remaining), progress) as bar:
            try:
                _tuner(search, resources, remaining, storage, bar).fit()
            except (ray.exceptions.RayError, ray.tune.TuneError) as error:
                raise TuneError(f"Ray gave up: {error}; the same command goes on") from error
        shutil.rmtree(storage, ignore_errors=True)


def _tuner(search: Search, resources: Resources, remaining: list[int], storage: Path, bar: "_Progress") -> Any:
    amounts = {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial}
    return tune.Tuner(
        tune.with_resources(_trial, amounts),
        param_space={
            "trial": tune.grid_search(remaining),
            "folder": str(search.folder.resolve()),
            "threads": max(1, int(resources.cpus_per_trial)),
            "device": "cuda" if resources.gpus_per_trial else "cpu",
        },
        tune_config=tune.TuneConfig(
            scheduler=scheduler_for(search),
            max_concurrent_trials=resources.max_concurrent,
            time_budget_s=resources.time_budget_seconds,
            # A new process would spend as long on imports as a short trial on its training.
            reuse_actors=True,
            trial_name_creator=_name_of,
            trial_dirname_creator=_name_of,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(storage.resolve()),
            failure_config=tune.FailureConfig(max_failures=_PROCESS_DEATHS),
            callbacks=[bar],
            verbose=0,
        ),
    )


def _name_of(trial: Any) -> str:
    return f"trial-{trial.config['trial']:03d}"


def _trial(config: dict[str, Any]) -> None:
    """One trial in a process of Ray's."""
    import torch

    torch.set_num_threads(config["threads"])
    number, node = config["trial"], ray.get_runtime_context().get_node_id()

    def listener(report: Report) -> None:
        tune.report({"trial": number, "report": report._asdict(), "number": report.number, "score": report.score})

    gc.collect()  # the process is used again: what is left of the trial before would fill the device
    try:
        from discovery.tune_trial import run_trial  # late: Lightning, which the driver does not need

        search = load_search(Path(config["folder"]))
        # A process of a driver that was killed may still be at its last step.
        with locked(search.trial_folder(number) / "lock", wait=True):
            error = run_trial(search, number, listener, node=node, device=config["device"])
    except Exception as problem:  # whatever it is: Ray would take the process for lost, and begin it again
        words = str(problem) if isinstance(problem, LabError | OSError) else f"{type(problem).__name__}: {problem}"
        error = f"on node {node}: {words}"
    if error is not None:
        tune.report({"trial": number, "failed": error})


# --- Ray ------------------------------------------------------------------------------------------------------------


@contextmanager
def _connected(resources: Resources) -> Iterator[None]:
    """Ray, started here or joined."""
    for name in ("ray", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if resources.address is not None:
        _check_address(resources.address)
    for attempt in range(_STARTS):
        try:
            _init(resources)
            break
        except (ConnectionError, TimeoutError, ValueError) as error:
            raise TuneError(f"Ray can't be reached at --address {resources.address or 'local'}: {error}") from None
        except Exception as error:
            # Of no kind of its own: a node gets half a minute to start, which a busy machine may not give it.
            ray.shutdown()
            if attempt == _STARTS - 1 or "timed out during startup" not in str(error):
                raise TuneError(f"Ray can't be started: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _init(resources: Resources) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if resources.address is not None:
        ray.init(address=resources.address, **quiet)
        return
    gpus = {} if resources.gpus_per_trial else {"num_gpus": 0}
    ray.init(address="local", include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **gpus, **quiet)


def _check_address(address: str) -> None:
    """TuneError if nobody listens there: Ray would try again for minutes, in a way that can't be interrupted."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise TuneError(f"--address must be HOST:PORT or auto, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise TuneError(f"Ray can't be reached at --address {address}: {error}") from None


def _check_room(resources: Resources) -> None:
    """TuneError if no node could ever run a trial: Ray would wait for one that comes."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": resources.cpus_per_trial, "GPU": resources.gpus_per_trial}
    if not any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
        have = "; ".join(f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU" for node in nodes)
        raise TuneError(
            f"a trial must fit on one node: --cpus-per-trial {wanted['CPU']:g} --gpus-per-trial {wanted['GPU']:g}, "
            f"but the nodes have {have}"
        )


class _Progress(tune.Callback):
    """A bar over reports, a line for each trial that ends, and what is to be done when one does."""

    def __init__(self, search: Search, num_trials: int, progress: bool) -> None:
        self.search = search
        self.bar = tqdm(
            total=num_trials * search.settings.reports,
            desc=f"tune {search.folder.name}",
            unit="report",
            mininterval=5 if not sys.stderr.isatty() else 0.1,
            disable=not progress,
        )

    def __getstate__(self) -> dict[str, Any]:
        # Ray keeps a copy of everything in its record; a bar belongs to a terminal.
        return {"search": self.search}

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:  # noqa: ARG002
        self.bar.update("score" in result)
        if "failed" in result and self.search.error(trial.config["trial"]) is None:
            self.search.record_error(trial.config["trial"], result["failed"])  # its node could not

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002
        self._tell(trial.config["trial"])
        drop_checkpoints(self.search)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002
        number = trial.config["trial"]
        last = str(trial.get_pickled_error() or trial.get_error() or "").strip().splitlines()
        reason = last[0] if last else "no reason known"
        self.search.record_error(number, f"its process was lost {_PROCESS_DEATHS + 1} times: {reason}")
        self._tell(number)

    def _tell(self, number: int) -> None:
        rows = rows_of(self.search)
        row, best = rows[number], best_of(rows)
        words = ", ".join(f"{name} {value}" for name, value in row.fields.items())
        if row.status == FAILED:
            end = f"failed: {row.error}"
        elif row.last is None:
            return
        else:
            end = f"{row.status}: FVU {row.last.fvu:.4f} at L0 {row.last.l0:.1f}, {row.last.dead_ratio:.1%} dead"
            end += ", best so far" if row is best and row.status in (COMPLETED, STOPPED) else ""
        if not self.bar.disable:
            tqdm.write(f"trial {number} ({words}) {end}", file=sys.stderr)
