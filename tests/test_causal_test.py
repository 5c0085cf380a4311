"""`telltale lab causal`: a planted cause passes, a mere detector fails, figures equal the slow way, and files stay."""

import json
from dataclasses import replace

import numpy as np
import planted
import pytest
import tiny
import torch
from serving import manifest

from discovery import causal_run, input_arguments, lab
from discovery.causal_ablation import Draws, Read, ablate, active_positions, choose_controls, thinned
from discovery.causal_pinning import gains, pinned_text
from discovery.causal_run import Subject
from discovery.causal_test import run_settings
from discovery.causal_texts import Contrast, Text, choose, file_contrast, typical_tokens
from discovery.errors import SteerError
from discovery.group_bootstrap import difference_interval, mean_interval
from discovery.resumed_pass import first_half
from discovery.steering_bench import Bench
from monitors.watchlist import NamedFeature, Watchlist
from sae_runtime.checkpoint import load_sae, save_sae
from sae_runtime.tap import Tap


def feature(index, name, **evidence):
    return NamedFeature(
        index=index,
        name=name,
        description="d",
        reference_scale=4.0,
        validated=False,
        default_watched=True,
        evidence={"contrast": "qu", "method": "planted"} | evidence,
    )


@pytest.fixture(scope="module")
def lm():
    return planted.language_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("causal")
    save_sae(planted.sae(), manifest(activation="relu", k=None), folder / "dictionary")
    features = (feature(planted.CAUSE, "cause"), feature(planted.DETECTOR, "detector"))
    sha256 = load_sae(folder / "dictionary").manifest.sae_sha256
    Watchlist(sha256, features).save(folder / "dictionary" / "features.json")
    (folder / "qu.jsonl").write_text("".join(json.dumps(item) + "\n" for item in planted.texts()))
    return folder


@pytest.fixture
def bench(lm):
    tap, sae = Tap(lm.model, tiny.HOOK_POINT, tiny.D_MODEL), planted.sae()
    yield Bench(lm, tap, sae, tiny.limits(sae))
    tap.remove()


@pytest.fixture
def contrast(folder, lm):
    return file_contrast([folder / "qu.jsonl"], lm.tokenizer, 64)


@pytest.fixture
def command(folder, lm, monkeypatch, capsys):
    monkeypatch.setattr(input_arguments, "load_language_model", lambda *_args, **_settings: lm)

    def run(*argv, wanted=0, contrast=True):
        # Below what the latent reads at a `q`, pinning would take away from it there.
        words = [str(folder / "dictionary"), "--pin", "0.6", *map(str, argv)]
        words += ["--contrast", f"qu={folder / 'qu.jsonl'}"] if contrast else []
        assert lab.run("causal", words) == wanted
        captured = capsys.readouterr()
        return captured.out if wanted == 0 else captured.err

    return run


def read_text(bench, text: Text) -> Read:
    resid_TD = first_half(bench, list(text.tokens))
    return Read(text, resid_TD, bench.sae.encode(resid_TD).to_sparse())


# --- the verdicts ---------------------------------------------------------------------------------------------------


def test_a_cause_passes_and_a_detector_fails(command):
    records = json.loads(command("--json"))["records"]
    cause, detector = records["cause"], records["detector"]
    assert cause["passed"] and cause["ablation"]["passed"] and cause["pinning"]["passed"]
    assert cause["ablation"]["cross_entropy"]["low"] > 1  # nats: without it the model does not know of `u`
    assert cause["ablation"]["loses_most"][0] == "u" and {"q", "u"} <= set(cause["ablation"]["typical"])
    assert cause["pinning"]["gain_positive"] > cause["pinning"]["gain_negative"]
    # It is active at the very same tokens.
    assert detector["ablation"]["positions"] == cause["ablation"]["positions"] > 30
    assert not (detector["passed"] or detector["ablation"]["passed"] or detector["pinning"]["passed"])
    for record in (cause, detector):
        assert record["ablation"]["num_controls"] == record["pinning"]["num_controls"] == 20
        assert record["ablation"]["control_relative_norm"] == pytest.approx(
            record["ablation"]["relative_norm"], rel=0.2
        )


def test_what_is_silent_on_its_texts_fails_with_a_reason(command, tmp_path):
    turned = [item | {"label": 1 - item["label"]} for item in planted.texts()]
    (tmp_path / "turned.jsonl").write_text("".join(json.dumps(item) + "\n" for item in turned))
    found = json.loads(command("--json", "--contrast", f"qu={tmp_path / 'turned.jsonl'}", contrast=False))
    record = found["records"]["cause"]
    assert not record["passed"] and "active at 0 different positions" in record["ablation"]["reason"]
    assert record["pinning"]["mean"] < 0 and not record["pinning"]["passed"]


