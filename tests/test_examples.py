"""examples: one pass finds what sorting everything would, in memory that does not grow, and survives being killed."""

import json
import math
import random
import re
import shutil
import sqlite3
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import tiny
import tiny_examples
import torch
from endless import endless_stream
from killed_examples import run_killed
from safetensors.torch import load_file, save_file
from tiny_examples import SETTINGS

from discovery import example_collector, example_schema, examples, input_arguments, lab
from discovery.context_store import ContextStore
from discovery.corpus import (
    Context,
    CorpusSettings,
    contexts_digest,
    read_contexts,
)
from discovery.errors import ArgumentError, ExampleError, FitError, HarvestError
from discovery.example_collector import HISTOGRAM_EDGES, ExampleSettings, random_priorities
from discovery.example_store import ExampleStore
from discovery.examples import collect, finish, is_finished, state_path
from discovery.harvest import harvest
from discovery.logit_effects import logit_effects
from discovery.provenance import check_provenance
from discovery.result_lines import claimed
from discovery.shards import load_shard, ordinary, save_shard, shard_path, shard_paths
from discovery.text_pieces import UNKNOWN_SOURCE, HarvestedText, ModelText
from sae_runtime.checkpoint import load_sae, save_sae
from sae_runtime.formats import UNKNOWN
from sae_runtime.tap import Tap

QUOTED = ("novels", "chat")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    tiny_examples.write_example_file(model, folder)
    return folder


@pytest.fixture
def store(folder):
    with ExampleStore.open(folder / "examples.sqlite") as store:
        yield store


@pytest.fixture(scope="module")
def sae(folder):
    return tiny_examples.load_sae(folder / "dictionary")


@pytest.fixture
def text(folder):
    return HarvestedText([folder / "harvest"], tiny_examples.document_sources())


def run(this, output, **settings):
    finish(this, collect(this, output, **settings), output)


# --- the obvious reference ------------------------------------------------------------------------------------------


class Token:
    """One token of the text with the readings of all latents, as plain numbers."""

    def __init__(self, place, context, position, f_F):
        self.place, self.context, self.position = place, context, position
        self.f = f_F
        self.quotable = context.source in QUOTED

    def last_tokens(self, num):
        end = self.position + 1
        return tuple([-1] * max(0, num - end) + self.context.tokens[max(0, end - num) : end])


@pytest.fixture(scope="module")
def tokens(folder, sae):
    """All of them, in order, readings 0 where nothing is read."""
    made, contexts = [], iter(tiny_examples.contexts())
    context = None
    for path in shard_paths(folder / "harvest"):
        shard = load_shard(path)
        f_NF = sae.encode(shard.resid_ND.float()) * ordinary(shard.resid_ND)[:, None]
        for f_F, position in zip(f_NF.tolist(), shard.positions_N.tolist(), strict=True):
            context = next(contexts) if position == 1 else context
            made.append(Token(len(made), context, position, f_F))
    return made


def naive_top(tokens, latent):
    """Best token of each context; best of each text before it; the best of these."""
    best = {}
    for token in tokens:
        if token.quotable and token.f[latent] > 0:
            key = id(token.context)
            if key not in best or token.f[latent] > best[key].f[latent]:
                best[key] = token
    by_text = defaultdict(list)
    for token in best.values():
        by_text[token.last_tokens(SETTINGS.distinct_tokens)].append(token)
    chosen = [min(group, key=lambda t: (-t.f[latent], t.place)) for group in by_text.values()]
    return sorted(chosen, key=lambda t: (-t.f[latent], t.place))[: SETTINGS.num_top], len(best) - len(chosen)


def naive_sample(tokens, latent):
    def priority(token):
        return float(random_priorities(SETTINGS.seed, np.array([token.place]), np.array([latent]))[0])

    active = [token for token in tokens if token.quotable and token.f[latent] > 0]
    sample = sorted(active, key=priority)[: SETTINGS.num_bins * SETTINGS.per_bin]
    return sorted(sample, key=lambda t: (t.f[latent], -t.place))


def check_example(example, token, latent, all_tokens):
    assert example.value == pytest.approx(token.f[latent], rel=1e-5)
    assert (example.document, example.position) == (token.context.document, token.position)
    assert example.source == token.context.source
    first = max(0, token.position - SETTINGS.before)
    last = min(len(token.context.tokens), token.position + SETTINGS.after + 1)
    assert list(example.token_ids) == token.context.tokens[first:last]
    assert example.focus == token.position - first
    start = token.place - token.position  # place of position 0, if it had one
    wanted = [all_tokens[start + p].f[latent] if p > 0 else 0.0 for p in range(first, last)]
    assert example.readings == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    assert example.text == "".join(example.pieces)


