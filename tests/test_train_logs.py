"""train_logs: each step once in every log, and a watcher that is missing ends no run."""

import csv
import errno
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from full_disk import room_for
from prometheus_client.parser import text_string_to_metric_families
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training import buffers_of, changed, write_harvest

from discovery.dictionary_trainer import Trainer
from discovery.errors import TrainError
from discovery.lightning_module import fit
from discovery.train_logs import COLUMNS, CsvLog, Figures, PrometheusLog, TensorBoardLog

FIGURES = {
    "variance_explained": 0.8,
    "l0": 5.0,
    "num_dead": 3,
    "learning_rate": 0.01,
    "elapsed_seconds": 1.5,
    "loss": 0.2,
    "sparsity_weight": 0.0,
    "tokens_total": 1280,
    "tokens_per_second": 640.0,
}


@pytest.fixture(scope="module")
def buffers(tmp_path_factory):
    return buffers_of(write_harvest(tmp_path_factory.mktemp("harvest")))


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def scrape(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        text = response.read().decode()
    families = text_string_to_metric_families(text)
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_csv_has_the_figures_by_name(tmp_path):
    CsvLog(tmp_path, 0).log_metrics(FIGURES, 10)
    (row,) = rows_of(tmp_path / "log.csv")
    assert tuple(row) == COLUMNS
    assert {name: float(value) for name, value in row.items()} == {
        name: value for name, value in {"step": 10, **FIGURES}.items() if name in COLUMNS
    }


def test_csv_cuts_off_what_will_be_done_again_and_a_row_cut_short(tmp_path):
    log = CsvLog(tmp_path, 0)
    for step in (10, 20, 30):
        log.log_metrics(FIGURES, step)
    path = tmp_path / "log.csv"
    path.write_text(path.read_text() + "3")
    CsvLog(tmp_path, 25)
    assert [row["step"] for row in rows_of(path)] == ["10", "20"]


def test_a_full_disk_is_named(tmp_path):
    log = CsvLog(tmp_path, 0)
    size = (tmp_path / "log.csv").stat().st_size
    with room_for(size + 10), pytest.raises(TrainError, match=r"log.csv can't be written: File too large; the same"):
        log.log_metrics(FIGURES, 10)
    CsvLog(tmp_path, 0).log_metrics(FIGURES, 10)  # the half row is cut off
    assert [row["step"] for row in rows_of(tmp_path / "log.csv")] == ["10"]


@pytest.mark.parametrize("call", [lambda log: log.save(), lambda log: log.finalize("failed")])
def test_a_disk_that_is_full_for_tensorboard_is_named(tmp_path, monkeypatch, call):
    log = TensorBoardLog(tmp_path, 0)
    log.log_metrics(FIGURES, 10)

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(log.experiment, "flush", full)
        with pytest.raises(TrainError, match="tensorboard can't be written: No space left on device; the same command"):
            call(log)
    log.finalize("success")


@pytest.mark.parametrize("stop", [12, 24])
def test_tensorboard_has_each_step_once(tmp_path, buffers, stop):
    """Broken off between the first line and the first checkpoint, and after one."""
    settings = changed(num_steps=30)

    def loggers(done):
        return [TensorBoardLog(tmp_path, done)]

    class Stop(Exception):
        pass

    broken = Trainer(settings, buffers)
    compute = broken.compute_gradients

    def dying(resid_BD):
        if broken.num_steps_done == stop:
            raise Stop
        return compute(resid_BD)

    broken.compute_gradients = dying
    with pytest.raises(Stop):
        fit(broken, tmp_path, checkpoint_every=15, loggers=loggers, callbacks=[Figures(broken, "a")])
    resumed = Trainer(settings, buffers)
    fit(resumed, tmp_path, checkpoint_every=15, loggers=loggers, callbacks=[Figures(resumed, "a")])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/l0")] == [10, 20, 30]


def test_prometheus_serves_a_runs_figures(tmp_path, buffers):
    log = PrometheusLog("run-a", port=0)
    run = Trainer(changed(num_steps=20), buffers)
    seen = {}

    class Watch(Figures):
        def on_train_end(self, *_):
            super().on_train_end()
            seen.update(scrape(log.port))

    fit(run, tmp_path, loggers=lambda _: [log], callbacks=[Watch(run, "a")])
    assert seen["telltale_train_tokens_total"] == 20 * 128
    assert seen["telltale_train_steps"] == 20
    assert seen["telltale_train_dead_latents"] == run.num_dead
    assert 0 < seen["telltale_train_variance_explained"] < 1
    assert seen["telltale_train_l0"] == pytest.approx(4, abs=0.3)
    assert seen["telltale_train_tokens_per_second"] > 0
    assert log.port is None  # it stopped serving with the run


def test_figures_are_pushed_to_a_gateway(capsys):
    received = []

    class Gateway(BaseHTTPRequestHandler):
        def do_PUT(self):
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"])).decode()))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Gateway) as server:
        Thread(target=server.handle_request).start()
        log = PrometheusLog("run-a", gateway=f"127.0.0.1:{server.server_port}")
        log.log_metrics(FIGURES, 10)
    ((path, text),) = received
    assert path == "/metrics/job/telltale_train"
    assert 'telltale_train_tokens_total{run="run-a"} 1280.0' in text
    log.log_metrics(FIGURES, 20)  # the gateway has gone: said, and no more
    assert "pushing metrics" in capsys.readouterr().err
