"""evaluate: sets of shards, their total, the manifest and the report."""

import json

import numpy as np
import pytest
import tiny
import tiny_files
import torch
from browser import needs_browser, open_page
from full_disk import room_for
from safetensors.torch import save_file

from discovery import decoder_geometry
from discovery.corpus import Context
from discovery.decoder_geometry import geometry_figures
from discovery.errors import FitError, HarvestError, LabError
from discovery.evaluate import (
    check_harvests,
    evaluate,
    main,
    mean_residual,
    parse_set,
    parse_sets,
    write_metrics,
    write_report,
)
from discovery.harvest import harvest
from discovery.provenance import COMPARED
from discovery.shards import load_resid, shard_paths
from discovery.splicing import measure_splicing
from sae_runtime.checkpoint import LoadedSAE, Manifest, load_manifest, load_sae, save_sae
from sae_runtime.formats import UNKNOWN
from sae_runtime.tap import Tap
from sae_runtime.usual_fvu import MIN_TOKENS, UsualFVU

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


def write_manifest(folder, settings, *, num_shards=1, finished=True):
    """That of a harvest of so many shards."""
    settings = settings | {"num_contexts": num_shards, "contexts_per_shard": 1}
    (folder / "manifest.json").write_text(json.dumps({"settings": settings, "finished": finished}))


def test_all_sets_together(model, dictionary, tap, tmp_path):
    for name, num in (("one", 5), ("two", 3)):
        harvest(model, tiny.HOOK_POINT, contexts(num, 12), tmp_path / name, contexts_per_shard=2)
    sets = dict(parse_set(f"{name}={tmp_path / name}") for name in ("one", "two"))
    metrics = evaluate(dictionary, model, tap, sets, 1000).figures()
    assert metrics["all"]["tokens"] == metrics["one"]["tokens"] + metrics["two"]["tokens"] == 8 * 11
    assert metrics["all"]["predictions"] == 8 * 10
    assert metrics["all"]["dead_ratio"] <= min(metrics["one"]["dead_ratio"], metrics["two"]["dead_ratio"])


def test_cross_entropy_is_over_contexts_of_all_lengths(model, dictionary, tap, tmp_path):
    """With room for all it is what each context gives in a pass of its own."""
    mixed = [*contexts(4, 12), *contexts(3, 7), *contexts(2, 30), *contexts(1, 2)]
    harvest(model, tiny.HOOK_POINT, mixed, tmp_path, contexts_per_shard=4)
    shards = shard_paths(tmp_path)
    found = evaluate(dictionary, model, tap, {"one": shards}, 1000, batch_tokens=30).splicing["one"]
    alone = [torch.tensor([context.tokens]) for context in mixed if len(context.tokens) > 2]
    wanted = measure_splicing(model, dictionary, alone, tap, mean_D=mean_residual(shards))
    assert found.num_predictions == wanted.num_predictions == 4 * 10 + 3 * 5 + 2 * 28
    assert found.cross_entropy == pytest.approx(wanted.cross_entropy, rel=1e-5)
    assert found.kl == pytest.approx(wanted.kl, rel=1e-3)
    figures = found.figures()
    assert (figures["prediction_contexts"], figures["prediction_contexts_available"]) == (9, 9)


def test_a_harvest_of_another_width_is_refused_unverified_too(dictionary, tmp_path):
    save_sae(dictionary, MANIFEST, tmp_path / "sae")
    (tmp_path / "one").mkdir()
    write_shard(tmp_path / "one")
    write_manifest(tmp_path / "one", MANIFEST.model_dump(include=set(COMPARED)) | {"d_model": 48})
    with pytest.raises(FitError, match=f"d_model of harvest .*one must be the dictionary's {tiny.D_MODEL}, got 48"):
        main([str(tmp_path / "sae"), "--set", f"one={tmp_path / 'one'}", "--ce-tokens", "0", "--unverified"])


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
    ("field", "value"),
    [
        ("model_sha256", "1" * 64),
        ("quantization", "nf4"),
        ("hook_point", "layers.0.output"),
        ("d_model", tiny.D_MODEL + 1),
    ],
)
def test_a_harvest_of_another_model_or_place_is_refused(model, tmp_path, field, value):
    harvest(model, tiny.HOOK_POINT, contexts(3, 12), tmp_path / "one", contexts_per_shard=2)
    sets = dict([parse_set(f"one={tmp_path / 'one'}")])
    check_harvests(MANIFEST, sets)
    with pytest.raises(FitError, match=f"{field} of harvest .*one must be the dictionary's {value}, got"):
        check_harvests(MANIFEST.model_copy(update={field: value}), sets)
    # What is not known of an imported dictionary can't be compared.
    check_harvests(MANIFEST.model_copy(update={"model_sha256": UNKNOWN, "quantization": UNKNOWN}), sets)
    check_harvests(MANIFEST.model_copy(update={"hook_point": "layers.2.input"}), sets)
    settings = json.loads((tmp_path / "one" / "manifest.json").read_text())["settings"]
    del settings[field]
    (tmp_path / "one" / "manifest.json").write_text(json.dumps({"settings": settings}))
    with pytest.raises(FitError, match=f"{field} of harvest .*one must be the dictionary's .*, got None"):
        check_harvests(MANIFEST, sets)


