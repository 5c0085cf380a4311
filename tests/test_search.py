"""search, and what names are made with: a planted latent is found, luck told from it, only the right tokens count."""

import json

import pytest
import tiny
import tiny_files
import torch
from sklearn.metrics import roc_auc_score

from discovery.contrast_search import auroc, mean_difference, permute_labels, search, split_groups, top_slice
from discovery.contrasts import CONTRASTS, Passage, composed_passages, corpus_passages
from discovery.conversations import Conversation
from discovery.corpus import Context
from discovery.errors import SearchError
from discovery.harvest import harvest
from discovery.item_readings import read_item_latents
from discovery.named_features import largest_hits, read_held_out, reference_scale, source_shares
from discovery.quantile_threshold import quantile_threshold, read_replies, reply_statistics
from discovery.residuals import tapped
from discovery.scored_tokens import encode
from discovery.search_items import make_item, read_items
from discovery.shards import load_shard, shard_paths
from monitors.reference import max_rolling_mean
from sae_runtime.checkpoint import load_sae, save_sae
from sae_runtime.tap import Tap

NUM, LATENTS, PLANTED = 120, 400, 137


@pytest.fixture
def contrast():
    """Noise, but for one latent that is larger on positives. Two items to a group, one of each label."""
    generator = torch.Generator().manual_seed(0)
    scores_IF = torch.randn(NUM, LATENTS, generator=generator).relu()
    labels_I = torch.arange(NUM) % 2
    scores_IF[:, PLANTED] += 2.0 * labels_I
    return scores_IF, labels_I, [f"g{i // 2}" for i in range(NUM)]


def test_auroc_is_sklearns():
    scores_IF = torch.randn(40, 5, generator=torch.Generator().manual_seed(1)).relu()
    labels_PI = torch.stack([torch.arange(40) % 2, (torch.arange(40) < 13).long()])
    found_PF = auroc(scores_IF, labels_PI)
    for p in range(2):
        for latent in range(5):
            assert float(found_PF[p, latent]) == pytest.approx(roc_auc_score(labels_PI[p], scores_IF[:, latent]))


def test_planted_latent_is_found_and_luck_is_not(contrast):
    result = search(*contrast, top=5, num_permutations=20)
    best = result.candidates[0]
    assert best.latent == PLANTED
    assert best.auroc_selection > 0.9 and best.auroc_held_out > 0.9
    assert best.mean_positive > best.mean_negative + 1.5
    assert best.top_slice_positive == 1.0
    # The winner of 400 latents looks good where it was chosen and is nothing elsewhere.
    assert max(result.permuted_best_selection) < best.auroc_selection
    assert min(result.permuted_best_selection) > 0.6
    held_out = torch.tensor(result.permuted_best_held_out)
    assert abs(float(held_out.mean()) - 0.5) < 0.05
    assert best.p_value == round(1 / 21, 4)


def test_other_statistics_are_what_they_say():
    scores_IF = torch.randn(40, 5, generator=torch.Generator().manual_seed(1)).relu()
    scores_IF[:, 4] = 0.0
    labels_PI = torch.stack([torch.arange(40) % 2, (torch.arange(40) < 13).long()])
    difference_PF, slice_PF = mean_difference(scores_IF, labels_PI), top_slice(scores_IF, labels_PI)
    for p in range(2):
        positive, negative = scores_IF[labels_PI[p] == 1], scores_IF[labels_PI[p] == 0]
        n, m = len(positive), len(negative)
        for latent in range(4):
            pooled = ((n - 1) * positive[:, latent].var() + (m - 1) * negative[:, latent].var()) / (n + m - 2)
            wanted = (positive[:, latent].mean() - negative[:, latent].mean()) / pooled.sqrt()
            assert float(difference_PF[p, latent]) == pytest.approx(float(wanted), rel=1e-4)
            largest = sorted(range(40), key=lambda i: -float(scores_IF[i, latent]))[:4]
            assert float(slice_PF[p, latent]) == sum(int(labels_PI[p, i]) for i in largest) / 4
        assert float(difference_PF[p, 4]) == float(slice_PF[p, 4]) == 0


@pytest.mark.parametrize("rank_by", ["difference", "top-slice"])
def test_the_planted_latent_is_best_by_other_statistics_too(contrast, rank_by):
    result = search(*contrast, top=3, num_permutations=10, rank_by=rank_by)
    assert result.candidates[0].latent == PLANTED
    assert result.candidates[0].difference > 2
    assert len(result.permuted_best_selection) == 10
    assert max(result.permuted_best_selection) < result.candidates[0].auroc_selection


