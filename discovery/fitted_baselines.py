"""What a monitor must beat: fitted on the same training rows, frozen in a file beside the pack, measured where it is.

    bag_of_words       logistic regression on which words and pairs of words the scored text has
    output_statistics  logistic regression on the model's own log-probabilities, entropies and the number of tokens
    dense              probes on the mean residual, or on that of the last scored token if the monitor was fitted on it:
                       at the monitor's own layer (`same_layer`) and at the one that cross-validation on training groups
                       liked best (`best_layer`)

Everything is plain numbers in JSON, so that a file needs no library's pickles to be read again.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from discovery.errors import MonitorLabError
from discovery.probe_fit import LinearProbe
from discovery.reply_readings import ReplyReadings
from monitors.pack import MonitorPack
from monitors.pack_parts import PackComponent
from monitors.pack_tensors import PackTensor
from sae_runtime.checkpoint import write_atomically

BASELINES_SUFFIX = ".baselines.json"
OUTPUT_STATISTICS = ("mean_log_prob", "min_log_prob", "mean_entropy", "first_entropy", "num_tokens")

_WORD = re.compile(r"\w+|[^\w\s]")
_MAX_WORDS = 5000
_LEAST_TEXTS = 2
"""Texts that must have a word for it to count."""


class DenseProbe(NamedTuple):
    """A probe on the mean residual of a reply, or on its last scored token's."""

    hook_point: str
    tensor: PackTensor
    bias: float

    def scores(self, mean_ID: NDArray[np.float32]) -> NDArray[np.float64]:
        """[I]"""
        return LinearProbe(np.array(self.tensor.values, np.float32), self.bias).scores(mean_ID)


class FittedBaselines(BaseModel):
    """The file. Fields that could not be fitted are null."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = 1
    component: str
    """Name of the monitor's component that they were fitted beside."""
    component_sha256: str
    bag_of_words: dict[str, float] | None
    """Word, or two words with a blank between -> its weight; "" is the bias."""
    output_statistics: dict[str, tuple[float, float]] | None
    """Statistic -> (weight, what is taken from it first); "" is (bias, 0)."""
    dense: dict[str, DenseProbe]
    examples: Literal["reply", "last"] = "reply"
    """What `dense` is fitted on, and measured on: means, or last scored tokens."""


def baselines_path(pack: Path) -> Path:
    """Where those of a pack are: `deception.baselines.json` beside `deception.pack.yaml`."""
    return pack.with_name(pack.name.removesuffix(".pack.yaml") + BASELINES_SUFFIX)


def save_baselines(path: Path, baselines: FittedBaselines) -> None:
    """Write the file, whole or not at all."""
    write_atomically(path, baselines.model_dump_json() + "\n")


def load_baselines(path: Path, pack: MonitorPack) -> FittedBaselines | None:
    """Those of one of the pack's components; None if there is no file.

    MonitorLabError for those of something else, or a file that is none.
    """
    try:
        baselines = FittedBaselines.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise MonitorLabError(f"{path} must hold fitted baselines: {error.errors()[0]['msg']}") from None
    own = {component_sha256(pack, component): component.name for component in pack.components}
    if baselines.component_sha256 not in own:
        raise MonitorLabError(
            f"{path} must be of a component of {pack.name} ({', '.join(own.values())}), got those of another "
            f"{baselines.component}, {baselines.component_sha256[:12]}: fit again"
        )
    return baselines


def find_baselines(pack_path: Path, pack: MonitorPack) -> FittedBaselines | None:
    """Those beside the pack: `NAME.baselines.json`, else, of a combined one, those of its first component that has a
    file there. None if there are none. MonitorLabError as `load_baselines`."""
    places = [baselines_path(pack_path)]
    places += [pack_path.with_name(component.name + BASELINES_SUFFIX) for component in pack.components]
    return next((found for place in places if (found := load_baselines(place, pack)) is not None), None)


