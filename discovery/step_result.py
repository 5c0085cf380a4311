"""What one training step says of its batch, whatever the recipe.

Shape suffixes: B tokens, D model width, A active latents in any order, with repetitions.
"""

from typing import NamedTuple

from torch import Tensor


class StepResult(NamedTuple):
    """Taken before the step changes anything. Gradients are in the parameters' `.grad`."""

    loss: float
    """What the gradients are of, without the auxiliary loss on dead latents."""
    fvu: float
    """Fraction of variance unexplained: sum ||x - x_hat||^2 / sum ||x - mean||^2."""
    l0: float
    """Active latents per token."""
    error_BD: Tensor
    """x - x_hat, in the dictionary's units."""
    fired_A: Tensor
    threshold: float = 0.0
    """Smallest contribution, pre-activation times norm of the decoder row, that was kept (topk, batchtopk)."""
    loss_unit: float = 1.0
    """What the loss would be at FVU 1, if the fraction were all of it: makes auxiliary losses comparable."""
