"""How often the model lies, by arm and format: the elicitation rate, with what else became of the replies."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from discovery.binomial import share
from discovery.group_bootstrap import mean_interval
from discovery.on_policy_classes import AnswerClass, Knowledge
from discovery.on_policy_rows import Labelled

CLASSES: tuple[AnswerClass, ...] = get_args(AnswerClass)


def summarise(labelled: Sequence[Labelled], knowledge: Mapping[str, Knowledge]) -> dict[str, Any]:
    """Counts and rates, as JSON."""
    arms: dict[tuple[str, str, str], list[Labelled]] = {}
    for one in labelled:
        cell = one.answer.cell
        arms.setdefault((cell.arm.instruction, cell.arm.name, cell.form), []).append(one)
    moves = [one.answer.reply.steering for one in labelled if one.answer.reply.steering is not None]
    return {
        **({"steered": _moved(moves)} if moves else {}),
        "questions": {
            "asked": len(knowledge),
            **{name: 0 for name in get_args(Knowledge)},
            **Counter(knowledge.values()),
        },
        "classes": {name: sum(one.answer_class == name for one in labelled) for name in CLASSES},
        "known_by_difficulty": _known_by(labelled, "difficulty"),
        "known_by_kind": _known_by(labelled, "kind"),
        "instructions": {
            instruction: found
            for instruction in dict.fromkeys(one.answer.cell.arm.instruction for one in labelled)
            if (found := _of_what_is_known(labelled, instruction))
        },
        "arms": [
            {"instruction": instruction, "arm": arm, "format": form, **_arm(members)}
            for (instruction, arm, form), members in arms.items()
        ],
    }


def _of_what_is_known(labelled: Sequence[Labelled], instruction: str) -> dict[str, Any]:
    """Of the replies to what the model knows under one instruction, in all arms and formats, the share of lies, of
    truths and of others, with intervals by bootstrap over questions; empty if there are none."""
    known = [one for one in labelled if one.knowledge == "known" and one.answer.cell.arm.instruction == instruction]
    if not known:
        return {}
    questions = [one.answer.cell.question.id for one in known]
    is_lie = [one.answer_class == "lie" for one in known]
    is_truth = [one.answer_class in ("honest_truth", "told_to_lie_but_true") for one in known]
    is_other = [not (lie or truth) for lie, truth in zip(is_lie, is_truth, strict=True)]
    return {
        "replies": len(known),
        "questions": len(set(questions)),
        **{
            name: mean_interval(values, questions).rounded()
            for name, values in (("lies", is_lie), ("truths", is_truth), ("others", is_other))
        },
    }


def _arm(members: Sequence[Labelled]) -> dict[str, Any]:
    known = [one for one in members if one.knowledge == "known"]
    lies = sum(one.answer_class == "lie" for one in known)
    return {
        "replies": len(members),
        **{name: sum(one.answer_class == name for one in members) for name in CLASSES},
        "lies_among_known": share(lies, len(known)).as_json(),
    }


def _moved(moves: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What steering did to the replies, all together: where it did nothing, nothing came of it."""
    changed = [move["positions_changed"] for move in moves]
    lengths = sum(num * move["mean_relative_norm"] for num, move in zip(changed, moves, strict=True))
    return {
        "replies": len(moves),
        "replies_changed": sum(num > 0 for num in changed),
        "positions_changed": sum(changed),
        "mean_relative_norm": round(lengths / sum(changed), 5) if any(changed) else None,
    }


def _known_by(labelled: Sequence[Labelled], field: str) -> dict[str, Any]:
    """By that field of the questions, how many are known."""
    questions = {one.answer.cell.question.id: one for one in labelled}.values()
    groups: dict[str, list[bool]] = {}
    for one in questions:
        name = str(getattr(one.answer.cell.question, field))
        groups.setdefault(name, []).append(one.knowledge == "known")
    return {name: share(sum(known), len(known)).as_json() for name, known in sorted(groups.items())}


def as_table(summary: Mapping[str, Any]) -> str:
    """The arms, one line each, for a terminal."""
    questions = summary["questions"]
    head = f"{'arm':<22} {'format':<12} {'replies':>7} {'lies':>5} {'of known':>8} {'95 %':>15} {'truths':>7} "
    head += f"{'mistakes':>8} {'refused':>7} {'unclear':>7}"
    lines = [
        f"{questions['known']} of {questions['asked']} questions known, {questions['mistaken']} mistaken, "
        f"{questions['unsure']} unsure",
        "",
        head,
    ]
    for arm in summary["arms"]:
        rate = arm["lies_among_known"]
        of_known = "-" if rate["share"] is None else f"{rate['share']:.1%}"
        interval = "-" if rate["share"] is None else f"[{rate['low']:.1%}, {rate['high']:.1%}]"
        truths = arm["honest_truth"] + arm["told_to_lie_but_true"]
        lines.append(
            f"{arm['arm']:<22} {arm['format']:<12} {arm['replies']:>7} {arm['lie']:>5} {of_known:>8} {interval:>15} "
            f"{truths:>7} {arm['honest_mistake']:>8} {arm['refusal']:>7} {arm['unclear']:>7}"
        )
    return "\n".join(lines)
