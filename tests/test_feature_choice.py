"""feature_choice: planted latents are found with their signs, luck is refused, weights only drop and never turn."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.sparse import csr_array

from discovery.errors import MonitorLabError
from discovery.feature_choice import choose_features, fit_weights, non_negative_logistic
from discovery.reply_readings import ReplyReadings

F, RISES, FALLS = 200, 17, 130


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
    choice = choose_features(made.mean_latents(), labels, groups, num_permutations=60)
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
        choose_features(made.mean_latents(), labels, groups, num_permutations=60)
    choice = choose_features(made.mean_latents(), labels, groups, num_permutations=60, max_p_value=1, max_features=3)
    assert len(choice.chosen) == 3 and min(feature.p_value for feature in choice.chosen) > 0.05


def test_how_often_luck_passes_is_about_what_p_says():
    passed = 0
    for seed in range(40):
        made, labels, groups = readings(40, 2, seed=100 + seed, planted=False)
        choice = choose_features(
            made.mean_latents(), labels, groups, num_permutations=39, max_p_value=1, max_features=1, seed=seed
        )
        passed += choice.chosen[0].p_value <= 0.1
    assert passed <= 10  # 4 expected; chance of more is below 0.3 %


def test_chunks_of_latents_change_nothing(monkeypatch):
    made, labels, groups = readings()
    whole = choose_features(made.mean_latents(), labels, groups, num_permutations=20)
    monkeypatch.setattr("discovery.feature_choice._RANKS", 80 * 7)
    assert choose_features(made.mean_latents(), labels, groups, num_permutations=20) == whole


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
        choose_features(made.mean_latents(), labels, groups)
