"""evaluate: every figure equals an obvious computation of it."""

import pytest
import tiny
import torch
from safetensors.torch import save_file

from discovery.corpus import Context
from discovery.evaluate import (
    ReconstructionSums,
    evaluate,
    full_contexts,
    measure_cross_entropy,
    measure_reconstruction,
    parse_set,
    replacements,
    write_metrics,
)
from discovery.harvest import harvest, shard_paths
from sae_runtime.checkpoint import Manifest, load_manifest, load_sae, save_sae
from sae_runtime.tap import Tap


@pytest.fixture
def tap(model):
    tap = Tap(model.model, tiny.HOOK_POINT, model.d_model)
    yield tap
    tap.remove()


@pytest.fixture
def perfect():
    """A dictionary that returns what it is given: one pair of latents for each axis."""
    made = tiny.sae("relu")
    with torch.no_grad():
        made.b_dec.zero_()
        made.b_enc.zero_()
        eye = torch.eye(tiny.D_MODEL)
        made.W_enc.copy_(torch.cat([eye, -eye], dim=1))
        made.W_dec.copy_(torch.cat([eye, -eye]))
    return made


def test_reconstruction_figures_equal_their_definitions(dictionary):
    x_ND = torch.randn(90, tiny.D_MODEL, generator=torch.Generator().manual_seed(3))
    figures = measure_reconstruction(dictionary, [x_ND[:50], x_ND[50:]]).figures()
    f_NF = dictionary.encode(x_ND)
    error_N = (x_ND - dictionary.decode(f_NF)).square().sum(-1)
    spread_N = (x_ND - dictionary.resid_mean).square().sum(-1)
    assert figures["tokens"] == 90
    assert figures["variance_explained"] == pytest.approx(float(1 - error_N.sum() / spread_N.sum()), rel=1e-5)
    assert figures["median_token_variance_explained"] == pytest.approx(float((1 - error_N / spread_N).median()))
    assert figures["l0"] == pytest.approx(float((f_NF > 0).sum(-1).float().mean()))
    assert figures["dead_ratio"] == pytest.approx(float((f_NF == 0).all(0).float().mean()))


def test_massive_tokens_are_counted_and_left_out(dictionary):
    x_ND = torch.randn(40, tiny.D_MODEL, generator=torch.Generator().manual_seed(3))
    with_massive_ND = torch.cat([x_ND[:10], 1000 * x_ND[:1], x_ND[10:]])
    figures = measure_reconstruction(dictionary, [with_massive_ND]).figures()
    clean = measure_reconstruction(dictionary, [x_ND]).figures()
    assert figures.pop("massive_tokens_left_out") == 1
    assert clean.pop("massive_tokens_left_out") == 0
    assert figures == pytest.approx(clean, rel=1e-5)


def test_sums_of_two_sets_are_the_sums_of_both(dictionary):
    x_ND = torch.randn(40, tiny.D_MODEL, generator=torch.Generator().manual_seed(3))
    parts = [ReconstructionSums(tiny.NUM_LATENTS), ReconstructionSums(tiny.NUM_LATENTS)]
    parts[0].add(dictionary, x_ND[:15])
    parts[1].add(dictionary, x_ND[15:])
    whole = measure_reconstruction(dictionary, [x_ND]).figures()
    assert (parts[0] + parts[1]).figures() == pytest.approx(whole, rel=1e-5)


def test_a_perfect_dictionary_recovers_everything(model, perfect, tap):
    ids_BT = torch.randint(3, 200, (4, 20), generator=torch.Generator().manual_seed(0))
    figures = measure_cross_entropy(model, perfect, [ids_BT], tap).figures()
    assert figures["cross_entropy_recovered"] == pytest.approx(1, abs=1e-4)
    assert figures["cross_entropy_recovered_from_mean"] == pytest.approx(1, abs=1e-4)
    assert figures["predictions"] == 4 * 18


