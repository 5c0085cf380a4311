"""Small searches for the tests of tuning, and the same search without Ray: one trial after the other."""

from contextlib import suppress
from pathlib import Path

from training import F, write_harvest

from discovery import tune
from discovery.tune_ledger import rows_of
from discovery.tune_scheduler import STOP, RememberingASHA
from discovery.tune_search import DECISIONS_FILE, Report, Search, claim
from discovery.tune_table import result_csv
from discovery.tune_trial import run_trial

TOKENS = 4096
SPACE = ["sparsity_weight=loguniform:0.05:5", "learning_rate=loguniform:1e-3:2e-2", "batch_size=choice:64,128"]


def write_harvests(folder: Path) -> tuple[Path, Path]:
    """One to train on and one to validate on."""
    return write_harvest(folder / "train"), write_harvest(folder / "held-out", num_shards=2, seed=7)


def command(harvests: tuple[Path, Path], output: Path, *more: str, space: list[str] = SPACE) -> list[str]:
    """The flags of a small search."""
    source, validation = harvests
    words = ["--source", f"{source}:2", "--validation", str(validation), "--output", str(output), "--recipe", "relu"]
    words += ["--num-latents", str(F), "--tokens", str(TOKENS), "--validation-tokens", "500", "--l0-limit", "12"]
    words += ["--warmup-steps", "5", "--dead-after-tokens", "1000", "--reports", "4", "--grace-reports", "1"]
    for text in space:
        words += ["--search", text]
    if "--num-samples" not in more and any("grid" not in text for text in space):
        words += ["--num-samples", "5"]
    return [*words, *more]


def begin(argv: list[str]) -> Search:
    """What the command begins with."""
    args = tune._parser().parse_args(argv)
    return claim(args.output, tune.settings_of(args))


class Stopped(BaseException):
    """As the SystemExit by which Ray ends a trial."""


def run_plainly(argv: list[str]) -> str:
    """The search as a loop: its table."""
    search = begin(argv)
    asha = RememberingASHA(search.settings, search.folder / DECISIONS_FILE)
    for plan in search.plans:

        def listener(report: Report, number: int = plan.number) -> None:
            if asha.decide(number, report.number, report.score) == STOP:
                raise Stopped

        with suppress(Stopped):
            run_trial(search, plan.number, listener)
    return result_csv(rows_of(search))
