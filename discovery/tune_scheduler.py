"""Ray Tune's ASHA with a memory on disk: each decision is made once, whoever is killed.

ASHA (Li et al. 2020, "A system for massively parallel hyperparameter tuning") compares a trial's score at each rung
with those of the trials that came there before. Ray forgets them when a search is restored: its experiment state leaves
the scheduler out. Here every decision is written down before it is followed. A search that goes on gives ASHA all the
scores it had seen, in their order, and a trial that makes a report again gets the decision it got before.

Decisions follow from the order in which reports come in. One trial at a time makes that order, and so the whole search,
repeatable; with several at once two searches of the same words may stop different trials. fifo stops none.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from discovery.line_files import append_line, read_lines, write_lines
from discovery.tune_search import DECISIONS_FILE, Search, SearchSettings

STOP = TrialScheduler.STOP
CONTINUE = TrialScheduler.CONTINUE


def scheduler_for(search: Search) -> FIFOScheduler:
    """The scheduler that the search's settings name."""
    if search.settings.scheduler == "fifo":
        return FIFOScheduler()
    return RememberingASHA(search.settings, search.folder / DECISIONS_FILE)


class RememberingASHA(FIFOScheduler):
    """Runs trials in order and stops those that ASHA stops. A result's `trial`, `number` and `score` are read."""

    def __init__(self, settings: SearchSettings, path: Path) -> None:
        super().__init__()
        self.path = path
        self.asha = ASHAScheduler(
            time_attr="number",
            metric="score",
            mode="min",
            max_t=settings.reports,
            grace_period=settings.grace_reports,
            reduction_factor=settings.reduction_factor,
        )
        self.known: set[int] = set()
        self.decisions: dict[tuple[int, int], str] = {}
        lines = read_lines(path)
        write_lines(path, lines)
        for line in lines:
            self._ask(line["trial"], line["number"], line["score"])
            self.decisions[line["trial"], line["number"]] = line["decision"]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002
        if "score" not in result or result.get("done"):
            return CONTINUE  # a trial that ends by itself repeats its last result
        return self.decide(result["trial"], result["number"], result["score"])

    def decide(self, trial: int, number: int, score: float) -> str:
        """Whether the trial goes on after its report `number`."""
        if (trial, number) not in self.decisions:
            decision = self._ask(trial, number, score)
            append_line(self.path, {"trial": trial, "number": number, "score": score, "decision": decision})
            self.decisions[trial, number] = decision
        return self.decisions[trial, number]

    def _ask(self, trial: int, number: int, score: float) -> str:
        # Ray's own trial ids are new each time; ours are the numbers.
        asked = SimpleNamespace(trial_id=str(trial))
        if trial not in self.known:
            self.asha.on_trial_add(None, asked)
            self.known.add(trial)
        return str(self.asha.on_trial_result(None, asked, {"number": number, "score": score}))
