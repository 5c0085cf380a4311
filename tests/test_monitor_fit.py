"""monitor fit and combine: a planted direction is found and frozen, nothing held out is looked at, faults are named."""

import json
from dataclasses import replace

import labelled_files as files
import numpy as np
import pytest
import tiny_files
import torch

from discovery import lab
from discovery.conversations import read_conversations
from discovery.evaluation_run import evaluation_plan
from discovery.fitted_baselines import bag_of_words_scores, baselines_path, load_baselines
from discovery.group_split import group_digest, joined_groups, split_groups
from discovery.probe_fit import fit_probe
from discovery.read_replies import read_replies
from discovery.scored_tokens import encode
from monitors.pack import MonitorPack
from sae_runtime.checkpoint import load_manifest
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import load_language_model


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Options for the tiny model and its dictionary."""
    folder = tmp_path_factory.mktemp("served")
    sha = tiny_files.write_model(folder / "model")
    tiny_files.write_dictionary(folder / "sae", sha, resid_norm_mean=30.0)
    return ["--model", str(folder / "model"), "--dtype", "float32", "--device", "cpu"], folder / "sae"


def run(*argv):
    return lab.run("monitor", [str(word) for word in argv])


@pytest.fixture(scope="module")
def fitted(served, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    data = files.write(folder / "instructed.jsonl", files.instructed(40))
    output = folder / "stance.pack.yaml"
    assert run("fit", data, "--output", output, "--windows", "4,8", *served[0]) == 0
    return data, output


def test_a_planted_difference_is_found_and_frozen(fitted, served):
    _data, output = fitted
    pack = MonitorPack.load(output)
    fit = pack.evidence["fit"]
    (component,) = pack.components
    assert (pack.name, pack.kind, pack.validated, pack.thresholds) == ("stance", "probe", False, None)
    # The first block can't know the prompt at the reply's tokens any better than later ones.
    assert fit["sweep"]["layers"][component.hook_point]["auroc"] > 0.95
    assert component.hook_point == fit["sweep"]["chosen"]
    assert pack.window in (4, 8) and pack.min_tokens == 8
    assert fit["frozen_sha256"] == pack.frozen_sha256
    model = load_language_model(served[0][1], dtype="float32", device="cpu")
    assert pack.bindings.model_sha256 == model.identity.weights_sha256
    assert pack.bindings.chat_template_sha256 is not None and pack.bindings.sae_sha256 is None


def test_groups_that_were_seen_are_known_and_others_are_not(fitted):
    data, output = fitted
    fit = MonitorPack.load(output).evidence["fit"]
    counted = {part: sum(of_set["num_groups"] for of_set in sets) for part, sets in fit["data"].items()}
    assert sum(counted.values()) == 40 and counted["held_out"] > 5
    groups = {group_digest(conversation.full_group) for conversation in read_conversations([data])}
    assert len(set(fit["seen_groups"])) == counted["train"] + counted["development"]
    assert set(fit["seen_groups"]) < groups


def test_what_is_held_out_decides_nothing(fitted, served, tmp_path):
    data, output = fitted
    seen = set(MonitorPack.load(output).evidence["fit"]["seen_groups"])
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows:
        if group_digest(f"{row['dataset']}/{row['group']}") not in seen:
            row["label"] = 1 - row["label"]
            row["messages"][1]["content"] = row["messages"][1]["content"][::-1].replace(" ", "x")
    changed = tmp_path / "stance.pack.yaml"
    assert (
        run(
            "fit", files.write(tmp_path / "instructed.jsonl", rows), "--output", changed, "--windows", "4,8", *served[0]
        )
        == 0
    )
    assert MonitorPack.load(changed).frozen_sha256 == MonitorPack.load(output).frozen_sha256


def test_baselines_lie_beside_it_and_words_tell_nothing_here(fitted):
    data, output = fitted
    pack = MonitorPack.load(output)
    baselines = load_baselines(baselines_path(output), pack)
    assert set(baselines.dense) == {"best_layer"} and baselines.output_statistics is not None
    assert baselines.dense["best_layer"].tensor == pack.tensors["stance"]
    texts = [conversation.scored_text for conversation in read_conversations([data])]
    scores = bag_of_words_scores(baselines.bag_of_words, texts)
    np.testing.assert_allclose(scores[::2], scores[1::2])


@pytest.mark.parametrize("layers", ["1,3", "all"])
def test_latents_are_chosen_with_signs_and_weights(served, tmp_path, layers):
    data = files.write(tmp_path / "instructed.jsonl", files.instructed(60))
    output = tmp_path / "latents.pack.yaml"
    options = ["--kind", "features", "--dictionary", served[1], "--permutations", "40", "--layers", layers, *served[0]]
    assert run("fit", data, "--output", output, *options) == 0
    pack = MonitorPack.load(output)
    record = pack.evidence["fit"]["component"]
    assert pack.kind in ("feature", "features") and pack.bindings.sae_sha256
    assert all(chosen["p_value"] <= 0.05 for chosen in record["chosen"])
    signs = {chosen["latent"]: chosen["sign"] for chosen in record["chosen"]}
    assert all(part.weight * signs[part.feature] > 0 for part in pack.components[0].features)
    dense = load_baselines(baselines_path(output), pack).dense
    assert set(dense) == {"same_layer", "best_layer"}
    # Where the latents are read, whichever layers were swept.
    assert dense["same_layer"].hook_point == load_manifest(served[1]).hook_point


def residuals_at(model, data, point, positions_of):
    """The model's residuals at `point`, by a plain pass over each conversation, and its labels and groups."""
    found = []
    for conversation in read_conversations([data]):
        reply = encode(model.tokenizer, conversation)
        with torch.inference_mode():
            hidden = model.model.model(torch.tensor([reply.tokens]), output_hidden_states=True).hidden_states
        found.append((conversation, hidden[point.hidden_state_index][0, positions_of(reply)].numpy()))
    return found