@pytest.mark.parametrize(("field", "value"), [("model_sha256", "1" * 64), ("quantization", "nf4")])
def test_another_model_than_the_dictionarys_is_refused(tmp_path, field, value, capsys):
    facts = {"model_sha256": tiny_files.write_model(tmp_path / "model"), field: value}
    tiny_files.write_dictionary(tmp_path / "sae", **facts)
    (tmp_path / "one").mkdir()
    write_shard(tmp_path / "one")
    settings = load_manifest(tmp_path / "sae").model_dump(include=set(COMPARED))
    write_manifest(tmp_path / "one", settings)
    argv = [str(tmp_path / "sae"), "--set", f"one={tmp_path / 'one'}", "--model", str(tmp_path / "model")]
    with pytest.raises(FitError, match=f"{field} of model model must be the dictionary's {value}, got"):
        main(argv)
    assert main([*argv, "--unverified"]) == 0
    assert json.loads(capsys.readouterr().out)["one"]["predictions"] == 3 * 9


def write_shard(folder, *, length: int = 10, num: int = 3) -> None:
    """Contexts of one length with random residuals."""
    contexts_N = torch.arange(num).repeat_interleave(length)
    tensors = {
        "resid_ND": torch.randn(num * length, tiny.D_MODEL).bfloat16(),
        "token_ids_N": torch.full((num * length,), 70, dtype=torch.int32),
        "positions_N": torch.arange(1, length + 1, dtype=torch.int32).repeat(num),
        "contexts_N": contexts_N.int(),
        "documents_N": contexts_N,
        "first_ids_C": torch.full((num,), 71, dtype=torch.int32),
    }
    save_file(tensors, folder / "shard-00000.safetensors")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_residuals_that_are_not_finite_are_refused_by_name(dictionary, tmp_path, bad):
    resid_ND = torch.randn(30, tiny.D_MODEL).bfloat16()
    resid_ND[4, 5] = bad
    save_file({"resid_ND": resid_ND}, tmp_path / "shard-00000.safetensors")
    with pytest.raises(HarvestError, match=r"shard-00000\S* residuals must be finite, got NaN or infinity at 1 of 30"):
        evaluate(dictionary, None, None, {"only": shard_paths(tmp_path)}, 0)


@pytest.mark.parametrize("cut", [0, 7, 500])
def test_a_damaged_shard_is_refused_by_name(dictionary, tmp_path, cut):
    save_file({"resid_ND": torch.randn(30, tiny.D_MODEL).bfloat16()}, tmp_path / "shard-00000.safetensors")
    path = tmp_path / "shard-00000.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(HarvestError, match=r"shard-00000\.safetensors is no readable shard"):
        evaluate(dictionary, None, None, {"only": shard_paths(tmp_path)}, 0)


def test_contexts_too_short_for_a_prediction_are_named(model, dictionary, tap, tmp_path):
    write_shard(tmp_path, length=1)
    with pytest.raises(HarvestError, match="3 tokens or more for predictions, got 2"):
        evaluate(dictionary, model, tap, {"only": shard_paths(tmp_path)}, 100)


