"""One training run: dictionary, optimiser, and where in the data it is. Knows nothing of files or progress bars.

A step is: gradients of the recipe's loss; AuxK on dead latents; clipping; the optimiser; decoder rows back to norm 1
(`decoder_norm` unit, after their gradient has lost its part along them: Bricken et al. 2023); thresholds; resampling.
`state()` holds all that the next step depends on: random choices follow from the seed and the step's number, so there
is no generator to keep, and a run that goes on is bit by bit the run that was not interrupted.

Steering lambda (`l0_target`): after the warm-up each step multiplies it by (L0 / target)^0.02, at most by e^0.02.

Shape suffixes: B tokens of a batch, D model width, F latents.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from discovery import penalty_gradients
from discovery.buffers import START, Buffers, Place, differing_data, generator_for, stream_batches
from discovery.dead_latents import add_aux_gradients, forget, resample
from discovery.errors import TrainError
from discovery.initial_sae import measure_scale, new_sae, normalize_decoder, project_decoder_gradient
from discovery.penalty_gradients import Penalty
from discovery.product_dtype import product_dtype
from discovery.sparse_gradients import backpropagate
from discovery.step_result import StepResult
from discovery.train_settings import TrainSettings
from sae_runtime.sae import SAE

_STEERING_GAIN = 0.02
_SPARSE_BELOW = 1 / 16
"""Share of active latents below which, on a CPU, gradients are computed for active latents alone: about where both
take the same time."""


class StepFigures(NamedTuple):
    """One step, as logged. Taken before the step changed anything."""

    loss: float
    fvu: float
    """Fraction of variance unexplained."""
    l0: float


class Trainer:
    """A run, step by step. `sae` is trained in place; `start_from` is a finished dictionary to go on from."""

    def __init__(
        self,
        settings: TrainSettings,
        buffers: Buffers,
        start_from: SAE | None = None,
        *,
        device: str | torch.device = "cpu",
    ) -> None:
        self.settings, self.buffers = settings, buffers
        scale = measure_scale(buffers)
        self.resid_norm_mean = scale.resid_norm_mean
        if start_from is None:
            self.sae = new_sae(settings, scale, buffers)
        else:
            _check_start(start_from, settings, len(scale.mean_D))
            self.sae = start_from.requires_grad_(True)
        self.sae.to(device)
        self.products = product_dtype(settings.precision)
        self.log_threshold = _log_threshold(self.sae)
        self.optimizer = torch.optim.Adam(
            self.parameters(), lr=settings.learning_rate, betas=(settings.adam_beta1, 0.999), fused=True
        )
        self.silent_tokens_F = torch.zeros(settings.num_latents, dtype=torch.long, device=device)
        self.num_steps_done = 0
        self.place = START
        self.sparsity_weight = settings.sparsity_weight
        self.last_l0 = math.inf

    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser moves. A JumpReLU threshold is trained as its logarithm."""
        weights = [weight for name, weight in self.sae.named_parameters() if name != "threshold"]
        return weights if self.log_threshold is None else [*weights, self.log_threshold]

    @property
    def num_dead(self) -> int:
        return int(self._dead_F().sum())

    @property
    def num_tokens_done(self) -> int:
        return self.num_steps_done * self.settings.batch_size

    def steps(self) -> Iterator[StepFigures]:
        """The steps that are still to be done."""
        batches = stream_batches(self.buffers, self.settings.batch_size, self.settings.seed, self.place)
        while self.num_steps_done < self.settings.num_steps:
            resid_BD, place = next(batches)
            figures = self.step(resid_BD.to(self.sae.W_enc.device))
            self.place = place
            yield figures

    def step(self, resid_BD: Tensor) -> StepFigures:
        """One step on a batch of bf16 residuals."""
        result = self.compute_gradients(resid_BD)
        self.optimizer.step()
        return self.finish_step(result, resid_BD)

    # 1. gradients

    @torch.no_grad()
    def compute_gradients(self, resid_BD: Tensor) -> StepResult:
        """Set all gradients and the rate: what has to happen before `optimizer.step()`."""
        settings, sae = self.settings, self.sae
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate_at(self.num_steps_done)
        result = self._backpropagate(resid_BD)
        if not math.isfinite(result.loss):
            raise TrainError(
                f"the loss must be finite, got {result.loss} at step {self.num_steps_done}: "
                f"learning_rate {settings.learning_rate} may be too high"
            )
        dead_F = self._dead_F()
        if settings.revival == "auxk" and settings.aux_weight and bool(dead_F.any()):
            x_BD = resid_BD.float() * sae.scale
            add_aux_gradients(sae, x_BD, result.error_BD, dead_F, settings, result.loss_unit)
        if self.log_threshold is not None:
            assert sae.threshold.grad is not None
            self.log_threshold.grad = sae.threshold.grad * sae.threshold
        torch.nn.utils.clip_grad_norm_(self.parameters(), settings.max_grad_norm)
        if settings.has_unit_decoder:
            project_decoder_gradient(sae)
        return result

    def _backpropagate(self, resid_BD: Tensor) -> StepResult:
        settings, sae = self.settings, self.sae
        if settings.has_fixed_l0:
            over_batch = settings.activation == "batchtopk"
            x_BD, mean_D = resid_BD.float() * sae.scale, sae.resid_mean * sae.scale
            return backpropagate(sae, x_BD, mean_D, settings.k, over_batch=over_batch, products=self.products)
        weight = self.sparsity_weight * settings.sparsity_ramp_at(self.num_steps_done)
        penalty = Penalty(weight, settings.bandwidth)
        is_sparse = self.last_l0 < _SPARSE_BELOW * settings.num_latents
        if is_sparse and resid_BD.device.type == "cpu":
            return penalty_gradients.sparse(sae, resid_BD, penalty, products=self.products)
        return penalty_gradients.dense(sae, resid_BD, penalty, products=self.products)

    # 2. after the optimiser

    @torch.no_grad()
    def finish_step(self, result: StepResult, resid_BD: Tensor) -> StepFigures:
        """What has to happen after `optimizer.step()`: constraints, counts, thresholds, resampling."""
        if self.settings.has_unit_decoder:
            normalize_decoder(self.sae)
        if self.log_threshold is not None:
            self.sae.threshold.copy_(self.log_threshold.exp())
        self.silent_tokens_F += len(resid_BD)
        self.silent_tokens_F[result.fired_A] = 0
        if self.settings.activation == "batchtopk":
            # Slow enough to average out single batches, fast enough to follow the weights.
            share = 1.0 if self.num_steps_done == 0 else 0.02
            self.sae.threshold.lerp_(self.sae.threshold.new_tensor(result.threshold), share)
        self._steer_sparsity(result.l0)
        self.num_steps_done += 1
        if self.settings.is_resampling_step(self.num_steps_done):
            self._resample(resid_BD, result.error_BD)
        return StepFigures(result.loss, result.fvu, result.l0)

    def _steer_sparsity(self, l0: float) -> None:
        self.last_l0 = l0
        if self.settings.l0_target and self.settings.sparsity_ramp_at(self.num_steps_done) == 1:
            off = math.log(max(l0, 1e-3) / self.settings.l0_target)
            self.sparsity_weight *= math.exp(_STEERING_GAIN * min(1.0, max(-1.0, off)))

    def _resample(self, resid_BD: Tensor, error_BD: Tensor) -> None:
        generator = generator_for(self.settings.seed, "resample", self.num_steps_done)
        latents_A = resample(self.sae, resid_BD, error_BD, self._dead_F(), self.settings, generator)
        if self.log_threshold is not None:
            self.sae.threshold[latents_A] = self.settings.threshold_init
            self.log_threshold[latents_A] = math.log(self.settings.threshold_init)
        forget(self.optimizer, self.sae, latents_A)
        self.silent_tokens_F[latents_A] = 0

    def _dead_F(self) -> Tensor:
        return self.silent_tokens_F >= self.settings.dead_after_tokens

    # 3. going on

    def position(self) -> dict[str, Any]:
        """All that the next step depends on besides the weights and the optimiser."""
        return {
            "settings": asdict(self.settings),
            "buffers": self.buffers.identity(),
            "scale": self.sae.scale,
            "silent_tokens": self.silent_tokens_F,
            "num_steps_done": self.num_steps_done,
            "place": tuple(self.place),
            "sparsity_weight": self.sparsity_weight,
            "last_l0": self.last_l0,
            "log_threshold": None if self.log_threshold is None else self.log_threshold.detach(),
        }

    @torch.no_grad()
    def set_position(self, position: dict[str, Any], where: str) -> None:
        """Go on from `position()`. TrainError if it is of another recipe or of other data; `where` it came from."""
        differing = differing_settings(position, self.settings, self.buffers)
        if differing:
            raise TrainError(f"{where} belongs to a run with other settings or data: {differing}")
        self.sae.scale = position["scale"]
        self.silent_tokens_F.copy_(position["silent_tokens"])
        self.num_steps_done = position["num_steps_done"]
        self.place = Place(position["place"])
        self.sparsity_weight, self.last_l0 = position["sparsity_weight"], position["last_l0"]
        if self.log_threshold is not None:
            self.log_threshold.copy_(position["log_threshold"])