def test_top_examples_are_those_of_sorting_everything(store, tokens):
    num_repeated = 0
    for latent in range(tiny.NUM_LATENTS):
        wanted, repeated = naive_top(tokens, latent)
        found = store.latent(latent).top
        assert len(found) == len(wanted)
        for example, token in zip(found, wanted, strict=True):
            check_example(example, token, latent, tokens)
        num_repeated += repeated
    assert num_repeated > 10, "the text must have repetitions for this to mean anything"


def test_samples_are_the_smallest_hashes_cut_into_bins_by_reading(store, tokens):
    num_full = 0
    for latent in range(tiny.NUM_LATENTS):
        wanted = naive_sample(tokens, latent)
        bins = store.latent(latent).quantiles
        found = [example for bin_ in bins for example in reversed(bin_)]
        assert len(found) == len(wanted)
        for example, token in zip(found, wanted, strict=True):
            check_example(example, token, latent, tokens)
        if len(wanted) == SETTINGS.num_bins * SETTINGS.per_bin:
            assert [len(bin_) for bin_ in bins] == [SETTINGS.per_bin] * SETTINGS.num_bins
            num_full += 1
    assert num_full > 20


def test_figures_are_over_all_tokens_quotable_or_not(store, tokens):
    assert store.num_tokens == len(tokens)
    for latent in range(tiny.NUM_LATENTS):
        active = [token for token in tokens if token.f[latent] > 0]
        values = [token.f[latent] for token in active]
        record = store.latent(latent)
        assert record.num_active == len(values)
        assert record.density == pytest.approx(len(values) / len(tokens))
        assert record.max == pytest.approx(max(values, default=0), rel=1e-5)
        assert record.mean_active == pytest.approx(sum(values) / max(len(values), 1), rel=1e-5)
        # A reading next to an edge may fall to either side: encoding in other batches changes the last bit.
        wanted = np.histogram(np.clip(values, HISTOGRAM_EDGES[0], None), HISTOGRAM_EDGES)[0]
        assert np.abs(np.array(record.histogram) - wanted).sum() <= 2
        for source, share in record.sources.items():
            assert share == pytest.approx(sum(t.context.source == source for t in active) / len(active), abs=1e-4)
    assert store.latent(5).num_active == 0 and store.latent(5).top == ()
    assert store.num_live == tiny.NUM_LATENTS - 1


def test_sources_that_may_not_be_quoted_are_counted_and_not_quoted(store):
    records = [store.latent(latent) for latent in range(tiny.NUM_LATENTS)]
    quoted = {example.source for r in records for example in (*r.top, *(e for bin_ in r.quantiles for e in bin_))}
    assert quoted == set(QUOTED)
    assert {window.source for window in store.backgrounds()} <= set(QUOTED)
    assert any("manuals" in record.sources for record in records)


def test_backgrounds_know_which_latents_are_active_in_them(store, tokens):
    windows = list(store.backgrounds())
    assert len(windows) == SETTINGS.num_backgrounds
    by_place = {(token.context.document, token.position, tuple(token.context.tokens)): token for token in tokens}
    for window in windows:
        (token,) = (
            token
            for (document, position, ids), token in by_place.items()
            if (document, position) == (window.document, window.position)
            and list(window.token_ids) == list(ids)[position - window.focus :][: len(window.token_ids)]
        )
        start = token.place - token.position
        first = max(1, token.position - window.focus)
        places = range(start + first, start + token.position - window.focus + len(window.token_ids))
        active = {latent for place in places for latent, value in enumerate(tokens[place].f) if value > 0}
        assert window.active == active
    latent = max(windows[0].active, key=lambda latent: sum(latent not in window.active for window in windows))
    silent = list(store.backgrounds(without=latent))
    assert silent == [window for window in windows if latent not in window.active] != []