def test_the_last_token_may_be_the_example(fitted, served, tmp_path):
    """The probe is that of the last scored tokens' residuals, and the score is read there, at once."""
    output = tmp_path / "last.pack.yaml"
    options = ["--examples", "last", "--layers", "2", "--held-out-share", "0.3", *served[0]]
    assert run("fit", fitted[0], "--output", output, *options) == 0
    pack = MonitorPack.load(output)
    (component,) = pack.components
    assert (pack.window, pack.min_tokens) == (1, 1)
    assert component.reads.endswith("on replies' last scored tokens.")
    model = load_language_model(served[0][1], dtype="float32", device="cpu")
    rows = residuals_at(model, fitted[0], HookPoint.parse(component.hook_point), lambda reply: list(reply.scored[-1:]))
    conversations = [conversation for conversation, _ in rows]
    split = split_groups(conversations, joined_groups(conversations), development_share=0.2, held_out_share=0.3, seed=0)
    labels = np.array([conversations[index].label for index in split.train])
    wanted = fit_probe(np.concatenate([rows[index][1] for index in split.train]), labels, "logistic_regression")
    np.testing.assert_allclose(pack.tensors["last"].values, wanted.direction_D, rtol=1e-3, atol=1e-6)
    baselines = load_baselines(baselines_path(output), pack)
    # Probabilities and lengths are those of whole replies; the dense probe is of last tokens, as the monitor is.
    lengths = [len(encode(model.tokenizer, conversations[index]).scored) for index in split.train]
    assert baselines.output_statistics["num_tokens"][1] == pytest.approx(np.mean(lengths)) and max(lengths) > 1
    (dense,) = baselines.dense.values()
    assert baselines.examples == "last" and dense.tensor.values == pack.tensors["last"].values


def test_last_tokens_are_measured_beside_probes_of_last_tokens(fitted, served, tmp_path):
    """Dense baselines are measured where they were fitted: not on means, which a probe of last tokens never saw."""
    output = tmp_path / "last.pack.yaml"
    options = ["--examples", "last", "--layers", "2", "--held-out-share", "0.3", *served[0]]
    assert run("fit", fitted[0], "--output", output, *options) == 0
    pack, model = MonitorPack.load(output), load_language_model(served[0][1], dtype="float32", device="cpu")
    plan = evaluation_plan(pack, None, load_baselines(baselines_path(output), pack), predictions=True)
    conversations = read_conversations([fitted[0]])[:6]
    replies = [encode(model.tokenizer, conversation) for conversation in conversations]
    readings = read_replies(model, replies, plan)
    last = residuals_at(model, fitted[0], plan.mean_points[0], lambda reply: list(reply.scored[-1:]))[:6]
    np.testing.assert_allclose(
        readings.mean_ILD[:, 0], np.concatenate([resid for _, resid in last]), rtol=1e-3, atol=1e-5
    )
    assert readings.counts_I.tolist() == [len(reply.scored) for reply in replies]