def test_clean_cross_entropy_is_the_models_own(model, dictionary, tap):
    ids_BT = torch.randint(3, 200, (2, 15), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits_BTV = model.model(input_ids=ids_BT).logits
    log_probs = logits_BTV.log_softmax(-1)[:, 1:-1].gather(2, ids_BT[:, 2:, None])
    sums = measure_cross_entropy(model, dictionary, [ids_BT], tap)
    assert sums.figures()["cross_entropy_clean"] == pytest.approx(-float(log_probs.mean()), rel=1e-5)
    assert sums.zero != sums.clean != sums.mean


def test_position_0_is_left_alone(dictionary):
    resid_BTD = torch.randn(2, 6, tiny.D_MODEL)
    for name, edit in replacements(dictionary).items():
        if edit is None:
            assert name == "clean"
            continue
        edited_BTD = edit(resid_BTD)
        assert torch.equal(edited_BTD[:, 0], resid_BTD[:, 0])
        assert not torch.isclose(edited_BTD[:, 1:], resid_BTD[:, 1:]).all()
    assert torch.equal(edited_BTD[1, 3], dictionary.resid_mean)


def contexts(num: int, length: int) -> list[Context]:
    generator = torch.Generator().manual_seed(num)
    return [Context(torch.randint(3, 200, (length,), generator=generator).tolist(), n, 0, "made") for n in range(num)]


def test_all_sets_together(model, dictionary, tap, tmp_path):
    for name, num in (("one", 5), ("two", 3)):
        harvest(model, tiny.HOOK_POINT, contexts(num, 12), tmp_path / name, contexts_per_shard=2)
    metrics = evaluate(
        dictionary, model, tap, dict(parse_set(f"{name}={tmp_path / name}") for name in ("one", "two")), 1000
    )
    assert metrics["all"]["tokens"] == metrics["one"]["tokens"] + metrics["two"]["tokens"] == 8 * 11
    assert metrics["all"]["predictions"] == 8 * 10
    assert metrics["all"]["dead_ratio"] <= min(metrics["one"]["dead_ratio"], metrics["two"]["dead_ratio"])


def test_contexts_for_cross_entropy_have_one_length(model, tmp_path):
    mixed = [*contexts(4, 12), *contexts(2, 7)]
    harvest(model, tiny.HOOK_POINT, mixed, tmp_path, contexts_per_shard=4)
    batches = list(full_contexts(shard_paths(tmp_path), max_tokens=36, batch_tokens=24))
    assert torch.cat(batches).tolist() == [context.tokens for context in mixed[:3]]
    assert [len(batch) for batch in batches] == [2, 1]


def test_metrics_go_into_the_manifest_and_change_nothing_else(dictionary, tmp_path):
    manifest = Manifest(
        name="tiny",
        model_name="tiny",
        model_sha256="0" * 64,
        quantization="none",
        hook_point="layers.1.output",
        d_model=tiny.D_MODEL,
        num_latents=tiny.NUM_LATENTS,
        activation="topk",
        k=8,
    )
    before = save_sae(dictionary, manifest, tmp_path)
    write_metrics(tmp_path, {"all": {"l0": 8.0}})
    after = load_manifest(tmp_path)
    assert after.metrics == {"all": {"l0": 8.0}}
    assert after.model_copy(update={"metrics": {}}) == before
    assert load_sae(tmp_path).manifest.sae_sha256 == before.sae_sha256


def test_fixture_is_a_harvest_file_like_any_other(dictionary, tmp_path):
    # `evaluate` without a model needs residuals alone.
    save_file({"resid_ND": torch.randn(30, tiny.D_MODEL).bfloat16()}, tmp_path / "shard-00000.safetensors")
    metrics = evaluate(dictionary, None, None, {"only": shard_paths(tmp_path)}, 0)
    assert set(metrics) == {"only"} and metrics["only"]["tokens"] == 30