def test_few_items_are_not_divided_and_luck_shows_in_the_p_value(contrast):
    scores_IF, labels_I, _ = contrast
    few = search(scores_IF[:6], labels_I[:6], [str(i) for i in range(6)], num_permutations=40, hold_out=False)
    assert few.num_held_out == 0 and few.permuted_best_held_out == []
    assert few.candidates[0].auroc_selection == 1.0 and few.candidates[0].auroc_held_out is None
    # Among 400 latents some tell any three items from any other three.
    assert few.candidates[0].p_value > 0.5


def best_p_values(*, top, num_runs=60):
    """Of pure noise: each run's smallest p-values."""
    labels_I, groups = torch.arange(40) % 2, [f"g{i // 2}" for i in range(40)]
    found = []
    for run in range(num_runs):
        scores_IF = torch.randn(40, 60, generator=torch.Generator().manual_seed(run)).relu()
        candidates = search(scores_IF, labels_I, groups, top=top, num_permutations=19, seed=run).candidates
        found.append((min(c.p_value for c in candidates), min(c.p_held_out for c in candidates)))
    return torch.tensor(found)


@pytest.mark.parametrize("top", [1, 10])
def test_p_values_of_pure_noise_are_below_a_quarter_a_quarter_of_the_time(top):
    p_R2 = best_p_values(top=top)
    # However many were chosen and looked at: 60 runs, a standard error of 0.056.
    share, share_held_out = (p_R2 <= 0.25).float().mean(0).tolist()
    assert 0.08 < share < 0.42
    assert 0.08 < share_held_out < 0.42


def test_the_held_out_control_is_the_best_of_those_chosen_under_each_labelling(contrast):
    scores_IF, labels_I, groups = contrast
    result = search(scores_IF, labels_I, groups, top=5, num_permutations=6, seed=2)
    half_I = split_groups(groups, 2)
    for wanted, labels in zip(result.permuted_top_held_out, permute_labels(labels_I, groups, 6, 2), strict=True):
        selection_F = [roc_auc_score(labels[half_I], scores_IF[half_I, f]) for f in range(LATENTS)]
        chosen = sorted(range(LATENTS), key=lambda f: -selection_F[f])[:5]
        assert wanted == pytest.approx(
            max(roc_auc_score(labels[~half_I], scores_IF[~half_I, f]) for f in chosen), abs=1e-3
        )
    assert result.candidates[0].latent == PLANTED and result.candidates[0].p_held_out == round(1 / 7, 4)


def test_ranking_in_chunks_changes_nothing(contrast, monkeypatch):
    scores_IF, labels_I, _ = contrast
    whole = auroc(scores_IF, labels_I[None])
    monkeypatch.setattr("discovery.contrast_search._RANKS_PER_CHUNK", 7 * NUM)
    assert torch.equal(auroc(scores_IF, labels_I[None]), whole)


def test_latents_asked_for_are_measured_too(contrast):
    result = search(*contrast, top=2, also=[5, PLANTED], num_permutations=0)
    assert [candidate.latent for candidate in result.candidates][2:] == [5]
    assert len(result.candidates) == 3 and result.candidates[0].latent == PLANTED


def test_without_a_signal_the_best_is_no_better_than_luck(contrast):
    scores_IF, labels_I, groups = contrast
    scores_IF[:, PLANTED] -= 2.0 * labels_I
    result = search(scores_IF, labels_I, groups, num_permutations=40)
    assert result.candidates[0].auroc_selection <= max(result.permuted_best_selection)


def test_groups_are_never_divided():
    groups = [f"g{i // 3}" for i in range(60)]
    chosen_I = split_groups(groups, seed=0)
    assert 0 < int(chosen_I.sum()) < 60
    for start in range(0, 60, 3):
        assert len(set(chosen_I[start : start + 3].tolist())) == 1


def test_permutations_swap_labels_within_mixed_groups():
    labels_I, groups = torch.tensor([0, 1] * 10), [f"g{i // 2}" for i in range(20)]
    permuted_PI = permute_labels(labels_I, groups, 30, seed=0)
    assert (permuted_PI.view(30, 10, 2).sum(-1) == 1).all()
    assert 0.3 < float((permuted_PI == labels_I).float().mean()) < 0.7


