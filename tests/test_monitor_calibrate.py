"""monitor calibrate: thresholds are the conformal ones of the streamed statistic, and hold on fresh replies."""

import json
import os
from dataclasses import replace
from pathlib import Path

import labelled_files as files
import monitor_files
import pytest
import tiny_files

from discovery import lab
from discovery.benign_replies import read_benign
from discovery.conversations import read_conversations
from discovery.errors import LabError
from discovery.group_split import group_digest
from discovery.monitor_calibrate import output_paths
from discovery.monitor_scores import reading_plan, score_replies
from discovery.read_replies import read_replies
from monitors.conformal import calibrate
from monitors.pack import MonitorPack
from monitors.stability import bin_counts
from sae_runtime.language_model import load_language_model

BOUNDS, LEVELS = (16, 64), {"warning": 0.05, "critical": 0.02}
HOW = ["--bounds", "16,64", "--warning", "0.05", "--critical", "0.02", "--json"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_files.write_model(folder)
    return folder


@pytest.fixture
def pack(model, tmp_path):
    path = tmp_path / "watcher.pack.yaml"
    monitor_files.frozen_pack(model).save(path)
    return path


@pytest.fixture(scope="module")
def benign(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benign")
    one = files.write(folder / "one.jsonl", files.benign(260, dataset="one"))
    two = [row | {"meta": {"temperature": 0.7}} for row in files.benign(200, dataset="two", seed=1, prompt="Hello")]
    return [one, files.write(folder / "two.jsonl", two)]


def run(capsys, *argv):
    code = lab.run("monitor", ["calibrate", *(str(word) for word in argv)])
    captured = capsys.readouterr()
    return json.loads(captured.out.splitlines()[-1]) if code == 0 else captured.err.splitlines()[-1]


def scored(model, pack, paths):
    lm = load_language_model(str(model), dtype="float32", device="cpu")
    rows = read_benign(lm, paths, min_tokens=pack.min_tokens, max_scored=64, max_tokens=2048)
    return rows, score_replies(pack, read_replies(lm, rows.replies, reading_plan(pack, None)))


def test_replies_without_thoughts_are_no_successes_of_a_monitor_of_thoughts(model, tmp_path):
    lm = load_language_model(str(model), dtype="float32", device="cpu")
    texts = [
        "<think>one two three four five six</think> Yes.",
        "<think>No.</think> One two three four five six.",
        "Yes.",
    ]
    rows = [row | {"group": f"g{n}"} for n, row in enumerate(files.benign(3, dataset="mixed"))]
    for row, text in zip(rows, texts, strict=True):
        row["messages"][-1]["content"] = text
        row["score_to_char"] = len(text)
    path = files.write(tmp_path / "mixed.jsonl", rows)

    def counted(*roles, min_tokens=25):
        options = {"max_scored": 99, "max_tokens": 2048, "reasoning": "<think> </think>"}
        found = read_benign(lm, [path], min_tokens=min_tokens, roles=roles, **options)
        return [texts.index(row.messages[-1]["content"]) for row in found.conversations]

    assert counted("reasoning") == [0]
    assert counted("assistant", "reasoning") == [0, 1]
    assert counted("assistant") == counted("user") == [0, 1]
    assert counted("reasoning", min_tokens=1) == [0, 1] and counted("assistant", min_tokens=1) == [0, 1, 2]


def test_thresholds_are_the_conformal_ones_and_hold_on_fresh_replies(model, pack, benign, tmp_path, capsys):
    frozen = MonitorPack.load(pack)
    figures = run(capsys, pack, "--benign", *benign, *HOW, *monitor_files.options(model))
    made = MonitorPack.load(pack)
    assert (made.version, made.validated, made.bindings.temperatures) == (2, False, (0.7,))
    assert made.frozen_sha256 == frozen.frozen_sha256 == figures["frozen_sha256"]
    _, replies = scored(model, frozen, benign)
    wanted = calibrate([reply.scores for reply in replies], min_tokens=4, bounds=BOUNDS, alphas=LEVELS)
    assert made.thresholds == wanted.thresholds
    assert [of["num_replies"] for of in figures["strata"]] == [of.num_replies for of in wanted.strata]
    assert [of["thresholds"] for of in figures["strata"]] == [of.thresholds for of in wanted.strata]
    assert made.calibration.method == "conformal_by_length" and "one (260), two (200)" in made.calibration.source
    fresh = files.write(tmp_path / "fresh.jsonl", files.benign(300, dataset="fresh", seed=5))
    fired = [reply.level is not None for reply in scored(model, made, [fresh])[1]]
    assert sum(fired) / 300 <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


def test_the_pack_keeps_what_a_server_compares_its_traffic_with(model, pack, benign, capsys):
    run(capsys, pack, "--benign", *benign, *HOW, *monitor_files.options(model))
    made = MonitorPack.load(pack)
    _, replies = scored(model, made, benign)
    kept = [reply for reply in replies if len(reply.scores) >= made.min_tokens]
    reference = made.calibration.reference
    assert list(reference.statistic.counts) == bin_counts(reference.statistic.edges, [r.statistic for r in kept])
    tokens = [score for reply in kept for score in reply.scores[made.min_tokens - 1 :]]
    assert list(reference.token_score.counts) == bin_counts(reference.token_score.edges, tokens)
    assert reference.statistic.num_values == 460


def test_rates_come_from_replies_that_thresholds_were_not_set_on(model, pack, benign, capsys):
    figures = run(capsys, pack, "--benign", *benign, *HOW, *monitor_files.options(model))
    crossed = figures["cross_fitted"]
    assert crossed["all"]["warning"]["num"] == 460 == crossed["alerts"]["num_replies"]
    assert 0 < crossed["all"]["warning"]["share"] <= 0.09
    assert crossed["all"]["critical"]["count"] <= crossed["all"]["warning"]["count"]
    for by in ("by_set", "by_stratum"):
        assert sum(shares["warning"]["count"] for shares in crossed[by].values()) == crossed["all"]["warning"]["count"]
    assert set(crossed["by_set"]) == {"one", "two"} and set(crossed["by_stratum"]) <= {"16", "64"}
    share = crossed["by_set"]["one"]["warning"]
    assert share["low"] <= share["share"] <= share["high"]
    assert crossed["alerts"]["num_alerts"] >= crossed["all"]["warning"]["count"]
    curve = [point["offset"] for point in figures["curve"]]
    assert curve == sorted(curve) and len(curve) > 5


def test_no_reply_of_a_group_has_a_part_in_the_thresholds_that_it_is_held_against(model, pack, tmp_path, capsys):
    """The highest replies are all of one group: thresholds of the others let all of them fire. Folds that tear the
    group apart, or thresholds that it had a part in, let as few fire as may."""
    path = files.write(tmp_path / "some.jsonl", files.benign(260, dataset="some"))
    conversations, replies = scored(model, MonitorPack.load(pack), [path])
    of_row = {row.group: reply.statistic for row, reply in zip(conversations.conversations, replies, strict=True)}
    rows = sorted(map(json.loads, path.read_text().splitlines()), key=lambda row: of_row[row["group"]])
    odd = [row | {"group": "odd"} for row in rows[-30:]]
    files.write(path, [*rows[:-30], *odd])
    how = ["--bounds", "64", "--warning", "0.05", "--critical", "0.02", "--json"]
    crossed = run(capsys, pack, "--benign", path, *how, *monitor_files.options(model))["cross_fitted"]
    assert 30 <= crossed["all"]["warning"]["count"] <= 30 + 30
    figures = run(capsys, pack, "--benign", path, *how, "--seed", "2", *monitor_files.options(model))
    # Without the seed nobody could deal the same folds again.
    assert figures["folds_seed"] == "2" and figures["cross_fitted"]["all"]["warning"]["count"] >= 30


def test_a_rate_leaves_out_replies_whose_level_no_fold_could_set(model, pack, benign, capsys):
    """In a stratum with as few replies as a level needs it stands, and in none of the folds, which have fewer."""
    frozen = MonitorPack.load(pack)
    _, replies = scored(model, frozen, benign)
    lengths = sorted((len(reply.scores) for reply in replies), reverse=True)
    longest = lengths[19]  # the twentieth: 19 are needed
    num = sum(length >= longest for length in lengths)
    bounds = f"{longest - 1},64"
    how = ["--bounds", bounds, "--warning", str(1 / (num + 0.5)), "--critical", "0.0001", "--json"]
    figures = run(capsys, pack, "--benign", *benign, *how, *monitor_files.options(model))
    assert figures["strata"][1]["thresholds"]["warning"] is not None
    crossed = figures["cross_fitted"]
    assert crossed["left_out"]["warning"] == num and set(crossed["by_stratum"]) == {str(longest - 1), "64"}
    assert "warning" not in crossed["by_stratum"]["64"]
    assert crossed["all"]["warning"]["num"] == 460 - num


def test_hard_negatives_are_measured_and_decide_nothing(model, pack, benign, tmp_path, capsys):
    plain = run(
        capsys, pack, "--benign", *benign, *HOW, "--output", tmp_path / "plain.pack.yaml", *monitor_files.options(model)
    )
    hard = files.write(tmp_path / "hard.jsonl", files.benign(30, dataset="about_lies", seed=8))
    options = ["--hard-negative", hard, "--output", tmp_path / "hard.pack.yaml", *monitor_files.options(model)]
    measured = run(capsys, pack, "--benign", *benign, *HOW, *options)
    assert measured["offsets"] == plain["offsets"] and plain["hard_negatives"] == {}
    assert measured["hard_negatives"]["about_lies"]["warning"]["num"] == 30


def test_what_does_not_count_is_counted_by_reason(model, pack, tmp_path, capsys):
    rows = files.benign(200, dataset="mixed", seed=3)
    rows[0]["messages"][1]["content"] = "abc"
    rows[1]["messages"][1]["content"] = "abcd " * 20
    rows[2]["messages"][1]["content"] = "abc" * 800
    seen = [row["group"] for row in rows[10:13]]
    fit = {"fit": {"seen_groups": [group_digest(f"mixed/{group}") for group in seen]}}
    replace(MonitorPack.load(pack), evidence=fit).save(pack)
    mixed = files.write(tmp_path / "mixed.jsonl", rows)
    figures = run(capsys, pack, "--benign", mixed, *HOW, *monitor_files.options(model))
    assert figures["left_out"] == {"mixed": {"too_short": 1, "cut": 1, "too_long": 1, "seen": 3}}
    assert figures["cross_fitted"]["all"]["warning"]["num"] == 195


def test_a_pack_of_another_model_or_form_is_refused_unless_bound_anew(model, pack, benign, capsys):
    made = MonitorPack.load(pack)
    for field, value in (("quantization", "nf4"), ("model_sha256", "1" * 64), ("chat_template_sha256", "2" * 64)):
        replace(made, bindings=replace(made.bindings, **{field: value})).save(pack)
        line = run(capsys, pack, "--benign", *benign, *HOW, *monitor_files.options(model))
        assert f"bindings.{field}: wanted" in line and "(--rebind binds it anew)" in line
    run(capsys, pack, "--benign", *benign, *HOW, "--rebind", *monitor_files.options(model))
    assert replace(MonitorPack.load(pack).bindings, temperatures=()) == made.bindings


def test_a_pack_is_bound_to_the_template_that_its_replies_went_through(model, pack, tmp_path, capsys):
    """Through another one the same replies would have other scores, and nothing would refuse the pack there."""
    made = MonitorPack.load(pack)
    rows = files.benign(120, dataset="talk")
    talk = files.write(tmp_path / "talk.jsonl", rows)
    text = [row | {"dataset": "text", "messages": [row["messages"][-1] | {"role": "text"}]} for row in rows]
    plain = files.write(tmp_path / "text.jsonl", text)
    template = made.bindings.chat_template_sha256
    assert template is not None
    for benign, wanted in (([plain], None), ([talk], template), ([plain, talk], template)):
        replace(made, bindings=replace(made.bindings, chat_template_sha256=None)).save(pack)
        figures = run(capsys, pack, "--benign", *benign, *HOW, *monitor_files.options(model))
        found = MonitorPack.load(pack)
        assert found.bindings.chat_template_sha256 == wanted
        assert figures["frozen_sha256"] == found.frozen_sha256


def test_what_is_not_benign_and_too_little_are_named(model, pack, tmp_path, capsys):
    lies = files.write(tmp_path / "lies.jsonl", files.instructed(10))
    line = run(capsys, pack, "--benign", lies, *HOW, *monitor_files.options(model))
    assert "benign replies must have label 0, got 10 with 1, first instructed, id 'instructed-1'" in line
    few = files.write(tmp_path / "few.jsonl", files.benign(12))
    line = run(capsys, pack, "--benign", few, *HOW, *monitor_files.options(model))
    assert "replies: wanted at least 19 in a stratum" in line
    short = [row | {"score_to_char": 2} for row in files.benign(12)]
    path = files.write(tmp_path / "short.jsonl", short)
    line = run(capsys, pack, "--benign", path, *HOW, *monitor_files.options(model))
    assert "some benign reply must have 4 scored tokens, got none: {'benign': {'too_short': 12}}" in line
    assert MonitorPack.load(pack).thresholds is None


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (("--bounds", "0"), "bounds: wanted rising whole numbers of at least 1, got [0]"),
        (("--bounds", "64,16"), "bounds: wanted rising whole numbers of at least 1, got [64, 16]"),
        (("--warning", "nan"), "alphas.warning: wanted a share between 0 and 1, got nan"),
        (("--warning", "0"), "alphas.warning: wanted a share between 0 and 1, got 0.0"),
        (("--temperature", "200"), "temperatures.0: wanted a temperature of 0 to 100, got 200.0"),
        (
            ("--warning", "0.001", "--critical", "0.01"),
            "alphas.critical: wanted at most the warning's, 0.001, got 0.01",
        ),
    ],
)
def test_what_no_replies_can_be_calibrated_to_is_refused_before_anything_is_read(pack, tmp_path, capsys, how, says):
    line = run(capsys, pack, "--benign", tmp_path / "nothing.jsonl", *how, "--model", tmp_path / "nothing")
    assert says in line


