"""monitor evaluate: figures are of the streamed statistic, leaks show in baselines, luck is luck, the page opens."""

import json
import re
from dataclasses import replace

import labelled_files as files
import monitor_files
import numpy as np
import pytest
import tiny_files
import tiny_packs
from browser import needs_browser, open_page
from sklearn.metrics import roc_auc_score

from discovery import lab
from discovery.conversations import read_conversations
from discovery.failure_gallery import ShownReply
from discovery.fitted_baselines import baselines_path
from discovery.four_columns import COLUMNS
from discovery.group_split import group_digest
from discovery.monitor_report import spark
from discovery.monitor_scores import reading_plan, score_replies
from discovery.read_replies import read_replies
from discovery.scored_tokens import encode_all
from monitors.pack import MonitorPack
from sae_runtime.language_model import load_language_model

EVIL = "<script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    sha = tiny_files.write_model(folder / "model")
    tiny_files.write_dictionary(folder / "sae", sha, resid_norm_mean=30.0)
    return folder / "model"


@pytest.fixture(scope="module")
def stance(model, tmp_path_factory):
    """A monitor fitted on what the prompt says to be."""
    folder = tmp_path_factory.mktemp("stance")
    data = files.write(folder / "instructed.jsonl", files.instructed(40))
    output = folder / "stance.pack.yaml"
    argv = ["fit", str(data), "--output", str(output), "--windows", "8", "--min-tokens", "4", "--layers", "1,2"]
    assert lab.run("monitor", [*argv, *monitor_files.options(model)]) == 0
    return output


@pytest.fixture
def watcher(model, tmp_path):
    """A monitor of a fixed direction, with thresholds."""
    path = tmp_path / "watcher.pack.yaml"
    pack = monitor_files.frozen_pack(model)
    marks = tiny_packs.thresholds(0.5, 1.0)
    replace(pack, thresholds=marks, calibration=tiny_packs.pack().calibration).save(path)
    return path


def run(capsys, model, *argv):
    code = lab.run("monitor", ["evaluate", *(str(word) for word in argv), *monitor_files.options(model)])
    captured = capsys.readouterr()
    return json.loads(captured.out.splitlines()[-1]) if code == 0 else captured.err.splitlines()[-1]


def record_of(capsys, model, tmp_path, *argv):
    path = tmp_path / "record.json"
    line = run(capsys, model, *argv, "--json", "--record", path)
    return line, json.loads(path.read_text())


# --- what is found --------------------------------------------------------------------------------------------------


def test_a_planted_difference_is_found_on_other_data_and_words_find_nothing(model, stance, tmp_path, capsys):
    fresh = files.write(tmp_path / "fresh.jsonl", files.instructed(30, dataset="fresh", seed=7))
    line, record = record_of(capsys, model, tmp_path, fresh, "--monitor", stance)
    assert set(line) == {"fresh"} and line["fresh"]["auroc"] > 0.9
    assert (line["fresh"]["num_positive"], line["fresh"]["num_negative"]) == (30, 30)
    assert line["fresh"]["fpr_at_threshold"] is None and line["fresh"]["recall_basis"] == "negatives"
    of_set = record["sets"]["fresh"]
    baselines = of_set["baselines"]
    assert of_set["auroc"]["low"] > 0.8
    for name in ("bag_of_words", "reply_length"):  # both labels have the same texts
        assert baselines[name]["auroc"]["mean"] == 0.5
    assert baselines["dense_best_layer"]["auroc"]["mean"] > 0.9
    assert {"output_statistics", "low_log_prob", "entropy", "first_token_entropy"} <= set(baselines)
    luck = of_set["luck"]["random_direction"]
    assert 0.5 <= luck["median"] <= luck["95%"] and luck["num"] == 50


def test_a_leak_by_length_shows_in_the_length_baseline(model, watcher, tmp_path, capsys):
    data = files.write(tmp_path / "long.jsonl", files.long_lies(30))
    _line, record = record_of(capsys, model, tmp_path, data, "--monitor", watcher)
    assert record["sets"]["long_lies"]["baselines"]["reply_length"]["auroc"]["mean"] > 0.95


