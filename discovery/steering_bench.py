"""A model with a dictionary at its hook point, set up to be steered offline with the server's own maths.

Every change of the residual here goes through `sae_runtime.steering.Steering`, row by row, under the same cap as in the
server, so that what is measured offline is what a request does.

Shape suffixes: B rows, T positions, D model width.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from discovery.errors import SteerError
from discovery.input_arguments import load_dictionary_model
from discovery.residuals import tapped
from sae_runtime.checkpoint import LoadedSAE, load_sae
from sae_runtime.language_model import LanguageModel
from sae_runtime.sae import SAE
from sae_runtime.steering import Steering
from sae_runtime.steering_spec import SteeringLimits, SteeringSpec
from sae_runtime.tap import Edit, Tap

MAX_RELATIVE_NORM = 20.0
"""The server's own default: most that an operation may move the residual, as a multiple of its norm."""

Change = Callable[[Tensor], Tensor]
"""[T, D] residuals of one row -> the same, changed."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What steering needs. The tap stays on the model."""

    lm: LanguageModel
    tap: Tap
    sae: SAE
    limits: SteeringLimits

    @classmethod
    def of(cls, lm: LanguageModel, tap: Tap, sae: LoadedSAE, max_relative_norm: float = MAX_RELATIVE_NORM) -> "Bench":
        """With the limits that a server of this dictionary would have."""
        return cls(lm, tap, sae, SteeringLimits.of(sae, sae.manifest.resid_norm_mean, max_relative_norm))

    def steering(self, specs: Sequence[SteeringSpec], num_prompt_tokens: int) -> Steering:
        """Operations made ready for one row. SteeringError for one that is refused."""
        steering = Steering(self.sae, num_prompt_tokens, self.limits)
        steering.add(specs)
        return steering

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a plain prompt, as the server makes them. SteerError if there are none."""
        ids = list(self.lm.tokenizer(text)["input_ids"])
        if not ids:
            raise SteerError(f"prompt must have at least one token, got {text!r}")
        return ids

    def chat_ids(self, content: str) -> list[int]:
        """Token ids of a conversation that a user opens, up to where the reply begins."""
        if self.lm.tokenizer.chat_template is None:
            raise SteerError(f"model {self.lm.identity.name} must have a chat template for chat prompts, got none")
        messages = [{"role": "user", "content": content}]
        text = self.lm.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self.lm.tokenizer(text, add_special_tokens=False)["input_ids"])


@contextmanager
def open_bench(args: argparse.Namespace, *, max_relative_norm: float = MAX_RELATIVE_NORM) -> Iterator[Bench]:
    """The dictionary in `args.dictionary` with the model that the flags name, for the time of the block.

    Raises:
        SteerError: the cap is no finite number above 0.
        FitError: the dictionary was made for other weights or another form of them; `--unverified` goes on.
        CheckpointError, ModelError: what `load_sae` and `load_language_model` raise.
    """
    if not 0 < max_relative_norm < math.inf:
        raise SteerError(f"max_relative_norm must be above 0 and finite, got {max_relative_norm:g}")
    sae = load_sae(args.dictionary)
    lm = load_dictionary_model(args, sae.manifest)
    with tapped(lm, sae.manifest.hook) as tap:
        yield Bench.of(lm, tap, sae.to(lm.device), max_relative_norm)


def edit_rows(changes: Sequence[Change | None]) -> Edit | None:
    """The tap's edit that changes row b by `changes[b]`; None if no row is to be changed."""
    if not any(changes):
        return None

    def edit(resid_BTD: Tensor) -> Tensor:
        edited_BTD = resid_BTD.clone()
        for b, change in enumerate(changes):
            if change is not None:
                edited_BTD[b] = change(resid_BTD[b])
        return edited_BTD

    return edit
