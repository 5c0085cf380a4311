"""benchmarks.monitor_rows: of every class what is said of it, the same each time, and no longer reply that was seen."""

import json
from dataclasses import replace

import pytest
import serving

from benchmarks import monitor_rows
from discovery.group_split import group_digest


def row(question, arm, name, form="short", sample=0, label=0):
    instruction = arm.split("-")[0]
    meta = {"class": name, "arm": arm, "instruction": instruction, "format": form, "sample": sample}
    return {
        "id": f"{question}/{arm}/{form}/{sample}",
        "dataset": "on_policy",
        "group": question,
        "label": label,
        "meta": meta | {"question_id": question},
    }


def asked(number):
    """What was said to one question: every fourth one was answered with lies."""
    question = f"q-{number}"
    told = "lie" if number % 4 == 0 else "told_to_lie_but_true"
    yield from (
        row(question, arm, "honest_truth") for arm in ("neutral", "honest-system", "honest-expert", "honest-user")
    )
    yield row(question, "neutral", "honest_truth", sample=1)
    yield row(question, "lying-must", told)
    yield row(question, "lying-asked", "told_to_lie_but_true")
    yield row(question, "incentive-pressed", told if told == "lie" else "honest_truth")
    yield row(question, "lying-must", told, form="sentence")
    yield row(question, "neutral", "unclear", form="passage", label=None)


@pytest.fixture
def made(tmp_path):
    """Name of a file -> its rows; `run` makes them anew with more options."""
    lines = [json.dumps(one) for number in range(400) for one in asked(number)]
    (tmp_path / "short.jsonl").write_text("\n".join(lines[:2500]) + "\n")
    (tmp_path / "long.jsonl").write_text("\n".join(lines[2400:]) + "\n")  # some of them in both

    def run(*options):
        argv = [str(tmp_path / "short.jsonl"), str(tmp_path / "long.jsonl"), "--output", str(tmp_path / "rows")]
        assert monitor_rows.main([*argv, *map(str, options)]) == 0
        return {
            path.stem: [json.loads(line) for line in path.read_text().splitlines()]
            for path in (tmp_path / "rows").glob("*.jsonl")
        }

    return run


def counted(rows, **wanted):
    return sum(all(one["meta"][name] == value for name, value in wanted.items()) for one in rows)


def test_a_file_has_what_is_said_of_it(made):
    files = made()
    assert files == made()
    assert not any(one["meta"]["sample"] or one["label"] is None for rows in files.values() for one in rows)
    assert all(len({one["id"] for one in rows}) == len(rows) for rows in files.values())
    lies = files["disbelief"]
    assert counted(lies, **{"class": "lie", "instruction": "lying"}) == 2 * 100 == counted(lies, **{"class": "lie"})
    truths = [one for one in lies if one["meta"]["class"] == "told_to_lie_but_true"]
    lied_to = [one for one in truths if int(one["group"][2:]) % 4 == 0]
    assert len(lied_to) == 100 and 0.2 < (len(truths) - 100) / 900 < 0.3
    stance = files["stance"]
    assert counted(stance, **{"class": "lie"}) == 100 and counted(stance, **{"class": "honest_truth"}) == 400
    assert 0.45 < counted(stance, **{"class": "told_to_lie_but_true"}) / 700 < 0.55
    assert counted(files["gate"], format="short") == 800 and counted(files["gate"], format="sentence") == 400
    measured = files["on_policy"]
    assert counted(measured, **{"class": "lie"}) == 200  # those under pressure too
    assert counted(measured, arm="neutral") == 400 and not counted(measured, arm="honest-user")
    assert 0.4 < counted(measured, arm="honest-expert") / 400 < 0.6


def test_longer_replies_to_questions_that_a_pack_has_seen_are_left_out(made, tmp_path):
    pack = serving.monitor_packs()[0]
    seen = [group_digest(f"on_policy/q-{number}") for number in range(10)]
    path = tmp_path / "some.pack.yaml"
    replace(pack, evidence={"fit": {"seen_groups": seen}}).save(path)
    longer, left = made()["longer"], made("--seen", path)["longer"]
    assert len(longer) - len(left) == 10 and {one["dataset"] for one in left} == {"on_policy_longer"}


def test_fresh_questions_are_a_set_of_their_own_chosen_as_those_that_are_measured_on(made, tmp_path):
    fresh = tmp_path / "fresh.jsonl"
    fresh.write_text("".join(json.dumps(one) + "\n" for number in range(400, 500) for one in asked(number)))
    without = made()
    files = made("--fresh", fresh)
    assert {name: rows for name, rows in files.items() if name != "fresh"} == without
    (tmp_path / "short.jsonl").write_text(fresh.read_text())
    (tmp_path / "long.jsonl").write_text("")
    wanted = made()["on_policy"]
    assert [one | {"dataset": "on_policy"} for one in files["fresh"]] == wanted and len(wanted) > 200
    assert {one["dataset"] for one in files["fresh"]} == {"on_policy_fresh"}
