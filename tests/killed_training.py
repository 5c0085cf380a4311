"""The train command in a process of its own, killed with SIGKILL at a step of one's choice."""

import multiprocessing
import os
import signal

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
