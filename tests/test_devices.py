"""Where a dictionary computes: beside the model, on any device. `meta`, which holds no numbers, stands for a GPU."""

from dataclasses import replace

import pytest
import tiny
import torch
from tiny_files import write_dictionary

from discovery import evaluate, fidelity
from discovery.fidelity_sums import FidelitySums
from discovery.reconstruction import ReconstructionSums
from discovery.splicing import measure_splicing
from sae_runtime.tap import Tap

D = tiny.D_MODEL


class ReachedError(Exception):
    """With what was handed over."""


def reached(*args):
    raise ReachedError(*args)


@pytest.fixture
def elsewhere(monkeypatch):
    """A dictionary on another device than residuals from disk; what it is given to encode is raised."""
    made = tiny.sae().to("meta")
    monkeypatch.setattr(made, "encode", reached)
    return made


def test_a_dictionary_is_spliced_in_where_the_model_is(model):
    sae = tiny.sae()
    moved = replace(model, identity=replace(model.identity, device="meta"))
    tap = Tap(model.model, tiny.HOOK_POINT, model.d_model)
    measure_splicing(moved, sae, [], tap, mean_D=torch.zeros(D))
    tap.remove()
    assert sae.W_dec.is_meta


def test_residuals_come_to_the_dictionary(elsewhere):
    with pytest.raises(ReachedError) as raised:
        ReconstructionSums.of(elsewhere).add(elsewhere, torch.zeros(3, D), mean_D=torch.zeros(D))
    assert raised.value.args[0].is_meta
    with pytest.raises(ReachedError) as raised:
        FidelitySums(tiny.NUM_LATENTS, D).add(elsewhere, torch.zeros(3, D), torch.zeros(3, D))
    assert raised.value.args[0].is_meta


@pytest.mark.parametrize("command", [evaluate, fidelity])
def test_the_command_loads_the_dictionary_on_the_device_asked_for(command, monkeypatch, tmp_path):
    write_dictionary(tmp_path, "0" * 64)
    monkeypatch.setattr(command, "resolve_device", lambda device: {"cuda:1": "meta"}[device], raising=False)
    monkeypatch.setattr(command, "parse_sets", lambda _texts: {}, raising=False)
    load, devices = command.load_sae, []

    def loaded(folder, **settings):
        devices.append(load(folder, **settings).W_dec.device.type)
        raise ReachedError

    monkeypatch.setattr(command, "load_sae", loaded)
    more = ["--set", "a=b"] if command is evaluate else ["--corpus", "x"]
    with pytest.raises(ReachedError):
        command.main([str(tmp_path), *more, "--device", "cuda:1"])
    assert devices == ["meta"]