def component_sha256(pack: MonitorPack, component: PackComponent) -> str:
    """Identity of what was fitted, in whichever pack it is: the component and its tensor."""
    tensor = None if component.probe is None else asdict(pack.tensors[component.probe.direction])
    facts = {"component": component.as_json() | {"weight": 1.0}, "tensor": tensor}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


# --- bag of words ---------------------------------------------------------------------------------------------------


def fit_bag_of_words(texts: Sequence[str], labels_I: NDArray[np.int64]) -> dict[str, float] | None:
    """Weights of words and pairs, balanced over labels; None if no word is in two texts."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    counter = CountVectorizer(analyzer=terms, binary=True, max_features=_MAX_WORDS, min_df=_LEAST_TEXTS)
    try:
        presence = counter.fit_transform(texts)
    except ValueError:  # no word is left
        return None
    model = LogisticRegression(C=1.0, class_weight="balanced", max_iter=2000).fit(presence, labels_I)
    weights = zip(counter.get_feature_names_out().tolist(), model.coef_[0].tolist(), strict=True)
    return {term: round(weight, 5) for term, weight in weights} | {"": round(float(model.intercept_[0]), 5)}


def bag_of_words_scores(weights: Mapping[str, float], texts: Sequence[str]) -> NDArray[np.float64]:
    """[I] bias plus the weights of the different terms that each text has."""
    return np.array([weights[""] + sum(weights.get(term, 0.0) for term in sorted(set(terms(text)))) for text in texts])


def terms(text: str) -> list[str]:
    """Words and signs in lower case, and pairs of them."""
    words = _WORD.findall(text.lower())
    return [*words, *(f"{first} {second}" for first, second in pairwise(words))]


# --- output statistics ----------------------------------------------------------------------------------------------


def output_statistics(readings: ReplyReadings) -> NDArray[np.float64]:
    """[I, 5] in the order of `OUTPUT_STATISTICS`. Predictions must have been read."""
    begins_I = readings.ends_I - readings.counts_I
    return np.stack(
        [
            readings.mean_over_tokens(readings.log_prob_N),
            np.minimum.reduceat(readings.log_prob_N, begins_I),
            readings.mean_over_tokens(readings.entropy_N),
            readings.entropy_N[begins_I],
            readings.counts_I,
        ],
        axis=1,
    ).astype(np.float64)


def fit_output_statistics(
    values_IX: NDArray[np.float64], labels_I: NDArray[np.int64]
) -> dict[str, tuple[float, float]]:
    """Weights of the statistics, standardisation folded in."""
    from sklearn.linear_model import LogisticRegression

    mean_X, std_X = values_IX.mean(0), values_IX.std(0)
    std_X[std_X == 0] = 1.0
    model = LogisticRegression(C=1.0, class_weight="balanced", max_iter=2000).fit(
        (values_IX - mean_X) / std_X, labels_I
    )
    weights_X = model.coef_[0] / std_X
    pairs = zip(OUTPUT_STATISTICS, weights_X.tolist(), mean_X.tolist(), strict=True)
    return {name: (weight, mean) for name, weight, mean in pairs} | {"": (float(model.intercept_[0]), 0.0)}


def output_scores(weights: Mapping[str, tuple[float, float]], values_IX: NDArray[np.float64]) -> NDArray[np.float64]:
    """[I]"""
    scores_I = np.full(len(values_IX), weights[""][0])
    for column, name in enumerate(OUTPUT_STATISTICS):
        weight, mean = weights[name]
        scores_I += weight * (values_IX[:, column] - mean)
    return scores_I


def dense_probe(probe: LinearProbe, hook_point: str) -> DenseProbe:
    """As the file has it."""
    return DenseProbe(hook_point, PackTensor.of(probe.direction_D.tolist()), probe.bias)


def as_json(baselines: FittedBaselines | None) -> dict[str, Any]:
    """What of them there is, for records."""
    if baselines is None:
        return {"fitted": False}
    return {
        "fitted": True,
        "component": baselines.component,
        "num_words": None if baselines.bag_of_words is None else len(baselines.bag_of_words) - 1,
        "dense": {name: probe.hook_point for name, probe in baselines.dense.items()},
    }