def test_permuted_labels_give_luck(model, stance, tmp_path, capsys):
    data = files.write(tmp_path / "shuffled.jsonl", files.shuffled(40, seed=11))
    line, _record = record_of(capsys, model, tmp_path, data, "--monitor", stance)
    assert line["shuffled"]["auroc_low"] < 0.5 < line["shuffled"]["auroc_high"]


def test_figures_are_of_the_statistic_that_is_streamed(model, watcher, tmp_path, capsys):
    data = files.write(tmp_path / "long.jsonl", files.long_lies(25))
    line = run(capsys, model, data, "--monitor", watcher, "--json")["long_lies"]
    pairs = statistics_of(model, watcher, data)
    statistics, labels = np.array([s for s, _ in pairs]), np.array([row.label for _, row in pairs])
    assert line["auroc"] == pytest.approx(roc_auc_score(labels, statistics), abs=1e-4)
    assert line["fpr_at_threshold"] == pytest.approx((statistics[labels == 0] > 0.5).mean())
    # The pack's warning stands for 1 % of benign replies.
    assert line["recall_basis"] == "calibration"
    assert line["recall_at_1pct_fpr"] == pytest.approx((statistics[labels == 1] > 0.5).mean(), abs=1e-4)


def test_groups_that_were_fitted_on_are_left_out(model, stance, tmp_path, capsys):
    data = files.write(tmp_path / "instructed.jsonl", files.instructed(40))
    seen = set(MonitorPack.load(stance).evidence["fit"]["seen_groups"])
    fresh = sum(group_digest(row.full_group) not in seen for row in read_conversations([data]))
    line, record = record_of(capsys, model, tmp_path, data, "--monitor", stance)
    assert line["instructed"]["num_positive"] + line["instructed"]["num_negative"] == fresh < 80
    assert record["data"]["left_out"] == {"instructed": {"seen": 80 - fresh}}
    line = run(capsys, model, data, "--monitor", stance, "--include-seen", "--json")
    assert line["instructed"]["num_positive"] == 40


def test_what_was_fitted_on_is_known_in_another_file(model, tmp_path, capsys):
    """Without a data set's name the file's stands for it: a copy has other groups, and the same texts."""
    rows = [{key: row[key] for key in row.keys() - {"dataset", "id"}} for row in files.instructed(40, length=60)]
    first, copy = (files.write(tmp_path / f"{name}.jsonl", rows) for name in ("first", "copy"))
    output = tmp_path / "stance.pack.yaml"
    argv = ["fit", str(first), "--output", str(output), "--layers", "2", *monitor_files.options(model)]
    assert lab.run("monitor", argv) == 0
    fit = MonitorPack.load(output).evidence["fit"]
    num_seen = sum(of_set["num_groups"] for part in ("train", "development") for of_set in fit["data"][part])
    assert len(fit["seen_texts"]) == num_seen
    for name, path in (("first", first), ("copy", copy)):
        _line, record = record_of(capsys, model, tmp_path, path, "--monitor", output, "--no-predictions")
        assert record["data"]["left_out"] == {name: {"seen": 2 * num_seen}}


def test_controls_say_what_one_percent_is_and_hard_negatives_stay_apart(model, watcher, tmp_path, capsys):
    data = files.write(tmp_path / "long.jsonl", files.long_lies(20))
    long = [files.row(n, "one", "Be honest", "a" * 4000, 0, f"long-{n}") for n in range(100, 103)]
    one = files.write(tmp_path / "one.jsonl", files.benign(40, dataset="one") + long[:2])
    two = files.write(tmp_path / "two.jsonl", files.benign(40, dataset="two"))
    hard = files.write(tmp_path / "hard.jsonl", files.benign(30, dataset="about", seed=4) + long[2:])
    options = ["--control", one, two, "--hard-negative", hard]
    line, record = record_of(capsys, model, tmp_path, data, "--monitor", watcher, *options)
    assert line["long_lies"]["recall_basis"] == "controls"
    assert {name: of["num"] for name, of in record["controls"].items()} == {"one": 40, "two": 40}
    assert list(record["hard_negatives"]) == ["about"]
    # A set that is among both is counted in each.
    assert record["controls_left_out"] == {"one": {"too_long": 2}}
    assert record["hard_negatives_left_out"] == {"one": {"too_long": 1}}
    warning = record["controls"]["one"]["levels"]["warning"]
    assert warning["num"] == 40 and warning["low"] <= warning["share"] <= warning["high"]
    without, _record = record_of(capsys, model, tmp_path, data, "--monitor", watcher, "--control", one, two)
    assert without == line