def test_the_mean_is_each_sets_own(tmp_path):
    dictionary = tiny.sae()
    dictionary.resid_mean.zero_()  # as in a dictionary of another library
    sets = {}
    for name, offset in (("low", -30.0), ("high", 30.0)):
        (tmp_path / name).mkdir()
        resid_ND = (torch.randn(40, tiny.D_MODEL) + offset).bfloat16()
        save_file({"resid_ND": resid_ND[:25].contiguous()}, tmp_path / name / "shard-00000.safetensors")
        save_file({"resid_ND": resid_ND[25:].contiguous()}, tmp_path / name / "shard-00001.safetensors")
        sets[name] = shard_paths(tmp_path / name)
        torch.testing.assert_close(mean_residual(sets[name]), resid_ND.float().mean(0))
    evaluation = evaluate(dictionary, None, None, sets, 0)
    x_ND = torch.cat([load_resid(path) for paths in sets.values() for path in paths]).float()
    for name, part_ND in (("low", x_ND[:40]), ("high", x_ND[40:]), ("all", x_ND)):
        error = (part_ND - dictionary.reconstruct(part_ND)).square().sum()
        wanted = 1 - float(error / (part_ND - part_ND.mean(0)).square().sum())
        assert evaluation.figures()[name]["variance_explained"] == pytest.approx(wanted, rel=1e-4)


def test_names_of_sets_are_their_own(tmp_path):
    write_shard(tmp_path)
    assert list(parse_sets([f"a={tmp_path}"])) == ["a"]
    for texts in (["a", "a"], ["all"], ["decoder"], ["density"], ["fidelity"]):
        with pytest.raises(HarvestError, match="names of their own, and none 'all'"):
            parse_sets([f"{text}={tmp_path}" for text in texts])


def test_no_harvest_counts_twice(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name)
    one, two = tmp_path / "one", tmp_path / "two"
    assert list(parse_sets([f"a={one}", f"b={two}"])) == ["a", "b"]
    for texts in ([f"a={one}", f"b={two},{tmp_path}/two/../one"], [f"a={one},{one}"]):
        with pytest.raises(HarvestError, match=r"--set must name each harvest once, got .*/one 2 times"):
            parse_sets(texts)


def test_the_report_takes_in_a_comparison(dictionary, tmp_path, capsys):
    comparison = {
        "models": ["tiny none <b>", "tiny nf4"],
        "correlation_histogram": {"edges": [-1.0, 0.0, 1.0], "counts": [3, 17]},
        "answer": {"may_be_served": False, "reasons": ["flips: 0.400, above 0.25"]},
    }
    (tmp_path / "fidelity.json").write_text(json.dumps(comparison))
    save_sae(dictionary, MANIFEST, tmp_path / "sae")
    write_shard(tmp_path)
    argv = [str(tmp_path / "sae"), "--set", f"one={tmp_path}", "--ce-tokens", "0", "--unverified"]
    write_manifest(tmp_path, {})
    argv += ["--report", str(tmp_path / "report.html"), "--fidelity", str(tmp_path / "fidelity.json")]
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out)["fidelity"] == comparison
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "tiny none &lt;b&gt;</b> should not be served on <b>tiny nf4" in page
    assert "flips: 0.400, above 0.25" in page
    for text in ("", "[]", '{"models": []}'):
        (tmp_path / "fidelity.json").write_text(text)
        with pytest.raises(LabError, match=r"comparison .*fidelity\.json"):
            main(argv)


def test_figures_are_printed_before_the_page_is_written(dictionary, tmp_path, capsys, monkeypatch):
    save_sae(dictionary, MANIFEST, tmp_path / "sae")
    write_shard(tmp_path)
    write_manifest(tmp_path, {})
    page = tmp_path / "reports" / "new" / "a.html"
    argv = [str(tmp_path / "sae"), "--set", f"one={tmp_path}", "--ce-tokens", "0", "--unverified"]
    with monkeypatch.context() as patch:
        patch.setattr("discovery.evaluation_report.render", lambda *_args: "x" * 5000)
        with room_for(1000), pytest.raises(OSError, match=r"File too large: .*a\.html"):
            main([*argv, "--report", str(page)])
    figures = json.loads(capsys.readouterr().out)
    assert figures["one"]["tokens"] > 0
    assert main([*argv, "--report", str(page)]) == 0
    assert json.loads(capsys.readouterr().out) == figures and page.is_file()


def test_fewer_tokens_than_none_are_refused(tmp_path):
    with pytest.raises(LabError, match="--ce-tokens must be at least 0, got -3"):
        main([str(tmp_path), "--set", "a=b", "--ce-tokens", "-3"])


def test_a_pass_has_a_token_at_least(tmp_path):
    with pytest.raises(LabError, match="--batch-tokens must be at least 1, got 0"):
        main([str(tmp_path), "--set", "a=b", "--batch-tokens", "0"])