@pytest.mark.parametrize("num", [1, 60], ids=["one_position", "more_than_are_measured_in_a_text"])
def test_texts_that_begin_alike_are_one_document(command, tmp_path, num):
    start = "ab" + "q" * num
    same = [{"id": f"same{i}", "text": start + end, "label": 1, "group": f"same{i}"} for i, end in enumerate("defghi")]
    others = [item for item in planted.texts() if not item["label"]]
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(item) + "\n" for item in [*same, *others]))
    found = json.loads(command("--json", "--contrast", f"qu={tmp_path / 'same.jsonl'}", contrast=False))
    ablation = found["records"]["cause"]["ablation"]
    wanted = min(num, causal_run.CausalSettings().max_positions)
    assert (ablation["positions"], ablation["passed"]) == (wanted, False)
    assert f"active at {wanted} different positions of its texts, in fewer than 3 documents" in ablation["reason"]


def test_the_table_says_who_passed(command):
    lines = command().splitlines()
    assert any("cause" in line and line.count("yes") == 3 for line in lines)
    assert any("detector" in line and line.count("no") == 3 for line in lines)


# --- against the slow way -------------------------------------------------------------------------------------------


def test_ablation_equals_the_formula_and_whole_passes(bench, contrast):
    text = contrast.positive[0]
    read, ids = read_text(bench, text), list(text.tokens)
    positions = active_positions(read, planted.CAUSE)
    q = bench.lm.tokenizer("q").input_ids[0]
    assert positions == [i for i in text.scored if ids[i] == q and i + 1 < len(ids)] and positions
    found = ablate(bench, read, planted.CAUSE, positions, measured=positions, typical=[q, q + 1], draws=None)
    resid_TD = bench.lm.model.get_input_embeddings().weight[ids].clone()
    changed_TD = resid_TD.clone()
    for position in positions:
        f = float(resid_TD[position, planted.CAUSE])
        changed_TD[position] -= f * bench.sae.W_dec[planted.CAUSE]

    def logprobs(h_TD):
        with torch.inference_mode():
            return bench.lm.model.lm_head(bench.lm.model.model.norm(h_TD)).log_softmax(-1)[positions]

    clean, ablated = logprobs(resid_TD), logprobs(changed_TD)
    targets = torch.tensor([ids[position + 1] for position in positions])[:, None]
    wanted = {
        "cross_entropy": (clean - ablated).gather(1, targets)[:, 0],
        "kl": (clean.exp() * (clean - ablated)).sum(-1),
        "topic_tokens": clean[:, [q, q + 1]].logsumexp(-1) - ablated[:, [q, q + 1]].logsumexp(-1),
        "relative_norm": (changed_TD - resid_TD).norm(dim=-1)[positions] / resid_TD.norm(dim=-1)[positions],
    }
    for name, values in wanted.items():
        assert getattr(found, name)[0].tolist() == pytest.approx(values.tolist(), abs=1e-4), name
    torch.testing.assert_close(found.lost_V, (clean.exp() - ablated.exp()).sum(0), atol=1e-4, rtol=1e-3)


def test_controls_take_out_others_of_like_size_at_the_same_positions(bench, contrast):
    read = read_text(bench, contrast.positive[0])
    positions = active_positions(read, planted.CAUSE)
    f_TF = read.latents()
    draws = Draws.of(torch.full((bench.sae.num_latents,), 0.1), 20, seed=1)
    chosen_CP = choose_controls(bench, f_TF, planted.CAUSE, positions, draws)
    assert chosen_CP.shape == (20, len(positions)) and not (chosen_CP == planted.CAUSE).any()
    for column, position in zip(chosen_CP.T, positions, strict=True):
        assert (f_TF[position, column] == 4.0).all()  # as large as the latent, and active
        assert len(set(column.tolist())) > 3
    # One order for all positions: as few different latents as can be.
    assert all(len(set(row.tolist())) == 1 for row in chosen_CP)


def test_rarer_controls_are_taken_for_a_rare_latent(bench, contrast):
    read = read_text(bench, contrast.positive[0])
    position = active_positions(read, planted.CAUSE)[0]
    others = [i for i in (read.latents()[position] > 0).nonzero()[:, 0].tolist() if i != planted.CAUSE]
    density_F = torch.full((bench.sae.num_latents,), 0.5)
    density_F[[planted.CAUSE, *others[:8]]] = 0.001
    chosen = choose_controls(bench, read.latents(), planted.CAUSE, [position], Draws.of(density_F, 20, seed=1))
    assert set(chosen.flatten().tolist()) <= set(others[:8])