@pytest.fixture(scope="module")
def end(served, tmp_path_factory):
    """A monitor of where statements end."""
    folder = tmp_path_factory.mktemp("end")
    rows = files.instructed(30)
    for number, row in enumerate(rows):
        row["messages"][-1]["content"] = f"It was so {number}. And they knew it."
        row["score_from_char"], row["label"] = 0, 1
        row.pop("score_to_char", None)
    output = folder / "end.pack.yaml"
    data = files.write(folder / "chats.jsonl", rows)
    options = ["--target", "statement_end", "--examples", "token", "--layers", "1,2", *served[0]]
    assert run("fit", data, "--output", output, *options) == 0
    return output


def test_where_a_statement_ends_is_found_whatever_the_labels(end):
    """A full stop is easily told from other letters, even by a random model."""
    pack = MonitorPack.load(end)
    assert (pack.window, pack.min_tokens) == (1, 1)
    counts = pack.evidence["fit"]["data"]["train"][0]
    assert counts["num_positive"] == counts["num_negative"] > 0
    assert pack.evidence["fit"]["target"] == "statement_end"
    assert pack.description == "Whether a statement ends with this token."
    assert pack.components[0].reads.endswith("on every scored token, with which a statement ends or does not.")
    assert "a part for `telltale lab monitor combine --gate`" in pack.limits
    assert not baselines_path(end).exists()
    assert pack.evidence["fit"]["component"]["windows"][0]["auroc"] > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--examples", "last", "--windows", "4"], "--windows must be 1 where single tokens are read, got 4"),
        (["--target", "statement_end", "--min-tokens", "2,8"], "--min-tokens must be 1 where single tokens are read"),
        (["--target", "statement_end", "--examples", "last"], "--examples must be reply or token with --target"),
        (["--target", "statement_end", "--positive-class", "lie"], "--target statement_end must come without classes"),
    ],
)
def test_what_does_not_go_with_single_tokens_is_refused(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("fit", tmp_path / "absent.jsonl", "--output", tmp_path / "x.pack.yaml", *options)
    assert message in capsys.readouterr().err


def test_every_token_may_be_an_example(fitted, served, tmp_path):
    output = tmp_path / "tokens.pack.yaml"
    options = ["--examples", "token", "--method", "difference_of_means", "--layers", "2", *served[0]]
    assert run("fit", fitted[0], "--output", output, *options) == 0
    pack = MonitorPack.load(output)
    assert pack.components[0].probe.method == "difference_of_means"
    assert pack.components[0].hook_point == "layers.2.output"
    assert pack.tensors["tokens"].values != MonitorPack.load(fitted[1]).tensors["stance"].values


def test_every_reply_counts_the_same_however_many_tokens_it_has(served, tmp_path):
    rows = files.instructed(40)
    for number, row in enumerate(rows):
        row["messages"][-1]["content"] = row["messages"][-1]["content"][: 20 if number % 8 < 4 else 4]
    data, output = files.write(tmp_path / "uneven.jsonl", rows), tmp_path / "tokens.pack.yaml"
    options = ["--examples", "token", "--method", "difference_of_means", "--layers", "2", "--min-tokens", "2"]
    assert run("fit", data, "--output", output, *options, "--held-out-share", "0.3", *served[0]) == 0
    model = load_language_model(served[0][1], dtype="float32", device="cpu")
    found = residuals_at(model, data, HookPoint(2), lambda reply: list(reply.scored))
    conversations = [conversation for conversation, _ in found]
    split = split_groups(conversations, joined_groups(conversations), development_share=0.2, held_out_share=0.3, seed=0)
    tokens = [found[index][1] for index in split.train]
    counts = [len(of_reply) for of_reply in tokens]
    assert len(set(counts)) == 2
    labels = np.repeat([conversations[index].label for index in split.train], counts)

    def wanted(weights):
        return fit_probe(np.concatenate(tokens), labels, "difference_of_means", weights_I=weights).direction_D

    found_D = np.array(MonitorPack.load(output).tensors["tokens"].values, np.float32)
    np.testing.assert_allclose(found_D, wanted(np.repeat(1 / np.array(counts), counts)), rtol=1e-3, atol=1e-5)
    assert not np.allclose(found_D, wanted(None), rtol=1e-2, atol=1e-4)


def test_development_rows_alone_decide_the_window_and_the_units(fitted, served, tmp_path):
    """Nearly all their negatives made too short for a late first token to fire on: the direction stays what it was."""
    rows = [json.loads(line) for line in fitted[0].read_text().splitlines()]
    conversations = read_conversations([fitted[0]])
    split = split_groups(conversations, joined_groups(conversations), development_share=0.2, held_out_share=0.3, seed=0)
    options = ["--windows", "8,4", "--min-tokens", "8,2", *served[0]]
    packs = []
    for name in ("before", "after"):
        data, output = files.write(tmp_path / f"{name}.jsonl", rows), tmp_path / name / "stance.pack.yaml"
        assert run("fit", data, "--output", output, *options) == 0
        packs.append(MonitorPack.load(output))
        negatives = [rows[index] for index in split.development if rows[index]["label"] == 0]
        for row in negatives[1:]:
            row["messages"][-1]["content"] = row["messages"][-1]["content"][:6]
    before, after = packs
    assert before.tensors == after.tensors
    assert before.evidence["fit"]["sweep"] == after.evidence["fit"]["sweep"]
    assert (before.min_tokens, after.min_tokens) == (2, 8)
    assert before.components[0].center != after.components[0].center
    assert before.components[0].scale != after.components[0].scale


def test_without_permutations_there_is_no_luck_to_tell_and_an_arm_that_is_not_there_is_named(served, tmp_path, capsys):
    data = files.write(tmp_path / "instructed.jsonl", files.instructed(40))
    output = tmp_path / "latents.pack.yaml"
    options = ["--kind", "features", "--dictionary", served[1], "--permutations", "0", "--max-p-value", "1"]
    options += ["--hold-out-arm", "please", "--hold-out-arm", "must"]
    assert run("fit", data, "--output", output, *options, "--layers", "1", *served[0]) == 0
    record = MonitorPack.load(output).evidence["fit"]["component"]
    assert record["luck_quantiles"] == {} and {chosen["p_value"] for chosen in record["chosen"]} == {1.0}
    assert "caution: --hold-out-arm must, please: no row has that arm to hold out" in capsys.readouterr().err


@pytest.mark.parametrize("roles", [("assistant", "reasoning"), ("reasoning",), ("user",)])
def test_roles_are_what_is_scored_later_and_change_nothing_of_the_fit(fitted, served, tmp_path, roles):
    output = tmp_path / "stance.pack.yaml"
    options = ["--windows", "4,8", "--roles", ",".join(roles), *served[0]]
    assert run("fit", fitted[0], "--output", output, *options) == 0
    usual, pack = MonitorPack.load(fitted[1]), MonitorPack.load(output)
    assert (usual.roles, pack.roles) == (("assistant",), roles)
    assert pack.evidence["fit"]["frozen_sha256"] == pack.frozen_sha256 != usual.frozen_sha256
    assert replace(pack, roles=usual.roles).frozen_sha256 == usual.frozen_sha256


def test_classes_make_labels_and_arms_are_held_out_by_name(served, tmp_path, capsys):
    data = files.write(tmp_path / "on_policy.jsonl", files.on_policy(60))
    output = tmp_path / "disbelief.pack.yaml"
    classes = ["--positive-class", "lie", "--negative-class", "told_to_lie_but_true", "--hold-out-arm", "please"]
    assert run("fit", data, "--output", output, *classes, "--layers", "0,1", *served[0]) == 0
    assert "caution" not in capsys.readouterr().err
    fit = MonitorPack.load(output).evidence["fit"]
    total = sum(of_set["num_positive"] + of_set["num_negative"] for sets in fit["data"].values() for of_set in sets)
    classes_there = [json.loads(line)["meta"]["class"] for line in data.read_text().splitlines()]
    assert total == sum(name in ("lie", "told_to_lie_but_true") for name in classes_there)
    assert (fit["held_out_arms"], fit["seen_arms"]) == (["please"], ["must"])
    # What one part has seen is held out of the whole no longer.
    other = tmp_path / "other.pack.yaml"
    classes[-1] = "must"
    assert run("fit", data, "--output", other, *classes, "--layers", "0,1", "--seed", "1", *served[0]) == 0
    whole = tmp_path / "whole.pack.yaml"
    assert run("combine", output, other, "--rule", "min", "--window", "8", "--output", whole) == 0
    fit = MonitorPack.load(whole).evidence["fit"]
    assert (fit["held_out_arms"], fit["seen_arms"]) == ([], ["must", "please"])
    assert fit["arms_not_held_out"] == ["must", "please"]
    assert "caution: must, please: held out of one part and fitted on by another" in capsys.readouterr().err


REFUSED = {
    "one class": (
        lambda: files.benign(20),
        [],
        "must have conversations with label 1 and with label 0, got none with label 1",
    ),
    "range": (lambda: [{**files.benign(1)[0], "score_to_char": 999}], [], "data.jsonl, line 1: 0 <= score_from_char"),
    "unknown class": (
        lambda: files.on_policy(20),
        ["--positive-class", "lies"],
        "meta.class must have lies in some row",
    ),
    "both": (
        lambda: files.on_policy(20),
        ["--positive-class", "lie", "--negative-class", "lie"],
        "got both for lie",
    ),
    "layer": (
        lambda: files.instructed(20),
        ["--layers", "9"],
        "must name some of the model's 4 layers, got layers.9.output",
    ),
    "layer words": (lambda: files.instructed(20), ["--layers", "middle"], "must be all, block numbers or hook points"),
    "few groups": (lambda: files.instructed(12), ["--folds", "12"], "needs at least 12 training groups with label 0"),
    "too long": (lambda: files.instructed(9), ["--max-tokens", "12"], "conversations with a scored token must have"),
    "luck": (
        lambda: files.shuffled(40),
        ["--kind", "features", "--dictionary", "SAE", "--permutations", "40"],
        "some latent must tell the labels apart with p <= 0.05",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_fitted_is_named_in_one_line(served, tmp_path, capsys, name):
    rows, options, words = REFUSED[name]
    data = files.write(tmp_path / "data.jsonl", rows())
    options = [str(served[1]) if word == "SAE" else word for word in options]
    output = tmp_path / "x.pack.yaml"
    assert run("fit", data, "--output", output, *options, *served[0]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("telltale lab monitor:")]
    assert words in line and not output.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--folds", "1"], "--folds must be at least 2, got 1"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--C", "0.1,nan"], "argument --C: must be finite and above 0, got 0.1,nan"),
        (["--C", "inf"], "argument --C: must be finite and above 0, got inf"),
        (["--l2", "-1"], "--l2 must be 0 or more, got -1"),
        (["--roles", "assistant,thoughts"], "--roles: must be some of system, user, assistant, text, reasoning"),
        (["--roles", "user,user"], "with commas between, each once, got 'user,user'"),
        (["--roles", ""], "with commas between, each once, got ''"),
        (["--max-p-value", "0"], "--max-p-value must lie in (0, 1], got 0"),
        (["--kind", "features", "--dictionary", "x", "--examples", "last"], "--examples must be reply with --kind"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_read(tmp_path, capsys, options, words):
    try:
        assert run("fit", tmp_path / "none.jsonl", "--output", tmp_path / "x.pack.yaml", *options) == 1
    except SystemExit as refused:
        assert refused.code == 2
    assert words in capsys.readouterr().err


# --- combine --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def second(served, tmp_path_factory):
    folder = tmp_path_factory.mktemp("second")
    data = files.write(folder / "other.jsonl", files.instructed(40, dataset="other", seed=9))
    output = folder / "other.pack.yaml"
    assert run("fit", data, "--output", output, "--layers", "2", "--windows", "8", *served[0]) == 0
    return output


def test_packs_become_one_with_what_each_has_seen(fitted, second, tmp_path):
    output = tmp_path / "deception.pack.yaml"
    assert run("combine", fitted[1], second, "--rule", "min", "--window", "8", "--output", output) == 0
    parts, pack = [MonitorPack.load(fitted[1]), MonitorPack.load(second)], MonitorPack.load(output)
    assert (pack.kind, pack.rule, pack.window) == ("ensemble", "min", 8)
    assert list(pack.components) == [part.components[0] for part in parts]
    fit = pack.evidence["fit"]
    assert set(fit["seen_groups"]) == {group for part in parts for group in part.evidence["fit"]["seen_groups"]}
    assert [part["frozen_sha256"] for part in fit["combined"]] == [part.frozen_sha256 for part in parts]
    # The baselines of a component go with the whole.
    assert load_baselines(baselines_path(fitted[1]), pack) is not None
    cascade = tmp_path / "cascade.pack.yaml"
    assert run("combine", fitted[1], second, "--gate", "0.5", "--window", "8", "--output", cascade) == 0
    assert (MonitorPack.load(cascade).kind, MonitorPack.load(cascade).gate_threshold) == ("cascade", 0.5)


def test_a_gate_goes_last_behind_packs_under_a_rule(fitted, second, end, tmp_path, capsys):
    output = tmp_path / "deception.pack.yaml"
    packs, both = [fitted[1], second, end], ["--window", "1", "--min-tokens", "1", "--output", output]
    assert run("combine", *packs, "--rule", "min", "--gate", "0", *both) == 0
    pack = MonitorPack.load(output)
    assert (pack.kind, pack.rule, pack.gate_threshold, pack.closed_score) == ("cascade", "min", 0.0, -10.0)
    assert [component.name for component in pack.components] == ["stance", "other", "end"]
    assert pack.description == "stance and other, under the rule min, while end is above 0."
    # The rule of a combination would be lost if its components were taken out of it.
    assert run("combine", output, second, "--rule", "max", *both) == 1
    assert "packs must have one component each, got 3 of deception" in capsys.readouterr().err
    assert run("combine", *packs, "--gate", "0", *both) == 1
    assert "rule: wanted a value for a cascade of 3 components" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("combine", *packs, "--output", output)
    assert "--rule or --gate must be given, got neither" in capsys.readouterr().err


def test_packs_that_do_not_go_together_are_named(fitted, second, tmp_path, capsys):
    output = tmp_path / "x.pack.yaml"
    assert run("combine", fitted[1], fitted[1], "--rule", "min", "--output", output) == 1
    assert "components must have names of their own, got stance more than once" in capsys.readouterr().err
    assert run("combine", fitted[1], "--rule", "min", "--output", output) == 1
    assert "at least two packs" in capsys.readouterr().err
    other = MonitorPack.load(second)
    for field, value in (("quantization", "nf4"), ("model_sha256", "1" * 64)):
        changed = replace(other, bindings=replace(other.bindings, **{field: value}))
        changed.save(tmp_path / "other.pack.yaml")
        assert run("combine", fitted[1], tmp_path / "other.pack.yaml", "--rule", "min", "--output", output) == 1
        assert "packs must be bound to the same model" in capsys.readouterr().err


def test_the_whole_scores_whose_words_its_parts_do(fitted, second, tmp_path, capsys):
    output, both = tmp_path / "whole.pack.yaml", ("assistant", "reasoning")
    paths = [tmp_path / "stance.pack.yaml", tmp_path / "other.pack.yaml"]
    parts = [MonitorPack.load(fitted[1]), MonitorPack.load(second)]
    for path, part in zip(paths, parts, strict=True):
        replace(part, roles=both).save(path)
    combine = ["combine", *paths, "--rule", "min", "--window", "8", "--output", output]
    assert run(*combine) == 0
    assert MonitorPack.load(output).roles == both
    assert run(*combine, "--roles", "assistant") == 0
    assert MonitorPack.load(output).roles == ("assistant",)
    parts[1].save(paths[1])
    capsys.readouterr()
    assert run(*combine) == 1
    line = capsys.readouterr().err
    assert "packs must have the same roles, got stance: assistant,reasoning; other: assistant (give --roles)" in line
    assert run(*combine, "--roles", "reasoning,user") == 0
    assert MonitorPack.load(output).roles == ("user", "reasoning"), "as every pack has them, to be compared"


def test_packs_with_different_windows_are_named(fitted, second, tmp_path, capsys):
    for path, window in ((tmp_path / "a.pack.yaml", 4), (tmp_path / "b.pack.yaml", 8)):
        part = MonitorPack.load(fitted[1] if window == 4 else second)
        replace(part, name="same", window=window).save(path)
    argv = ["combine", tmp_path / "a.pack.yaml", tmp_path / "b.pack.yaml", "--rule", "min"]
    assert run(*argv, "--output", tmp_path / "x.pack.yaml") == 1
    assert "packs must have the same window, got same: 4; same: 8 (give --window)" in capsys.readouterr().err


def test_a_group_of_commands_has_a_help(capsys):
    with pytest.raises(SystemExit) as exit_info:
        run("--help")
    out = capsys.readouterr().out
    assert exit_info.value.code == 0 and all(
        f"\n  {name} " in out for name in ("fit", "combine", "calibrate", "evaluate")
    )
    with pytest.raises(SystemExit):
        run("fit", "--help")
    assert capsys.readouterr().out.startswith("usage: telltale lab monitor fit ")
    with pytest.raises(SystemExit) as exit_info:
        run("fits")
    assert exit_info.value.code == 2