def test_permutations_trade_labels_between_pure_groups():
    groups = [f"g{i // 4}" for i in range(40)]
    labels_I = torch.tensor([i // 4 % 2 for i in range(40)])
    permuted_PI = permute_labels(labels_I, groups, 30, seed=0)
    by_group = permuted_PI.view(30, 10, 4)
    assert (by_group == by_group[..., :1]).all()
    assert (by_group[..., 0].sum(-1) == 5).all()


def test_permutations_keep_mixed_groups_mixed_beside_pure_ones():
    groups = [f"m{i // 2}" for i in range(20)] + [f"p{i}" for i in range(6)]
    labels_I = torch.tensor([0, 1] * 10 + [1, 0, 0, 0, 1, 0])
    permuted_PI = permute_labels(labels_I, groups, 30, seed=0)
    mixed, pure = permuted_PI[:, :20], permuted_PI[:, 20:]
    assert (mixed.view(30, 10, 2).sum(-1) == 1).all() and (pure.sum(1) == 2).all()
    assert len(set(map(tuple, mixed.tolist()))) > 20 and len(set(map(tuple, pure.tolist()))) > 5


def test_permutations_within_sets_trade_nothing_between_them():
    """Each pure group trades within its set; one that is in both sets keeps its pairs, whichever set they are in."""
    sets = ["a"] * 10 + ["b"] * 10 + ["a", "b"] * 4
    groups = [f"{'ab'[i // 10]}{i}" for i in range(20)] + [f"both{i // 2}" for i in range(8)]
    labels_I = torch.tensor([1] * 9 + [0] + [0] * 9 + [1] + [0, 1] * 4)
    permuted_PI = permute_labels(labels_I, groups, 40, seed=0, sets=sets)
    assert (permuted_PI[:, :10].sum(1) == 9).all() and (permuted_PI[:, 10:20].sum(1) == 1).all()
    assert (permuted_PI[:, 20:].view(40, 4, 2).sum(-1) == 1).all()
    assert len(set(map(tuple, permuted_PI.tolist()))) > 35
    # Sets that are one change nothing.
    assert torch.equal(
        permute_labels(labels_I, groups, 40, 0, sets=["a"] * 28), permute_labels(labels_I, groups, 40, 0)
    )


def test_one_sided_halves_are_refused():
    with pytest.raises(ValueError, match="more groups"):
        search(torch.rand(4, 3), torch.tensor([0, 0, 1, 1]), ["a", "a", "b", "b"])


def test_only_the_characters_in_range_of_the_last_message_are_scored(model):
    record = {
        "messages": [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "defgh"}],
        "score_from_char": 1,
        "score_to_char": 4,
        "label": 1,
        "group": "g",
    }
    item = make_item(record, model.tokenizer, 512, "x")
    assert model.tokenizer.decode([item.tokens[position] for position in item.scored]) == "efg"
    assert item.label == 1 and item.group == "g"


@pytest.mark.parametrize("content", ["   lie now ", "\n  lie now \n", " \n lie now"])
@pytest.mark.parametrize("trims", ["", " | trim", ".lstrip()", ".rstrip()", ".strip('\\n')", ".lstrip('\\n')"])
def test_characters_are_counted_in_the_content_as_written(trims, content):
    """Whatever the template trims, and whoever said the same before."""
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE.replace("message['content']", f"message['content']{trims}")
    record = {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": content}],
        "score_from_char": 3,
        "score_to_char": 6,
        "label": 1,
    }
    item = make_item(record, tokenizer, 512, "x")
    assert tokenizer.decode([item.tokens[position] for position in item.scored]) == "lie"
    assert "lie" not in tokenizer.decode(item.tokens[item.scored[-1] + 1 :])


def test_an_items_tokens_are_those_of_a_labelled_conversation(model):
    record = {
        "messages": [{"role": "user", "content": "abc"}, {"role": "assistant", "content": " \n lie, then truth"}],
        "score_from_char": 1,
        "score_to_char": 9,
        "label": 1,
    }
    messages = tuple(record["messages"])
    reply = encode(model.tokenizer, Conversation("x", "made", messages, 1, 9, label=1, group="g", meta={}))
    item = make_item(record, model.tokenizer, 512, "x")
    assert (tuple(item.tokens), tuple(item.scored)) == (reply.tokens, reply.scored)


def test_plain_text_is_scored_from_position_1(model):
    item = make_item({"text": "abcd", "label": 0}, model.tokenizer, 512, "x")
    assert item.scored == [1, 2, 3]
    cut = make_item({"text": "abcd", "label": 0}, model.tokenizer, 3, "x")
    assert cut.scored == [1, 2] and len(cut.tokens) == 3


def test_items_without_a_label_are_skipped(model, tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps({"text": "abcd", "label": label}) + "\n" for label in (0, None, 1)))
    assert [item.label for item in read_items([path], model.tokenizer)] == [0, 1]


