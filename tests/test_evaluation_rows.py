"""evaluation_rows: baselines have the sign that they are meant to have, and luck is of what is alike."""

import made_rows
import numpy as np
from scipy.sparse import csr_array

from discovery.discrimination import auroc
from discovery.evaluation_rows import NUM_RANDOM, baseline_scores, item_control, random_directions, random_features


def test_unlikely_and_uncertain_replies_score_high():
    log_prob, entropy = np.array([-1.0, -3.0, -0.5, -0.5, -0.5]), np.array([0.5, 1.5, 4.0, 3.0, 2.0])
    made = made_rows.readings([2, 3], log_prob_N=log_prob, entropy_N=entropy)
    found = baseline_scores(made_rows.rows([0, 0]).conversations, made, (), None)
    assert {name: scores.tolist() for name, scores in found.items()} == {
        "reply_length": [2, 3],
        "low_log_prob": [2, 0.5],
        "entropy": [1, 3],
        "first_token_entropy": [0.5, 4],
    }


def test_the_item_control_is_the_first_neutral_reply_to_the_same_question_in_the_same_format():
    def meta(question, instruction, form="short"):
        return {"question_id": question, "instruction": instruction, "format": form}

    metas = [
        meta("a", "lying"),
        meta("a", "neutral"),
        meta("a", "neutral"),
        meta("a", "neutral", "passage"),
        meta("a", "honest", "passage"),
        meta("b", "lying"),
        {"instruction": "neutral"},
    ]
    rows = made_rows.rows([9, 1, 2, 3, 8, 7, 6], metas=metas)
    np.testing.assert_array_equal(item_control(rows), [1, 1, 1, 3, 3, np.nan, np.nan])
    assert item_control(rows.take([0, 4, 5])) is None


def test_random_latents_fire_as_often_as_the_monitors():
    """Latents that fire seldom tell the labels apart here; those that fire everywhere, as the monitor's does, don't."""
    rng, labels, count = np.random.default_rng(0), np.tile([0, 1], 40), 5
    tokens = np.repeat(labels, count)
    always = rng.uniform(1, 2, size=(len(tokens), 1 + 2 * NUM_RANDOM))
    seldom = np.zeros((len(tokens), 3 * NUM_RANDOM))
    seldom[::count] = tokens[::count, None]
    made = made_rows.readings([count] * len(labels), latents_NF=csr_array(np.hstack([always, seldom])))
    found = random_features(made, labels, [0])
    assert found["num"] == NUM_RANDOM and 0.5 < found["median"] < found["95%"] < 0.75
    assert random_features(made, labels, [always.shape[1]])["median"] == 1


def test_luck_is_told_by_quantiles_of_aurocs_turned_the_way_that_suits_them():
    rng = np.random.default_rng(1)
    mean_ID, labels = rng.normal(size=(60, 8)).astype(np.float32), np.tile([0, 1], 30)
    mean_ID[:, 0] += 2 * labels
    directions = np.random.default_rng(0).normal(size=(NUM_RANDOM, 8))
    aurocs = [auroc(mean_ID.astype(np.float64) @ direction, labels) for direction in directions]
    assert min(aurocs) < 0.5
    turned = sorted(max(value, 1 - value) for value in aurocs)
    found = random_directions(mean_ID, labels)
    assert turned[24] - 1e-4 <= found["median"] <= turned[25] + 1e-4
    assert turned[46] - 1e-4 <= found["95%"] <= turned[47] + 1e-4 and turned[46] > turned[25] + 0.05
