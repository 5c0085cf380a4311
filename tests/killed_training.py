"""Training in a process of its own: the command, killed with SIGKILL at a step of one's choice; what `killed` runs."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

_KEPT_READY = ["discovery.train", "discovery.lightning_module", "discovery.train_logs", "killed_training"]


def run_killed(argv: list[str], stop: int | None) -> int:
    """Exit code of `telltale lab train ARGV`, killed within step `stop`; None lets it get through.

    A server process imports Lightning once and forks: importing takes longer than training here.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_KEPT_READY)
    process = context.Process(target=_train, args=(argv, stop))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _train(argv: list[str], stop: int | None) -> None:
    import torch

    from discovery import train
    from discovery.dictionary_trainer import Trainer

    torch.set_num_threads(1)
    finish_step = Trainer.finish_step

    def dying(self, result, resid_BD):  # the optimiser has moved the weights, nothing else has happened
        if self.num_steps_done == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return finish_step(self, result, resid_BD)

    Trainer.finish_step = dying  # type: ignore[method-assign]
    train.main(argv)


# --- for `killed.run_killed` ----------------------------------------------------------------------------------------

PRELOAD = [*_KEPT_READY, "discovery.tune_trial", "training", "tuning"]
WRITING = {
    "checkpoint": ("save_checkpoint", "drop_old_checkpoints"),
    "log line": ("log_metrics", "_cut_log"),
    "report line": ("append_line", "write_lines"),
}
"""Functions that are running while such a thing is written."""


def fit_into(harvest: Path, folder: Path, num_steps: int) -> Callable[[], object]:
    """A run with its logs."""
    from training import buffers_of, changed

    from discovery.dictionary_trainer import Trainer
    from discovery.lightning_module import fit
    from discovery.train_logs import CsvLog, Figures, TensorBoardLog

    run = Trainer(changed(num_steps=num_steps), buffers_of(harvest))

    def loggers(num_steps_done: int) -> list[object]:
        return [CsvLog(folder, num_steps_done), TensorBoardLog(folder, num_steps_done)]

    return lambda: fit(run, folder, checkpoint_every=5, loggers=loggers, callbacks=[Figures(run, "a")])  # type: ignore[arg-type]


def trial_of(argv: list[str], number: int) -> Callable[[], object]:
    """One trial of the search."""
    from tuning import begin

    from discovery.tune_trial import train_trial

    search = begin(argv)
    return lambda: train_trial(search, number, lambda _: None)
