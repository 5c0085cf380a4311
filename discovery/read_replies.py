"""Replies through the model: everything that fitting and evaluating a monitor needs, in one pass over the data.

    readings = read_replies(lm, replies, ReadingPlan(mean_points=all_points(lm), sae=dictionary), cache=folder)

Only the blocks up to the last hook point are run, unless predictions are asked for. Residuals are read in fp32 from the
model's own dtype, as in the server. Memory grows with what is kept of a reply, not with what was read of it: residuals
are reduced batch by batch. With a cache folder, every `CHUNK` replies are kept in a file named by a hash of all they
depend on (weights, form and dtype of the model, tokens, plan): a run that was killed goes on, and the same replies are
never read twice.

Shape suffixes: B rows, T positions, S scored tokens of a reply, N scored tokens, L hook points, P probes, D model
width, F latents, V vocabulary.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array, vstack  # type: ignore[import-untyped]
from torch import Tensor
from tqdm import tqdm

from discovery.errors import MonitorLabError
from discovery.reply_readings import ReplyReadings, concatenated, load_readings, save_readings
from discovery.residuals import blocks_up_to, tapped
from discovery.scored_tokens import Reply
from discovery.usual_norm import of_usual_norm
from sae_runtime.checkpoint import LoadedSAE, Manifest
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import LanguageModel

CHUNK = 256
"""Replies per cached file."""

_FORMAT, _FORMAT_WITH_PROBES = 2, 3


class ReadProbe(NamedTuple):
    """A linear probe to be read at every scored token, with the norm of the residual it is taken from."""

    hook_point: HookPoint
    direction_D: Tensor
    """fp32."""
    bias: float


@dataclass(frozen=True, slots=True)
class ReadingPlan:
    """What to read of each reply."""

    mean_points: tuple[HookPoint, ...] = ()
    """Where the mean residual over the scored tokens is wanted."""
    averaged: Literal["scored", "last"] = "scored"
    """Which of them it is the mean of: all, or the last alone."""
    token_point: HookPoint | None = None
    """Where every scored token's residual is wanted."""
    probes: tuple[ReadProbe, ...] = ()
    sae: LoadedSAE | None = None
    """Whose latents are wanted, all of them, at every scored token."""
    judge: Manifest | None = None
    """The dictionary that says which tokens are massive activations, where none of its latents are wanted."""
    predictions: bool = False
    """Whether log-probability of each scored token, and entropy of its prediction, are wanted."""

    @property
    def hook_points(self) -> tuple[HookPoint, ...]:
        """Where the model is tapped, each place once."""
        points = [*self.mean_points, *(probe.hook_point for probe in self.probes)]
        points += [] if self.token_point is None else [self.token_point]
        points += [] if self.judged_by is None else [self.judged_by.hook]
        return tuple(sorted(dict.fromkeys(points), key=lambda point: (point.hidden_state_index, point.side)))

    @property
    def judged_by(self) -> Manifest | None:
        """The dictionary that says which tokens are massive activations."""
        return self.judge if self.sae is None else self.sae.manifest

    def digest(self) -> str:
        """Hash of what it asks for."""
        probes = [
            (str(probe.hook_point), _bytes_sha256(probe.direction_D), float(probe.bias).hex()) for probe in self.probes
        ]
        asked = {
            "format": _FORMAT_WITH_PROBES if self.probes else _FORMAT,
            "mean_points": [str(point) for point in self.mean_points],
            "token_point": str(self.token_point),
            "probes": probes,
            "sae": None if self.sae is None else self.sae.manifest.sae_sha256,
            "predictions": self.predictions,
            "resid_norm_mean": None if self.sae is None else self.sae.manifest.resid_norm_mean,
        }
        if self.averaged == "last":
            asked["averaged"] = self.averaged
        if self.sae is None and self.judge is not None:
            asked["judge"] = [self.judge.hook_point, self.judge.resid_norm_mean]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def all_points(lm: LanguageModel) -> tuple[HookPoint, ...]:
    """The output of every block."""
    return tuple(HookPoint(layer) for layer in range(lm.num_layers))


