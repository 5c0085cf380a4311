"""feature_choice: planted latents are found with their signs, luck is refused, weights only drop and never turn."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.sparse import csr_array
from sklearn.metrics import roc_auc_score

from discovery.errors import MonitorLabError
from discovery.feature_choice import choose_features, fit_weights, non_negative_logistic
from discovery.reply_readings import ReplyReadings

F, RISES, FALLS = 200, 17, 130
ONE_SET = ["one"] * 80


def readings(num=80, tokens=5, seed=0, planted=True):
    rng = np.random.default_rng(seed)
    labels = np.tile([0, 1], num // 2)
    f_NF = rng.exponential(size=(num * tokens, F)) * (rng.random((num * tokens, F)) < 0.2)
    of_token = np.repeat(labels, tokens)
    if planted:
        f_NF[of_token == 1, RISES] += 4.0
        f_NF[of_token == 0, FALLS] += 4.0
    f_NF[:, 5] = 0  # silent
    empty = np.zeros((num * tokens, 0), np.float32)
    made = ReplyReadings(
        counts_I=np.full(num, tokens),
        mean_ILD=np.zeros((num, 0, 0), np.float32),
        token_ND=empty,
        probes_NP=empty,
        log_prob_N=np.zeros(0, np.float32),
        entropy_N=np.zeros(0, np.float32),
        off_scale_N=np.zeros(num * tokens, bool),
        latents_NF=csr_array(f_NF.astype(np.float32)),
    )
    return made, labels, [f"g{n // 2}" for n in range(num)]


def test_what_was_planted_is_found_with_its_sign():
    made, labels, groups = readings()
    choice = choose_features(made.mean_latents(), labels, groups, ONE_SET, num_permutations=60)
    assert {(feature.latent, feature.sign) for feature in choice.chosen} == {(RISES, 1), (FALLS, -1)}
    assert all(feature.p_value <= 0.05 for feature in choice.chosen)
    assert choice.num_considered == F - 1
    # The winner of two hundred looks like this by luck.
    assert 0.55 < np.median(choice.luck) < 0.8 and len(choice.luck) == 60
    weights = {part.feature: part for part in fit_weights(made, labels, choice.chosen)}
    assert weights[RISES].weight > 0 > weights[FALLS].weight
    above = made.latents_NF[:, [RISES]].toarray()
    assert weights[RISES].scale == pytest.approx(np.median(above[above > 0]), rel=1e-4)


def test_without_a_signal_the_best_is_refused_as_luck():
    made, labels, groups = readings(planted=False)
    with pytest.raises(
        MonitorLabError, match=r"with p <= 0.05 against the best of 199 by luck; the best, \d+, has AUROC"
    ):
        choose_features(made.mean_latents(), labels, groups, ONE_SET, num_permutations=60)
    choice = choose_features(
        made.mean_latents(), labels, groups, ONE_SET, num_permutations=60, max_p_value=1, max_features=3
    )
    assert len(choice.chosen) == 3 and min(feature.p_value for feature in choice.chosen) > 0.05


def two_sets(num=80, num_latents=40, seed=3):
    """Sets of which one has nine positives in ten and the other one. Latent 0 tells the sets apart, latent 1 the labels
    within each; the others tell nothing. One reply to a group."""
    rng = np.random.default_rng(seed)
    datasets = ["mostly lies"] * num + ["mostly truths"] * num
    labels = np.array([int(n % 10 > 0) for n in range(num)] + [int(n % 10 == 0) for n in range(num)])
    mean_IF = rng.exponential(size=(2 * num, num_latents))
    mean_IF[:num, 0] += 4.0
    mean_IF[:, 1] += 4.0 * labels
    return csr_array(mean_IF.astype(np.float32)), labels, [f"g{n}" for n in range(2 * num)], datasets


def test_what_tells_data_sets_apart_tells_no_labels():
    mean_IF, labels, groups, datasets = two_sets()
    dense = mean_IF.toarray()
    assert roc_auc_score(labels, dense[:, 0]) > 0.85  # pooled it is well above luck
    choice = choose_features(mean_IF, labels, groups, datasets, num_permutations=100)
    assert [feature.latent for feature in choice.chosen] == [1]
    sets = np.array(datasets)
    of_sets = [roc_auc_score(labels[sets == name], dense[sets == name, 1]) for name in dict.fromkeys(datasets)]
    assert choice.chosen[0].auroc == pytest.approx(np.mean(of_sets), abs=1e-6)
    every = choose_features(mean_IF, labels, groups, datasets, num_permutations=100, max_p_value=1, max_features=40)
    (of_sets_alone,) = [feature for feature in every.chosen if feature.latent == 0]
    assert abs(of_sets_alone.auroc - 0.5) < 0.2 and of_sets_alone.p_value > 0.05


def test_a_set_with_one_label_has_no_say():
    mean_IF, labels, groups, datasets = two_sets()
    alone = choose_features(mean_IF[:80], labels[:80], groups[:80], datasets[:80], max_p_value=1, num_permutations=50)
    one_label = np.concatenate([labels[:80], np.ones(80, np.int64)])
    beside = choose_features(mean_IF, one_label, groups, datasets, max_p_value=1, num_permutations=50)
    assert [(f.latent, f.auroc) for f in beside.chosen] == [(f.latent, f.auroc) for f in alone.chosen]
    with pytest.raises(MonitorLabError, match="some training data set must have both labels, got none"):
        choose_features(mean_IF, 1 - (np.array(datasets) == datasets[0]), groups, datasets)


def test_how_often_luck_passes_is_about_what_p_says():
    passed = 0
    for seed in range(40):
        made, labels, groups = readings(40, 2, seed=100 + seed, planted=False)
        choice = choose_features(
            made.mean_latents(),
            labels,
            groups,
            ONE_SET[:40],
            num_permutations=39,
            max_p_value=1,
            max_features=1,
            seed=seed,
        )
        passed += choice.chosen[0].p_value <= 0.1
    assert passed <= 10  # 4 expected; chance of more is below 0.3 %


def test_chunks_of_latents_change_nothing(monkeypatch):
    made, labels, groups = readings()
    whole = choose_features(made.mean_latents(), labels, groups, ONE_SET, num_permutations=20)
    monkeypatch.setattr("discovery.feature_choice._RANKS", 80 * 7)
    assert choose_features(made.mean_latents(), labels, groups, ONE_SET, num_permutations=20) == whole


def test_weights_are_those_of_a_plain_minimiser():
    rng = np.random.default_rng(2)
    x, labels = rng.normal(size=(300, 3)) * [1, 5, 0.2], rng.integers(0, 2, 300)
    x[:, 0] += labels
    x[:, 1] -= 3 * labels
    z = (x - x.mean(0)) / x.std(0)
    share = 0.5 / np.bincount(labels)[labels]

    def loss(theta):
        margin = np.where(labels == 1, 1, -1) * (z @ np.square(theta[:3]) + theta[3])
        return share @ np.logaddexp(0, -margin) + 0.005 * np.sum(theta[:3] ** 4)

    wanted = np.square(minimize(loss, np.full(4, 0.5), method="Nelder-Mead", options={"maxiter": 8000}).x[:3]) / x.std(
        0
    )
    found = non_negative_logistic(x, labels, 0.01)
    np.testing.assert_allclose(found, wanted, atol=0.02)
    assert found[1] == 0  # it falls where it should rise: dropped, not turned around


def test_latents_that_hardly_fire_are_not_considered():
    made, labels, groups = readings(6)
    with pytest.raises(MonitorLabError, match="active in 10 training replies, got none"):
        choose_features(made.mean_latents(), labels, groups, ["one"] * 6)