def test_the_report_holds_the_figures_and_needs_no_network(model, dictionary, tap, tmp_path):
    harvest(model, tiny.HOOK_POINT, contexts(6, 12), tmp_path / "one", contexts_per_shard=2)
    save_sae(dictionary, MANIFEST.model_copy(update={"name": "<b>tiny</b>"}), tmp_path / "sae")
    sae = load_sae(tmp_path / "sae")
    assert isinstance(sae, LoadedSAE)
    evaluation = evaluate(sae, model, tap, dict([parse_set(f"one={tmp_path / 'one'}")]), 1000)
    write_report(sae, evaluation, geometry_figures(sae), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    figures = evaluation.figures()["one"]
    assert f"{figures['variance_explained']:.4f}" in page
    assert f"{figures['kl_sae']:.4f}" in page
    assert "&lt;b&gt;tiny" in page and "<b>tiny" not in page
    body = page.replace(plotly_script(page), "")
    assert "<script src" not in body and "http" not in body.replace("http://www.w3.org", "")


@needs_browser
def test_the_report_opens_without_a_network(model, dictionary, tmp_path):
    harvest(model, tiny.HOOK_POINT, contexts(6, 12), tmp_path / "one", contexts_per_shard=2)
    save_sae(dictionary, MANIFEST, tmp_path / "sae")
    sae = load_sae(tmp_path / "sae")
    evaluation = evaluate(sae, None, None, dict([parse_set(f"one={tmp_path / 'one'}")]), 0)
    write_report(sae, evaluation, geometry_figures(sae), tmp_path / "report.html")
    opened = open_page(tmp_path / "report.html", tmp_path / "profile")
    assert opened.console == opened.requests == []
    assert opened.dom.count('class="main-svg"') >= 2  # both plots are drawn


def test_decoder_rows_are_compared_once_for_page_and_json(dictionary, tmp_path, capsys, monkeypatch):
    """And random rows once: each time costs F^2 * D operations."""
    seen, largest = [], decoder_geometry.max_cosines
    monkeypatch.setattr(decoder_geometry, "max_cosines", lambda sae: (seen.append(sae), largest(sae))[1])
    save_sae(dictionary, MANIFEST, tmp_path / "sae")
    write_shard(tmp_path)
    write_manifest(tmp_path, {})
    argv = [str(tmp_path / "sae"), "--set", f"one={tmp_path}", "--ce-tokens", "0", "--unverified"]
    assert main([*argv, "--report", str(tmp_path / "report.html")]) == 0
    assert len(seen) == 2
    median = json.loads(capsys.readouterr().out)["decoder"]["max_cosine_quantiles"]["50%"]
    assert f"<p>Median {median:.2f}; random" in (tmp_path / "report.html").read_text(encoding="utf-8")


def plotly_script(page: str) -> str:
    """The library's own text, which names web pages that it does not open."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs()
    assert script in page
    return script


def test_the_command_prints_json_and_writes_the_manifest(dictionary, tmp_path, capsys):
    save_sae(dictionary, MANIFEST, tmp_path / "sae")
    (tmp_path / "one").mkdir()
    save_file({"resid_ND": torch.randn(30, tiny.D_MODEL).bfloat16()}, tmp_path / "one" / "shard-00000.safetensors")
    write_manifest(tmp_path / "one", MANIFEST.model_dump(include=set(COMPARED)))
    assert main([str(tmp_path / "sae"), "--set", f"one={tmp_path / 'one'}", "--ce-tokens", "0", "--write"]) == 0
    said = json.loads(printed := capsys.readouterr().out)
    assert len(printed.splitlines()) < 60  # a histogram's bins are on one line
    assert load_manifest(tmp_path / "sae").metrics == {"one": said["one"]}  # too few tokens for a guard's limit
    assert 0 < said["decoder"]["max_cosine_quantiles"]["50%"] < 1
    density = said["density"]["one"]
    assert sum(density["counts"]) + density["num_dead"] == tiny.NUM_LATENTS
    assert len(density["edges"]) == len(density["counts"]) + 1 and density["edges"][-1] == 0
    assert density["num_dead"] == round(said["one"]["dead_ratio"] * tiny.NUM_LATENTS)
    resid_ND = load_resid(tmp_path / "one" / "shard-00000.safetensors").float()
    shares_F = (dictionary.encode(resid_ND) > 0).float().mean(0)
    counts, _ = np.histogram(shares_F[shares_F > 0].log10().numpy(), bins=density["edges"])
    assert density["counts"] == counts.tolist()


def test_what_a_tokens_fvu_usually_is_equals_what_the_server_streams(dictionary, tmp_path):
    with torch.no_grad():
        dictionary.resid_mean.copy_(torch.randn(tiny.D_MODEL) / 4)
    metrics = {"fidelity": [], "gone": 1}
    save_sae(dictionary, MANIFEST.model_copy(update={"metrics": metrics}), tmp_path / "sae")
    resid_ND = torch.randn(MIN_TOKENS, tiny.D_MODEL).bfloat16()
    (tmp_path / "one").mkdir()
    save_file({"resid_ND": resid_ND}, tmp_path / "one" / "shard-00000.safetensors")
    write_manifest(tmp_path / "one", MANIFEST.model_dump(include=set(COMPARED)))
    assert main([str(tmp_path / "sae"), "--set", f"one={tmp_path / 'one'}", "--ce-tokens", "0", "--write"]) == 0
    manifest = load_manifest(tmp_path / "sae")
    assert set(manifest.metrics) == {"one", "token_fvu", "fidelity"}
    usual = UsualFVU.of(manifest)
    fvu_N = dictionary.read_tokens(resid_ND.float(), torch.tensor([0]), 0).fvu_T
    assert usual.tokens == MIN_TOKENS
    assert usual.limit == pytest.approx(float(np.quantile(fvu_N.numpy(), 0.999)), rel=1e-5)
    assert float((fvu_N > usual.limit).float().mean()) == pytest.approx(0.001, abs=2e-4)


@pytest.mark.parametrize(
    ("facts", "got"),
    [({"num_shards": 2}, "must have 2 shards, got none of shard-00001"), ({"finished": False}, "got finished: false")],
)
def test_some_of_a_harvest_is_not_evaluated_as_all_of_it(dictionary, tmp_path, facts, got):
    save_sae(dictionary, MANIFEST, tmp_path / "sae")
    (tmp_path / "one").mkdir()
    write_shard(tmp_path / "one")
    write_manifest(tmp_path / "one", MANIFEST.model_dump(include=set(COMPARED)), **facts)
    with pytest.raises(HarvestError, match=got):
        main([str(tmp_path / "sae"), "--set", f"one={tmp_path / 'one'}", "--ce-tokens", "0", "--unverified"])


def trained_on(contexts_sha256, **more):
    return {"data": [{"sources": ["text"], "shards": 3}, {"contexts_sha256": contexts_sha256}], **more}


@pytest.mark.parametrize("training", [trained_on("a" * 64), trained_on("b" * 64, started_from=trained_on("a" * 64))])
def test_what_it_was_trained_on_is_not_held_out(dictionary, tmp_path, training):
    """By this run, or by one that it went on from."""
    save_sae(dictionary, MANIFEST.model_copy(update={"training": training}), tmp_path / "sae")
    settings = MANIFEST.model_dump(include=set(COMPARED))
    for name, digest in {"one": "a", "two": "c"}.items():
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name)
        write_manifest(tmp_path / name, settings | {"contexts_sha256": digest * 64})
    argv = [str(tmp_path / "sae"), "--ce-tokens", "0", "--set", f"two={tmp_path / 'two'}"]
    assert main(argv) == 0
    argv += ["--set", f"one={tmp_path / 'one'}"]
    with pytest.raises(
        HarvestError, match=r"one: the dictionary must not have been trained on it.*contexts_sha256 a{64}"
    ):
        main(argv)
    assert main([*argv, "--trained-on"]) == 0


@pytest.mark.parametrize(
    "training", [{}, {"data": [{"sources": ["text"], "shards": 3}]}, {"data": "text"}, {"data": ["text"]}]
)
def test_a_dictionary_that_does_not_say_what_it_was_trained_on_is_measured(dictionary, tmp_path, training):
    save_sae(dictionary, MANIFEST.model_copy(update={"training": training}), tmp_path / "sae")
    (tmp_path / "one").mkdir()
    write_shard(tmp_path / "one")
    write_manifest(tmp_path / "one", MANIFEST.model_dump(include=set(COMPARED)))  # as of a harvest that doesn't say
    assert main([str(tmp_path / "sae"), "--ce-tokens", "0", "--set", f"one={tmp_path / 'one'}"]) == 0
