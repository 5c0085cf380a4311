"""A dictionary that encodes residuals in bf16 with the C kernel: the same latents, whatever is encoded at once.

The encoder's weights are stored in bf16, and so is a residual: their products are exact, and sums are in fp32. The
order of sums does not depend on how many tokens there are, so that a token's readings don't, either.

Most latents are off at a token. Where a latent's value depends on its own pre-activation alone, an encoder of 8 bits is
read first (`encoder_screen`), half as many bytes, and only latents that may be on are computed from the weights
themselves.

Shape suffixes: T tokens, D model width, F latents, W watched latents, N top latents.
"""

import ctypes
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.encoder_screen import EncoderScreen
from sae_runtime.kernels import native
from sae_runtime.large_pages import side_by_side
from sae_runtime.native_blocks import matrix, product
from sae_runtime.packed_weights import GROUP, TILE, PackedWeight, pack_bfloat16
from sae_runtime.sae import SAE, TokenReadings

WIDEST_MODEL = 16384
"""Of which the C source can hold a residual."""


class Along(NamedTuple):
    """A latent as steering sees it: f = pre where pre > threshold, pre = scale * (h . encoder) + offset."""

    direction_D: Tensor
    """What one unit of it adds to a residual, fp32."""
    encoder_D: Tensor
    """fp32."""
    offset: float
    threshold: float


class HostReadings(NamedTuple):
    """`TokenReadings` in arrays."""

    readings_TW: NDArray[np.float32]
    top_values_TN: NDArray[np.float32]
    top_indices_TN: NDArray[np.int64]
    l0_T: NDArray[np.int64]
    fvu_T: NDArray[np.float32]
    norms_T: NDArray[np.float64]
    """||x||, of no `TokenReadings`; not finite only where a number of the residual is not."""


class _Latents(NamedTuple):
    """All latents of some residuals, and what else is known of these then."""

    f_TF: NDArray[np.float32]
    l0_T: NDArray[np.int64]
    fvu_T: NDArray[np.float32]
    norms_T: NDArray[np.float64]