def test_pinning_equals_the_formula(bench, contrast):
    text, pin = contrast.positive[1], 0.4
    ids, positions = pinned_text(bench, text, 10)
    resid_TD = bench.lm.model.get_input_embeddings().weight[ids]
    pinned_TD = resid_TD.clone()
    for position in range(1, len(ids)):
        h = resid_TD[position]
        pinned_TD[position] += (pin * h.norm() - h[planted.CAUSE].relu()) * bench.sae.W_dec[planted.CAUSE]

    def logprobs(h_TD):
        with torch.inference_mode():
            return bench.lm.model.lm_head(bench.lm.model.model.norm(h_TD)).log_softmax(-1)

    wanted = [
        float(logprobs(pinned_TD)[p, ids[p + 1]] - logprobs(resid_TD)[p, ids[p + 1]])
        for p in range(len(ids) - 11, len(ids) - 1)
    ]
    assert positions == list(range(len(ids) - 11, len(ids) - 1))
    (found,) = gains(bench, text, [planted.CAUSE], pin=pin, num_tokens=10)
    assert found == pytest.approx(sum(wanted) / 10, abs=1e-4)


def test_positions_are_thinned_evenly():
    assert thinned([3, 5, 9], 4) == [3, 5, 9]
    assert thinned(list(range(10)), 5) == [0, 2, 4, 6, 8]


# --- intervals and texts --------------------------------------------------------------------------------------------


