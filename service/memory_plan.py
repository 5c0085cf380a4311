"""What memory a server is going to take, by part, known once it has loaded."""

import mmap
from dataclasses import astuple, dataclass
from pathlib import Path

_STATM = Path("/proc/self/statm")


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """In bytes, of the memory that the model is in: the processor's, or a GPU's."""

    weights: int
    kernels: int
    """What kernels of our own keep besides weights and dictionary: these once more in a form of theirs, where they read
    another than is loaded, and what they work in and look up. 0 where transformers computes alone."""
    dictionary: int
    keys_and_values: int
    """Of all slots, in full."""
    libraries: int
    """What the process held before anything was loaded: the interpreter and the libraries. 0 for a GPU, whose memory
    has none of it, and where the system doesn't tell."""

    @property
    def total_bytes(self) -> int:
        """Of all parts. What passes work in comes on top: the largest tensors of one, and what the libraries keep."""
        return sum(astuple(self))

    def __str__(self) -> str:
        """As the ready line has it: `3.49 GiB planned (weights 0.25, ...)`, parts that take nothing left out."""
        parts = {
            "weights": self.weights,
            "kernels": self.kernels,
            "dictionary": self.dictionary,
            "keys and values": self.keys_and_values,
            "libraries": self.libraries,
        }
        shown = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items() if size)
        return f"{_gib(self.total_bytes)} GiB planned ({shown})"


def process_bytes() -> int:
    """Memory that this process holds now; 0 where the system doesn't tell."""
    return int(_STATM.read_text().split()[1]) * mmap.PAGESIZE if _STATM.exists() else 0


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f}"
