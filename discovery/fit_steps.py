"""The steps of fitting a monitor: rows, component, frame, record, baselines. `monitor_fit` is the command.

`args` are the command's, see there.
"""

import argparse
import sys
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np

from discovery.conversations import Conversation, read_conversations, require_both_labels
from discovery.errors import MonitorLabError
from discovery.feature_choice import choose_features, fit_weights
from discovery.fitted_baselines import (
    FittedBaselines,
    component_sha256,
    dense_probe,
    fit_bag_of_words,
    fit_output_statistics,
    output_statistics,
)
from discovery.group_split import Split, group_digest, joined_groups, split_groups
from discovery.monitor_rows import counts_by_set, relabelled
from discovery.monitor_scores import reading_plan, score_replies
from discovery.pack_building import bindings_of, feature_parts, probe_parts, single_pack, with_largest_norms
from discovery.probe_fit import fit_probe
from discovery.read_replies import ReadingPlan, all_points, read_replies
from discovery.scored_tokens import Encoded, Reply, encode_all
from discovery.seen_rows import text_digests
from discovery.training_rows import SweptProbe, TrainingRows, sweep
from discovery.window_choice import Units, choose_window, units_of
from monitors.pack import MonitorPack
from monitors.pack_parts import PackComponent
from monitors.pack_tensors import PackTensor
from sae_runtime.checkpoint import LoadedSAE
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import LanguageModel

FITTED_LIMITS = (
    "Scores what the model reads and writes as like the positive examples it was fitted on. What else it scores so an "
    "evaluation has to show."
)
PART_LIMITS = (
    "Fitted on single tokens, and scores every token: a part for `telltale lab monitor combine --gate`. What its fit "
    "measured is of those tokens, not of what it streams by itself."
)
"""Of what `--examples last` and `--target statement_end` make."""
_EXAMPLES = {
    "reply": "replies' mean residuals",
    "token": "every scored token",
    "last": "replies' last scored tokens",
}
"""What a probe is fitted on, in words."""


class _Fitted(NamedTuple):
    """A component in its own units, and how it was found."""

    component: PackComponent
    tensors: dict[str, PackTensor]
    record: dict[str, Any]


def fit(lm: LanguageModel, sae: LoadedSAE | None, args: argparse.Namespace) -> tuple[MonitorPack, FittedBaselines]:
    """The frozen monitor and its baselines. MonitorLabError for data that it can't be fitted on."""
    encoded = _encoded(lm, args)
    conversations = encoded.conversations
    groups = joined_groups(conversations)
    if absent := sorted(set(args.hold_out_arm) - {conversation.arm for conversation in conversations}):
        # No error: data of one part of a combination need not have every arm that is held out of the whole.
        print(f"caution: --hold-out-arm {', '.join(absent)}: no row has that arm to hold out", file=sys.stderr)
    split = split_groups(
        conversations,
        groups,
        development_share=args.development_share,
        held_out_share=args.held_out_share,
        held_out_arms=args.hold_out_arm,
        seed=args.seed,
    )
    rows, swept = _training_rows(lm, sae, encoded, groups, split, args)
    if args.kind == "features":
        fitted = _fit_features(rows, args)
    else:
        fitted = _fit_probe(lm, swept, rows, [encoded.replies[index] for index in split.train], args)
    pack = _framed(lm, sae, fitted, encoded, split, args)
    pack = replace(
        pack, evidence={"fit": _fit_record(conversations, encoded, groups, split, fitted, swept, pack, args)}
    )
    return pack, _baselines(pack, rows, swept, sae, "last" if args.examples == "last" else "reply")


def _encoded(lm: LanguageModel, args: argparse.Namespace) -> Encoded:
    conversations = read_conversations(args.data)
    if args.target == "label":
        conversations = relabelled(conversations, args.positive_class, args.negative_class)
        require_both_labels(conversations, ", ".join(map(str, args.data)))
    encoded = encode_all(lm.tokenizer, conversations, max_tokens=min(args.max_tokens, lm.context_length))
    if args.target == "statement_end":
        encoded = _ends_and_others(encoded)
    require_both_labels(encoded.conversations, "conversations with a scored token")
    return encoded


def _ends_and_others(encoded: Encoded) -> Encoded:
    """Each conversation twice: label 1 with the tokens that end a statement, label 0 with its others, if it has any."""
    conversations, replies = [], []
    for conversation, reply in zip(encoded.conversations, encoded.replies, strict=True):
        for label, scored in (
            (1, [position for position in reply.scored if position in reply.ends]),
            (0, [position for position in reply.scored if position not in reply.ends]),
        ):
            if scored:
                conversations.append(replace(conversation, label=label))
                replies.append(reply.only(scored))
    return Encoded(conversations, replies, encoded.left_out)


