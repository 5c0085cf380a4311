"""A search as a folder: what is searched, the trials this comes to, and what each of them has reached.

    search.json                 settings, data, and every trial's recipe; going on with others is refused
    decisions.jsonl             what the scheduler made of each report (`tune_scheduler`)
    trials/003/reports.jsonl    held-out figures, one line a report
    trials/003/error.json       why it failed
    trials/003/checkpoints/     of unfinished, failed, and the best of the completed trials
    trials/003/log.csv          training curves

Lines are forced to disk before anything depends on them, and a line that was cut short does not count. So whatever is
killed, the folder says what is known, and a search that goes on does only the rest.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from discovery.buffers import IDENTIFYING
from discovery.errors import TuneError
from discovery.line_files import read_lines
from discovery.shard_stream import Source
from discovery.shards import load_manifest
from discovery.train_settings import TrainSettings, defaults_for
from discovery.tune_objective import Objective
from discovery.tune_space import Dimension, draw_trials
from sae_runtime.checkpoint import write_atomically

SEARCH_FILE = "search.json"
DECISIONS_FILE = "decisions.jsonl"
REPORTS_FILE = "reports.jsonl"
ERROR_FILE = "error.json"


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """What identifies a search. How many trials run at once, and where, is not part of it."""

    sources: list[str]
    """FOLDER:SHARDS_PER_BUFFER, whole paths."""
    validation: list[str]
    """Folders, whole paths."""
    validation_tokens: int
    activation: str
    fixed: dict[str, Any]
    """Fields of `TrainSettings` that are the same for all trials."""
    space: list[str]
    num_samples: int
    seed: int
    """Of the draws, and of every trial unless it is searched."""
    tokens: int | None
    """Each trial's, in place of num_steps."""
    reports: int
    """Each trial's; they are spread evenly over its steps."""
    scheduler: str
    """asha or fifo."""
    grace_reports: int
    """asha: none is stopped before."""
    reduction_factor: float
    objective: str
    l0_limit: float
    target_l0: float | None
    """L0 that a batchtopk threshold is set for when a dictionary is finished; where activation is searched, also what
    lambda is steered to in recipes that have one."""

    def __post_init__(self) -> None:
        for name in ("validation_tokens", "num_samples", "reports", "grace_reports"):
            if getattr(self, name) < 1:
                raise TuneError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.scheduler not in ("asha", "fifo"):
            raise TuneError(f"scheduler must be asha or fifo, got {self.scheduler!r}")
        if not self.reduction_factor > 1:
            raise TuneError(f"reduction_factor must be above 1, got {self.reduction_factor}")
        if self.grace_reports > self.reports:
            raise TuneError(f"grace_reports must be at most reports={self.reports}, got {self.grace_reports}")


class Plan(NamedTuple):
    """One trial before it has run."""

    number: int
    fields: dict[str, Any]
    """What was drawn for it."""
    settings: TrainSettings


class Report(NamedTuple):
    """What a trial has reached. All but the last two follow from the search's settings."""

    number: int
    """From 1 to the search's `reports`."""
    step: int
    tokens: int
    score: float
    """The objective; smaller is better."""
    loss: float
    fvu: float
    l0: float
    dead_ratio: float
    """Share of latents silent over all held-out tokens."""
    num_dead: int
    """Latents silent over the last `dead_after_tokens` training tokens."""
    node: str
    """The cluster's node it ran on."""
    seconds: float
    """Of training and measuring since the report before."""


