"""What the model loses when the residual at the hook point is replaced by its reconstruction.

    cross_entropy_recovered            (CE_zero - CE_sae) / (CE_zero - CE_clean)
    cross_entropy_recovered_from_mean  the same from mean ablation, which is the stricter yardstick
    kl_*                               mean over predictions of KL(clean || replaced), nats

All from passes over the whole model in which the tap replaces the residual by its reconstruction, by zero or by a mean
residual; position 0 is left alone and predictions made there are not counted. All other tokens are replaced, those
with massive activations included.

Shape suffixes: B rows, T positions, D model width, V vocabulary, N tokens.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sae_runtime.language_model import LanguageModel
from sae_runtime.sae import SAE
from sae_runtime.tap import Edit, Tap

REPLACED = ("sae", "zero", "mean")


@dataclass(slots=True)
class SplicingSums:
    """Nats over the same predictions, under each replacement of the residual."""

    num_predictions: int = 0
    num_contexts: int = 0
    num_available: int = 0
    """Contexts that these were drawn from, as far as whoever drew them says."""
    cross_entropy: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("clean", *REPLACED), 0.0))
    kl: dict[str, float] = field(default_factory=lambda: dict.fromkeys(REPLACED, 0.0))

    def __add__(self, other: "SplicingSums") -> "SplicingSums":
        return SplicingSums(
            self.num_predictions + other.num_predictions,
            self.num_contexts + other.num_contexts,
            self.num_available + other.num_available,
            {name: nats + other.cross_entropy[name] for name, nats in self.cross_entropy.items()},
            {name: nats + other.kl[name] for name, nats in self.kl.items()},
        )

    def figures(self) -> dict[str, float]:
        """The figures, by the names they have in manifests."""
        ce = {name: nats / self.num_predictions for name, nats in self.cross_entropy.items()}
        return {
            "predictions": self.num_predictions,
            "prediction_contexts": self.num_contexts,
            "prediction_contexts_available": self.num_available,
            "cross_entropy_clean": ce["clean"],
            "cross_entropy_sae": ce["sae"],
            "cross_entropy_zero_ablated": ce["zero"],
            "cross_entropy_mean_ablated": ce["mean"],
            "cross_entropy_recovered": (ce["zero"] - ce["sae"]) / (ce["zero"] - ce["clean"]),
            "cross_entropy_recovered_from_mean": (ce["mean"] - ce["sae"]) / (ce["mean"] - ce["clean"]),
            "kl_sae": self.kl["sae"] / self.num_predictions,
            "kl_zero_ablated": self.kl["zero"] / self.num_predictions,
            "kl_mean_ablated": self.kl["mean"] / self.num_predictions,
        }


def replacements(sae: SAE, mean_D: Tensor) -> dict[str, Edit | None]:
    """What the residual is replaced by, by the names of `SplicingSums`; `clean` comes first."""

    def keep_first(replace: Callable[[Tensor], Tensor]) -> Edit:
        def edit(resid_BTD: Tensor) -> Tensor:
            edited_BTD = replace(resid_BTD.flatten(0, 1)).to(resid_BTD.dtype).view_as(resid_BTD)
            # Without its massive activation at position 0 the model breaks, whatever is done elsewhere.
            return torch.cat([resid_BTD[:, :1], edited_BTD[:, 1:]], dim=1)

        return edit

    return {
        "clean": None,
        "sae": keep_first(lambda resid_ND: sae.reconstruct(resid_ND)),
        "zero": keep_first(torch.zeros_like),
        "mean": keep_first(lambda resid_ND: mean_D.expand_as(resid_ND)),
    }


@torch.inference_mode()
def measure_splicing(
    lm: LanguageModel, sae: SAE, batches: Iterable[Tensor], tap: Tap, *, mean_D: Tensor | None = None
) -> SplicingSums:
    """Figures over [B, T] batches of token ids, contexts of a batch having the same length.

    Mean ablation is by `mean_D`, by default the dictionary's record of its training data's mean. The dictionary is
    moved to where the model is.
    """
    sums = SplicingSums()
    sae = sae.to(lm.device)
    mean_D = sae.resid_mean if mean_D is None else mean_D.to(lm.device)
    for token_ids_BT in batches:
        targets_N = token_ids_BT[:, 2:].flatten().to(lm.device)
        clean_NV = None
        for name, edit in replacements(sae, mean_D).items():
            with tap.step(token_ids_BT.numel(), edit):
                logits_BTV = lm.model(input_ids=token_ids_BT.to(lm.device), use_cache=False).logits
            # From position 1 on: what position 0 predicts is the same under all replacements.
            logprobs_NV = logits_BTV[:, 1:-1].flatten(0, 1).float().log_softmax(-1)
            sums.cross_entropy[name] -= float(logprobs_NV.gather(1, targets_N[:, None]).sum())
            if clean_NV is None:
                clean_NV = logprobs_NV
            else:
                sums.kl[name] += float((clean_NV.exp() * (clean_NV - logprobs_NV)).sum())
        sums.num_predictions += len(targets_N)
        sums.num_contexts += len(token_ids_BT)
    return sums
