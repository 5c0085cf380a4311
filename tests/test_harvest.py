"""harvest: the residuals are the model's own, and a kill loses and doubles nothing."""

import functools
import json
import random

import pytest
import tiny
import torch
from endless import endless_stream
from full_disk import room_for
from killed import run_killed
from tiny_files import write_model

from discovery import lab
from discovery.corpus import Context
from discovery.errors import HarvestError, LabError
from discovery.file_lock import locked
from discovery.harvest import _bar, harvest, harvest_settings, main
from discovery.residuals import read_residuals
from discovery.shards import load_manifest, load_shard, ordinary, shard_path, shard_paths
from sae_runtime.errors import TapError
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import load_language_model
from sae_runtime.tap import Tap

CONTEXTS = [
    Context(torch.randint(3, 200, (length,), generator=torch.Generator().manual_seed(n)).tolist(), n, 0, "made")
    for n, length in enumerate([5, 12, 3, 9, 12, 7, 2])
]


def run(model, folder, contexts=CONTEXTS, **settings):
    return harvest(model, tiny.HOOK_POINT, contexts, folder, contexts_per_shard=3, batch_tokens=24, **settings)


def test_shards_hold_every_token_but_the_first_of_each_context(model, tmp_path):
    run(model, tmp_path)
    contexts = [tokens for path in shard_paths(tmp_path) for tokens in load_shard(path).token_ids()]
    assert contexts == [context.tokens for context in CONTEXTS]
    shard = load_shard(shard_path(tmp_path, 1))
    assert shard.positions_N.tolist() == [*range(1, 9), *range(1, 12), *range(1, 7)]
    assert shard.contexts_N.unique().tolist() == [3, 4, 5]
    assert shard.documents_N.unique().tolist() == [3, 4, 5]
    tap = Tap(model.model, tiny.HOOK_POINT, model.d_model)
    (resid_TD,) = read_residuals(model, tap, [CONTEXTS[4]])
    tap.remove()
    assert torch.equal(shard.resid_ND[8:19], resid_TD[1:].bfloat16())


def test_manifest_says_what_was_harvested(model, tmp_path):
    manifest = run(model, tmp_path)
    resid_ND = torch.cat([load_shard(path).resid_ND for path in shard_paths(tmp_path)]).float()
    assert ordinary(resid_ND).all()
    assert manifest == load_manifest(tmp_path)
    assert manifest["finished"] and manifest["num_ordinary_tokens"] == len(resid_ND) == 50 - 7
    assert manifest["settings"]["hook_point"] == "layers.1.output"
    assert manifest["settings"]["model_sha256"] == model.identity.weights_sha256
    mean_D = resid_ND.mean(0)
    assert torch.allclose(torch.tensor(manifest["mean"]), mean_D, atol=1e-4)
    norm = (resid_ND - mean_D).norm(dim=-1).mean()
    assert manifest["norm_scale"] == pytest.approx(float(tiny.D_MODEL**0.5 / norm), rel=1e-4)


def harvest_tiny(folder):
    """What the killed process runs."""
    return functools.partial(run, tiny.language_model(), folder)


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(tmp_path):
    """SIGKILL: no handler, no flush. Between any two calls of ours, of torch's saving and of the operating system."""
    preload = ["discovery.harvest", "tiny", "test_harvest"]
    whole = run_killed(harvest_tiny, tmp_path / "whole", preload=preload)
    assert not whole.was_killed
    wanted = files_of(tmp_path / "whole")
    assert sorted(wanted) == ["manifest.json", *(f"shard-0000{shard}.safetensors" for shard in range(3))]
    random_moments = random.Random(2).sample(range(whole.num_moments), 4)
    for moment in random_moments:
        run_killed(harvest_tiny, tmp_path / "killed", stop=moment, preload=preload)
    assert not run_killed(harvest_tiny, tmp_path / "killed", preload=preload).was_killed
    assert files_of(tmp_path / "killed") == wanted


def test_other_settings_are_refused(model, tmp_path):
    run(model, tmp_path)
    with pytest.raises(HarvestError, match="contexts_sha256"):
        run(model, tmp_path, contexts=CONTEXTS[:5])
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"]["dtype"] = "bfloat16"
    path.write_text(json.dumps(manifest))
    with pytest.raises(HarvestError, match="dtype was bfloat16, is float32"):
        run(model, tmp_path)


def test_nothing_to_harvest_is_an_error(model, tmp_path):
    with pytest.raises(HarvestError, match="nothing"):
        run(model, tmp_path, contexts=[])