def test_controls_too_short_to_fire_are_no_successes(model, watcher, tmp_path, capsys):
    data = files.write(tmp_path / "long.jsonl", files.long_lies(20))
    controls = files.benign(40, dataset="mixed")
    long = files.write(tmp_path / "long_ones.jsonl", controls)
    short = [files.row(n, "mixed", "Hi", "a", 0, f"short-{n}") for n in range(1000, 1400)]
    mixed = files.write(tmp_path / "mixed.jsonl", [*controls, *short])
    figures = []
    for control in (long, mixed):
        _line, record = record_of(capsys, model, tmp_path, data, "--monitor", watcher, "--control", control)
        of_set = record["sets"]["long_lies"]
        recalls = [of_set["recall_at_1pct_fpr"], of_set["baselines"]["reply_length"]["recall_at_1pct_fpr"]]
        figures.append((record["controls"]["mixed"]["levels"], recalls))
    assert record["controls"]["mixed"]["num"] == 440 and record["controls"]["mixed"]["num_too_short"] == 400
    assert figures[0] == figures[1]


def test_latents_have_luck_of_their_own(model, tmp_path, capsys):
    data = files.write(tmp_path / "instructed.jsonl", files.instructed(60))
    output, sae = tmp_path / "latents.pack.yaml", model.parent / "sae"
    argv = ["fit", data, "--output", output, "--kind", "features", "--dictionary", sae, "--permutations", "40"]
    assert lab.run("monitor", [str(word) for word in [*argv, "--layers", "1", *monitor_files.options(model)]]) == 0
    mixed = files.write(tmp_path / "shuffled.jsonl", files.shuffled(20, seed=11))
    line, record = record_of(capsys, model, tmp_path, data, mixed, "--monitor", output, "--dictionary", sae)
    planted, shuffled = (record["sets"][name]["luck"] for name in ("instructed", "shuffled"))
    assert set(planted) == {"random_direction", "random_feature", "best_features"}
    assert planted["random_feature"]["95%"] < line["instructed"]["auroc"]
    for luck in (planted, shuffled):
        best = luck["best_features"]
        # The best of several latents does better by luck than one that nobody chose, which has 0.5.
        assert 0.55 < best["luck"]["median"] < best["luck"]["95%"] < 1
    assert planted["best_features"]["auroc_held_out"] > planted["best_features"]["luck"]["95%"]
    assert shuffled["best_features"]["auroc_held_out"] < shuffled["best_features"]["luck"]["95%"]
    # Without the dictionary nothing can be read.
    assert "bindings.sae_sha256" in run(capsys, model, data, "--monitor", output)


# --- on-policy ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lies(model, tmp_path_factory):
    """A monitor fitted on what a lie is made of here, one arm held out."""
    folder = tmp_path_factory.mktemp("lies")
    data = files.write(folder / "on_policy.jsonl", files.on_policy(90))
    output = folder / "lies.pack.yaml"
    argv = ["fit", str(data), "--output", str(output), "--windows", "8", "--min-tokens", "4", "--layers", "0,1"]
    classes = ["--positive-class", "lie", "--negative-class", "told_to_lie_but_true", "--hold-out-arm", "please"]
    assert lab.run("monitor", [*argv, *classes, *monitor_files.options(model)]) == 0
    return output, data


def statistics_of(model, path, data):
    """Every reply's statistic beside its conversation, straight from the streaming code."""
    pack, lm = MonitorPack.load(path), load_language_model(str(model), dtype="float32", device="cpu")
    encoded = encode_all(lm.tokenizer, read_conversations([data]), max_tokens=2048)
    scored = score_replies(pack, read_replies(lm, encoded.replies, reading_plan(pack, None)))
    return [(reply.statistic, row) for reply, row in zip(scored, encoded.conversations, strict=True)]