def test_batches_of_any_size_give_the_same(sae, text, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(example_collector, "_READINGS_PER_BATCH", tiny.NUM_LATENTS * 10)
    run(tiny_examples.example_pass(sae, text), tmp_path / "small.sqlite")
    with ExampleStore.open(tmp_path / "small.sqlite") as small, ExampleStore.open(folder / "examples.sqlite") as whole:
        for latent in range(tiny.NUM_LATENTS):
            one, other = small.latent(latent), whole.latent(latent)
            assert [(e.document, e.position) for e in one.top] == [(e.document, e.position) for e in other.top]
            assert [e.token_ids for e in one.top] == [e.token_ids for e in other.top]
            assert one.num_active == other.num_active


def test_reading_the_model_gives_the_file_that_the_harvest_gives(model, sae, text, tmp_path):
    tap = Tap(model.model, tiny.HOOK_POINT, model.d_model)
    contexts = tiny_examples.contexts()
    live = ModelText(model, tap, contexts, contexts_per_piece=tiny_examples.CONTEXTS_PER_SHARD, batch_tokens=200)
    try:
        harvested = HarvestedText(text._folders)
        assert live.facts == harvested.facts
        run(tiny_examples.example_pass(sae, live), tmp_path / "live.sqlite")
        run(tiny_examples.example_pass(sae, harvested), tmp_path / "harvested.sqlite")
    finally:
        tap.remove()
    assert dump(tmp_path / "live.sqlite") == dump(tmp_path / "harvested.sqlite")


def without_sources(harvest, folder):
    """A copy of the harvest as those of before shards had sources."""
    shutil.copytree(harvest, folder)
    for path in shard_paths(folder):
        save_shard(path, load_shard(path)._replace(sources_C=None))
    return folder


def test_sources_are_the_harvests_own_or_the_corpus_or_unknown(folder, tmp_path):
    old, names = without_sources(folder / "harvest", tmp_path / "old"), tiny_examples.document_sources()
    own = HarvestedText([folder / "harvest"])
    told, untold = HarvestedText([old], names), HarvestedText([old])
    assert (own.knows_sources, untold.knows_sources) == (True, False)
    assert own.sources == sorted(tiny_examples.SOURCES) and untold.sources == [UNKNOWN_SOURCE]
    assert told.sources == [*own.sources, UNKNOWN_SOURCE]
    for index in range(len(own)):
        piece = own.piece(index)
        wanted = [names[document] for document in piece.documents_N.tolist()]
        assert [own.sources[source] for source in piece.sources_N.tolist()] == wanted
        assert told.piece(index).sources_N.tolist() == piece.sources_N.tolist()
        assert set(untold.piece(index).sources_N.tolist()) == {0}
    manifest = json.loads((old / "manifest.json").read_text())
    manifest["settings"]["contexts_sha256"] = "1" * 64  # of another text
    (old / "manifest.json").write_text(json.dumps(manifest))
    both = HarvestedText([old, folder / "harvest"])
    assert both.sources == [*own.sources, UNKNOWN_SOURCE]
    renamed = HarvestedText([folder / "harvest"], dict.fromkeys(names, "mine"))
    assert {renamed.sources[source] for source in renamed.piece(0).sources_N.tolist()} == {"mine"}


def test_how_many_contexts_lie_in_a_shard_changes_no_example(model, sae, tmp_path):
    """Contexts are read one at a time: which of them share a pass may change the last bits of a sum."""
    contexts, files = tiny_examples.contexts(), {}
    for sizes in ((6, 6), (6, 4)):
        folders = [tmp_path / str(sizes) / str(part) for part in range(2)]
        for folder, size, part in zip(folders, sizes, (contexts[:12], contexts[12:]), strict=True):
            harvest(model, tiny.HOOK_POINT, part, folder, contexts_per_shard=size, batch_tokens=1)
        files[sizes] = tmp_path / f"{sizes}.sqlite"
        run(tiny_examples.example_pass(sae, HarvestedText(folders), None), files[sizes])
        with ExampleStore.open(files[sizes]) as store:
            assert store.manifest["contexts_per_shard"] == (6 if sizes == (6, 6) else [6, 4])
    assert dump(files[6, 6], without=("manifest",)) == dump(files[6, 4], without=("manifest",))


@pytest.mark.parametrize("change", [{"hook_point": "layers.2.output"}, {"model_sha256": "1" * 64}])
def test_a_harvest_of_another_model_or_place_than_the_first_is_named_before_a_model_is_loaded(
    folder, tmp_path, monkeypatch, capsys, change
):
    shutil.copytree(folder / "harvest", tmp_path / "other")
    manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
    manifest["settings"] |= change
    (tmp_path / "other" / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(input_arguments, "load_language_model", lambda *_args, **_settings: pytest.fail("loaded"))
    argv = ["dictionary", "--harvest", folder / "harvest", tmp_path / "other", "--output", tmp_path / "a.sqlite"]
    assert lab.run("examples", list(map(str, argv))) == 1
    (name, value), said = change.popitem(), capsys.readouterr().err
    assert (
        f"{name} of harvest {tmp_path / 'other'} must be" in said and f"as of {folder / 'harvest'}, got {value}" in said
    )
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def manifest_of_one_shard(harvest):
    """A harvest's manifest as if it had only its first shard."""
    manifest = json.loads((harvest / "manifest.json").read_text())
    manifest["settings"]["num_contexts"] = manifest["settings"]["contexts_per_shard"]
    return json.dumps(manifest)


def test_massive_activations_are_not_read(sae, folder, tmp_path):
    tensors = load_file(shard_path(folder / "harvest", 0))
    tensors["resid_ND"][7] *= 1000
    (tmp_path / "manifest.json").write_text(manifest_of_one_shard(folder / "harvest"))
    save_file(tensors, shard_path(tmp_path, 0))
    collector = collect(tiny_examples.example_pass(sae, HarvestedText([tmp_path]), None), tmp_path / "x")
    assert (collector.num_massive, collector.num_tokens) == (1, len(tensors["resid_ND"]) - 1)
    f_NF = sae.encode(tensors["resid_ND"].float())
    f_NF[7] = 0
    assert collector.max_F == pytest.approx(f_NF.amax(0).numpy(), rel=1e-5)
    assert 7 not in collector.top.arrays["place"][collector.top.arrays["score"] > -np.inf]


def test_memory_does_not_grow_with_the_text(sae, text):
    collector = tiny_examples.example_pass(sae, text).collector()
    begun = collector.num_bytes
    sizes = []
    for index in range(len(text)):
        collector.add(sae, text.piece(index))
        sizes.append(collector.num_bytes)
    most_backgrounds = SETTINGS.num_backgrounds * (4 * tiny.NUM_LATENTS + 4 * 9 + 8 * 5)
    assert max(sizes) <= begun + most_backgrounds
    assert sizes[-1] <= sizes[2] * 1.1


def test_logit_effects_are_the_change_of_the_logits(sae, store):
    """Against the model's own head, behind a last norm that does not weigh all directions alike."""
    model = tiny.language_model()
    norm_D = model.model.model.norm.weight
    before = logit_effects(model, sae, 3)
    assert [effect.token_id for effect in store.latent(17).promoted][:3] == before.promoted_ids_FE[17].tolist()
    assert store.latent(17).promoted[0].logit == pytest.approx(float(before.promoted_FE[17, 0]), rel=1e-3)
    norm_D.copy_(torch.linspace(0.1, 3, sae.d_model))
    effects = logit_effects(model, sae, 3)
    for latent in (0, 17):
        direction_D = sae.directions(torch.tensor([latent]), torch.zeros(1, sae.d_model))[0]
        with torch.inference_mode():
            effect_V = model.model.lm_head(direction_D * norm_D)
        effect_V = effect_V - effect_V.mean()
        assert effects.promoted_ids_FE[latent].tolist() == effect_V.topk(3).indices.tolist()
        assert effects.suppressed_FE[latent] == pytest.approx(effect_V.topk(3, largest=False).values.numpy(), rel=1e-4)


@pytest.mark.parametrize("spelling", ["same", "detour", "link", "copy"])
def test_no_harvest_counts_twice(folder, tmp_path, spelling):
    """Whatever it is called, before a model is loaded."""
    one, again = folder / "harvest", tmp_path / "again"
    if spelling == "link":
        again.symlink_to(one)
    elif spelling == "copy":
        shutil.copytree(one, again)
    else:
        again = one if spelling == "same" else one / ".." / one.name
    match = re.escape(f"harvest {again} must hold other text than those before it, got that of {one}")
    with pytest.raises(ExampleError, match=match):
        HarvestedText([one, again])
    argv = [str(folder / "dictionary"), "--output", str(tmp_path / "x.sqlite"), "--model", "none"]
    with pytest.raises(ExampleError, match=match):
        examples.main([*argv, "--harvest", str(one), str(again)])


def test_a_model_whose_logit_effects_nobody_can_tell_is_refused_before_anything_is_read(sae, text, tmp_path):
    model = tiny.language_model()
    del model.model.model.norm
    model.model.model.norm = lambda resid_BTD: resid_BTD
    text.piece = None
    this = replace(tiny_examples.example_pass(sae, text), lm=model)
    with pytest.raises(FitError, match="must end in a norm"):
        collect(this, tmp_path / "examples.sqlite")
    assert not list(tmp_path.iterdir())


# --- killed, continued, refused -------------------------------------------------------------------------------------


class Killed(BaseException):
    """What no handler of the code expects."""


def dump(path, without=()):
    """Every row of every table."""
    connection = sqlite3.connect(path)
    rows = {}
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall():
        cursor = connection.execute(f"SELECT * FROM {name}")
        kept = [i for i, column in enumerate(cursor.description) if column[0] not in without]
        if name not in without:
            rows[name] = [tuple(row[i] for i in kept) for row in cursor if row[0] not in without]
    connection.close()
    return rows


@pytest.mark.parametrize("dies_at", [1, 2, 3, 5])
@pytest.mark.parametrize("checkpoint_pieces", [1, 2])
def test_a_killed_pass_ends_as_an_uninterrupted_one(sae, text, folder, tmp_path, dies_at, checkpoint_pieces):
    output = tmp_path / "killed.sqlite"
    piece = text.piece

    def dying_piece(index):
        if index == dies_at:
            raise Killed
        return piece(index)

    text.piece = dying_piece
    with pytest.raises(Killed):
        run(tiny_examples.example_pass(sae, text), output, checkpoint_pieces=checkpoint_pieces)
    assert not output.exists()
    read = []
    text.piece = lambda index: read.append(index) or piece(index)
    run(tiny_examples.example_pass(sae, text), output, checkpoint_pieces=checkpoint_pieces)
    assert read == list(range(dies_at - dies_at % checkpoint_pieces, len(text)))
    assert output.read_bytes() == (folder / "examples.sqlite").read_bytes()
    assert not state_path(output).exists()


@pytest.mark.parametrize("step", ["save_file", "write_store", "logit_effects"])
def test_a_pass_killed_while_writing_goes_on(sae, text, folder, tmp_path, monkeypatch, step):
    output = tmp_path / "killed.sqlite"
    real = getattr(examples, step)

    def half_written(*args, **_settings):
        if step == "save_file":
            args[1].write_bytes(b"half a state")
        if step == "write_store":
            left = output.with_name(output.name + ".k1ll_3d0.partial")
            left.mkdir()
            (left / output.name).write_bytes(b"half a file")
        raise Killed

    monkeypatch.setattr(examples, step, half_written)
    with pytest.raises(Killed):
        run(tiny_examples.example_pass(sae, text), output, checkpoint_pieces=2)
    monkeypatch.setattr(examples, step, real)
    run(tiny_examples.example_pass(sae, text), output, checkpoint_pieces=2)
    assert output.read_bytes() == (folder / "examples.sqlite").read_bytes()
    assert list(tmp_path.iterdir()) == [output]


def test_sigkill_at_random_moments_changes_nothing(folder, tmp_path):
    assert run_killed(folder, tmp_path / "whole.sqlite", None) == 0
    whole = (tmp_path / "whole.sqlite").read_bytes()
    assert whole == (folder / "examples.sqlite").read_bytes()
    num_calls = int((tmp_path / "calls").read_text())
    rng, output, moments = random.Random(0), tmp_path / "killed.sqlite", []
    for _ in range(6):
        moments.append(rng.randrange(1, num_calls // 4))
        if run_killed(folder, output, moments[-1]) == 0:
            break  # so little was left
        assert not output.exists()
    assert len(moments) > 2
    if not output.exists():
        assert run_killed(folder, output, None) == 0
    assert output.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calls", "killed.sqlite", "whole.sqlite"]


@pytest.mark.parametrize("part", ["state", "file"])
def test_a_disk_that_is_really_full_is_named_and_costs_nothing(folder, tmp_path, part):
    output, whole = tmp_path / "full.sqlite", (folder / "examples.sqlite").read_bytes()
    if part == "file":  # the state is there; the file has no room
        sae, text = load_sae(folder / "dictionary"), tiny_examples.harvested(tiny.language_model(), folder / "harvest")
        collect(tiny_examples.example_pass(sae, text), output)
    kept = sorted(path.name for path in tmp_path.iterdir())
    most_bytes = 4096 if part == "state" else len(whole) // 2
    assert run_killed(folder, output, None, most_bytes=most_bytes) == 1
    assert re.search(
        r"full\.sqlite\S* can't be written: File too large; .*and the same command (goes on|begins anew)",
        (tmp_path / "error").read_text(),
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "error"])
    assert run_killed(folder, output, None) == 0
    assert output.read_bytes() == whole


def test_a_finished_file_is_not_done_again_and_other_settings_are_refused(sae, text, folder):
    output = folder / "examples.sqlite"
    assert is_finished(tiny_examples.example_pass(sae, text), output)
    with pytest.raises(ExampleError, match=r"quote_sources was \['chat', 'novels'\], is None"):
        is_finished(tiny_examples.example_pass(sae, text, None), output)


def test_a_state_of_other_settings_is_refused(sae, text, tmp_path):
    collect(tiny_examples.example_pass(sae, text), tmp_path / "x")
    with pytest.raises(ExampleError, match="quote_sources was"):
        collect(tiny_examples.example_pass(sae, text, ("chat",)), tmp_path / "x")


@pytest.mark.parametrize("damage", ["cut", "flipped", "other file", "text"])
def test_a_damaged_state_is_named(sae, text, tmp_path, damage):
    output = tmp_path / "examples.sqlite"
    path = state_path(output)
    collect(tiny_examples.example_pass(sae, text), output)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    elif damage == "other file":
        save_file({"counts": torch.zeros(3)}, path)
    else:
        path.write_text("not a state")
    with pytest.raises(ExampleError, match=r"examples\.sqlite\.state can't be read; delete it"):
        collect(tiny_examples.example_pass(sae, text), output)


def test_a_full_disk_leaves_nothing_half_written(sae, text, tmp_path, monkeypatch):
    output = tmp_path / "x.sqlite"
    collector = collect(tiny_examples.example_pass(sae, text), output)
    create = example_schema.create

    def small_disk(path):
        connection = create(path)
        connection.execute("PRAGMA max_page_count = 30")
        return connection

    monkeypatch.setattr(example_schema, "create", small_disk)
    with pytest.raises(ExampleError, match=r"x\.sqlite can't be written: .*full; .* the same command goes on"):
        finish(tiny_examples.example_pass(sae, text), collector, output)
    assert [path.name for path in tmp_path.iterdir()] == ["x.sqlite.state"]


def test_bad_text_is_refused_by_name(model, folder, tmp_path):
    manifest = manifest_of_one_shard(folder / "harvest")
    (tmp_path / "manifest.json").write_text(manifest)
    path = shard_path(tmp_path, 0)
    tensors = load_file(shard_path(folder / "harvest", 0))
    save_file(tensors | {"resid_ND": tensors["resid_ND"].index_fill(0, torch.tensor([3]), math.nan)}, path)
    with pytest.raises(ExampleError, match=r"shard-00000.*finite, got NaN or infinity at 1 of"):
        HarvestedText([tmp_path]).piece(0)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(HarvestError, match=r"shard-00000\S* is no readable shard: .*; delete it and harvest again"):
        HarvestedText([tmp_path]).piece(0)
    save_file({"resid_ND": tensors["resid_ND"]}, path)
    with pytest.raises(ExampleError, match=r"shard-00000\S* is no readable shard: .*; delete it and harvest again"):
        HarvestedText([tmp_path]).piece(0)
    (tmp_path / "manifest.json").write_text(json.dumps(json.loads(manifest) | {"finished": False}))
    with pytest.raises(ExampleError, match="must be finished"):
        HarvestedText([tmp_path])
    (tmp_path / "manifest.json").write_text(manifest)
    path.unlink()
    with pytest.raises(HarvestError, match="must have 1 shards, got none of shard-00000"):
        HarvestedText([tmp_path])
    with pytest.raises(ExampleError, match="got none"):
        ModelText(model, None, [])


def test_residuals_of_another_model_are_refused(sae, text):
    check_provenance(sae.manifest, text.facts, "the text")
    for name, other in (("model_sha256", "1" * 64), ("hook_point", "layers.2.output"), ("quantization", "nf4")):
        manifest = sae.manifest.model_copy(update={name: other})
        with pytest.raises(FitError, match=f"{name} of the text must be the dictionary's {other}"):
            check_provenance(manifest, text.facts, "the text")


def test_unknown_quote_sources_and_settings_are_refused(sae, text):
    with pytest.raises(ExampleError, match="among chat, manuals, novels; got songs"):
        tiny_examples.example_pass(sae, text, ("songs",)).collector()
    with pytest.raises(ExampleError, match="num_top must be 1 or more, got 0"):
        ExampleSettings(num_top=0)


def test_the_command_writes_the_file(model, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(input_arguments, "load_language_model", lambda *_args, **_settings: model)
    corpus = tmp_path / "text.jsonl"
    corpus.write_text("".join(json.dumps({"text": " ".join(tiny_examples.WORDS * 3)}) + "\n" for _ in range(3)))
    argv = [str(folder / "dictionary"), "--corpus", str(corpus), "--output", str(tmp_path / "x.sqlite"), "--json"]
    with claimed(tmp_path / "x.sqlite"):
        assert lab.run("examples", argv) == 1
    assert "x.sqlite.lock is held by another process" in capsys.readouterr().err
    assert lab.run("examples", argv) == 0
    figures = json.loads(capsys.readouterr().out)
    with ExampleStore.open(tmp_path / "x.sqlite") as store:
        assert figures["tokens"] == store.num_tokens > 0
        # Three times one document: one context, one example.
        assert {len(store.latent(latent).top) for latent in store.latents()} <= {0, 1}
    assert lab.run("examples", argv) == 0
    assert lab.run("examples", [*argv, "--top", "3"]) == 1
    assert "num_top was 20, is 3" in capsys.readouterr().err


@pytest.fixture
def command(folder, tmp_path, monkeypatch, capsys):
    """The command over the harvest, with a model of one's choice."""

    def run(lm, *argv, wanted=0, dictionary=folder / "dictionary"):
        monkeypatch.setattr(input_arguments, "load_language_model", lambda *_args, **_settings: lm)
        words = [dictionary, "--harvest", folder / "harvest", "--output", tmp_path / "made.sqlite", *argv]
        assert lab.run("examples", list(map(str, words))) == wanted
        captured = capsys.readouterr()
        return captured.out if wanted == 0 else captured.err

    return run


def test_sources_that_nobody_knows_are_said_to_be_unknown(folder, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(input_arguments, "load_language_model", lambda *_args, **_settings: model)
    old = without_sources(folder / "harvest", tmp_path / "old")
    for harvest_folder, warns in ((old, True), (folder / "harvest", False)):
        argv = [folder / "dictionary", "--harvest", harvest_folder, "--output", tmp_path / f"{warns}.sqlite"]
        assert lab.run("examples", list(map(str, argv))) == 0
        assert ("the source of each is unknown; --corpus" in capsys.readouterr().err) == warns


def other_form(model, **changes):
    return replace(model, identity=replace(model.identity, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights_sha256": "1" * 64}, "model_sha256 of model tiny must be the dictionary's 0000"),
        ({"quantization": "int8"}, "quantization of model tiny must be the dictionary's none, got int8"),
    ],
)
def test_another_model_behind_a_harvest_is_refused_before_the_pass(command, model, tmp_path, changes, message):
    """Logit effects and the tokens' bytes are this model's."""
    other = other_form(model, **changes)
    assert message in command(other, wanted=1)
    assert list(tmp_path.iterdir()) == []
    command(other, "--unverified")
    with ExampleStore.open(tmp_path / "made.sqlite") as store:
        assert store.manifest["logits_of"]["model_sha256"] == other.identity.weights_sha256
        assert store.manifest["logits_of"]["quantization"] == other.identity.quantization
    assert "belongs to another pass: logits_of was" in command(model, wanted=1)


def test_another_model_than_the_harvests_is_refused_where_the_dictionary_knows_none(command, model, sae, tmp_path):
    unknown = sae.manifest.model_copy(update={"model_sha256": UNKNOWN, "quantization": UNKNOWN})
    save_sae(sae, unknown, tmp_path / "imported")
    words = {"dictionary": tmp_path / "imported"}
    refused = "model_sha256 of model tiny must be the text's 0000"
    assert refused in command(other_form(model, weights_sha256="1" * 64), wanted=1, **words)
    command(model, **words)


def test_a_model_of_another_width_is_refused_before_the_pass(command, tmp_path):
    wide = tiny_examples.model_of_width(2 * tiny.D_MODEL)
    refused = f"d_model of model tiny must be the dictionary's {tiny.D_MODEL}, got {2 * tiny.D_MODEL}"
    assert refused in command(wide, "--unverified", wanted=1)
    assert list(tmp_path.iterdir()) == []


def test_a_pass_is_not_gone_on_with_by_another_model_or_tokenizer(sae, text, model, tmp_path):
    this = tiny_examples.example_pass(sae, text)
    collect(this, tmp_path / "x")
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_tokens(["whale"])
    others = [other_form(model, weights_sha256="1" * 64), other_form(model, dtype="bfloat16")]
    for lm in (*others, replace(model, tokenizer=tokenizer)):
        with pytest.raises(ExampleError, match=r"x\.state belongs to another pass: logits_of was"):
            collect(replace(this, lm=lm), tmp_path / "x")
    collect(replace(this, lm=replace(model, tokenizer=tiny.byte_tokenizer())), tmp_path / "x")


@pytest.mark.parametrize("option", ["--checkpoint-shards", "--contexts-per-shard"])
def test_shards_are_one_or_more(option):
    with pytest.raises(ArgumentError, match=f"{option} must be at least 1, got 0"):
        examples.parse_args(["dictionary", "--corpus", "a", "--output", "b", option, "0"])


def test_a_stream_does_not_say_where_a_harvest_is_from(capsys):
    with pytest.raises(SystemExit):
        examples.parse_args(
            ["dictionary", "--harvest", "a", "--corpus", "b.jsonl", "hf-stream:endless", "--output", "b"]
        )
    assert "--corpus must be files or hf: datasets, got hf-stream:endless" in capsys.readouterr().err


def test_the_model_is_loaded_as_asked_for(folder, model, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(input_arguments, "load_language_model", lambda *a, **s: (asked.append((a, s)), model)[1])
    words = ["--model", "folder", "--quantization", "int8", "--device", "cpu", "--dtype", "float32"]
    words += ["--harvest", str(folder / "harvest"), "--output", str(tmp_path / "made.sqlite")]
    assert lab.run("examples", [str(folder / "dictionary"), *words]) == 0
    wanted = {"quantization": "int8", "device": "cpu", "dtype": "float32", "progress": True}
    assert asked == [(("folder",), wanted)]


def test_a_stream_is_read_no_further_than_is_asked_for(folder, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(input_arguments, "load_language_model", lambda *_args, **_settings: model)
    made = {}
    for name, limits in (("a", ["--max-tokens", "1500"]), ("b", ["--max-tokens", "1500", "--read-tokens", "3000"])):
        seen = endless_stream(monkeypatch)
        words = ["--corpus", "hf-stream:no/end", "--output", str(tmp_path / name), *limits, "--json"]
        assert lab.run("examples", [str(folder / "dictionary"), *words]) == 0
        made[name] = json.loads(capsys.readouterr().out)["tokens"], len(seen)
    assert 1300 < made["a"][0] <= 1500 and 1300 < made["b"][0] <= 1500
    assert made["a"][1] < made["b"][1] < 200
    # The same again is the same pass.
    assert lab.run("examples", [str(folder / "dictionary"), *words]) == 0


def test_the_contexts_are_those_of_shuffling_all_of_the_files(folder, model, tmp_path, monkeypatch):
    monkeypatch.setattr(input_arguments, "load_language_model", lambda *_args, **_settings: model)
    for name in ("a", "b"):
        lines = [json.dumps({"text": f"{number} words of {name} " * 9, "source": name}) + "\n" for number in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    paths = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    words = ["--max-tokens", "900", "--context-tokens", "64", "--seed", "5", "--split", "train", "--bos", "always"]
    words += ["--held-out-share", "0.3", "--output", str(tmp_path / "x.sqlite"), "--json"]
    assert lab.run("examples", [str(folder / "dictionary"), "--corpus", *paths, *words]) == 0
    settings = CorpusSettings(context_tokens=64, held_out_share=0.3, bos="always")
    contexts = ContextStore(read_contexts(paths, model.tokenizer, settings, "train")).shuffled(5, 900)
    with ExampleStore.open(tmp_path / "x.sqlite") as store:
        assert store.manifest["contexts_sha256"] == [contexts_digest(contexts)]
        assert store.manifest["sources"] == ["a", "b"]


def test_contexts_of_length_2_and_long_ones_are_read(model, sae, tmp_path):
    tap = Tap(model.model, tiny.HOOK_POINT, model.d_model)
    contexts = [Context([5, 6], 1, 0, "a"), Context(list(range(3, 203)), 2, 0, "a"), Context([7, 8], 3, 0, "a")]
    collector = collect(tiny_examples.example_pass(sae, ModelText(model, tap, contexts), None), tmp_path / "x")
    tap.remove()
    assert collector.num_tokens == 201
    ids = collector.top.arrays["token_ids"][collector.top.arrays["score"] > -np.inf]
    assert {tuple(row[row >= 0].tolist()) for row in ids} >= {(5, 6), (7, 8)}
