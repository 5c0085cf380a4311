"""fitted_baselines: what is frozen scores as scikit-learn's own models do, and finds what was planted."""

import made_rows
import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from discovery.fitted_baselines import (
    OUTPUT_STATISTICS,
    bag_of_words_scores,
    fit_bag_of_words,
    fit_output_statistics,
    output_scores,
    output_statistics,
)

WORDS = ["oak", "elm", "ash", "fir", "yew", "it", "is", "so", ",", "."]
RNG = np.random.default_rng(0)


def regression():
    return LogisticRegression(C=1.0, class_weight="balanced", max_iter=2000)


def labels_of(num):
    """A third is positive: labels are balanced by weights, which half and half would not show."""
    return (np.arange(num) % 3 == 0).astype(np.int64)


def texts_of(labels):
    """Words by chance; three positives of four say `zebra`, and one negative of eight."""
    chance = np.where(labels == 1, 0.75, 0.125)
    said = [[*RNG.choice(WORDS, 12), *["Zebra"] * int(RNG.random() < p)] for p in chance]
    return [" ".join(RNG.permutation(words)) for words in said]


def test_a_bag_of_words_scores_as_scikit_learns_does_and_finds_a_planted_word():
    labels = labels_of(120)
    texts, others = texts_of(labels), [*texts_of(labels_of(30)), "Never heard of, zebra zebra", ""]
    weights = fit_bag_of_words(texts, labels)
    counter = CountVectorizer(binary=True, ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", min_df=2)
    wanted = make_pipeline(counter, regression()).fit(texts, labels)
    for some in (texts, others):
        # Weights are kept to five digits, and a text has some two dozen.
        np.testing.assert_allclose(bag_of_words_scores(weights, some), wanted.decision_function(some), atol=5e-4)
    assert max(weights, key=weights.get) == "zebra" and weights["zebra"] > 1
    assert fit_bag_of_words(["one", "two"], np.array([0, 1])) is None


@pytest.mark.parametrize("planted", range(len(OUTPUT_STATISTICS) - 1))
def test_output_statistics_score_as_scikit_learns_do_and_find_a_planted_one(planted):
    labels = labels_of(150)
    scales = np.array([0.5, 4.0, 1.0, 2.0, 0.0])  # all of one length: nothing to standardise by
    values, others = (RNG.normal(size=(num, 5)) * scales + [-1, -9, 2, 3, 40] for num in (150, 40))
    values[:, planted] += 2 * scales[planted] * labels
    weights = fit_output_statistics(values, labels)
    wanted = make_pipeline(StandardScaler(), regression()).fit(values, labels)
    for some in (values, others):
        np.testing.assert_allclose(output_scores(weights, some), wanted.decision_function(some), rtol=1e-6, atol=1e-6)
    by_spread = {name: weights[name][0] * scale for name, scale in zip(OUTPUT_STATISTICS, scales, strict=True)}
    assert max(by_spread, key=by_spread.get) == OUTPUT_STATISTICS[planted] and by_spread[OUTPUT_STATISTICS[planted]] > 1


def test_output_statistics_are_those_of_each_reply():
    log_prob, entropy = np.array([-1, -3, -2, -0.5, -0.25]), np.array([0.5, 1.5, 4, 3, 1])
    made = made_rows.readings([3, 2], log_prob_N=log_prob, entropy_N=entropy)
    assert output_statistics(made).tolist() == [[-2, -3, 2, 0.5, 3], [-0.375, -0.5, 2, 3, 2]]