def test_the_table_names_sets_strata_and_levels_that_are_absent(model, pack, benign, capsys):
    how = ["--bounds", "9,16,128", "--warning", "0.02"]
    argv = ["calibrate", str(pack), "--benign", *map(str, benign), *how, *monitor_files.options(model)]
    assert lab.run("monitor", argv) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if " warning " in line]
    assert [row[0] for row in rows] == ["all", "up to 9 tokens", "up to 16 tokens", "up to 128 tokens", "one", "two"]
    # Too few replies are that short: the warning is absent there, so that none of them reached it says nothing.
    assert rows[1][2:] == ["-", rows[1][3], "-", "-"] and 0 < int(rows[1][3]) < 49
    assert rows[0][3] == "460" and rows[0][5].endswith("%") and " to " in rows[0][5]
    assert "critical: absent, too few replies in every stratum" in out and "warning: offset" in out


def test_several_packs_are_calibrated_in_one_pass_as_each_would_be_alone(model, benign, tmp_path, capsys):
    """Their groups, windows and first tokens differ; every reply is read once."""
    seen = [group_digest(row.full_group) for row in read_conversations(benign)[:40]]
    packs = []
    for name, seed, min_tokens in (("one", 1, 4), ("two", 2, 8)):
        made = monitor_files.frozen_pack(model, name=name, seed=seed, min_tokens=min_tokens)
        fit = {"fit": {"seen_groups": seen if name == "one" else []}}
        packs.append(tmp_path / f"{name}.pack.yaml")
        replace(made, evidence=fit).save(packs[-1])
    options = [*HOW, *monitor_files.options(model)]
    for path in packs:
        run(capsys, path, "--benign", *benign, "--output", tmp_path / "alone" / path.name, *options)
    run(capsys, *packs, "--benign", *benign, "--output", tmp_path / "together", *options)
    for path in packs:
        alone, together = (MonitorPack.load(tmp_path / how / path.name) for how in ("alone", "together"))
        assert together.frozen_sha256 == alone.frozen_sha256 and together.version == 2
        assert [level.offset for _, level in together.thresholds.levels.named()] == pytest.approx(
            [level.offset for _, level in alone.thresholds.levels.named()], abs=1e-5
        )
        figures = [pack.calibration.figures for pack in (alone, together)]
        assert figures[0]["cross_fitted"] == figures[1]["cross_fitted"]
        assert figures[0]["left_out"] == figures[1]["left_out"]
    assert (
        figures[0]["left_out"]
        != MonitorPack.load(tmp_path / "together" / "one.pack.yaml").calibration.figures["left_out"]
    )


def test_packs_for_one_folder_must_have_names_of_their_own(model, pack, benign, tmp_path, capsys):
    other = tmp_path / "elsewhere" / pack.name
    other.parent.mkdir()
    other.write_bytes(pack.read_bytes())
    options = ["--benign", *benign, *HOW, *monitor_files.options(model)]
    line = run(capsys, pack, other, *options, "--output", tmp_path / "together")
    assert "must have different names, got watcher.pack.yaml twice" in line
    line = run(capsys, pack, other, *options, "--output", pack)
    assert f"--output must be a folder, got a file: {pack}" in line


def test_the_place_of_every_pack_is_looked_at_before_any_is_calibrated(tmp_path, monkeypatch):
    packs = [tmp_path / name / "watcher.pack.yaml" for name in ("open", "shut", "wide")]
    for path in packs:
        path.parent.mkdir()
    allowed = os.access  # who runs the tests may be root, whom nothing is shut to
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "shut" and allowed(path, mode))
    with pytest.raises(LabError, match="shut is read-only"):
        output_paths(packs, None)
    assert output_paths([packs[0], packs[2]], None) == [packs[0], packs[2]]
