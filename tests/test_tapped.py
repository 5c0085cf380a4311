"""A tap is off the model again when whatever it was put on for is over, also if that raised."""

import ast
import json
from pathlib import Path

import pytest
import tiny
import tiny_examples

from discovery import evaluate, examples, fidelity, input_arguments, name_features, search
from discovery.errors import CorpusError
from discovery.residuals import tapped

DISCOVERY = Path(__file__).parents[1] / "discovery"


class Broken(Exception):
    """What a run raises in the middle."""


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tapped")
    tiny_examples.write_example_file(model, folder)
    lines = [json.dumps({"text": f"{number} words of no meaning " * 3}) + "\n" for number in range(4)]
    (folder / "text.jsonl").write_text("".join(lines))
    return folder


def hooks(model):
    return list(model.model.model.layers[tiny.HOOK_POINT.layer]._forward_hooks)


def test_it_is_there_inside_the_block_and_not_behind_it(model):
    before = hooks(model)
    with tapped(model, tiny.HOOK_POINT) as tap:
        assert (tap.hook_point, tap.d_model, len(hooks(model))) == (tiny.HOOK_POINT, model.d_model, len(before) + 1)
    assert hooks(model) == before
    with pytest.raises(Broken), tapped(model, tiny.HOOK_POINT):
        raise Broken
    assert hooks(model) == before


CORPUS = ["--corpus", "text.jsonl"]


@pytest.mark.parametrize(
    ("command", "step", "words"),
    [
        (evaluate, "evaluate", ["--set", "text=harvest"]),
        (examples, "collect", [*CORPUS, "--output", "made.sqlite"]),
        (fidelity, "compare", [*CORPUS, "--split", "all"]),
        (name_features, "read_contrasts", [*CORPUS, "--pool", "none", "--held-out", "harvest"]),
        (search, "read_sentence", ["--sentence", "the sea"]),
        (search, "read_item_latents", ["--positive", "the sea", "--negative", "a man"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@pytest.mark.parametrize("raises", [True, False])
def test_commands_take_it_off(model, folder, monkeypatch, command, step, words, raises):
    seen, before, real = [], hooks(model), getattr(command, step)

    def watched(*args, **settings):
        seen.append(len(hooks(model)) - len(before))
        if raises:
            raise Broken
        return real(*args, **settings)

    monkeypatch.chdir(folder)
    loader = command if command in (evaluate, fidelity) else input_arguments
    monkeypatch.setattr(loader, "load_language_model", lambda *_args, **_settings: model)
    monkeypatch.setattr(command, step, watched)
    if raises or command is name_features:  # which needs more than this to get through
        with pytest.raises(Broken if raises else CorpusError):
            command.main(["dictionary", *words])
    else:
        assert command.main(["dictionary", *words]) == 0
    assert len(seen) == 1 and seen[0] >= 1
    assert hooks(model) == before


def test_nobody_offline_puts_one_on_in_another_way():
    found = {
        path.stem
        for path in DISCOVERY.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Tap"
    }
    assert found == {"residuals"}