def test_norm_scale_is_that_of_the_models_own_states_without_position_0(tmp_path):
    """By a plain pass over each context: sqrt(D) / mean ||x - mean||, mean over all positions but the first."""
    model = tiny.language_model()
    with torch.no_grad():
        model.model.model.embed_tokens.weight[CONTEXTS[0].tokens[0]] *= 1000  # a massive position 0
    manifest = run(model, tmp_path)
    states = []
    for context in CONTEXTS:
        with torch.inference_mode():
            hidden = model.model.model(input_ids=torch.tensor([context.tokens]), output_hidden_states=True)
        states.append(hidden.hidden_states[tiny.HOOK_POINT.hidden_state_index][0])
    resid_ND = torch.cat([state[1:] for state in states])
    spread = (resid_ND - resid_ND.mean(0)).norm(dim=-1).mean()
    assert manifest["norm_scale"] == pytest.approx(float(tiny.D_MODEL**0.5 / spread), rel=1e-3)
    assert manifest["mean_norm"] == pytest.approx(float(resid_ND.norm(dim=-1).mean()), rel=1e-3)
    with_first_ND = torch.cat(states)
    assert float(with_first_ND.norm(dim=-1).mean()) > 1.2 * manifest["mean_norm"]


def test_a_residual_that_is_not_finite_is_named_and_what_was_harvested_before_kept(tmp_path):
    model = tiny.language_model()
    bad = CONTEXTS[4].tokens[7]
    assert sum(bad in context.tokens for context in CONTEXTS) == 1
    weight = model.model.model.embed_tokens.weight
    good = weight[bad].clone()
    weight[bad] = torch.nan
    # Attention carries it to every position of its context, masked ones included: 0 * NaN is NaN.
    where = r"at 11 of 11 tokens of document 4 \(made\), first at position 1, token \d+"
    with pytest.raises(HarvestError, match=rf"finite, got NaN or infinity for shard-00001.safetensors: {where}"):
        run(model, tmp_path / "broken")
    assert [path.name for path in shard_paths(tmp_path / "broken")] == ["shard-00000.safetensors"]
    weight[bad] = good
    run(model, tmp_path / "broken")
    run(model, tmp_path / "whole")
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")


def test_a_full_disk_is_named_and_nothing_lost(model, tmp_path):
    run(model, tmp_path / "whole")
    sizes = [path.stat().st_size for path in shard_paths(tmp_path / "whole")]
    assert sizes[0] < sizes[1]
    with (
        room_for(sizes[1] - 1),
        pytest.raises(HarvestError, match=r"shard-00001.safetensors can't be written: .*same command goes on"),
    ):
        run(model, tmp_path / "full")
    assert sorted(files_of(tmp_path / "full")) == ["manifest.json", "shard-00000.safetensors"]
    with room_for(100), pytest.raises(HarvestError, match=r"manifest.json can't be written: File too large"):
        run(model, tmp_path / "fuller")
    for folder in (tmp_path / "full", tmp_path / "fuller"):
        run(model, folder)
        assert files_of(folder) == files_of(tmp_path / "whole")


@pytest.mark.parametrize("finished", [False, True])
def test_a_shard_that_rotted_is_named_and_can_be_replaced(model, tmp_path, finished):
    run(model, tmp_path)
    before = files_of(tmp_path)
    shard_path(tmp_path, 1).write_bytes(before["shard-00001.safetensors"][:-3])
    manifest = json.loads(before["manifest.json"])
    if not finished:
        (tmp_path / "manifest.json").write_text(json.dumps({"settings": manifest["settings"], "finished": False}))
    with pytest.raises(HarvestError, match=r"shard-00001.safetensors is no readable shard: .*delete it and harvest"):
        run(model, tmp_path)
    shard_path(tmp_path, 1).unlink()
    run(model, tmp_path)
    assert files_of(tmp_path) == before


def test_a_harvest_that_goes_on_counts_what_is_there(model):
    """The time left is that of the tokens to do: a bar that jumped over the others would promise too much."""
    settings = harvest_settings(model, tiny.HOOK_POINT, CONTEXTS, 3)
    with _bar(settings, CONTEXTS, [(1, 3), (2, 6)], "a", False) as bar:
        assert (bar.n, bar.total) == (5 + 12 + 3, 50)


def test_progress_is_in_tokens_per_second_with_the_time_left(model, tmp_path, capsys):
    run(model, tmp_path, progress=True)
    err = capsys.readouterr().err
    assert f"harvest {tmp_path.name}: 100%" in err and "50.0/50.0" in err and "tok/s" in err


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (Context([3] * (tiny.NUM_POSITIONS + 1), 1, 0, "long"), r"at most 256 tokens, as tiny was made for, got 257"),
        (Context([3, 5, 9999], 8, 0, "odd"), r"below 259, the vocabulary of tiny, got 9999 in document 8 \(odd\)"),
    ],
)
def test_what_the_model_can_not_read_is_refused(model, tmp_path, context, message):
    with pytest.raises(HarvestError, match=message):
        run(model, tmp_path / "x", contexts=[*CONTEXTS, context])
    assert not (tmp_path / "x").exists()


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_model(folder, made=tiny.language_model(d_model=tiny.WIDE))
    return folder


CHAT = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "Ishmael, a sailor."}]