def test_intervals_are_over_groups():
    assert mean_interval([2.0] * 6, list("aabbcc")) == (2.0, 2.0, 2.0)
    values, groups = [0.0] * 10 + [1.0] * 10, ["a"] * 10 + ["b"] * 10
    together, apart = mean_interval(values, groups), mean_interval(values, [str(i) for i in range(20)])
    assert together.mean == apart.mean == 0.5
    # Two documents say next to nothing, however many tokens they have.
    assert (together.low, together.high) == (0.0, 1.0) and 0.2 < apart.low < 0.35 and 0.65 < apart.high < 0.8


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        levels = rng.normal(1.0, 1.0, 30)
        values = [float(level + rng.normal()) for level in levels for _ in range(3)]
        low, high = mean_interval(values, [str(i // 3) for i in range(90)], seed=trial)[1:]
        covered += low < 1.0 < high
    assert 86 <= covered <= 99


def test_a_difference_has_both_sides_spread():
    first = ([1.0, 3.0], ["a", "b"])
    estimate = difference_interval(first, ([1.0, 1.0], ["c", "d"]))
    assert estimate == (1.0, 0.0, 2.0)
    assert difference_interval(first, ([0.0, 2.0], ["c", "d"])).low < -0.5


def test_typical_tokens_are_those_of_significantly_more_positive_texts(contrast, lm):
    found = typical_tokens(contrast, 50)
    assert {lm.tokenizer.decode([token]) for token in found[:4]} >= {"q", "u"} and len(found) < 12
    assert typical_tokens(contrast, 1)[0] in found
    assert typical_tokens(Contrast(contrast.negative, contrast.negative), 50) == []


def test_texts_come_from_as_many_groups_as_there_are():
    def side(groups):
        return [Text((0, index), (1,), group) for index, group in enumerate(groups)]

    chosen = choose(Contrast(side("aaabbc"), side("xyz")), 4, "c")
    assert [text.group for text in chosen.positive] == ["a", "b", "c", "a"]
    with pytest.raises(SteerError, match="contrast c must have negative texts of at least 3 groups, got 3 texts of 2"):
        choose(Contrast(side("abc"), side("xxy")), 4, "c")


# --- files ----------------------------------------------------------------------------------------------------------


def test_write_adds_to_the_evidence_and_changes_nothing_else(command, folder, tmp_path):
    path = tmp_path / "features.json"
    path.write_bytes((folder / "dictionary" / "features.json").read_bytes())
    before = json.loads(path.read_text())
    found = json.loads(command("--json", "--features", path, "--feature", "cause", "--write"))
    after = json.loads(path.read_text())
    assert after["features"][0]["evidence"].pop("causal") == found["records"]["cause"]
    assert list(found["records"]) == ["cause"] and after == before
    removed = [line for line in (folder / "dictionary" / "features.json").read_text().splitlines()]
    kept = path.read_text().splitlines()
    # Line by line only additions, but for the comma behind what was the last key.
    assert sum(line not in kept for line in removed) <= 1


def test_a_killed_run_goes_on_and_gives_the_same(command, tmp_path, monkeypatch):
    whole = json.loads(command("--json", "--output", tmp_path / "whole.jsonl"))
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 2 + 24
    (tmp_path / "part.jsonl").write_text("".join(lines[:2]) + lines[2][:30])
    ablated, once = [], causal_run.ablate_feature
    monkeypatch.setattr(causal_run, "ablate_feature", lambda *args: (ablated.append(args[2].name), once(*args))[1])
    assert json.loads(command("--json", "--output", tmp_path / "part.jsonl")) == whole
    assert ablated == ["detector"]
    # What is finished is not begun again.
    monkeypatch.setattr(causal_run, "read_texts", None)
    assert json.loads(command("--json", "--output", tmp_path / "part.jsonl")) == whole
    assert "same settings, got others (settings)" in command(
        "--output", tmp_path / "part.jsonl", "--seed", "1", wanted=1
    )


def test_a_feature_of_another_latent_is_not_gone_on_with(command, folder, tmp_path):
    path = tmp_path / "features.json"
    path.write_bytes((folder / "dictionary" / "features.json").read_bytes())
    words = ("--features", path, "--feature", "cause", "--output", tmp_path / "a.jsonl")
    command(*words)
    (tmp_path / "a.jsonl").write_text((tmp_path / "a.jsonl").read_text().splitlines(keepends=True)[0])  # killed
    watchlist = Watchlist.load(path)
    watchlist.save(path)
    command(*words)  # the same features, written anew
    other = replace(watchlist.by_name["cause"], index=planted.DETECTOR)
    replace(watchlist, features=(other,)).save(path)
    assert "same settings, got others (features)" in command(*words, wanted=1)


def test_runs_differ_by_all_that_they_measure(bench, contrast):
    cause, settings = feature(planted.CAUSE, "cause"), causal_run.CausalSettings()

    def identity(cause=cause, **changes):
        texts = [contrast.positive[0]._replace(**changes), *contrast.positive[1:]]
        contrasts = {name: Contrast(texts, contrast.negative) for name in ("qu", "other")}
        return run_settings(bench, Subject([cause], contrasts), settings, "0" * 64)

    assert identity() == identity()
    text = contrast.positive[0]
    changes = [{"scored": text.scored[1:]}, {"group": "another"}, {"tokens": text.tokens[::-1]}]
    changes += [{"cause": feature(planted.CAUSE, "cause", contrast="other")}]
    assert [change for change in changes if identity(**change) == identity()] == []


def test_the_evidence_says_how_it_was_measured(command):
    record = json.loads(command("--json", "--feature", "cause", "--texts", "10", "--seed", "3"))["records"]["cause"]
    said = record["settings"]
    assert (said["num_texts"], said["max_tokens"], said["seed"], said["pin"]) == (10, 64, 3, 0.6)
    assert (said["dtype"], said["quantization"], said["max_relative_norm"]) == ("float32", "none", 20.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--feature", "lying"], "feature must be one of cause, detector, got 'lying'"),
        (["--contrast", "qu"], "--contrast must be NAME=FILE"),
        (["--pin", "0"], "pin must lie in (0, 20]"),
        (["--controls", "1"], "num_controls must be at least 2"),
        (["--pinned", "2"], "num_pinned must be at least 3, got 2"),
        (["--pinned-tokens", "0"], "pinned_tokens must be at least 2, got 0"),
        (["--controls", "100"], "controls must be 100 latents"),
    ],
)
def test_bad_input_is_refused_by_name(command, words, message):
    assert message in command(*words, wanted=1)


def test_another_form_of_the_model_is_refused(command, lm, monkeypatch):
    foreign = replace(lm, identity=replace(lm.identity, quantization="int8"))
    monkeypatch.setattr(input_arguments, "load_language_model", lambda *_args, **_settings: foreign)
    message = f"quantization of model {lm.identity.name} must be the dictionary's none, got int8"
    assert message in command("--quantization", "int8", "--device", "cpu", wanted=1)
    record = json.loads(command("--unverified", "--json", "--feature", "cause"))["records"]["cause"]
    assert record["settings"]["quantization"] == "int8"
    assert record["settings"]["model_sha256"] == lm.identity.weights_sha256


def test_a_contrast_without_texts_is_refused(command):
    assert "contrast qu must be in --pool or given by --contrast qu=FILE" in command(wanted=1, contrast=False)
