"""Steering: what a client asked for, turned into changes of the residual.

`Steering` is a request's operations made ready for one dictionary; it
keeps the proof of what they did to the request's row. `steer_rows` changes the residuals of many rows at once. Knows
nothing of requests, slots or hooks.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_runtime.latent_reader import LatentReader
from sae_runtime.steering_spec import SteeringLimits, SteeringOp, SteeringSpec, StrengthUnit


class SteeringReport(NamedTuple):
    """Proof of what was done, measured on the residuals that the following blocks read."""

    positions_changed: int
    mean_relative_norm: float
    """Mean of ||delta|| / ||h|| over the changed positions; 0 if there are none."""
    max_relative_norm: float


@dataclass(slots=True)
class Operation:
    """A spec with its direction at hand."""

    spec: SteeringSpec
    vector_D: Tensor | None
    """The raw vector; None for a feature, whose direction may depend on the token."""
    active_from: int
    """First position it may touch: later than 0 for steering that an alert switched on."""
    prepared: Any = None
    """What a kernel was told of it, once it was."""

    def covers(self, position: int, num_prompt_tokens: int) -> bool:
        return position >= self.active_from and self.spec.covers(position, num_prompt_tokens)


@dataclass(slots=True)
class Steering:
    """A request's operations against one dictionary, or none, and the account of what they did."""

    sae: LatentReader
    num_prompt_tokens: int
    limits: SteeringLimits
    """What `SteeringLimits.check` can't know beforehand, because it depends on the activation, is shortened."""
    _operations: list[Operation] = field(default_factory=list)
    _num_changed: int = 0
    _sum_relative: float = 0.0
    _max_relative: float = 0.0

    def add(self, specs: Sequence[SteeringSpec], *, active_from: int = 0) -> None:
        """Append operations, to be applied from position `active_from` on. SteeringError for one that is refused."""
        for spec in specs:
            self.limits.check(spec)
            vector_D = None
            if not isinstance(spec.direction, int):
                vector_D = torch.tensor(spec.direction, dtype=torch.float32, device=self.sae.device)
            self._operations.append(Operation(spec, vector_D, active_from))

    def covers(self, start: int, end: int) -> bool:
        """Whether any position in [start, end) is steered."""
        return any(op.covers(p, self.num_prompt_tokens) for op in self._operations for p in range(start, end))

    def operations_at(self, position: int) -> list[Operation]:
        """Those that cover it, in order."""
        return [op for op in self._operations if op.covers(position, self.num_prompt_tokens)]

    def apply(self, resid_TD: Tensor, start: int) -> Tensor:
        """Steer the residuals of positions start, start + 1, ... of one row: `steer_rows` says how."""
        return steer_rows([(self, start)], resid_TD[None])[0]

    def turn(self, index: int, start: int, end: int) -> Iterator[tuple[int, Operation]]:
        """Positions of [start, end) that the operation at `index` covers, each with it; none beyond the last."""
        for op in self._operations[index : index + 1]:
            yield from ((p, op) for p in range(start, end) if op.covers(p, self.num_prompt_tokens))

    @property
    def num_operations(self) -> int:
        """How many operations there are, one after another."""
        return len(self._operations)

    def account(self, relative_norms: Sequence[float]) -> None:
        """Count what a pass changed, from `relative_moves` of its positions; 0 is a position that stayed as it was."""
        changed = [norm for norm in relative_norms if norm > 0]
        self._num_changed += len(changed)
        self._sum_relative += math.fsum(changed)
        self._max_relative = max([self._max_relative, *changed])

    def report(self) -> SteeringReport:
        mean = self._sum_relative / self._num_changed if self._num_changed else 0.0
        return SteeringReport(self._num_changed, mean, self._max_relative)


class _Kind(NamedTuple):
    """What operations must have in common to be computed as one."""

    op: SteeringOp
    unit: StrengthUnit
    of_feature: bool


