"""One trial: the training run that `telltale lab train` does, with held-out figures at intervals.

A report is measured, written down, and only then told to whoever listens. A trial that goes on tells again what it had
written, up to its checkpoint, and measures the rest anew: the listener gets the same reports in the same order,
whatever was killed in between.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from discovery.dictionary_trainer import Trainer
from discovery.errors import LabError, TrainError, TuneError
from discovery.held_out import load_held_out, measure
from discovery.lightning_module import fit
from discovery.line_files import append_line, read_lines, write_lines
from discovery.shard_stream import ShardBuffers, Source
from discovery.train_logs import CsvLog, Figures
from discovery.tune_search import ERROR_FILE, REPORTS_FILE, Report, Search

Listener = Callable[[Report], None]


def run_trial(search: Search, number: int, listener: Listener, *, node: str = "", device: str = "cpu") -> str | None:
    """Train trial `number` to the end, or on from its checkpoint. Returns why it failed, if it did.

    Only what the listener raises to end the trial, and what can't be written down, gets out.
    """
    folder = search.trial_folder(number)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR_FILE).unlink(missing_ok=True)
    try:
        train_trial(search, number, listener, node=node, device=device)
    except Exception as error:  # whatever it is: the other trials go on
        words = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
        search.record_error(number, words)
        return words
    return None


def train_trial(search: Search, number: int, listener: Listener, *, node: str = "", device: str = "cpu") -> Trainer:
    """The trained run, every report made."""
    folder, settings = search.trial_folder(number), search.plans[number].settings
    buffers = ShardBuffers([Source.parse(text) for text in search.settings.sources])
    held_out_ND = load_held_out([Path(text) for text in search.settings.validation], search.settings.validation_tokens)
    run = Trainer(settings, buffers, device=device)
    reports = Reports(search, number, run, held_out_ND, listener, node=node)
    fit(
        run,
        folder,
        checkpoint_every=-(-settings.num_steps // search.settings.reports),
        loggers=lambda num_steps_done: [CsvLog(folder, num_steps_done)],
        callbacks=[Figures(run, folder.name), reports],
    )
    reports.tell_due()
    return run


class Reports(Callback):
    """Makes the reports. One is due once its step is done, and that step's checkpoint, if it has one, is written."""

    def __init__(
        self, search: Search, number: int, run: Trainer, held_out_ND: Tensor, listener: Listener, *, node: str
    ) -> None:
        self.search, self.run, self.held_out_ND = search, run, held_out_ND
        self.listener, self.node = listener, node
        self.path = search.trial_folder(number) / REPORTS_FILE
        self.steps = search.report_steps(run.settings)
        self.told = 0
        self.written: list[Report] | None = None
        self.last_time = time.monotonic()

    def on_train_batch_start(self, *_: Any) -> None:
        # Not at the end of a batch: the checkpoint comes after all other callbacks.
        self.tell_due()

    def tell_due(self) -> None:
        """Tell what is due and has not been told."""
        done = self.run.num_steps_done
        if self.written is None:
            self.written = self._written_before(done)
        while self.told < len(self.steps) and self.steps[self.told] <= done:
            if self.told == len(self.written):
                self.written.append(self._measure(self.told + 1))
                append_line(self.path, self.written[-1]._asdict())
            self.told += 1
            self.listener(self.written[self.told - 1])

    def _written_before(self, done: int) -> list[Report]:
        """What was written up to the checkpoint. What came after it will be measured again, to the same figures."""
        lines = [line for line in read_lines(self.path) if line["step"] <= done]
        write_lines(self.path, lines)
        missing = [step for step in self.steps[len(lines) :] if step < done]
        if missing:
            raise TuneError(f"{self.path} must have the report of step {missing[0]}: delete {self.path.parent}")
        return [Report(**line) for line in lines]

    def _measure(self, number: int) -> Report:
        figures = measure(self.run, self.held_out_ND)
        score = self.search.objective.score(figures)
        if not torch.isfinite(torch.tensor([score, figures.loss])).all():
            raise TrainError(f"held-out figures must be finite, got {figures} at step {self.run.num_steps_done}")
        now = time.monotonic()
        seconds, self.last_time = round(now - self.last_time, 2), now
        return Report(
            number=number,
            step=self.run.num_steps_done,
            tokens=self.run.num_tokens_done,
            score=score,
            loss=figures.loss,
            fvu=figures.fvu,
            l0=figures.l0,
            dead_ratio=figures.dead_ratio,
            num_dead=self.run.num_dead,
            node=self.node,
            seconds=seconds,
        )
