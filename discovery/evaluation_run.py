"""An evaluation: rows read, figures of every set, controls, four columns, luck; all numbers in one record."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from discovery.conversations import Conversation, by_dataset, read_conversations, require_both_labels
from discovery.errors import LabelledDataError, MonitorLabError
from discovery.evaluation_rows import (
    Rows,
    baseline_scores,
    best_features_by_luck,
    own_scores,
    random_directions,
    random_features,
)
from discovery.fitted_baselines import FittedBaselines, as_json
from discovery.four_columns import four_columns, has_classes, in_arms, told_to_lie
from discovery.joint_reading import JointReader
from discovery.monitor_figures import calibration_curve, control_figures, set_figures
from discovery.monitor_rows import counts_by_set
from discovery.monitor_scores import off_scale_to, reading_plan, score_replies
from discovery.read_replies import ReadingPlan
from discovery.scored_tokens import encode_all
from discovery.seen_rows import SeenRows
from monitors.pack import MonitorPack
from sae_runtime.chat_template import template_sha256
from sae_runtime.checkpoint import LoadedSAE
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import LanguageModel


@dataclass(frozen=True)
class EvaluationSettings:
    """How rows are read and what is computed of them."""

    max_tokens: int = 2048
    reasoning: str = "auto"
    """What encloses reasoning, for `sae_runtime.reasoning.parse_delimiters`."""
    include_seen: bool = False
    """Whether groups that the monitor was fitted on count too."""
    predictions: bool = True
    """Whether the model's own predictions are read, for baselines."""
    num_permutations: int = 50


@dataclass(frozen=True)
class Evaluation:
    """Everything measured."""

    pack: MonitorPack
    sets: dict[str, Rows]
    controls: dict[str, Rows]
    hard_negatives: dict[str, Rows]
    record: dict[str, Any]
    """All numbers, as JSON."""


@dataclass(frozen=True)
class Reader:
    """Reads files of conversations as the evaluation needs them."""

    lm: LanguageModel
    sae: LoadedSAE | None
    pack: MonitorPack
    fitted: FittedBaselines | None
    settings: EvaluationSettings
    joint: JointReader
    """Made for the `plan` of this one and of others that are measured on the same files."""

    @property
    def plan(self) -> ReadingPlan:
        """What is read of a reply."""
        return evaluation_plan(self.pack, self.sae, self.fitted, predictions=self.settings.predictions)

    def read(self, paths: Iterable[Path], what: str) -> tuple[Rows | None, dict[str, dict[str, int]]]:
        """(rows that were not seen in fitting, why others are left out); None if there are no rows."""
        paths = list(paths)
        if not paths:
            return None, {}
        conversations, left_out = self._unseen(read_conversations(paths))
        longest = min(self.settings.max_tokens, self.lm.context_length)
        encoded = encode_all(self.lm.tokenizer, conversations, max_tokens=longest, reasoning=self.settings.reasoning)
        for dataset, reasons in encoded.left_out.items():
            left_out.setdefault(dataset, {}).update(reasons)
        if not encoded.conversations:
            raise MonitorLabError(
                f"{what}: there must be conversations that can be read and were not fitted on, got none: {left_out}"
            )
        plan = self.plan
        readings = self.joint.read(encoded.replies, plan, label=what)
        points = tuple(map(str, plan.mean_points))
        scored = score_replies(self.pack, readings, encoded.replies)
        readings = replace(readings, off_scale_N=off_scale_to(self.pack, readings))
        rows = Rows(
            encoded.conversations,
            encoded.replies,
            readings,
            scored,
            points,
            own_scores(self.pack, scored),
            baseline_scores(encoded.conversations, readings, points, self.fitted),
        )
        return rows, left_out

    def _unseen(self, conversations: list[Conversation]) -> tuple[list[Conversation], dict[str, dict[str, int]]]:
        seen = SeenRows.of(self.pack.evidence)
        if self.settings.include_seen:
            return conversations, {}
        kept = [row for row in conversations if not seen.has(row)]
        left_out = {
            dataset: {"seen": len(indices) - sum(row.dataset == dataset for row in kept)}
            for dataset, indices in by_dataset(conversations).items()
        }
        return kept, {dataset: reasons for dataset, reasons in left_out.items() if reasons["seen"]}


def evaluation_plan(
    pack: MonitorPack, sae: LoadedSAE | None, fitted: FittedBaselines | None, *, predictions: bool
) -> ReadingPlan:
    """What a monitor and its baselines read of a reply."""
    own = reading_plan(pack, sae)
    dense = [probe.hook_point for probe in fitted.dense.values()] if fitted else []
    probes = [str(probe.hook_point) for probe in own.probes]
    # Luck is measured where the monitor reads, at a dictionary's place if it reads latents.
    places = [*probes, *([] if sae is None else [sae.manifest.hook_point]), *dense]
    return ReadingPlan(
        mean_points=tuple(HookPoint.parse(place) for place in dict.fromkeys(places)),
        averaged="last" if fitted is not None and fitted.examples == "last" else "scored",
        probes=own.probes,
        sae=sae,
        predictions=predictions,
    )


