"""What a training run says while it runs: log.csv, TensorBoard, Prometheus, and a progress bar.

Every 10 steps, and at the last one:

    log.csv      step, variance_explained, l0, num_dead, learning_rate, elapsed_seconds, loss, sparsity_weight
    TensorBoard  the same under `train/`, in the folder `tensorboard`
    Prometheus   telltale_train_loss, _variance_explained, _l0, _dead_latents, _sparsity_weight, _learning_rate,
                 _steps, _tokens_total, _tokens_per_second: at an own HTTP port, pushed to a gateway, or both

A run that goes on cuts off what was logged after its checkpoint: each step is in the log once.
"""

import csv
import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from prometheus_client import CollectorRegistry, Counter, Gauge, push_to_gateway, start_http_server
from tqdm import tqdm

from discovery.dictionary_trainer import Trainer
from discovery.errors import TrainError
from sae_runtime.checkpoint import write_atomically

LOG_FILE = "log.csv"
COLUMNS = (
    "step",
    "variance_explained",
    "l0",
    "num_dead",
    "learning_rate",
    "elapsed_seconds",
    "loss",
    "sparsity_weight",
)
LOG_EVERY = 10

GAUGES = {
    "loss": "Loss of the last logged step, without the auxiliary loss on dead latents",
    "variance_explained": "1 - sum ||x - x_hat||^2 / sum ||x - mean||^2 over the batch",
    "l0": "Active latents per token",
    "dead_latents": "Latents that have been silent for dead_after_tokens",
    "sparsity_weight": "lambda of the penalty",
    "learning_rate": "Learning rate",
    "steps": "Steps done",
    "tokens_per_second": "Since the last logged step",
}


class Figures(Callback):
    """Collects a step's figures and hands them to the loggers; moves the progress bar."""

    def __init__(self, run: Trainer, name: str, *, progress: bool = False) -> None:
        self.run = run
        self.began = self.last_time = time.monotonic()
        self.last_tokens = run.num_tokens_done
        self.name, self.progress = name, progress

    def on_train_start(self, *_: Any) -> None:
        settings = self.run.settings
        self.began = self.last_time = time.monotonic()
        self.last_tokens = self.run.num_tokens_done
        self.bar = tqdm(
            total=settings.num_steps * settings.batch_size,
            initial=self.last_tokens,
            desc=f"train {self.name}",
            unit="tok",
            unit_scale=True,
            mininterval=5 if not sys.stderr.isatty() else 0.1,
            disable=not self.progress,
        )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        step = self.run.num_steps_done
        self.bar.update(self.run.settings.batch_size)
        if step % LOG_EVERY == 0 or step == self.run.settings.num_steps:
            figures = self._collect(pl_module.figures)
            self.bar.set_postfix(
                ve=f"{figures['variance_explained']:.4f}", l0=f"{figures['l0']:.1f}", dead=figures["num_dead"]
            )
            for logger in trainer.loggers:
                logger.log_metrics(figures, step)

    def on_train_end(self, *_: Any) -> None:
        self.bar.close()

    def on_exception(self, *_: Any) -> None:
        if hasattr(self, "bar"):
            self.bar.close()

    def _collect(self, last: Any) -> dict[str, float]:
        run, now = self.run, time.monotonic()
        rate = (run.num_tokens_done - self.last_tokens) / max(now - self.last_time, 1e-9)
        self.last_time, self.last_tokens = now, run.num_tokens_done
        return {
            "variance_explained": 1 - last.fvu,
            "l0": last.l0,
            "num_dead": run.num_dead,
            "learning_rate": run.settings.rate_at(run.num_steps_done - 1),
            "elapsed_seconds": round(now - self.began, 1),
            "loss": last.loss,
            "sparsity_weight": run.sparsity_weight,
            "tokens_total": run.num_tokens_done,
            "tokens_per_second": rate,
        }


class _PlainLogger(Logger):
    """What Lightning wants of a logger besides `log_metrics`."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The recipe is in the checkpoint and the manifest."""