def counted(high, low):
    """Pair by pair; of (statistic, stratum) only pairs within a stratum."""
    won = [(a > b) + 0.5 * (a == b) for a, s in high for b, t in low if s == t]
    return sum(won) / len(won)


def test_four_columns_are_pairs_of_classes_and_arms(model, lies, tmp_path, capsys):
    output, data = lies
    _line, record = record_of(capsys, model, tmp_path, data, "--monitor", output)
    tables = record["four_columns"]["on_policy"]
    seen = set(MonitorPack.load(output).evidence["fit"]["seen_groups"])
    rows = [pair for pair in statistics_of(model, output, data) if group_digest(pair[1].full_group) not in seen]
    for name, arms in (("all_arms", {"must", "please"}), ("held_out_arms", {"please"})):
        table = tables[name]["predictors"]["monitor"]

        def of(class_name, *, by_arm=False, arms=arms):
            return [
                (statistic, row.arm if by_arm else "")
                for statistic, row in rows
                if row.class_name == class_name and row.arm in arms | {"honest"}
            ]

        for column, (high, low) in COLUMNS.items():
            by_arm = column == "same_instruction"
            wanted = counted(of(high, by_arm=by_arm), of(low, by_arm=by_arm))
            assert table[column]["mean"] == pytest.approx(wanted, abs=1e-4), (name, column)
            assert (table[column]["num_high"], table[column]["num_low"]) == (len(of(high)), len(of(low)))
        assert tables[name]["counts"]["lie"] == len(of("lie"))
        assert tables[name]["flagged"]["lie"] is None  # it has no thresholds yet
        assert set(tables[name]["arms"]) == arms | {"honest"}
        # It was fitted on letters that lies have under either prompt.
        assert table["same_instruction"]["mean"] > 0.7
    assert {"bag_of_words", "reply_length", "final_mean"} <= set(tables["all_arms"]["predictors"])


def test_lies_that_nobody_asked_for_are_left_out_once_more(model, watcher, tmp_path, capsys):
    rows = files.on_policy(40)
    lies = [row for row in rows if row["meta"]["class"] == "lie"]
    data = tmp_path / "on_policy.jsonl"

    def tables(pressed):
        for row in lies:
            row["meta"]["instruction"] = "incentive" if row in pressed else "lying"
        _line, record = record_of(capsys, model, tmp_path, files.write(data, rows), "--monitor", watcher)
        return record["four_columns"]["on_policy"]

    assert "told_to_lie" not in tables([]) and "told_to_lie" not in tables(lies)
    found = tables(lies[:5])
    every, told = found["all_arms"]["counts"], found["told_to_lie"]["counts"]
    assert told == every | {"lie": every["lie"] - 5}


def test_the_same_question_asked_neutrally_is_a_control(model, watcher, tmp_path, capsys):
    rows = files.on_policy(40)
    for row in rows:
        if row["meta"]["arm"] == "honest":
            row["meta"]["instruction"] = "neutral"
    data = files.write(tmp_path / "on_policy.jsonl", rows)
    _line, record = record_of(capsys, model, tmp_path, data, "--monitor", watcher)
    table = record["four_columns"]["on_policy"]["all_arms"]
    assert table["predictors"]["item_control"]["same_instruction"]["num_high"] == table["counts"]["lie"]


def test_a_lie_with_no_truth_under_its_prompt_is_not_counted_among_the_same_instruction(
    model, watcher, tmp_path, capsys
):
    """Nor is a truth with no lie: the figure would seem to rest on more replies than are compared."""
    rows = files.on_policy(40)
    under = {name: [row for row in rows if row["meta"]["class"] == name] for name in ("lie", "told_to_lie_but_true")}
    for row in under["lie"][:5]:
        row["meta"]["arm"] = "pressed"
    for row in under["told_to_lie_but_true"][:3]:
        row["meta"]["arm"] = "secret"
    data = files.write(tmp_path / "on_policy.jsonl", rows)
    _line, record = record_of(capsys, model, tmp_path, data, "--monitor", watcher)
    found = record["four_columns"]["on_policy"]["all_arms"]["predictors"]["monitor"]
    num_lies, num_truths = (len(of_class) for of_class in under.values())
    sizes = {column: (found[column]["num_high"], found[column]["num_low"]) for column in COLUMNS}
    assert sizes["same_instruction"] == (num_lies - 5, num_truths - 3)
    assert sizes["lie_vs_honest_truth"][0] == num_lies and sizes["told_to_lie_but_true"][0] == num_truths


