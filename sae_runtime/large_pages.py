"""Memory in large pages, for what is read at every token, and zeros that the system gives as they are written to.

A decode pass reads all weights once. In pages of 4 KiB it waits for the addresses of 25,000 of them, and the
processor's prefetchers stop at the end of each; in pages of 2 MiB a pass of one row takes a seventh less.

    weights = side_by_side({"head": blocks, ...})

Zeroing gigabytes takes a second of a start, and the system does it anyway: pages that it hands out are zero. Later than
at the start, though, they may not be there any more, and nobody would know how much a server is going to need.

    cache = zeros((2, 30, 16, 3, 8192, 64), torch.bfloat16)
    take_pages([cache])    # in a thread
"""

import ctypes
import logging
import math
import mmap
import os
import sys
from collections.abc import Iterable, MutableMapping
from contextlib import suppress

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_MADV_POPULATE_WRITE = 23  # Linux 5.14: pages are given as if they were written to, and keep what is in them
_PIECE_BYTES = 2**26
"""At a time: meanwhile nothing else of the process gets memory of its own."""
_LINE_BYTES = 64
"""Of the processor's caches: what begins with one is read without a load across two."""


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor on the CPU that takes memory where it is written to, in large pages where the system has them."""
    num_bytes = math.prod(shape) * dtype.itemsize
    # Private, where there is a choice: what is shared counts as a file, and a fork would write into it.
    options = {} if os.name == "nt" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    memory = mmap.mmap(-1, num_bytes, **options)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel that was built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def side_by_side(tensors: MutableMapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors on the CPU in one piece of memory, each from a line of the caches on. Small ones would have a
    large page to themselves only in part, and so none.

    Each is taken out of `tensors` once it is copied: all of a model's weights twice may be more than there is room for.
    """
    starts, end = [], 0
    for tensor in tensors.values():
        starts.append(end)
        end += tensor.nbytes + -tensor.nbytes % _LINE_BYTES
    whole = zeros((max(end, 1),), torch.uint8)
    copies = {}
    for start, name in zip(starts, list(tensors), strict=True):
        tensor = tensors.pop(name)
        copies[name] = whole[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        copies[name].copy_(tensor)
    return copies


def take_pages(tensors: Iterable[Tensor]) -> None:
    """Have the system give all memory of these tensors now; others may use them meanwhile. Where it can't, it gives
    the memory as it is used."""
    if sys.platform != "linux":
        return
    tensors = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    madvise, page = ctypes.CDLL(None, use_errno=True).madvise, mmap.PAGESIZE
    for storage in {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}.values():
        first, end = storage.data_ptr() + -storage.data_ptr() % page, storage.data_ptr() + storage.nbytes()
        for start in range(first, end - end % page, _PIECE_BYTES):
            num_bytes = min(_PIECE_BYTES, end - end % page - start)
            if madvise(ctypes.c_void_p(start), ctypes.c_size_t(num_bytes), _MADV_POPULATE_WRITE):
                logger.debug("memory is taken as it is used: %s", os.strerror(ctypes.get_errno()))
                return