@pytest.fixture
def loaded(tmp_path):
    save_sae(tiny.sae(), tiny_files.manifest(resid_norm_mean=None), tmp_path / "sae")
    return load_sae(tmp_path / "sae")


def scored_residuals(model, items):
    """[S, D] of each item at its scored tokens, from a pass of its own."""
    tap, found = Tap(model.model, tiny.HOOK_POINT, model.d_model), []
    for item in items:
        with tap.step(len(item.tokens)) as record, torch.inference_mode():
            model.model(input_ids=torch.tensor([item.tokens]))
        found.append(record.resid_BTD[0, item.scored])
    tap.remove()
    return found


def made_items(model):
    texts = ["hello there", "hi", "a somewhat longer text"]
    return [make_item({"text": text, "label": 0}, model.tokenizer, 512, text) for text in texts]


def test_readings_are_means_and_maxima_over_the_scored_tokens(model, loaded):
    items = made_items(model)
    with tapped(model, tiny.HOOK_POINT) as tap:
        readings = read_item_latents(model, tap, loaded, items, batch_tokens=30)
    for row, resid_SD in enumerate(scored_residuals(model, items)):
        f_SF = loaded.encode(resid_SD)
        assert torch.allclose(readings.mean_IF[row], f_SF.mean(0), atol=1e-4)
        assert torch.allclose(readings.max_IF[row], f_SF.amax(0), atol=1e-4)
    assert readings.num_massive == 0


def test_massive_activations_are_not_read(model, loaded):
    """Neither by a search nor for a threshold, by the dictionary's usual norm, as in the server."""
    items = made_items(model)
    resid = scored_residuals(model, items)
    limit = float(torch.cat(resid).norm(dim=-1).sort().values[-3]) * 0.999
    assert max(resid[1].norm(dim=-1)) <= limit, "the text with one scored token must be read"
    loaded.manifest = loaded.manifest.model_copy(update={"resid_norm_mean": limit / 5})
    with tapped(model, tiny.HOOK_POINT) as tap:
        readings = read_item_latents(model, tap, loaded, items, batch_tokens=30)
        replies = read_replies(model, tap, loaded, items, [3, 5], batch_tokens=30)
        loaded.manifest = loaded.manifest.model_copy(update={"resid_norm_mean": limit / 5000})
        with pytest.raises(SearchError, match=f"resid_norm_mean .* got none of {sum(map(len, resid))}"):
            read_item_latents(model, tap, loaded, items)
    for row, resid_SD in enumerate(resid):
        f_SF = loaded.encode(torch.stack([x_D for x_D in resid_SD if x_D.norm() <= limit]))
        assert torch.allclose(readings.mean_IF[row], f_SF.mean(0), atol=1e-4)
        assert torch.allclose(readings.max_IF[row], f_SF.amax(0), atol=1e-4)
        assert torch.allclose(replies[row], f_SF[:, [3, 5]], atol=1e-4)
    assert readings.num_massive == 3