def test_formats_are_not_compared_with_one_another(model, watcher, tmp_path, capsys):
    """Lies in long replies and truths in short ones: that tells of formats, and pairs within one tell nothing."""
    rows = []
    for question in range(24):
        for form, length in (("short", 14), ("passage", 40)):
            for arm, instruction in (("neutral", "neutral"), ("must", "lying")):
                # In either format both classes have the same text; but most lies are passages.
                lies = instruction == "lying" and question % 6 < (5 if form == "passage" else 1)
                name = "lie" if lies else "told_to_lie_but_true" if instruction == "lying" else "honest_truth"
                meta = {"class": name, "arm": arm, "instruction": instruction, "format": form}
                more = {"meta": meta | {"question_id": f"q{question}"}, "on_policy": True}
                text = ("same old text " * 3)[:length]
                rows.append(files.row(len(rows), "forms", "Well?", text, int(lies), f"q{question}", **more))
    data = files.write(tmp_path / "forms.jsonl", rows)
    _line, record = record_of(capsys, model, tmp_path, data, "--monitor", watcher)
    predictors = record["four_columns"]["forms"]["all_arms"]["predictors"]
    for name in ("reply_length", "monitor", "item_control"):
        assert predictors[name]["same_instruction"]["mean"] == 0.5, name
    # Its own format's neutral reply, which is as long, and so as high, as the lie.
    assert abs(predictors["item_control"]["lie_vs_honest_truth"]["mean"] - 0.5) > 0.1


# --- what comes out -------------------------------------------------------------------------------------------------


def test_the_pack_keeps_the_evidence_in_its_next_version(model, watcher, tmp_path, capsys):
    data = files.write(tmp_path / "long.jsonl", files.long_lies(20))
    output = tmp_path / "evaluated.pack.yaml"
    run(capsys, model, data, "--monitor", watcher, "--output", output, "--json")
    before, after = MonitorPack.load(watcher), MonitorPack.load(output)
    assert (after.version, after.validated) == (before.version + 1, False)
    assert after.evidence["evaluation"]["sets"]["long_lies"]["num_positive"] == 20
    assert after.frozen_sha256 == before.frozen_sha256 and after.thresholds == before.thresholds
    assert after.limits == before.limits
    words = ["--validated", "It found them all.", "--limits", "Long ones only."]
    # Refused before anything is read: these files are not there.
    line = run(capsys, model, tmp_path / "none.jsonl", "--monitor", watcher, "--output", output, *words)
    assert "validated: wanted" in line
    calibrated = replace(before, calibration=replace(before.calibration, method="conformal_by_length"))
    calibrated.save(watcher)
    run(capsys, model, data, "--monitor", watcher, "--output", output, "--json", *words)
    said = MonitorPack.load(output)
    assert (said.validated, said.validated_reason, said.limits) == (True, "It found them all.", "Long ones only.")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--include-seen"], "--output must come without --include-seen"),
        (["--rebind"], "--output must come without --rebind"),
        (["--validated", " "], "--validated must say why"),
        (["--limits", ""], "--limits must say what it does not show, got nothing"),
    ],
)
def test_no_evidence_is_written_that_supports_nothing(watcher, tmp_path, capsys, options, words):
    output = tmp_path / "evaluated.pack.yaml"
    argv = ["evaluate", str(tmp_path / "none.jsonl"), "--monitor", str(watcher), "--output", str(output), *options]
    with pytest.raises(SystemExit) as exit_info:
        lab.run("monitor", argv)
    assert exit_info.value.code == 2 and not output.exists()
    assert words in capsys.readouterr().err


