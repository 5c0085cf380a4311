"""The watched latents' part of the dictionary, in torch, for the peers that have no dictionaries of their own.

Shape suffixes: B requests, D model width, W watched latents.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class Watching:
    """Reads the watched latents of a residual, and steers it.

    Implements, with s the scale and t the threshold:
        pre     = (s * x - center) @ enc + enc_bias
        reading = pre where pre > t, else 0
    """

    def __init__(self, data: Path) -> None:
        with np.load(data / "dictionary.npz") as arrays:
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self.enc_DW, self.enc_bias_W, self.center_D = tensors["enc_DW"], tensors["enc_bias_W"], tensors["center_D"]
        self.threshold, self.scale = tensors["threshold"], tensors["scale"]
        self.delta_D = tensors["delta_D"]

    def read(self, resid_BD: Tensor) -> Tensor:
        """[B, W] fp32 readings."""
        pre_BW = (resid_BD.float() * self.scale - self.center_D) @ self.enc_DW + self.enc_bias_W
        return pre_BW.relu() * (pre_BW > self.threshold)

    def steered(self, resid: Tensor) -> Tensor:
        """The residual with the feature added, in its own number format."""
        return (resid.float() + self.delta_D).to(resid.dtype)
