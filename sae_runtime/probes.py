"""Linear probes on the residual, at one hook point or at several in the same pass.

    value = resid . direction + bias

in fp32 (sums on a processor in fp64), from the residual as the model computed it, before any steering at that place.
Each residual that is probed has a read-only tap of its own, put on once; where the dictionary's tap reads the same
residual, that one is shared. The value of position i is taken while the model reads token i, as every reading is.

Shape suffixes: B rows, T tokens per row, N = B * T, D model width, P probes.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sae_runtime.errors import ProbeError
from sae_runtime.hook_point import HookPoint
from sae_runtime.tap import Tap, TapRecord


class Probe(NamedTuple):
    """One probe."""

    name: str
    hook_point: HookPoint
    direction: Sequence[float]
    """D numbers; any standardisation of the residual is folded in."""
    bias: float


class _Group(NamedTuple):
    """The probes on one residual."""

    tap: Tap | None
    """None where the shared tap reads."""
    directions_PD: Tensor
    biases_P: Tensor


class ProbeSet:
    """All probes of a model."""

    def __init__(self, model: nn.Module, probes: Sequence[Probe], *, shared: Tap, device: torch.device) -> None:
        """
        Args:
            model: a Llama-like causal LM of transformers; taps are put on it.
            probes: in any order; no name twice.
            shared: the dictionary's tap on the same model.
            device: where residuals are.

        Raises:
            ProbeError: a name given twice, a direction of another width, or a number that is not finite.
            TapError: a hook point that the model has not.
        """
        _check(probes, shared.d_model)
        points = sorted({p.hook_point.hidden_state_index: p.hook_point for p in probes}.items())
        self._groups: list[_Group] = []
        names: list[str] = []
        for index, point in points:
            mine = [probe for probe in probes if probe.hook_point.hidden_state_index == index]
            names += [probe.name for probe in mine]
            tap = None if point.is_same_residual(shared.hook_point) else Tap(model, point, shared.d_model)
            directions = torch.tensor([list(p.direction) for p in mine], dtype=torch.float32, device=device)
            biases = torch.tensor([p.bias for p in mine], dtype=torch.float32, device=device)
            self._groups.append(_Group(tap, directions, biases))
        self.names = tuple(names)
        """P names, in the order of the values."""

    @contextmanager
    def step(self, num_tokens: int) -> Iterator[list[TapRecord | None]]:
        """Tap the forward pass made inside the block, for `read`. TapError if a tap did not see `num_tokens` tokens."""
        with ExitStack() as stack:
            taps = [group.tap for group in self._groups]
            yield [None if tap is None else stack.enter_context(tap.step(num_tokens)) for tap in taps]

    def read(self, records: Sequence[TapRecord | None], shared: TapRecord) -> Tensor:
        """Values [N, P] in fp32 of a pass that `step` and the shared tap saw, tokens numbered row by row."""
        residuals = zip(self._groups, self._residuals(records, shared), strict=True)
        return torch.cat([_values(resid_ND, g.directions_PD, g.biases_P) for g, resid_ND in residuals], dim=1)

    def norms(self, records: Sequence[TapRecord | None], shared: TapRecord) -> Tensor:
        """||resid|| [N, P] in fp32 at each probe's hook point, of the same pass."""
        residuals = zip(self._groups, self._residuals(records, shared), strict=True)
        return torch.cat([r_ND.norm(dim=-1, keepdim=True).expand(-1, len(g.biases_P)) for g, r_ND in residuals], dim=1)

    def _residuals(self, records: Sequence[TapRecord | None], shared: TapRecord) -> Iterator[Tensor]:
        """[N, D] in fp32 for each group."""
        for record in records:
            resid_BTD = (shared if record is None else record).resid_BTD
            assert resid_BTD is not None
            yield resid_BTD.flatten(0, 1).to(torch.float32)

    def remove(self) -> None:
        """Take the taps off the model; the shared one is not ours."""
        for group in self._groups:
            if group.tap is not None:
                group.tap.remove()


def _values(resid_ND: Tensor, directions_PD: Tensor, biases_P: Tensor) -> Tensor:
    """[N, P]. On a processor in an order of sums that does not depend on N, as that of a product of matrices does: what
    a token gets in a reply it gets again, to the bit, when the reply is read as a prompt."""
    if resid_ND.device.type != "cpu":
        return nn.functional.linear(resid_ND, directions_PD, biases_P)
    products_NPD = resid_ND.to(torch.float64)[:, None] * directions_PD.to(torch.float64)
    return (products_NPD.sum(-1) + biases_P).to(torch.float32)


def _check(probes: Sequence[Probe], d_model: int) -> None:
    names = [probe.name for probe in probes]
    for i, probe in enumerate(probes):
        if probe.name in names[:i]:
            raise ProbeError(f"probe {probe.name} must have a name of its own, got it twice")
        if len(probe.direction) != d_model:
            got = len(probe.direction)
            raise ProbeError(f"probe {probe.name} must have a direction of {d_model} numbers, got {got}")
        if not torch.tensor([*probe.direction, probe.bias], dtype=torch.float32).isfinite().all():
            raise ProbeError(f"probe {probe.name} must have finite numbers in fp32, got others")