def _training_rows(
    lm: LanguageModel,
    sae: LoadedSAE | None,
    encoded: Encoded,
    groups: list[str],
    split: Split,
    args: argparse.Namespace,
) -> tuple[TrainingRows, SweptProbe]:
    """Training rows as they were read, and the sweep over layers on them."""
    points = _points(lm, args.layers)
    needs_latents = args.kind == "features"
    plan_points = points if sae is None or not needs_latents else tuple(dict.fromkeys([*points, sae.manifest.hook]))
    plan = ReadingPlan(
        mean_points=plan_points,
        # Of whole replies all the same: baselines go by their lengths and probabilities.
        averaged="last" if args.examples == "last" else "scored",
        sae=sae if needs_latents else None,
        predictions=True,
    )
    train = [encoded.replies[index] for index in split.train]
    readings = read_replies(lm, train, plan, cache=args.cache, batch_tokens=args.batch_tokens, label="training")
    chosen = [encoded.conversations[index] for index in split.train]
    rows = TrainingRows(
        readings,
        np.array([conversation.label for conversation in chosen]),
        [groups[index] for index in split.train],
        [conversation.dataset for conversation in chosen],
        [conversation.scored_text for conversation in chosen],
        plan_points,
    )
    return rows, sweep(rows, args.method, args.C, num_folds=args.folds, seed=args.seed)


def _points(lm: LanguageModel, layers: str) -> tuple[HookPoint, ...]:
    """`all`, or block numbers and hook points with commas between. MonitorLabError for others."""
    if layers == "all":
        return all_points(lm)
    try:
        points = [HookPoint(int(text)) if text.isdecimal() else HookPoint.parse(text) for text in layers.split(",")]
    except ValueError as error:
        raise MonitorLabError(f"--layers must be all, block numbers or hook points, got {layers!r}: {error}") from None
    if high := [str(point) for point in points if point.layer >= lm.num_layers]:
        raise MonitorLabError(f"--layers must name some of the model's {lm.num_layers} layers, got {', '.join(high)}")
    return tuple(dict.fromkeys(points))


def _fit_probe(
    lm: LanguageModel, swept: SweptProbe, rows: TrainingRows, train: list[Reply], args: argparse.Namespace
) -> _Fitted:
    """The best layer's probe, fitted on replies' means as in the sweep, or anew on every scored token."""
    probe = swept.probe
    if args.examples == "token":
        plan = ReadingPlan(token_point=swept.point)
        readings = read_replies(lm, train, plan, cache=args.cache, batch_tokens=args.batch_tokens, label="tokens")
        labels_N = np.repeat(rows.labels_I, readings.counts_I)
        # Every reply counts the same, however long.
        weights_N = np.repeat(1 / readings.counts_I, readings.counts_I)
        probe = fit_probe(readings.token_ND, labels_N, args.method, C=swept.C, weights_I=weights_N)
    what = _EXAMPLES[args.examples]
    if args.target == "statement_end":
        what += ", with which a statement ends or does not"
    reads = f"Projection of the residual at {swept.point} on a direction fitted by {args.method} on {what}."
    component, tensors = probe_parts(args.name, probe, swept.point, args.method, reads)
    return _Fitted(component, tensors, {"kind": "probe"})


def _fit_features(rows: TrainingRows, args: argparse.Namespace) -> _Fitted:
    choice = choose_features(
        rows.readings.mean_latents(),
        rows.labels_I,
        rows.groups,
        rows.datasets,
        max_features=args.max_features,
        max_p_value=args.max_p_value,
        num_permutations=args.permutations,
        seed=args.seed,
    )
    features = fit_weights(rows.readings, rows.labels_I, choice.chosen, l2=args.l2)
    component = feature_parts(
        args.name, features, f"{len(features)} latents, chosen by how well they tell the labels apart."
    )
    record = {
        "kind": "features",
        "chosen": [feature._asdict() for feature in choice.chosen],
        "num_considered": choice.num_considered,
        "luck_quantiles": _quantiles(choice.luck),
    }
    return _Fitted(component, {}, record)


def _quantiles(luck: list[float]) -> dict[str, float]:
    """None without permutations: of no luck there is nothing to tell."""
    values = np.quantile(luck, [0.5, 0.95]).round(4).tolist() if luck else []
    return dict(zip(("50%", "95%"), values, strict=False))