class CsvLog(_PlainLogger):
    """`log.csv` in the run's folder."""

    def __init__(self, folder: Path, num_steps_done: int) -> None:
        super().__init__()
        self.path = folder / LOG_FILE
        with _named(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            _cut_log(self.path, num_steps_done)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = io.StringIO()
        csv.DictWriter(row, COLUMNS, extrasaction="ignore", lineterminator="\n").writerow({"step": step, **metrics})
        with _named(self.path), self.path.open("a") as file:
            file.write(row.getvalue())


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """TrainError with the log's name for a disk that is full; the run goes on from its checkpoint."""
    try:
        yield
    except OSError as error:
        raise TrainError(
            f"log {path} can't be written: {error.strerror}; the same command goes on from the last checkpoint"
        ) from error


def _cut_log(path: Path, num_steps: int) -> None:
    """Begin the log, or cut off the rows of steps that will be done again and a row that was cut short."""
    header = ",".join(COLUMNS) + "\n"
    before = path.read_text().splitlines(keepends=True)[1:] if path.exists() else []
    kept = [row for row in before if row.endswith("\n") and int(row.split(",")[0]) <= num_steps]
    write_atomically(path, header + "".join(kept))


class TensorBoardLog(TensorBoardLogger):
    """Events in `tensorboard/`; those of steps that will be done again are hidden."""

    def __init__(self, folder: Path, num_steps_done: int) -> None:
        # At 0 too: a run that was killed before its first checkpoint has logged steps that come again.
        super().__init__(save_dir=folder, name="tensorboard", version="", purge_step=num_steps_done + 1)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        # A thread of its own writes; what went wrong there is raised by the next call, whichever it is.
        with _named(Path(self.log_dir)):
            super().log_metrics({f"train/{name}": value for name, value in metrics.items()}, step)

    def save(self) -> None:
        with _named(Path(self.log_dir)):
            super().save()

    def finalize(self, status: str) -> None:
        with _named(Path(self.log_dir)):
            super().finalize(status)


class PrometheusLog(_PlainLogger):
    """Gauges at `http://0.0.0.0:PORT/metrics`, and pushed to `gateway` (HOST:PORT) under the run's name."""

    def __init__(self, run_name: str, *, port: int | None = None, gateway: str | None = None) -> None:
        super().__init__()
        self.registry = CollectorRegistry()
        self.gauges = {
            name: Gauge(f"telltale_train_{name}", text, ["run"], registry=self.registry).labels(run_name)
            for name, text in GAUGES.items()
        }
        tokens = Counter(
            "telltale_train_tokens",
            "Tokens trained on, those before an interruption included",
            ["run"],
            registry=self.registry,
        )
        self.tokens, self.tokens_counted = tokens.labels(run_name), 0.0
        self.run_name, self.gateway = run_name, gateway
        self.served: tuple[Any, Any] | None = None
        if port is not None:
            self.served = start_http_server(port, registry=self.registry)

    @property
    def port(self) -> int | None:
        """The port it is served at; with port 0, which one that became."""
        return None if self.served is None else int(self.served[0].server_port)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        values = metrics | {"dead_latents": metrics["num_dead"], "steps": step or 0}
        for name, gauge in self.gauges.items():
            gauge.set(values[name])
        self.tokens.inc(metrics["tokens_total"] - self.tokens_counted)
        self.tokens_counted = metrics["tokens_total"]
        if self.gateway is not None:
            self._push(self.gateway)

    def _push(self, gateway: str) -> None:
        try:
            push_to_gateway(gateway, job="telltale_train", registry=self.registry, timeout=2)
        except OSError as error:
            # A run of days must not end because nobody is there to watch it.
            tqdm.write(f"pushing metrics to {gateway} failed: {error}", file=sys.stderr)

    def finalize(self, status: str) -> None:  # noqa: ARG002 - Lightning's signature
        self.close()

    def close(self) -> None:
        """Stop serving."""
        if self.served is not None:
            server, thread = self.served
            server.shutdown()
            server.server_close()
            thread.join()
            self.served = None
