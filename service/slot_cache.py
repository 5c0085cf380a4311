"""Keys and values of all slots, preallocated, with a write position of its own for every row.

transformers' models use it as their cache: they call `update` once per layer and attend over what it returns. Which
rows a pass holds, and where they write, is told beforehand with `begin`.

Shape suffixes: S slots, H key-value heads, L positions, d head width, B rows of the pass, T tokens per row.
"""

import torch
from torch import Tensor

from sae_runtime.large_pages import zeros


class SlotCache:
    """Keys and values [S, H, L, d] per layer."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_slots: int,
        num_heads: int,
        num_positions: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        with_scratch: bool = False,
    ) -> None:
        """`with_scratch` adds a position behind the others, for what rows write that only pad a pass."""
        shape = (2, num_layers, num_slots, num_heads, num_positions + with_scratch, head_dim)
        # Zeros, not empty: a masked position has weight 0, but 0 * NaN is NaN. All in one, so that a slot is scrubbed
        # or moved by one operation: one for each layer would take a GPU about as long as a step.
        self._whole = zeros(shape, dtype) if device.type == "cpu" else torch.zeros(shape, dtype=dtype, device=device)
        self.keys, self.values = list(self._whole[0]), list(self._whole[1])
        self.num_positions = num_positions
        self.num_slots = num_slots
        self.scratch_position = num_positions if with_scratch else None
        self._begin_slots: Tensor | slice = slice(0, 0)
        self._write_slots_B1 = torch.empty(0)
        self._positions_BT = torch.empty(0)
        self._num_live = 0

    @staticmethod
    def bytes_per_position(num_layers: int, num_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Memory that one position of one slot takes."""
        return 2 * num_layers * num_heads * head_dim * dtype.itemsize

    def begin(self, slots: list[int], starts: list[int], num_tokens: int) -> tuple[Tensor, Tensor]:
        """Prepare a pass of `num_tokens` tokens per row, row b writing to slot `slots[b]` from position `starts[b]`.

        Returns:
            Positions [B, T], long, and the attention mask [B, 1, T, live], bool: true where row b's token t may look.
        """
        device = self.keys[0].device
        starts_B1 = torch.tensor(starts, device=device)[:, None]
        self._positions_BT = starts_B1 + torch.arange(num_tokens, device=device)
        self._write_slots_B1 = torch.tensor(slots, device=device)[:, None]
        contiguous = slots == list(range(slots[0], slots[0] + len(slots)))
        # A view where the rows lie side by side, else a copy of the rows.
        self._begin_slots = slice(slots[0], slots[0] + len(slots)) if contiguous else self._write_slots_B1[:, 0]
        self._num_live = max(starts) + num_tokens
        columns_L = torch.arange(self._num_live, device=device)
        return self._positions_BT, columns_L <= self._positions_BT[:, None, :, None]

    def begin_fixed(self, slots_B: Tensor, positions_B: Tensor) -> Tensor:
        """Prepare a pass of one token per row whose slots and positions are known on the device alone.

        Shapes depend on the number of rows only: rows attend over whole slots. Several rows may stand at the scratch
        position of one slot; what they compute is nobody's.

        Returns:
            The attention mask [B, 1, 1, L], bool.
        """
        self._positions_BT, self._write_slots_B1 = positions_B[:, None], slots_B[:, None]
        self._begin_slots, self._num_live = slots_B, self.num_positions
        columns_L = torch.arange(self.num_positions, device=positions_B.device)
        return columns_L <= positions_B[:, None, None, None]

    def update(
        self, key_BHTd: Tensor, value_BHTd: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write this pass's keys and values of one layer; returns all live ones, [B, H, live, d]."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        # Two index tensors with a slice between them put their dimensions first: [B, T, H, d].
        keys[self._write_slots_B1, :, self._positions_BT] = key_BHTd.transpose(1, 2)
        values[self._write_slots_B1, :, self._positions_BT] = value_BHTd.transpose(1, 2)
        return keys[self._begin_slots, :, : self._num_live], values[self._begin_slots, :, : self._num_live]

    def scrub(self, slot: int, num_used: int) -> None:
        """Zero a slot that was left: a NaN in it would reach the next tenant through masked positions."""
        self._whole[:, :, slot, :, :num_used] = 0

    def move(self, source: int, target: int, num_used: int) -> None:
        """Take what `source` holds to `target`, a slot that was scrubbed, and scrub `source`."""
        self._whole[:, :, target, :, :num_used] = self._whole[:, :, source, :, :num_used]
        self.scrub(source, num_used)

    # What transformers asks of a cache besides.

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Positions and mask are given explicitly, so nobody needs it; required by the interface."""
        return 0