def _framed(
    lm: LanguageModel,
    sae: LoadedSAE | None,
    fitted: _Fitted,
    encoded: Encoded,
    split: Split,
    args: argparse.Namespace,
) -> MonitorPack:
    """The pack: window and units by development rows, on which the component was not fitted."""
    plain = single_pack(
        args.name,
        fitted.component,
        fitted.tensors,
        bindings_of(lm, sae if fitted.component.features else None),
        units=Units(0.0, 1.0),
        window=1,
        min_tokens=1,
        description=args.description or _description(args),
        limits=args.limits or (PART_LIMITS if _reads_single_tokens(args) else FITTED_LIMITS),
    )
    replies = [encoded.replies[index] for index in split.development]
    if args.examples == "last":
        replies = [reply.only(reply.scored[-1:]) for reply in replies]
    chosen = [encoded.conversations[index] for index in split.development]
    plan = reading_plan(plain, sae)
    readings = read_replies(lm, replies, plan, cache=args.cache, batch_tokens=args.batch_tokens, label="development")
    plain = with_largest_norms(plain, readings)
    labels_I = np.array([conversation.label for conversation in chosen])
    # With a window of one token the score is the token's own.
    tokens = [reply.scores for reply in score_replies(plain, readings)]
    figures = choose_window(
        tokens, labels_I, [row.dataset for row in chosen], windows=args.windows, min_tokens=args.min_tokens
    )
    window, min_tokens = figures[0].window, figures[0].min_tokens
    framed = replace(plain, window=window, min_tokens=min_tokens, cooldown_tokens=window)
    units = units_of(np.array([reply.statistic for reply in score_replies(framed, readings)]), labels_I)
    fitted.record["windows"] = [figure._asdict() | {"auroc": round(figure.auroc, 4)} for figure in figures]
    component = replace(framed.components[0], center=units.center, scale=units.scale)
    # Last: rows are scored as an assistant's whole text here, whosever words the monitor is for.
    return replace(framed, components=(component,), roles=args.roles)


def _reads_single_tokens(args: argparse.Namespace) -> bool:
    return args.target == "statement_end" or args.examples == "last"


def _description(args: argparse.Namespace) -> str:
    if args.target == "statement_end":
        return "Whether a statement ends with this token."
    return f"What the model says in the manner of the positive examples of {args.name}."


def _fit_record(
    conversations: list[Conversation],
    encoded: Encoded,
    groups: list[str],
    split: Split,
    fitted: _Fitted,
    swept: SweptProbe,
    pack: MonitorPack,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """How the monitor came to be, for the pack."""
    parts = {name: getattr(split, name) for name in ("train", "development", "held_out")}
    seen = {groups[index] for name in ("train", "development") for index in parts[name]}
    joined = {
        conversation.full_group for conversation, group in zip(conversations, groups, strict=True) if group in seen
    }
    return {
        "data": {name: counts_by_set([conversations[index] for index in indices]) for name, indices in parts.items()},
        "left_out": encoded.left_out,
        "target": args.target,
        "examples": args.examples,
        "positive_classes": args.positive_class,
        "negative_classes": args.negative_class,
        "held_out_arms": args.hold_out_arm,
        "seen_arms": sorted({conversations[i].arm for name in ("train", "development") for i in parts[name]} - {""}),
        "seed": args.seed,
        "sweep": swept.record,
        "component": fitted.record,
        "frozen_sha256": pack.frozen_sha256,
        "seen_groups": sorted(map(group_digest, joined)),
        "seen_texts": text_digests(conversations[index] for name in ("train", "development") for index in parts[name]),
    }


def _baselines(
    pack: MonitorPack,
    rows: TrainingRows,
    swept: SweptProbe,
    sae: LoadedSAE | None,
    examples: Literal["reply", "last"],
) -> FittedBaselines:
    own = pack.components[0]
    dense = {"best_layer": dense_probe(swept.probe, str(swept.point))}
    if own.features and sae is not None:  # a probe's own layer is the best one already
        point = sae.manifest.hook
        dense["same_layer"] = dense_probe(rows.probe_at(point, "logistic_regression", swept.C), str(point))
    return FittedBaselines(
        component=own.name,
        component_sha256=component_sha256(pack, own),
        bag_of_words=fit_bag_of_words(rows.texts, rows.labels_I),
        output_statistics=fit_output_statistics(output_statistics(rows.readings), rows.labels_I),
        dense=dense,
        examples=examples,
    )