class _Moves:
    """Operations of one kind, each on one token."""

    def __init__(self, kind: _Kind) -> None:
        self.kind = kind
        self.tokens: list[int] = []
        self._strengths: list[float] = []
        self._limits: list[float] = []
        self._places: dict[int, int] = {}
        self._alike: list[Operation] = []
        """One of each direction, and for each token which."""
        self._which: list[int] = []

    def append(self, token: int, op: Operation, max_relative_norm: float) -> None:
        self.tokens.append(token)
        self._strengths.append(op.spec.strength)
        self._limits.append(max_relative_norm)
        direction = op.spec.direction if isinstance(op.spec.direction, int) else id(op.vector_D)
        if direction not in self._places:
            self._places[direction] = len(self._alike)
            self._alike.append(op)
        self._which.append(self._places[direction])

    def moved(self, sae: LatentReader, h_TD: Tensor, start_TD: Tensor) -> Tensor:
        """[T, D], the residuals `h_TD` of `tokens` moved, none further from `start_TD` than its limit."""
        delta_TD = h_TD + self._delta(sae, h_TD) - start_TD
        limit_T1 = h_TD.new_tensor(self._limits)[:, None] * start_TD.norm(dim=-1, keepdim=True)
        length_T1 = delta_TD.norm(dim=-1, keepdim=True)
        return start_TD + torch.where(length_T1 > limit_T1, delta_TD * (limit_T1 / length_T1), delta_TD)

    def _delta(self, sae: LatentReader, h_TD: Tensor) -> Tensor:
        op, unit, of_feature = self.kind
        strength_T1 = h_TD.new_tensor(self._strengths)[:, None]
        v_TD = self._directions(sae, h_TD)
        unit_TD = v_TD / v_TD.norm(dim=-1, keepdim=True)
        # What one unit of activation adds: a feature's own direction, or a raw vector's unit vector.
        d_TD = v_TD if of_feature else unit_TD
        is_relative = unit is StrengthUnit.RELATIVE
        amount_T1 = strength_T1 * h_TD.norm(dim=-1, keepdim=True) if is_relative else strength_T1
        match op:
            case SteeringOp.ADD:
                return amount_T1 * (unit_TD if is_relative else v_TD)
            case SteeringOp.SCALE:
                return (strength_T1 - 1) * self._activations(sae, h_TD, unit_TD) * d_TD
            case SteeringOp.SET:
                if is_relative:
                    amount_T1 = amount_T1 / d_TD.norm(dim=-1, keepdim=True)
                return (amount_T1 - self._activations(sae, h_TD, unit_TD)) * d_TD
            case SteeringOp.PROJECT_OUT:
                return -(h_TD * unit_TD).sum(-1, keepdim=True) * unit_TD
            case SteeringOp.CAP:
                return -((h_TD * unit_TD).sum(-1, keepdim=True) - amount_T1).relu() * unit_TD

    def _directions(self, sae: LatentReader, h_TD: Tensor) -> Tensor:
        """[T or 1, D] in residual units."""
        if self.kind.of_feature:
            latents = self._latents()
            shown = latents if len(latents) == 1 else [latents[place] for place in self._which]
            return sae.directions(torch.tensor(shown, device=h_TD.device), h_TD)
        vectors = [op.vector_D for op in self._alike if op.vector_D is not None]
        return vectors[0][None] if len(vectors) == 1 else torch.stack(vectors)[self._which]

    def _activations(self, sae: LatentReader, h_TD: Tensor, unit_TD: Tensor) -> Tensor:
        """[T, 1] current activation: the latent's value, or the coordinate along a raw vector."""
        if not self.kind.of_feature:
            return (h_TD * unit_TD).sum(-1, keepdim=True)
        return sae.read(h_TD, self._latents()).gather(1, torch.tensor(self._which, device=h_TD.device)[:, None])

    def _latents(self) -> list[int]:
        return [op.spec.direction for op in self._alike if isinstance(op.spec.direction, int)]


def steer_rows(rows: Sequence[tuple[Steering, int]], resid_BTD: Tensor) -> Tensor:
    """Steer B rows at once, each by its own operations: those of one kind are one computation for all rows.

    Args:
        rows: for each row its steering, all of one dictionary, and the position of its first token.
        resid_BTD: [B, T, D] in the model's dtype; not written to.

    Returns:
        [B, T, D] in the same dtype. Tokens that no operation covers are bit for bit those of `resid_BTD`. Nothing is
        counted yet: `Steering.account` does, once the pass has succeeded.
    """
    num_tokens = resid_BTD.shape[1]
    start_ND = resid_BTD.flatten(0, 1).to(torch.float32)
    h_ND = start_ND.clone()
    for turn in range(max(steering.num_operations for steering, _ in rows)):
        for moves in _moves_of(turn, rows, num_tokens):
            tokens_T = torch.tensor(moves.tokens, device=h_ND.device)
            h_ND[tokens_T] = moves.moved(rows[0][0].sae, h_ND[tokens_T], start_ND[tokens_T])
    # fp32 holds every 16-bit float, so what was not moved comes back as it was.
    return h_ND.to(resid_BTD.dtype).view_as(resid_BTD)


def _moves_of(turn: int, rows: Sequence[tuple[Steering, int]], num_tokens: int) -> Collection[_Moves]:
    """What the rows' operations at place `turn` do, by kind. A row has one there, so no token is named twice."""
    found: dict[_Kind, _Moves] = {}
    for b, (steering, start) in enumerate(rows):
        for position, op in steering.turn(turn, start, start + num_tokens):
            kind = _Kind(op.spec.op, op.spec.unit, op.vector_D is None)
            moves = found.setdefault(kind, _Moves(kind))
            moves.append(b * num_tokens + position - start, op, steering.limits.max_relative_norm)
    return found.values()


def relative_moves(before_TD: Tensor, after_TD: Tensor) -> Tensor:
    """||after - before|| / ||before|| per position, [T], of residuals as the model's dtype holds them."""
    before_TD, after_TD = before_TD.to(torch.float32), after_TD.to(torch.float32)
    return (after_TD - before_TD).norm(dim=-1) / before_TD.norm(dim=-1)