def test_a_monitor_is_found_by_name_in_a_folder(model, watcher, tmp_path, capsys):
    data = files.write(tmp_path / "long.jsonl", files.long_lies(20))
    by_name = run(capsys, model, data, "--monitor", "watcher", "--monitor-packs", watcher.parent, "--json")
    assert by_name == run(capsys, model, data, "--monitor", watcher, "--json")
    refused = run(capsys, model, data, "--monitor", "wacher", "--monitor-packs", watcher.parent)
    assert "or a monitor of model (watcher), got 'wacher'" in refused


def test_several_monitors_are_measured_in_one_pass_as_each_would_be_alone(model, stance, watcher, tmp_path, capsys):
    data = files.write(tmp_path / "instructed.jsonl", files.instructed(40))
    control = files.write(tmp_path / "control.jsonl", files.benign(30))
    asked = [data, "--control", control, "--json"]
    both = ["--monitor", stance, "--monitor", watcher]
    out = tmp_path / "out"
    line = run(capsys, model, *asked, *both, "--record", out, "--report", out, "--output", out)
    for path in (stance, watcher):
        alone, record = record_of(capsys, model, tmp_path, *asked[:3], "--monitor", path)
        name = path.name.removesuffix(".pack.yaml")
        assert line[name] == alone
        together = json.loads((out / f"{name}.json").read_text())
        assert together["sets"] == record["sets"] and together["controls"] == record["controls"]
        assert (out / f"{name}.html").stat().st_size > 10_000
        assert MonitorPack.load(out / path.name).evidence["evaluation"]["sets"] == record["sets"]


