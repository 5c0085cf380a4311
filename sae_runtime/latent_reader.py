"""Whatever reads latents of residuals for a server: a dictionary, or none.

`NoDictionary` is what a model is served with that has no dictionary: it has no latents, so that every token has no
readings and no active latent, and nothing can be steered along one. Probes and raw vectors need no dictionary.

Shape suffixes: T tokens, D model width, W watched latents, N top latents.
"""

from typing import Protocol

import torch
from torch import Tensor

from sae_runtime.errors import SteeringError
from sae_runtime.sae import TokenReadings


class LatentReader(Protocol):
    """What `SAE` offers for reading and steering one residual after another."""

    num_latents: int

    @property
    def device(self) -> torch.device:
        """Where its tensors are, and residuals have to be."""
        ...

    def read(self, x_TD: Tensor, watched: Tensor | list[int]) -> Tensor:
        """[T, D] residuals -> [T, W] fp32 latents."""
        ...

    def read_tokens(self, x_TD: Tensor, watched: Tensor, num_top: int) -> TokenReadings:
        """Everything that is told of a token."""
        ...

    def directions(self, latents_T: Tensor, x_TD: Tensor) -> Tensor:
        """What one unit of a latent adds to each residual: [T, D], or [1, D] where it is the same for all."""
        ...


class NoDictionary:
    """No latents."""

    num_latents = 0

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def read(self, x_TD: Tensor, watched: Tensor | list[int]) -> Tensor:
        """[T, 0]. IndexError for a latent that is asked for all the same."""
        return self._none(x_TD, watched)

    def read_tokens(self, x_TD: Tensor, watched: Tensor, num_top: int) -> TokenReadings:
        """No readings; 0 active latents and a fraction of variance unexplained of 0, which stand for nothing.

        IndexError for a latent, or a number of largest ones, that is asked for all the same.
        """
        if num_top:
            raise IndexError(f"num_top must be 0 without a dictionary, got {num_top}")
        empty_T0, zero_T = self._none(x_TD, watched), torch.zeros(len(x_TD), device=x_TD.device)
        return TokenReadings(empty_T0, empty_T0, empty_T0.to(torch.long), zero_T.to(torch.long), zero_T)

    def directions(self, latents_T: Tensor, x_TD: Tensor) -> Tensor:  # noqa: ARG002  (the protocol's)
        """SteeringError, always: `SteeringLimits.check` has refused it before."""
        raise SteeringError(f"feature must be unset, since there is no dictionary, got {latents_T.tolist()}")

    @staticmethod
    def _none(x_TD: Tensor, watched: Tensor | list[int]) -> Tensor:
        if len(watched):
            raise IndexError(f"watched must be empty without a dictionary, got {len(watched)} latents")
        return torch.zeros(len(x_TD), 0, device=x_TD.device)