class Search(NamedTuple):
    """A search and its folder."""

    folder: Path
    settings: SearchSettings
    plans: list[Plan]

    def trial_folder(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:03d}"

    def reports(self, number: int) -> list[Report]:
        """What trial `number` has reported so far."""
        return [Report(**line) for line in read_lines(self.trial_folder(number) / REPORTS_FILE)]

    def error(self, number: int) -> str | None:
        """Why trial `number` failed, if it did."""
        path = self.trial_folder(number) / ERROR_FILE
        return json.loads(path.read_text())["error"] if path.exists() else None

    def record_error(self, number: int, error: str) -> None:
        """Write down why trial `number` failed."""
        self.trial_folder(number).mkdir(parents=True, exist_ok=True)
        write_atomically(self.trial_folder(number) / ERROR_FILE, json.dumps({"error": error}) + "\n")

    @property
    def objective(self) -> Objective:
        return Objective(self.settings.objective, self.settings.l0_limit)

    def report_steps(self, settings: TrainSettings) -> list[int]:
        """Steps after which a trial reports."""
        return [-(-number * settings.num_steps // self.settings.reports) for number in self.report_numbers]

    @property
    def report_numbers(self) -> range:
        return range(1, self.settings.reports + 1)


def plans_of(settings: SearchSettings) -> list[Plan]:
    """Every trial's recipe; TuneError if one of them is none."""
    space = [Dimension.parse(text) for text in settings.space]
    drawn = draw_trials(space, settings.num_samples, settings.seed)
    return [Plan(number, fields, _recipe(settings, number, fields)) for number, fields in enumerate(drawn)]


def _recipe(settings: SearchSettings, number: int, fields: dict[str, Any]) -> TrainSettings:
    words = ", ".join(f"{name}={value}" for name, value in fields.items())
    asked: dict[str, Any] = {"activation": settings.activation, "seed": settings.seed} | settings.fixed | fields
    if settings.target_l0 is not None and asked["activation"] != "batchtopk":
        asked["l0_target"] = settings.target_l0  # as `train` takes it; a mistake with topk, which it says
    try:
        defaults = defaults_for(asked["activation"])
        if settings.tokens is not None:
            asked["num_steps"] = max(1, settings.tokens // asked.get("batch_size", defaults.batch_size))
        recipe = replace(defaults, **asked)
    except ValueError as error:
        raise TuneError(f"trial {number} ({words}) is no recipe: {error}") from None
    if recipe.num_steps < settings.reports:
        raise TuneError(
            f"trial {number} ({words}) must have a step for each of {settings.reports} reports, got {recipe.num_steps}"
        )
    return recipe


# --- the folder -----------------------------------------------------------------------------------------------------


def claim(folder: Path, settings: SearchSettings) -> Search:
    """Begin a search in `folder`, or go on with the one there. TuneError if that one is another."""
    plans = plans_of(settings)
    now = asdict(settings) | {"data": _data(settings), "trials": [asdict(plan.settings) for plan in plans]}
    now = json.loads(json.dumps(now))
    path = folder / SEARCH_FILE
    if path.exists():
        _check_same(folder, json.loads(path.read_text()), now)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(now, indent=1) + "\n")
    return Search(folder, settings, plans)


def begun_with(folder: Path) -> dict[str, Any]:
    """Fields that are the same for all trials of the search in `folder`; none if there is no search yet."""
    path = folder / SEARCH_FILE
    return dict(json.loads(path.read_text())["fixed"]) if path.exists() else {}


def load_search(folder: Path) -> Search:
    """The search in `folder`, as a trial finds it. TuneError if there is none to be seen, or another's."""
    path = folder / SEARCH_FILE
    if not path.exists():
        raise TuneError(
            f"{path} must be seen by every node: --output must lie on storage that the whole cluster shares"
        )
    found = json.loads(path.read_text())
    settings = SearchSettings(**{name: found[name] for name in SearchSettings.__dataclass_fields__})
    search = Search(folder, settings, plans_of(settings))
    if found["trials"] != [asdict(plan.settings) for plan in search.plans]:
        raise TuneError(f"{path} has other trials than this node makes of it: all must have the same telltale")
    return search


def _check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    differing = [name for name in now if before.get(name) != now[name]]
    if differing in (["trials"], ["data"], ["data", "trials"]):
        raise TuneError(f"{folder} holds a search whose {' and '.join(differing)} have changed since it was begun")
    words = [f"{name} was {before.get(name)}, is {now[name]}" for name in differing if name not in ("data", "trials")]
    if words:
        raise TuneError(f"{folder} holds a search with other words: {'; '.join(words)}")


def _data(settings: SearchSettings) -> dict[str, Any]:
    """What must not have changed of the harvests."""
    folders = {source.folder: len(source.shards) for source in map(Source.parse, settings.sources)}
    folders |= {Path(folder): len(list(Path(folder).glob("shard-*.safetensors"))) for folder in settings.validation}
    found: dict[str, Any] = {}
    for folder, num_shards in folders.items():
        manifest = load_manifest(folder)["settings"]
        found[str(folder)] = {name: manifest.get(name) for name in IDENTIFYING} | {"shards": num_shards}
    return found