def test_the_table_has_the_same_figures(model, watcher, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    data = files.write(tmp_path / "long.jsonl", files.long_lies(20))
    line = run(capsys, model, data, "--monitor", watcher, "--json")["long_lies"]
    assert lab.run("monitor", ["evaluate", str(data), "--monitor", str(watcher), *monitor_files.options(model)]) == 0
    assert f"{line['auroc']:.3f} [{line['auroc_low']:.2f}, {line['auroc_high']:.2f}]" in capsys.readouterr().out


def test_what_cannot_be_evaluated_is_named(model, watcher, tmp_path, capsys):
    data = files.write(tmp_path / "long.jsonl", files.long_lies(10))
    truths = files.write(tmp_path / "truths.jsonl", files.benign(10))
    assert "truths.jsonl (controls go to --control) must have" in run(capsys, model, truths, "--monitor", watcher)
    line = run(capsys, model, data, "--monitor", watcher, "--control", data)
    assert "controls must have label 0, got 1 of long_lies" in line
    (tmp_path / "other.baselines.json").write_text("{}")
    line = run(capsys, model, data, "--monitor", watcher, "--baselines", tmp_path / "other.baselines.json")
    assert "must hold fitted baselines" in line
    line = run(capsys, model, data, "--monitor", watcher, "--baselines", tmp_path / "gone.json")
    assert "must be there, got nothing" in line
    line = run(capsys, model, data, "--monitor", watcher, "--monitor", watcher)
    assert "--monitor must name different monitors, got watcher twice" in line
    pack = MonitorPack.load(watcher)
    replace(pack, bindings=replace(pack.bindings, model_sha256="1" * 64)).save(watcher)
    assert "bindings.model_sha256: wanted" in run(capsys, model, data, "--monitor", watcher)


def test_baselines_of_another_monitor_are_refused(model, stance, watcher, tmp_path, capsys):
    data = files.write(tmp_path / "long.jsonl", files.long_lies(10))
    line = run(capsys, model, data, "--monitor", watcher, "--baselines", baselines_path(stance))
    assert "must be of a component of watcher (watcher), got those of another stance" in line


def test_a_combined_monitor_is_measured_beside_the_baselines_of_a_component(model, stance, watcher, tmp_path, capsys):
    data = files.write(tmp_path / "fresh.jsonl", files.instructed(10, dataset="fresh", seed=7))
    both = tmp_path / "both.pack.yaml"
    argv = ["combine", str(watcher), str(stance), "--rule", "min", "--window", "8", "--min-tokens", "4"]
    assert lab.run("monitor", [*argv, "--output", str(both)]) == 0
    _, record = record_of(capsys, model, tmp_path, data, "--monitor", both)
    assert record["baselines"] == {"fitted": False}
    (tmp_path / "stance.baselines.json").write_bytes(baselines_path(stance).read_bytes())
    _, record = record_of(capsys, model, tmp_path, data, "--monitor", both)
    assert record["baselines"]["component"] == "stance"
    alone = record_of(capsys, model, tmp_path, data, "--monitor", stance)[1]["sets"]["fresh"]["baselines"]
    found = record["sets"]["fresh"]["baselines"]
    assert found["bag_of_words"] == alone["bag_of_words"] and found["dense_best_layer"] == alone["dense_best_layer"]


@pytest.mark.parametrize("roles", [("reasoning",), ("assistant", "reasoning"), ("assistant",)])
def test_only_tokens_that_were_scored_are_shown(model, watcher, tmp_path, capsys, roles):
    """Of a monitor of thoughts alone nothing of the answers; a reply that has none is shown without a token."""
    replace(MonitorPack.load(watcher), roles=roles, min_tokens=2).save(watcher)
    thoughts, answer = "<think>why not</think>", "It is so."
    rows = files.instructed(8, dataset="thinking")
    for number, row in enumerate(rows):
        row["messages"][-1]["content"] = (thoughts if number < 14 else "") + answer
    data = files.write(tmp_path / "thinking.jsonl", rows)
    delimiters = ["--reasoning-delimiters", "<think> </think>"]
    _, record = record_of(capsys, model, tmp_path, data, "--monitor", watcher, *delimiters)
    texts = {shown["text"] for shown in record["gallery"]["thinking"]}
    # A delimiter of several tokens is known with its last one.
    wanted = {thoughts.removeprefix("<think"), ""} if roles == ("reasoning",) else {thoughts + answer, answer}
    assert texts <= wanted and texts != {""}


def test_replies_without_thoughts_leave_a_monitor_of_thoughts_nothing_to_show(model, watcher, tmp_path, capsys):
    replace(MonitorPack.load(watcher), roles=("reasoning",)).save(watcher)
    data = files.write(tmp_path / "plain.jsonl", files.instructed(8, dataset="plain"))
    _, record = record_of(capsys, model, tmp_path, data, "--monitor", watcher)
    assert {shown["text"] for shown in record["gallery"]["plain"]} == {""}


def test_a_reply_of_no_scored_token_has_an_empty_drawing():
    shown = ShownReply("lowest positive", None, "one", "set", 1, "", None, "Well?", [], False)
    assert spark(shown, 0.5) == ("", None)


def page(model, watcher, tmp_path):
    rows = files.on_policy(30)
    rows[0]["messages"][1]["content"] = f"{EVIL} größe 鯨"
    data = files.write(tmp_path / "on_policy.jsonl", rows)
    control = files.write(tmp_path / "benign.jsonl", files.benign(40))
    hard = files.write(tmp_path / "about.jsonl", files.benign(30, dataset="about", seed=4))
    path, record = tmp_path / "report.html", tmp_path / "record.json"
    pack = MonitorPack.load(watcher)
    curve = {"curve": [{"alpha": 0.1, "offset": 0.2}, {"alpha": 0.01, "offset": 0.5}]}
    replace(pack, calibration=replace(pack.calibration, figures=curve), limits=EVIL).save(watcher)
    argv = ["evaluate", data, "--monitor", watcher, "--control", control, "--hard-negative", hard]
    argv += ["--report", path, "--record", record]
    assert lab.run("monitor", [str(word) for word in [*argv, *monitor_files.options(model)]]) == 0
    return path


def tables(text):
    """[table][row][cell] of a page, in words."""

    def inside(tag, of):
        return re.findall(rf"<{tag}>(.*?)</{tag}>", of, re.DOTALL)

    return [[inside("t[hd]", row) for row in inside("tr", table)] for table in inside("table", text)]


def numbers(cell):
    """The numbers in words of a cell, percentages as shares."""
    found = re.findall(r"(-?\d+(?:\.\d+)?)(%?)", cell)
    return [float(number) / 100 if percent else float(number) for number, percent in found]


def interval(estimate):
    """A figure to three digits, its interval to two."""
    ends = [pytest.approx(estimate[name], abs=0.00501) for name in ("low", "high")]
    return [pytest.approx(estimate["mean"], abs=0.000501), *ends]


def share(of):
    """A share with its counts and interval, in tenths of a percent."""
    ends = [pytest.approx(of[name], abs=0.000501) for name in ("low", "high")]
    return [pytest.approx(of["share"], abs=0.000501), of["count"], of["num"], *ends]


def test_the_page_says_what_the_record_says(model, watcher, tmp_path):
    text = page(model, watcher, tmp_path).read_text()
    record = json.loads((tmp_path / "record.json").read_text())
    shown = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    words = re.sub(r"<[^>]*>", " ", shown)
    for expected in ("highest negative", "lowest positive", "same instruction", "reply length", "Hard negatives"):
        assert expected in words
    warned = [shown["warned"] for shown in record["gallery"]["on_policy"]]
    assert re.findall(r"· +(warned|no warning) ", words) == ["warned" if did else "no warning" for did in warned]
    assert warned == [(shown["statistic"] or 0) > 0.5 for shown in record["gallery"]["on_policy"]]
    assert set(warned) == {True, False}
    assert EVIL not in text and "https://" not in shown

    sets, baselines, recalls, columns, flagged, controls, hard = tables(shown)
    of_set = record["sets"]["on_policy"]
    [name, positive, negative, groups, short, auroc, recall, *reach] = sets[1]
    assert [name, positive, negative, groups] == ["on_policy", "30", "60", "30"]
    assert short == str(of_set["num_too_short"])
    assert numbers(auroc) == interval(of_set["auroc"])
    assert numbers(recall) == interval(of_set["recall_at_1pct_fpr"])
    warning = of_set["levels"]["warning"]
    assert [numbers(cell) for cell in reach] == [share(warning["negatives"]), share(warning["positives"])]

    found = {name: numbers(cell) for name, cell in baselines[1:]}
    recalled = dict(recalls[1:])
    for name, of in (of_set["own"] | of_set["baselines"] | {"monitor": of_set}).items():
        assert found[name.replace("_", " ")] == interval(of["auroc"]), name
        cell = recalled[name.replace("_", " ")]
        assert numbers(cell) == interval(of["recall_at_1pct_fpr"]) and cell.endswith(" (controls)"), name
    luck = of_set["luck"]["random_direction"]
    directions = [pytest.approx(luck[name], abs=0.000501) for name in ("median", "95%")]
    assert found["random directions, median and 95 %"] == directions

    table = record["four_columns"]["on_policy"]["all_arms"]
    assert [name.partition(" (")[0] for name in columns[0][1:]] == [name.replace("_", " ") for name in COLUMNS]
    assert {name: [numbers(cell) for cell in cells] for name, *cells in columns[1:]} == {
        name.replace("_", " "): [[*interval(of[c]), of[c]["num_high"], of[c]["num_low"]] for c in COLUMNS]
        for name, of in table["predictors"].items()
    }
    assert {name: numbers(cell) for name, cell in flagged[1:]} == {
        name.replace("_", " "): share(of) for name, of in table["flagged"].items()
    }
    for rows, kind in ((controls, "controls"), (hard, "hard_negatives")):
        assert {name: (num, *map(numbers, cells)) for name, num, *cells in rows[1:]} == {
            name: (
                str(of["num"]),
                [of["num_too_short"]],
                *(share(of["levels"][level]) for level in ("warning", "critical")),
            )
            for name, of in record[kind].items()
        }


@needs_browser
def test_the_page_opens_in_a_browser_with_its_plots(model, watcher, tmp_path):
    opened = open_page(page(model, watcher, tmp_path), tmp_path / "profile")
    assert opened.console == [] and opened.requests == []
    assert opened.dom.count('class="main-svg"') >= 3
    assert "<title>watcher</title>" in opened.dom
    assert opened.dom.count("<polyline") >= 8
