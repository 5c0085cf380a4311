"""transformers' loader, made strict about weights and quiet on the terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def load_strictly(folder: Path, **settings: Any) -> Any:
    """transformers' model; ValueError for what it would fill with random numbers: missing and misshaped weights."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, ignore_mismatched_sizes=True, output_loading_info=True, **settings
    )
    problems = [f"missing tensor {name}" for name in sorted(info["missing_keys"])]
    for name, found, wanted in sorted(info["mismatched_keys"]):
        problems.append(f"tensor {name} must have shape {list(wanted)}, got {list(found)}")
    if problems:
        raise ValueError("; ".join(problems))
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' own bars and notices: the caller shows one bar of its own."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