def test_a_folder_that_another_process_harvests_into_is_refused(model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "book.txt").write_text("Call me Ishmael. Some years ago - never mind how long precisely.")
    argv = [str(tmp_path / "book.txt"), "--model", str(model_folder), "--split", "all", "--device", "cpu"]
    argv += ["--hook-point", "layers.2.output", "--output", str(tmp_path / "out")]
    with (
        locked(tmp_path / "out" / "lock", wait=False),
        pytest.raises(LabError, match="lock is held by another process"),
    ):
        main(argv)
    assert not (tmp_path / "out").exists()
    assert main(argv) == 0


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("side", ["layers.2.input", "layers.3.output"])
def test_the_command_harvests_text_and_chat_at_any_quantisation(
    model_folder, tmp_path, monkeypatch, capsys, quantization, side
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    (tmp_path / "book.txt").write_text("Call me Ishmael. Some years ago - never mind how long precisely.")
    flags = ["--quantization", quantization, "--dtype", "float32", "--hook-point", side, "--device", "cpu"]
    flags += ["--model", str(model_folder), "--split", "all", "--output", str(tmp_path / "out"), "--batch-tokens", "16"]
    assert main([str(tmp_path / "chat.jsonl"), str(tmp_path / "book.txt"), *flags]) == 0
    settings = load_manifest(tmp_path / "out")["settings"]
    assert settings["quantization"] == quantization and settings["hook_point"] == side
    assert set(settings["sources"]) == {"chat", "book"}
    assert json.loads(capsys.readouterr().out)["finished"]
    # Beside a plain pass of transformers' own over each context.
    lm = load_language_model(str(model_folder), quantization=quantization, dtype="float32", device="cpu")
    shard = load_shard(shard_path(tmp_path / "out", 0))
    start = 0
    for tokens in shard.token_ids():
        with torch.inference_mode():
            states = lm.model.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        tapped = {"layers.2.input": states[2][0]}.get(side)
        if tapped is None:  # the last state is normed there
            seen = []
            handle = lm.model.model.layers[3].register_forward_hook(lambda _m, _a, out, seen=seen: seen.append(out))
            lm.model.model(torch.tensor([tokens]))
            handle.remove()
            tapped = (seen[0][0] if isinstance(seen[0], tuple) else seen[0])[0]
        end = start + len(tokens) - 1
        # bf16 keeps 8 bits; int8 chooses outlier columns by batch.
        torch.testing.assert_close(shard.resid_ND[start:end].float(), tapped[1:].float(), rtol=2**-7, atol=1e-2)
        start = end
    assert start == len(shard.resid_ND)


def test_a_place_the_model_has_not_got_leaves_nothing_behind(model, tmp_path):
    with pytest.raises(TapError, match=r"layers.9.output must name one of the model's 4 layers"):
        harvest(model, HookPoint(9), CONTEXTS, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_stream_is_read_no_further_than_is_harvested(model_folder, tmp_path, monkeypatch):
    """A stream from a hub may have no end."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seen = endless_stream(monkeypatch)
    flags = ["--model", str(model_folder), "--device", "cpu", "--split", "all", "--max-tokens", "2000"]
    flags += ["--hook-point", "layers.1.output"]
    assert main(["hf-stream:no/end", "--output", str(tmp_path / "out"), *flags]) == 0
    assert 1900 < sum(load_manifest(tmp_path / "out")["settings"]["sources"].values()) <= 2000
    assert len(seen) < 200


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-tokens", "-5"], "--max-tokens must be at least 1, got -5"),
        (["--read-tokens", "0"], "--read-tokens must be at least 1, got 0"),
        (["--batch-tokens", "0"], "--batch-tokens must be at least 1, got 0"),
        (["--contexts-per-shard", "0"], "--contexts-per-shard must be at least 1, got 0"),
        (["--max-tokens", "20"], "--max-tokens must have room for a whole context, the first of which has 64 tokens"),
        (["--read-tokens", "20"], "--read-tokens must have room for a whole context, the first of which has 64 tokens"),
        (["--split", "held_out", "--max-tokens", "20"], "nothing to harvest: no context in the files and split asked"),
        (["--hook-point", "nonsense"], "--hook-point: hook point must look like 'layers.15.output'"),
        (["--hook-point", "layers.99.output", "--max-tokens", "20"], "hook point layers.99.output must name one of"),
    ],
)
def test_what_can_not_be_harvested_is_refused_in_one_line_and_leaves_nothing(
    model_folder, tmp_path, monkeypatch, capsys, flags, message
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "book.txt").write_text("Call me Ishmael. Some years ago - never mind how long precisely.")
    argv = [str(tmp_path / "book.txt"), "--model", str(model_folder), "--split", "train", "--device", "cpu"]
    argv += ["--hook-point", "layers.2.output", "--output", str(tmp_path / "new" / "out")]
    assert lab.run("harvest", [*argv, *flags]) == 1
    said = capsys.readouterr().err.splitlines()
    assert [message in line for line in said if line.startswith("telltale lab harvest: ")] == [True]
    assert not any("usage" in line for line in said)
    assert not (tmp_path / "new").exists()
