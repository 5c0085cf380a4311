"""The committed files of other libraries, copies of them to spoil, and what is common to asking for refusals."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_runtime.errors import CheckpointError
from sae_runtime.formats import import_sae

FIXTURES = Path(__file__).parent / "fixtures" / "formats"
D_MODEL, NUM_LATENTS = 12, 40


class Oracle(NamedTuple):
    """Residuals, and what the library that owns the format makes of them."""

    x_TD: Tensor
    f_TF: Tensor
    x_hat_TD: Tensor


def oracle(folder: Path) -> Oracle:
    tensors = load_file(folder / "oracle.safetensors")
    return Oracle(tensors["x_TD"], tensors["f_TF"], tensors["x_hat_TD"])


def residuals() -> Tensor:
    return torch.randn(9, D_MODEL, generator=torch.Generator().manual_seed(11)) * 2 + 0.3


def copy_case(name: str, tmp_path: Path) -> Path:
    """A copy of the case at `name` (below the fixtures), its parent folders' names kept."""
    target = tmp_path / name
    shutil.copytree(FIXTURES / name, target)
    run = FIXTURES / name / ".." / "config.json"
    if run.exists():
        shutil.copy(run, target.parent)
    return target


def change_json(path: Path, **changes: Any) -> None:
    """Set fields of a JSON object; None takes a field out."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def change_tensors(path: Path, **changes: Tensor | None) -> None:
    """Put tensors into a safetensors or PyTorch file, `__` in a name for a dot, or take out those that are None."""
    tensors: dict[str, Any] = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    tensors |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    if path.suffix == ".safetensors":
        save_file({name: tensor.clone().contiguous() for name, tensor in kept.items()}, path)
    else:
        torch.save(kept, path)


def refusal(path: Path, **stated: Any) -> str:
    """The one line with which an import is refused."""
    with pytest.raises(CheckpointError) as error:
        import_sae(path, **stated)
    message = str(error.value)
    assert "\n" not in message
    return message


def assert_reads_as(path: Path, wanted: Oracle, **stated: Any) -> None:
    """The dictionary at `path` has the oracle's latents, the same ones active, and its reconstructions."""
    sae = import_sae(path, **stated)
    f_TF = sae.encode(wanted.x_TD)
    torch.testing.assert_close(f_TF, wanted.f_TF, rtol=1e-5, atol=1e-5)
    assert torch.equal(f_TF > 0, wanted.f_TF > 0)
    torch.testing.assert_close(sae.reconstruct(wanted.x_TD), wanted.x_hat_TD, rtol=1e-5, atol=2e-5)
    watched = [3, 0, 39]
    torch.testing.assert_close(sae.read(wanted.x_TD, watched), wanted.f_TF[:, watched], rtol=1e-5, atol=1e-5)
