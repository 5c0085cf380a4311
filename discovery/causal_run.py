"""A causal test at work: every feature taken out of its texts, every text read with the features and controls pinned.

What is measured, and what passes, is said in `discovery.causal_test`; this is the order it is done in, so that texts
are read once, and a run that was killed goes on.

Shape suffixes: T positions, D width, F latents.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from discovery.causal_ablation import Draws, Effects, Read, ablate, active_positions, joined, thinned
from discovery.causal_pinning import draw_controls, gains
from discovery.causal_record import ablation_record, pinning_record
from discovery.causal_texts import LEAST_GROUPS, Contrast, Text, typical_tokens
from discovery.errors import SteerError
from discovery.result_lines import ResultLines
from discovery.resumed_pass import check_halves, first_half
from discovery.steering_bench import Bench
from monitors.watchlist import NamedFeature


@dataclass(frozen=True, slots=True)
class CausalSettings:
    """How much is measured, and how."""

    num_texts: int = 24
    """Most texts of each side of a contrast that are read."""
    num_ablated: int = 12
    """Most of them, on each side, in which a latent is taken out."""
    num_pinned: int = 12
    """Most texts of each side that a latent is pinned on."""
    max_tokens: int = 64
    """Of each text."""
    pinned_tokens: int = 24
    """Of each text behind its opening."""
    max_positions: int = 16
    """Positions measured in one text."""
    num_typical: int = 50
    """Most tokens that count as typical of a topic."""
    num_controls: int = 20
    pin: float = 0.15
    """Share of the residual's norm that a pinned latent holds."""
    seed: int = 0

    def __post_init__(self) -> None:
        least = dict.fromkeys(("num_texts", "num_ablated", "num_pinned"), LEAST_GROUPS)
        least |= dict.fromkeys(("max_tokens", "pinned_tokens", "max_positions", "num_controls"), 2)
        for name, value in least.items():
            if getattr(self, name) < value:
                raise SteerError(f"{name} must be at least {value}, got {getattr(self, name)}")
        if not 0 < self.pin <= 20:
            raise SteerError(f"pin must lie in (0, 20], got {self.pin}")


class Subject(NamedTuple):
    """Features and the texts for and against each."""

    features: list[NamedFeature]
    contrasts: dict[str, Contrast]

    def contrast(self, feature: NamedFeature) -> Contrast:
        return self.contrasts[contrast_name(feature)]


def contrast_name(feature: NamedFeature) -> str:
    """The contrast that a feature's evidence names; SteerError if there is none."""
    name = feature.evidence.get("contrast")
    if not isinstance(name, str):
        raise SteerError(f"feature {feature.name} must name its contrast in its evidence, got {name!r}")
    return name


def run(
    bench: Bench, subject: Subject, settings: CausalSettings, results: ResultLines, *, progress: bool = False
) -> None:
    """Measure what `results` does not hold yet: a line per ablated feature, a line per pinned text."""
    done = {line["ablated"] for line in results.lines if "ablated" in line}
    remaining = [feature for feature in subject.features if feature.name not in done]
    num_pinned = sum("pinned" in line for line in results.lines)
    if not remaining and num_pinned == len(pinned_on(subject, settings.num_pinned)):
        return
    reads = read_texts(bench, subject, progress=progress)
    density_F = density(reads.values())
    for feature in tqdm(remaining, desc="ablating", unit="feature", disable=not progress):
        results.append({"ablated": feature.name, **ablate_feature(bench, subject, feature, reads, density_F, settings)})
    pin_features(bench, subject, density_F, settings, results, progress=progress)


def read_texts(bench: Bench, subject: Subject, *, progress: bool) -> dict[Text, Read]:
    """Every text once, up to the hook point."""
    texts = dict.fromkeys(text for contrast in subject.contrasts.values() for side in contrast for text in side)
    check_halves(bench, list(next(iter(texts)).tokens))
    reads = {}
    for text in tqdm(texts, desc="reading", unit="text", disable=not progress):
        resid_TD = first_half(bench, list(text.tokens))
        with torch.inference_mode():
            reads[text] = Read(text, resid_TD, bench.sae.encode(resid_TD).to_sparse())
    return reads


def density(reads: Iterable[Read]) -> Tensor:
    """[F] share of the texts' tokens, position 0 left out, at which each latent is active."""
    counts, num = None, 0
    for read in reads:
        active_F = (read.latents()[1:] > 0).sum(0)
        counts = active_F if counts is None else counts + active_F
        num += len(read.text.tokens) - 1
    assert counts is not None
    return counts / num


