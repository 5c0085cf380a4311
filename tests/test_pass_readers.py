"""What the host reads of a pass, with the native kernels, against what torch reads of the same residuals."""

import math

import native_models as parts
import numpy as np
import pytest
import tiny
import torch

from sae_runtime.native_sae import NativeSAE
from sae_runtime.steering import Steering
from sae_runtime.steering_spec import SteeringOp, SteeringSpec
from sae_runtime.tap import TapRecord
from service.pass_output import RowInput, SteeredRow, TokenStats
from service.pass_readers import DeviceReader, HostReader

D = parts.D_MODEL
LATENTS = [3, 40, 7]
LARGEST = 20.0


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    parts.save_model(folder)
    return parts.load(folder).blocks


@pytest.fixture(params=["batchtopk", "topk"])
def sae(request):
    """One that the kernel steers, and one that it does not."""
    made = tiny.sae(request.param, d_model=D)
    for parameter in made.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).to(torch.float32)
    return NativeSAE.of(made, parts.library())


@pytest.fixture
def readers(sae, blocks):
    return HostReader(sae, LARGEST, blocks, D), DeviceReader(sae, LARGEST)


def record(*, rows: int = 4, tokens: int = 2, edit=lambda _edited: None, spoil=lambda _resid: None) -> TapRecord:
    resid_BTD = torch.randn(rows, tokens, D, generator=torch.Generator().manual_seed(4)).to(torch.bfloat16)
    spoil(resid_BTD)
    made = TapRecord(None)
    made.resid_BTD = resid_BTD
    edited_BTD = resid_BTD.clone()
    edit(edited_BTD)
    if not torch.equal(edited_BTD.view(torch.int16), resid_BTD.view(torch.int16)):
        made.edited_BTD = edited_BTD
    return made


def inputs(starts: tuple[int, ...] = (0, 5, 9, 1), tokens: int = 2) -> list[RowInput]:
    return [RowInput(b, start, [7] * tokens) for b, start in enumerate(starts)]


def assert_same(found: TokenStats | SteeredRow, wanted: TokenStats | SteeredRow) -> None:
    for name, one, other in zip(found._fields, found, wanted, strict=True):
        assert isinstance(one, np.ndarray), name
        np.testing.assert_allclose(one, other.float().numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


def set_to(b: int, t: int, value: float):
    def change(resid_BTD):
        resid_BTD[b, t, 5] = value

    return change


@pytest.mark.parametrize(
    ("case", "finite", "off_scale"),
    [
        (record(), [1] * 8, [1, 0, 0, 0, 0, 0, 0, 0]),
        (record(edit=set_to(1, 0, 3.0)), [1] * 8, [1, 0, 0, 0, 0, 0, 0, 0]),
        # What is read is of the residual before steering, what the model goes on with the one behind it.
        (record(edit=set_to(1, 0, math.inf)), [1, 1, 0, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0, 0, 0]),
        (record(spoil=set_to(2, 1, math.nan)), [1, 1, 1, 1, 1, 0, 1, 1], [1, 0, 0, 0, 0, 0, 0, 0]),
        (
            record(spoil=set_to(2, 1, math.nan), edit=set_to(2, 1, 0.0)),
            [1, 1, 1, 1, 1, 0, 1, 1],
            [1, 0, 0, 0, 0, 0, 0, 0],
        ),
        # Off scale is what the residual was before steering.
        (record(spoil=set_to(3, 0, 500.0), edit=set_to(3, 0, 0.0)), [1] * 8, [1, 0, 0, 0, 0, 0, 1, 0]),
        (record(edit=set_to(3, 0, 500.0)), [1] * 8, [1, 0, 0, 0, 0, 0, 0, 0]),
    ],
    ids=["plain", "edited", "edited to infinity", "NaN", "NaN that steering hides", "long", "long by steering"],
)
def test_tokens_are_told_of_alike(readers, case, finite, off_scale):
    host, device = (reader.read(case, inputs(), LATENTS, 3, ()) for reader in readers)
    assert host.finite_N.astype(int).tolist() == finite
    assert host.off_scale_N.astype(int).tolist() == off_scale
    if all(finite):
        assert_same(host, device)
    assert device.finite_N.int().tolist() == finite and device.off_scale_N.int().tolist() == off_scale


def test_a_probe_that_is_not_finite_marks_its_token(readers):
    values = torch.zeros(8, 2)
    values[6, 1] = math.nan
    for stats in (reader.read(record(), inputs(), LATENTS, 0, (values, torch.ones(8, 2))) for reader in readers):
        assert np.asarray(stats.finite_N).astype(int).tolist() == [1, 1, 1, 1, 1, 1, 0, 1]
        assert np.asarray(stats.probes_NP).shape == np.asarray(stats.norms_NP).shape == (8, 2)


@pytest.mark.parametrize("steered_rows", [[1, 3], [0, 1, 2, 3], [2]])
def test_steering_is_the_same_and_so_is_the_account_of_it(sae, readers, steered_rows):
    rows, resid_BTD = inputs(), record().resid_BTD
    for b in steered_rows:
        rows[b].steering = Steering(sae, 6, tiny.limits(sae))  # the prompt ends within the second row
        rows[b].steering.add([SteeringSpec(b, SteeringOp.ADD, 1.5, scope="generated")])
    host, device = readers
    edited_BTD = host.steer(rows, steered_rows, resid_BTD)
    torch.testing.assert_close(edited_BTD, device.steer(rows, steered_rows, resid_BTD), rtol=2.0**-7, atol=1e-6)
    left = [b for b in range(4) if b not in steered_rows]
    assert torch.equal(edited_BTD[left], resid_BTD[left])
    found, wanted = (reader.account(rows, steered_rows, resid_BTD, edited_BTD, LATENTS) for reader in readers)
    assert found.keys() == wanted.keys() == set(steered_rows)
    for b in steered_rows:
        assert_same(found[b], wanted[b])
    covered = {b: row.covered_T.tolist() for b, row in found.items()}
    assert covered == {b: {0: [0, 0], 1: [0, 1], 2: [1, 1], 3: [0, 0]}[b] for b in steered_rows}
    for b in steered_rows:
        assert (found[b].relative_T > 0).tolist() == covered[b]
