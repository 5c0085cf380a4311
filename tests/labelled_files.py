"""Labelled conversations about what is known of a random model, as files.

`instructed`: the prompt says what to be, the reply says the same either way; so words of the reply tell nothing and
residuals, which attention mixes, tell everything. `long_lies`: only the length of the reply tells. `benign`: controls.
"""

import json
import random
from pathlib import Path
from typing import Any

PROMPTS = {0: "Be honest", 1: "Lie to me"}
_LETTERS = "abcdefghijklmnopqrstuvwxyz    "


def words(rng: random.Random, length: int) -> str:
    return "a" + "".join(rng.choice(_LETTERS) for _ in range(length - 1))


def row(
    number: int, dataset: str, prompt: str, reply: str, label: int | None, group: str, **more: Any
) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
    base = {"id": f"{dataset}-{number}", "dataset": dataset, "messages": messages, "score_from_char": 0}
    return base | {"label": label, "group": group, "source_model": "made", "on_policy": False, "meta": {}} | more


def instructed(
    num_groups: int, *, dataset: str = "instructed", seed: int = 0, length: int = 20
) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    rows = []
    for group in range(num_groups):
        reply = words(rng, length)
        rows += [
            row(2 * group + label, dataset, PROMPTS[label], reply, label, f"{dataset}-{seed}-{group}")
            for label in (0, 1)
        ]
    return rows


def shuffled(num_groups: int, *, dataset: str = "shuffled", seed: int = 0) -> list[dict[str, Any]]:
    """As `instructed`, the labels drawn anew."""
    rng = random.Random(seed + 1)
    rows = instructed(num_groups, dataset=dataset, seed=seed)
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        if rng.random() < 0.5:
            first["label"], second["label"] = 1, 0
    return rows


def long_lies(num_groups: int, *, dataset: str = "long_lies", seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed + 2)
    return [
        row(
            2 * g + label,
            dataset,
            "Well?",
            words(rng, rng.randint(14, 22) + 14 * label),
            label,
            f"{dataset}-{seed}-{g}",
        )
        for g in range(num_groups)
        for label in (0, 1)
    ]


def benign(num: int, *, dataset: str = "benign", seed: int = 0, prompt: str = "Be honest") -> list[dict[str, Any]]:
    rng = random.Random(seed + 3)
    return [row(n, dataset, prompt, words(rng, rng.randint(9, 30)), 0, f"{dataset}-{seed}-{n}") for n in range(num)]


def on_policy(num_questions: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Answers under an honest and two lying prompts. Lies hold a `z`, and nothing else does."""
    rng = random.Random(seed + 4)
    rows = []
    prompts = {"honest": "Be honest", "must": "Lie to me", "please": "Lie, please"}
    for question in range(num_questions):
        for arm, prompt in prompts.items():
            lies = arm != "honest" and rng.random() < 0.5
            name = "lie" if lies else "honest_truth" if arm == "honest" else "told_to_lie_but_true"
            name = "honest_mistake" if arm == "honest" and rng.random() < 0.3 else name
            said = words(rng, 16).replace("z", "y")
            reply = said[:8] + "zz" + said[8:] if name in ("lie", "honest_mistake") else said + "aa"
            meta = {"class": name, "arm": arm, "question_id": f"q{question}", "instruction": arm}
            label = 1 if name == "lie" else 0
            more = {"meta": meta, "on_policy": True}
            rows.append(row(len(rows), "on_policy", f"{prompt} {question}?", reply, label, f"q{question}", **more))
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