def ablate_feature(
    bench: Bench,
    subject: Subject,
    feature: NamedFeature,
    reads: dict[Text, Read],
    density_F: Tensor,
    settings: CausalSettings,
) -> dict[str, Any]:
    """The feature taken out of texts for and against it; controls on the texts for it.

    Texts that begin alike have the same predictions up to where they part: such a position is one observation, however
    many texts share it, and belongs to the first of them, even where that has more positions than are measured.
    """
    contrast = subject.contrast(feature)
    typical = typical_tokens(contrast, settings.num_typical)
    draws = Draws.of(density_F, settings.num_controls, settings.seed + feature.index)

    def effects_on(texts: list[Text], draws: Draws | None) -> Effects | None:
        parts: list[Effects] = []
        prefixes: set[tuple[int, ...]] = set()
        for text in texts:
            positions = active_positions(reads[text], feature.index)
            fresh = [position for position in positions if text.prefix(position) not in prefixes]
            if fresh and len(parts) < settings.num_ablated:
                measured = thinned(fresh, settings.max_positions)
                # All of them, measured or not: further texts that begin alike have nothing to add.
                prefixes.update(map(text.prefix, positions))
                parts.append(
                    ablate(
                        bench, reads[text], feature.index, positions, measured=measured, typical=typical, draws=draws
                    )
                )
        return joined(parts)

    on_topic, elsewhere = effects_on(contrast.positive, draws), effects_on(contrast.negative, None)
    decode = bench.lm.tokenizer.decode
    return ablation_record(on_topic, elsewhere, decode, typical=typical, seed=settings.seed)


def pin_features(
    bench: Bench,
    subject: Subject,
    density_F: Tensor,
    settings: CausalSettings,
    results: ResultLines,
    *,
    progress: bool,
) -> None:
    """Each text once, with all features whose contrast it belongs to and all controls pinned on it."""
    controls = draw_controls(
        density_F, [feature.index for feature in subject.features], settings.num_controls, settings.seed
    )
    done = {line["pinned"] for line in results.lines if "pinned" in line}
    wanted = pinned_on(subject, settings.num_pinned)
    for number, (text, features) in enumerate(tqdm(wanted.items(), desc="pinning", unit="text", disable=not progress)):
        if number not in done:
            latents = [*(feature.index for feature in features), *controls]
            found = gains(bench, text, latents, pin=settings.pin, num_tokens=settings.pinned_tokens)
            by_name = dict(zip((feature.name for feature in features), found, strict=False))
            results.append({"pinned": number, "gains": by_name, "controls": found[len(features) :]})


def pinned_on(subject: Subject, num: int) -> dict[Text, list[NamedFeature]]:
    """The texts to pin on, in a fixed order, and the features that each is for or against."""
    found: dict[Text, list[NamedFeature]] = {}
    for feature in subject.features:
        for side in subject.contrast(feature):
            for text in side[:num]:
                found.setdefault(text, []).append(feature)
    return found


def measured_by(settings: CausalSettings, bench: Bench) -> dict[str, Any]:
    """What it takes to measure the same again, beside the texts."""
    return asdict(settings) | {
        "model_sha256": bench.lm.identity.weights_sha256,
        "dtype": bench.lm.identity.dtype,
        "quantization": bench.lm.identity.quantization,
        "max_relative_norm": bench.limits.max_relative_norm,
    }


def records_of(subject: Subject, settings: CausalSettings, results: ResultLines, bench: Bench) -> dict[str, Any]:
    """What goes into each feature's evidence."""
    ablated = {line["ablated"]: line["ablation"] for line in results.lines if "ablated" in line}
    pinned = {line["pinned"]: line for line in results.lines if "pinned" in line}
    texts = list(pinned_on(subject, settings.num_pinned))
    by_text = {texts[number]: line for number, line in pinned.items()}
    records = {}
    for feature in subject.features:
        contrast = subject.contrast(feature)
        sides = [[(text, by_text[text]) for text in side[: settings.num_pinned]] for side in contrast]
        pinning = pinning_record(feature.name, sides[0], sides[1], pin=settings.pin, seed=settings.seed)
        length = bench.limits.direction_norms[feature.index]
        if bench.limits.resid_norm_mean:
            of_scale = settings.pin * bench.limits.resid_norm_mean / (length * feature.reference_scale)
            pinning["multiple_of_reference_scale"] = round(of_scale, 2)
        records[feature.name] = {
            "ablation": ablated[feature.name],
            "pinning": pinning,
            "passed": ablated[feature.name]["passed"] and pinning["passed"],
            "settings": measured_by(settings, bench),
        }
    return records