def test_without_a_mean_the_median_of_all_scored_tokens_says_what_is_massive(model, loaded):
    """An item that has no other token is left out, here the one whose only scored token is a hundred times as long."""
    lm, items = tiny.language_model(), made_items(model)
    (position,) = items[1].scored
    long = items[1].tokens[position]
    items[0] = make_item({"text": "see three", "label": 0}, model.tokenizer, 512, "see three")
    items[2] = make_item({"text": "a longer text with it", "label": 0}, model.tokenizer, 512, "a longer text with it")
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[long] *= 1000
    resid = scored_residuals(lm, items)
    limit = 5 * float(torch.cat(resid).norm(dim=-1).median())
    with tapped(lm, tiny.HOOK_POINT) as tap:
        readings = read_item_latents(lm, tap, loaded, items, batch_tokens=30)
    assert readings.is_read_I.tolist() == [True, False, True]
    assert readings.num_massive == sum(int((resid_SD.norm(dim=-1) > limit).sum()) for resid_SD in resid) > 1
    kept, kept_items = readings.of_read(items)
    assert kept_items == [items[0], items[2]]
    for row, resid_SD in enumerate((resid[0], resid[2])):
        f_SF = loaded.encode(resid_SD[resid_SD.norm(dim=-1) <= limit])
        assert torch.allclose(kept.mean_IF[row], f_SF.mean(0), atol=1e-4)
        assert torch.allclose(kept.max_IF[row], f_SF.amax(0), atol=1e-4)
    said = f"left out: massive activations {readings.num_massive}, items that have nothing else 1"
    assert readings.left_out() == said


# --- contrasts, evidence, thresholds and steering -------------------------------------------------------------------


def test_every_contrast_has_passages_of_both_kinds_among_composed_and_made_ones():
    by_name = {contrast.name: contrast for contrast in CONTRASTS}
    assert len(by_name) == len(CONTRASTS)
    composed = list(composed_passages())
    for name in ("french", "deceit", "sadness", "anger", "joy"):
        labels = [by_name[name].label(passage) for passage in composed]
        assert labels.count(1) >= 20 and labels.count(0) >= 20
    reply = Passage("Dogs bark. 1. One", "chat", "chat/1", "dogs")
    assert by_name["animals"].label(reply) == 1 and by_name["cooking"].label(reply) == 0
    assert by_name["bible"].label(reply) is None
    prose = Passage("I saw that I was late, and I ran.", "npm_moby_dick", "x")
    assert by_name["first_person"].label(prose) == 1 and by_name["quoted_dialogue"].label(prose) == 0


def test_corpus_passages_take_as_many_of_each_source(tmp_path):
    path = tmp_path / "a.jsonl"
    records = [{"text": f"text {n} " * 50, "source": "many" if n else "one"} for n in range(30)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    passages = list(corpus_passages([path], per_source=8))
    assert [passage.source for passage in passages].count("one") == 8
    assert len({passage.group for passage in passages if passage.source == "many"}) == 8
    assert passages == list(corpus_passages([path], per_source=8))


def test_held_out_readings_equal_the_dictionary(model, dictionary, tmp_path):
    contexts = [Context(list(range(3, 20)), 11, 0, "a"), Context(list(range(40, 52)), 22, 0, "b")]
    harvest(model, tiny.HOOK_POINT, contexts, tmp_path)
    readings = read_held_out(dictionary, [tmp_path], [5, 9])
    shard = load_shard(shard_paths(tmp_path)[0])
    assert torch.allclose(readings.column(9), dictionary.encode(shard.resid_ND)[:, 9], atol=1e-4)
    hits = largest_hits(readings, 9, {11: "a", 22: "b"}, lambda ids: f"<{ids}>", wanted={"b"}.__contains__)
    assert [hit.source for hit in hits] == ["b"]
    assert hits[0].value == pytest.approx(float(readings.column(9)[16:].max()), abs=1e-3)
    shares = source_shares(readings, 9, {11: "a", 22: "b"})
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)


def test_reference_scale_is_a_quantile_or_the_maximum():
    readings_N = torch.arange(10_000.0)
    assert reference_scale(readings_N) == pytest.approx(9_989, abs=2)
    rare_N = torch.zeros(10_000)
    rare_N[7] = 3.0
    assert reference_scale(rare_N) == 3.0


def test_threshold_is_the_conformal_quantile():
    found = quantile_threshold([float(n) for n in range(1, 200)])
    assert found.threshold == 198 and found.num_replies == 199 and found.max_statistic == 199
    assert quantile_threshold([1.0, 2.0]).threshold == 2.0
    with pytest.raises(ValueError, match="at least one"):
        quantile_threshold([])


def test_reply_statistics_are_the_monitors():
    readings = [torch.rand(30, 2, generator=torch.Generator().manual_seed(0)), torch.rand(3, 2)]
    (statistic,) = reply_statistics(readings, column=1, scale=2.0, window=4, min_tokens=8)
    wanted = max_rolling_mean([value / 2.0 for value in readings[0][:, 1].tolist()], 4, 8)
    assert statistic == pytest.approx(wanted)
