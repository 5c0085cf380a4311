"""evaluate: sets of shards, their total, the manifest and the report."""

import json

import pytest
import tiny
import torch
from safetensors.torch import save_file

from discovery.corpus import Context
from discovery.errors import HarvestError
from discovery.evaluate import check_harvests, evaluate, full_contexts, parse_set, write_metrics, write_report
from discovery.harvest import harvest, shard_paths
from sae_runtime.checkpoint import LoadedSAE, Manifest, load_manifest, load_sae, save_sae
from sae_runtime.tap import Tap

MANIFEST = Manifest(
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


@pytest.fixture
def tap(model):
    tap = Tap(model.model, tiny.HOOK_POINT, model.d_model)
    yield tap
    tap.remove()


def contexts(num: int, length: int) -> list[Context]:
    generator = torch.Generator().manual_seed(num)
    return [Context(torch.randint(3, 200, (length,), generator=generator).tolist(), n, 0, "made") for n in range(num)]


def test_all_sets_together(model, dictionary, tap, tmp_path):
    for name, num in (("one", 5), ("two", 3)):
        harvest(model, tiny.HOOK_POINT, contexts(num, 12), tmp_path / name, contexts_per_shard=2)
    sets = dict(parse_set(f"{name}={tmp_path / name}") for name in ("one", "two"))
    metrics = evaluate(dictionary, model, tap, sets, 1000).figures()
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
    before = save_sae(dictionary, MANIFEST, tmp_path)
    write_metrics(tmp_path, {"all": {"l0": 8.0}})
    after = load_manifest(tmp_path)
    assert after.metrics == {"all": {"l0": 8.0}}
    assert after.model_copy(update={"metrics": {}}) == before
    assert load_sae(tmp_path).manifest.sae_sha256 == before.sae_sha256


def test_fixture_is_a_harvest_file_like_any_other(dictionary, tmp_path):
    # `evaluate` without a model needs residuals alone.
    save_file({"resid_ND": torch.randn(30, tiny.D_MODEL).bfloat16()}, tmp_path / "shard-00000.safetensors")
    metrics = evaluate(dictionary, None, None, {"only": shard_paths(tmp_path)}, 0).figures()
    assert set(metrics) == {"only"} and metrics["only"]["tokens"] == 30


def test_a_set_without_shards_is_named(tmp_path):
    with pytest.raises(HarvestError, match="got 'corpus="):
        parse_set(f"corpus={tmp_path / 'nothing'}")


@pytest.mark.parametrize(
    ("field", "value"), [("model_sha256", "1" * 64), ("hook_point", "layers.0.output"), ("d_model", tiny.D_MODEL + 1)]
)
def test_a_harvest_of_another_model_or_place_is_refused(model, tmp_path, field, value):
    harvest(model, tiny.HOOK_POINT, contexts(3, 12), tmp_path / "one", contexts_per_shard=2)
    sets = dict([parse_set(f"one={tmp_path / 'one'}")])
    check_harvests(MANIFEST, sets)
    with pytest.raises(HarvestError, match=f"{field} must be the dictionary's {value}"):
        check_harvests(MANIFEST.model_copy(update={field: value}), sets)


def test_the_report_holds_the_figures_and_needs_no_network(model, dictionary, tap, tmp_path):
    harvest(model, tiny.HOOK_POINT, contexts(6, 12), tmp_path / "one", contexts_per_shard=2)
    save_sae(dictionary, MANIFEST.model_copy(update={"name": "<b>tiny</b>"}), tmp_path / "sae")
    sae = load_sae(tmp_path / "sae")
    assert isinstance(sae, LoadedSAE)
    evaluation = evaluate(sae, model, tap, dict([parse_set(f"one={tmp_path / 'one'}")]), 1000)
    write_report(sae, evaluation, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    figures = evaluation.figures()["one"]
    assert f"{figures['variance_explained']:.4f}" in page
    assert f"{figures['kl_sae']:.4f}" in page
    assert "&lt;b&gt;tiny" in page and "<b>tiny" not in page
    body = page.replace(plotly_script(page), "")
    assert "<script src" not in body and "http" not in body.replace("http://www.w3.org", "")


def plotly_script(page: str) -> str:
    """The library's own text, which names web pages that it does not open."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs()
    assert script in page
    return script


def test_the_command_prints_json_and_writes_the_manifest(dictionary, tmp_path, capsys):
    from discovery.evaluate import main

    save_sae(dictionary, MANIFEST, tmp_path / "sae")
    (tmp_path / "one").mkdir()
    save_file({"resid_ND": torch.randn(30, tiny.D_MODEL).bfloat16()}, tmp_path / "one" / "shard-00000.safetensors")
    (tmp_path / "one" / "manifest.json").write_text(json.dumps({"settings": {"d_model": tiny.D_MODEL}}))
    assert main([str(tmp_path / "sae"), "--set", f"one={tmp_path / 'one'}", "--ce-tokens", "0", "--write"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert load_manifest(tmp_path / "sae").metrics == {"one": said["one"]}
    assert 0 < said["decoder"]["max_cosine_quantiles"]["50%"] < 1