class NativeSAE(SAE):
    """Made `of` another SAE, whose weights it shares."""

    @classmethod
    def of(cls, sae: SAE, library: Any) -> SAE:
        """`sae` with its encoder in the kernel; `sae` itself where the kernel can't encode as it does."""
        is_narrow = torch.equal(sae.W_enc.to(torch.bfloat16).to(torch.float32), sae.W_enc)
        fits = sae.d_model % GROUP == 0 and sae.num_latents % TILE == 0 and sae.d_model <= WIDEST_MODEL
        if not (is_narrow and fits and sae.normalization == "scalar" and sae.activation != "gated"):
            return sae
        made = cls.__new__(cls)
        made.__dict__ = dict(sae.__dict__)
        made._prepare(library)
        return made

    def _prepare(self, library: Any) -> None:
        self._library = library
        self._offset_F = self.b_enc.data.to(torch.float64)
        if self.apply_b_dec:
            self._offset_F = self._offset_F - self.b_dec.data.to(torch.float64) @ self.W_enc.data.to(torch.float64)
        self._offset_F = self._offset_F.to(torch.float32)
        if self.is_elementwise:
            self._prepare_screen()
        else:
            self._encoder = PackedWeight(side_by_side({"tiles": pack_bfloat16(self.W_enc.data.T).blocks})["tiles"])

    def _prepare_screen(self) -> None:
        self._threshold_F = torch.zeros(self.num_latents)
        if self.activation in ("jumprelu", "batchtopk"):
            self._threshold_F = self.threshold.data.clamp(min=0).expand(self.num_latents).contiguous()
        encoder_FD = self.W_enc.data.T.to(torch.bfloat16)
        screen = EncoderScreen.of(encoder_FD)
        copies = side_by_side({"screen": screen.blocks, "encoder": encoder_FD})
        self._screen = screen._replace(blocks=copies["screen"])
        self._encoder_FD = copies["encoder"]
        self._native = native.Dictionary(
            screen=self._screen.blocks.data_ptr(),
            encoder=self._encoder_FD.data_ptr(),
            slack=self._screen.slack_F.data_ptr(),
            spread=self._screen.spread_F.data_ptr(),
            offset=self._offset_F.data_ptr(),
            threshold=self._threshold_F.data_ptr(),
            decoder=self.W_dec.data_ptr(),
            bias=self.b_dec.data_ptr(),
            mean=self.resid_mean.data_ptr(),
            scale=self.scale,
            num_latents=self.num_latents,
            d_model=self.d_model,
        )

    @property
    def num_bytes(self) -> int:
        """Of what is kept besides the dictionary."""
        if not self.is_elementwise:
            return self._encoder.blocks.nbytes
        return self._screen.blocks.nbytes + self._encoder_FD.nbytes

    def preactivate(self, x_TD: Tensor) -> Tensor:
        if x_TD.dtype is not torch.bfloat16 or self.is_elementwise:
            return super().preactivate(x_TD)
        return product(self._library, matrix(self._encoder), x_TD).mul_(self.scale).add_(self._offset_F)

    def encode(self, x_TD: Tensor) -> Tensor:
        if x_TD.dtype is not torch.bfloat16 or not self.is_elementwise:
            return super().encode(x_TD)
        return torch.from_numpy(self._read(x_TD).f_TF)

    def read(self, x_TD: Tensor, watched: Tensor | list[int]) -> Tensor:
        watched_W = torch.as_tensor(watched, dtype=torch.long)
        if x_TD.dtype is not torch.bfloat16 or not self.is_elementwise:
            return super().read(x_TD, watched_W)
        x_TD, watched_W, f_TW = self._lines(x_TD), watched_W.contiguous(), torch.empty(len(x_TD), len(watched_W))
        is_done = self._library.telltale_read_some(
            ctypes.byref(self._native),
            watched_W.data_ptr(),
            len(watched_W),
            x_TD.data_ptr(),
            len(x_TD),
            f_TW.data_ptr(),
        )
        if not is_done:
            raise self._not_there(watched_W)
        return f_TW

    def along(self, latent: int) -> "Along":
        """What steering along a latent needs to know. IndexError for one that is not there."""
        if not 0 <= latent < self.num_latents:
            raise IndexError(f"latent must lie in 0..{self.num_latents - 1}, got {latent}")
        direction_D = self.directions(torch.tensor([latent]), self.W_dec[:1])[0].contiguous()
        encoder_D = self.W_enc[:, latent].to(torch.float32).contiguous()
        return Along(direction_D, encoder_D, float(self._offset_F[latent]), float(self._threshold_F[latent]))

    def read_tokens(self, x_TD: Tensor, watched: Tensor, num_top: int) -> TokenReadings:
        if not self.reads_on_host(x_TD):
            return super().read_tokens(x_TD, watched, num_top)
        if len(watched) and not 0 <= int(watched.min()) <= int(watched.max()) < self.num_latents:
            raise self._not_there(watched)
        *read, _norms_T = self.read_on_host(x_TD, watched.numpy(), num_top)
        return TokenReadings(*map(torch.from_numpy, read))

    def reads_on_host(self, x_TD: Tensor) -> bool:
        """Whether `read_on_host` can read such residuals."""
        return self.is_elementwise and x_TD.dtype is torch.bfloat16

    def read_on_host(self, x_TD: Tensor, watched: NDArray[np.int64], num_top: int) -> HostReadings:
        """`read_tokens` in arrays, of latents that must be there: for one token torch's calls would take a third of the
        time that reading takes."""
        f_TF, l0_T, fvu_T, norms_T = self._read(x_TD)
        top_values_TN, top_indices_TN = _top(f_TF, num_top)
        return HostReadings(f_TF.take(watched, axis=1), top_values_TN, top_indices_TN, l0_T, fvu_T, norms_T)

    def _read(self, x_TD: Tensor) -> _Latents:
        x_TD = self._lines(x_TD)
        num = len(x_TD)
        read = _Latents(
            np.empty((num, self.num_latents), dtype=np.float32),
            np.empty(num, dtype=np.int64),
            np.empty(num, dtype=np.float32),
            np.empty(num),
        )
        self._library.telltale_read(
            ctypes.byref(self._native), x_TD.data_ptr(), num, *(part.ctypes.data for part in read),
            torch.get_num_threads(),
        )  # fmt: skip
        return read

    def _not_there(self, watched: Tensor) -> IndexError:
        return IndexError(f"watched must lie in 0..{self.num_latents - 1}, got {watched.tolist()}")

    def _lines(self, x_TD: Tensor) -> Tensor:
        """One behind the other. ValueError for another width: C would read beyond them."""
        if x_TD.dim() != 2 or x_TD.shape[1] != self.d_model:
            raise ValueError(f"residuals must have shape [T, {self.d_model}], got {list(x_TD.shape)}")
        return x_TD.contiguous()


def _top(f_TF: NDArray[np.float32], num: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The largest of each line, falling, and where they are."""
    if not num:
        return f_TF[:, :0], np.empty((len(f_TF), 0), dtype=np.int64)
    values_TN, indices_TN = torch.from_numpy(f_TF).topk(num, dim=-1)
    return values_TN.numpy(), indices_TN.numpy()
