"""Who waits, who has a slot, and how many prompt tokens are read in a step. Policy only: no tensors, no text.

First come, first served. Prompts are read in chunks out of one budget of tokens per step, in order of admission, so
that a long prompt delays running streams by one chunk at a time.
"""

import heapq
from collections import deque
from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, TypeVar


class Prompt(Protocol):
    """What the scheduler needs to know of a request that is being read."""

    @property
    def num_unread(self) -> int:
        """Prompt tokens not yet read."""
        ...


W = TypeVar("W")
R = TypeVar("R", bound=Prompt)


class Chunk(NamedTuple, Generic[R]):
    """A piece of prompt to be read in this step."""

    row: R
    num_tokens: int


class Scheduler(Generic[W]):
    """A queue in front of a fixed number of slots."""

    def __init__(self, num_slots: int, chunk_tokens: int) -> None:
        """`chunk_tokens` is the budget of prompt tokens per step, at most."""
        self.num_slots = num_slots
        self.chunk_tokens = chunk_tokens
        self.waiting: deque[W] = deque()
        # Lowest first: running rows stay side by side, and a pass over neighbours reads the cache without a copy.
        self._free_slots = list(range(num_slots))

    def enqueue(self, item: W) -> None:
        self.waiting.append(item)

    def admit(self, slots_needed: Callable[[W], int] = lambda _item: 1) -> list[tuple[int, W]]:
        """Give free slots to those who have waited longest. One begins only when as many are free as it needs; each
        takes one, the others are for those right behind it."""
        admitted = []
        while self.waiting and len(self._free_slots) >= slots_needed(self.waiting[0]):
            admitted.append((heapq.heappop(self._free_slots), self.waiting.popleft()))
        return admitted

    def release(self, slot: int) -> None:
        """Take a slot back."""
        heapq.heappush(self._free_slots, slot)

    def lowered(self, slot: int) -> int:
        """The lowest free slot in exchange for `slot`, or `slot` itself where no lower one is free."""
        if self._free_slots and self._free_slots[0] < slot:
            return heapq.heapreplace(self._free_slots, slot)
        return slot

    def plan_prefill(self, reading: list[R], budget: int | None = None) -> list[Chunk[R]]:
        """Chunks for this step, from rows with unread prompt in order of admission, within the budget: `chunk_tokens`,
        or another one."""
        budget, chunks = self.chunk_tokens if budget is None else budget, []
        for row in reading:
            if budget == 0:
                break
            num_tokens = min(row.num_unread, budget)
            chunks.append(Chunk(row, num_tokens))
            budget -= num_tokens
        return chunks