def evaluate(
    reader: Reader, data: Sequence[Path], controls: Sequence[Path], hard_negatives: Sequence[Path]
) -> Evaluation:
    """Measure a monitor.

    LabelledDataError for a file of data with one label, or a control with label 1; MonitorLabError if fitting has seen
    all there is.
    """
    for path in data:
        require_both_labels(read_conversations([path]), f"{path} (controls go to --control)")
    rows, left_out = reader.read(data, "data")
    assert rows is not None  # a command takes at least one file
    control, control_left_out = _negatives(reader, controls, "controls")
    hard, hard_left_out = _negatives(reader, hard_negatives, "hard negatives")
    sets, one_sided = _split(rows)
    if not sets:
        raise LabelledDataError(f"some data set must have both labels left, got {counts_by_set(rows.conversations)}")
    control_sets, hard_sets = _by_set(control), _by_set(hard)
    pack = reader.pack
    record = {
        "monitor": _about(reader),
        "data": {"left_out": left_out, "one_label_only": one_sided},
        "sets": {name: set_figures(of_set, pack, control) | _luck(reader, of_set) for name, of_set in sets.items()},
        "four_columns": _four_columns(sets, pack),
        "controls": {name: control_figures(of_set, pack) for name, of_set in control_sets.items()},
        "hard_negatives": {name: control_figures(of_set, pack) for name, of_set in hard_sets.items()},
        "controls_left_out": control_left_out,
        "hard_negatives_left_out": hard_left_out,
        "calibration_curve": calibration_curve(pack, control),
        "baselines": as_json(reader.fitted),
    }
    return Evaluation(pack, sets, control_sets, hard_sets, record)


def _negatives(reader: Reader, paths: Sequence[Path], what: str) -> tuple[Rows | None, dict[str, dict[str, int]]]:
    rows, left_out = reader.read(paths, what)
    if rows is not None and int(rows.labels_I.sum()):
        first = rows.conversations[int(np.argmax(rows.labels_I))]
        raise LabelledDataError(f"{what} must have label 0, got 1 of {first.dataset}, id {first.id!r}")
    return rows, left_out


def _by_set(rows: Rows | None) -> dict[str, Rows]:
    if rows is None:
        return {}
    return {name: rows.take(indices) for name, indices in by_dataset(rows.conversations).items()}


def _split(rows: Rows) -> tuple[dict[str, Rows], list[str]]:
    """(sets with both labels, names of those that fitting or the template left with one)."""
    sets = _by_set(rows)
    both = {name: of_set for name, of_set in sets.items() if set(of_set.labels_I.tolist()) == {0, 1}}
    return both, [name for name in sets if name not in both]


def _about(reader: Reader) -> dict[str, Any]:
    pack, identity = reader.pack, reader.lm.identity
    return {
        "name": pack.name,
        "version": pack.version,
        "kind": pack.kind,
        "pack_sha256": pack.content_sha256,
        "frozen_sha256": pack.frozen_sha256,
        "description": pack.description,
        "limits": pack.limits,
        "components": {component.name: component.reads for component in pack.components},
        "window": pack.window,
        "min_tokens": pack.min_tokens,
        "calibrated": None if pack.calibration is None else pack.calibration.source,
        "model": f"{identity.name} {identity.quantization} {identity.dtype}",
        "model_sha256": identity.weights_sha256,
        "chat_template_sha256": template_sha256(reader.lm.tokenizer),
        "measured_with": f"telltale-llm {metadata.version('telltale-llm')}",
    }


def _luck(reader: Reader, rows: Rows) -> dict[str, Any]:
    """What directions and latents have by luck on a set's rows."""
    place = next((str(probe.hook_point) for probe in reading_plan(reader.pack, reader.sae).probes), None)
    if place is None and reader.sae is not None:
        place = reader.sae.manifest.hook_point
    found: dict[str, Any] = {}
    if place is not None:
        found["random_direction"] = random_directions(
            rows.readings.mean_ILD[:, rows.points.index(place)], rows.labels_I
        )
    if reader.sae is not None:
        latents = sorted({part.feature for component in reader.pack.components for part in component.features})
        if latents:
            found["random_feature"] = random_features(rows.readings, rows.labels_I, latents)
        found["best_features"] = best_features_by_luck(rows, max(len(latents), 1), reader.settings.num_permutations)
    return {"luck": found}


def _four_columns(sets: dict[str, Rows], pack: MonitorPack) -> dict[str, Any]:
    """By set; once more without lies under incentives, and for arms that were held out by name, where there are any."""
    arms = pack.evidence.get("fit", {}).get("held_out_arms", [])
    found = {}
    for name, rows in sets.items():
        if has_classes(rows):
            found[name] = {"all_arms": four_columns(rows, pack)}
            told = told_to_lie(rows)
            if told is not None:
                found[name]["told_to_lie"] = four_columns(told, pack)
            if arms:
                found[name]["held_out_arms"] = four_columns(in_arms(rows, arms), pack)
    return found
