"""Python's garbage collector, kept away from what lasts as long as the process.

A start makes half a million objects that stay: modules, functions, classes. While they come to be the collector goes
through all that are there, over and over, which took a sixth of the imports; and each full collection of a server at
work would go through them again, 0.4 s on a Xeon core for which its streams would wait.

What is garbage by then, in cycles that only a collection would free, is kept for good: some 12,000 small objects of
half a million. To collect before would cost a start those 0.4 s.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting() -> Iterator[None]:
    """Collect nothing meanwhile, and never look at what is there by the end of it, garbage included."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