def read_replies(
    lm: LanguageModel,
    replies: Sequence[Reply],
    plan: ReadingPlan,
    *,
    cache: Path | None = None,
    batch_tokens: int = 4096,
    label: str = "replies",
) -> ReplyReadings:
    """Readings of `replies`, of which there must be some.

    MonitorLabError if there are none, or a residual is not finite; TapError if the model has no such layer.
    """
    if not replies:
        raise MonitorLabError(f"{label}: there must be conversations with a scored token, got none")
    parts = []
    with tqdm(total=len(replies), desc=label, unit="reply", mininterval=5) as bar:
        for begin in range(0, len(replies), CHUNK):
            chunk = replies[begin : begin + CHUNK]
            path = None if cache is None else cache / f"{_key(lm, chunk, plan)}.safetensors"
            part = None if path is None else load_readings(path)
            if part is None:
                part = _read_chunk(lm, chunk, plan, batch_tokens)
                if path is not None:
                    save_readings(path, part)
            parts.append(part)
            bar.update(len(chunk))
    return concatenated(parts)


def _key(lm: LanguageModel, chunk: Sequence[Reply], plan: ReadingPlan) -> str:
    identity = lm.identity
    digest = hashlib.sha256(f"{plan.digest()} {identity.weights_sha256} {identity.quantization}".encode())
    # A pass on another device, or in another dtype, gives slightly other numbers.
    digest.update(f" {identity.dtype} {torch.device(identity.device).type}".encode())
    for reply in chunk:
        digest.update(f"\n{reply.tokens} {reply.scored}".encode())
    return digest.hexdigest()


def _bytes_sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()).hexdigest()


# --- passes ---------------------------------------------------------------------------------------------------------


class _Pass(NamedTuple):
    """One forward pass over some replies."""

    resid: dict[HookPoint, Tensor]
    """[B, T, D] in the model's dtype."""
    final_BTD: Tensor
    """What the output matrix reads; meaningless if not all blocks were run."""


class _One(NamedTuple):
    """What is kept of one reply."""

    mean_LD: Tensor
    token_SD: Tensor
    probes_SP: Tensor
    norms_SP: Tensor
    log_prob_S: Tensor
    entropy_S: Tensor
    off_scale_S: Tensor
    latents_SF: csr_array


@torch.inference_mode()
def _read_chunk(lm: LanguageModel, replies: Sequence[Reply], plan: ReadingPlan, batch_tokens: int) -> ReplyReadings:
    kept: dict[int, _One] = {}
    for batch in _batches(replies, batch_tokens):
        done = _forward(lm, [replies[index] for index in batch], plan)
        for row, index in enumerate(batch):
            kept[index] = _reduce(lm, replies[index], row, done, plan)
    ones = [kept[index] for index in range(len(replies))]

    def joined(name: str) -> np.ndarray:
        return torch.cat([getattr(one, name) for one in ones]).numpy()

    return ReplyReadings(
        counts_I=np.array([len(reply.scored) for reply in replies]),
        mean_ILD=torch.stack([one.mean_LD for one in ones]).numpy(),
        token_ND=joined("token_SD"),
        probes_NP=joined("probes_SP"),
        norms_NP=joined("norms_SP"),
        log_prob_N=joined("log_prob_S"),
        entropy_N=joined("entropy_S"),
        off_scale_N=joined("off_scale_S"),
        latents_NF=csr_array(vstack([one.latents_SF for one in ones], format="csr")),
    )