def differing_settings(position: dict[str, Any], settings: TrainSettings, buffers: Buffers) -> str:
    """Which settings of a saved position are not these, in words; empty if it is of the same run."""
    before, now = position["settings"], asdict(settings)
    parts = [f"{name} was {before.get(name)}, is {now[name]}" for name in now if before.get(name) != now[name]]
    return "; ".join([*parts, *differing_data(position["buffers"], buffers.identity())])


def _log_threshold(sae: SAE) -> nn.Parameter | None:
    if sae.activation != "jumprelu":
        return None
    return nn.Parameter(sae.threshold.detach().clamp_min(1e-6).log())


def _check_start(sae: SAE, settings: TrainSettings, d_model: int) -> None:
    wanted = {"d_model": d_model, "num_latents": settings.num_latents, "activation": settings.activation}
    for name, value in wanted.items():
        if getattr(sae, name) != value:
            raise TrainError(f"the dictionary to start from must have {name} {value}, got {getattr(sae, name)}")
    norm_F = sae.W_dec.detach().norm(dim=-1)
    # Rows of other norms would be normalised, or change which latents are largest: another dictionary to start from.
    if sae.activation != "relu" and not torch.allclose(norm_F, torch.ones_like(norm_F), atol=0.02):
        raise TrainError(
            "the dictionary to start from must have decoder rows of norm 1, "
            f"got norms of {float(norm_F.min()):.3g} to {float(norm_F.max()):.3g}"
        )
    if sae.normalization != "scalar":
        raise TrainError(f"the dictionary to start from must have normalization scalar, got {sae.normalization}")