def _batches(replies: Sequence[Reply], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of replies of like length, so that little is padding; `batch_tokens` at most, or one reply."""
    by_length = sorted(range(len(replies)), key=lambda index: len(replies[index].tokens), reverse=True)
    while by_length:
        rows = max(1, batch_tokens // len(replies[by_length[0]].tokens))
        batch, by_length = by_length[:rows], by_length[rows:]
        yield batch


def _forward(lm: LanguageModel, replies: Sequence[Reply], plan: ReadingPlan) -> _Pass:
    """Rows are padded on the right: attention is causal, so padding changes nothing before it."""
    token_ids_BT = torch.zeros(len(replies), max(len(reply.tokens) for reply in replies), dtype=torch.long)
    for row, reply in enumerate(replies):
        token_ids_BT[row, : len(reply.tokens)] = torch.tensor(reply.tokens)
    points = plan.hook_points
    with ExitStack() as stack:
        taps = [stack.enter_context(tapped(lm, point)) for point in points]
        # By block: layers.1.output and layers.2.input are one residual, seen by different blocks.
        last = HookPoint(lm.num_layers - 1) if plan.predictions or not points else max(points, key=lambda at: at.layer)
        decoder = stack.enter_context(blocks_up_to(lm.model, last))
        with ExitStack() as steps:
            records = [steps.enter_context(tap.step(token_ids_BT.numel())) for tap in taps]
            final_BTD = decoder(input_ids=token_ids_BT.to(lm.device), use_cache=False).last_hidden_state
        resid = {point: record.resid_BTD for point, record in zip(points, records, strict=True)}
    return _Pass({point: tensor for point, tensor in resid.items() if tensor is not None}, final_BTD)


def _reduce(lm: LanguageModel, reply: Reply, row: int, done: _Pass, plan: ReadingPlan) -> _One:
    """What the plan keeps of one row."""
    scored_S = torch.tensor(reply.scored, device=lm.device)
    resid = {point: resid_BTD[row, scored_S].to(torch.float32) for point, resid_BTD in done.resid.items()}
    for point, resid_SD in resid.items():
        if not bool(resid_SD.isfinite().all()):
            raise MonitorLabError(
                f"residuals at {point} must be finite, got NaN or infinity in a reply of {reply!r:.90}"
            )
    num, empty_S0 = len(reply.scored), torch.zeros(len(reply.scored), 0)
    averaged = slice(-1, None) if plan.averaged == "last" else slice(None)
    means = [resid[point][averaged].mean(0) for point in plan.mean_points]
    values = [resid[p.hook_point] @ p.direction_D.to(lm.device, torch.float32) + p.bias for p in plan.probes]
    norms = [resid[p.hook_point].norm(dim=-1) for p in plan.probes]
    log_prob_S, entropy_S = _predictions(lm, reply, done.final_BTD[row]) if plan.predictions else (torch.zeros(0),) * 2
    latents_SF = torch.zeros(num, 0) if plan.sae is None else plan.sae.encode(resid[plan.sae.manifest.hook])
    return _One(
        mean_LD=torch.stack(means).cpu() if means else torch.zeros(0, lm.d_model),
        token_SD=empty_S0 if plan.token_point is None else resid[plan.token_point].cpu(),
        probes_SP=torch.stack(values, 1).cpu() if values else empty_S0,
        norms_SP=torch.stack(norms, 1).cpu() if norms else empty_S0,
        log_prob_S=log_prob_S.cpu(),
        entropy_S=entropy_S.cpu(),
        off_scale_S=_off_scale(resid, num, plan),
        latents_SF=csr_array(latents_SF.cpu().numpy()),
    )


def _off_scale(resid: dict[HookPoint, Tensor], num: int, plan: ReadingPlan) -> Tensor:
    """[S] massive activations, as far as the dictionary says what is usual."""
    judge = plan.judged_by
    return torch.zeros(num, dtype=torch.bool) if judge is None else ~of_usual_norm(resid[judge.hook], judge).cpu()


def _predictions(lm: LanguageModel, reply: Reply, final_TD: Tensor) -> tuple[Tensor, Tensor]:
    """([S], [S]) log-probability of each scored token, and entropy of the prediction it was drawn from."""
    scored_S = torch.tensor(reply.scored, device=lm.device)
    logits_SV = lm.model.get_output_embeddings()(final_TD[scored_S - 1]).to(torch.float32)
    log_probs_SV = logits_SV.log_softmax(-1)
    said_S = torch.tensor(reply.tokens, device=lm.device)[scored_S]
    entropy_S = -(log_probs_SV.exp() * log_probs_SV).sum(-1)
    return log_probs_SV.gather(1, said_S[:, None])[:, 0], entropy_S
