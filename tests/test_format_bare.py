"""Single PyTorch files: the tensors' names show whose they are, and what is open has to be stated."""

import math
from pathlib import Path

import pytest
import torch
from format_files import FIXTURES, copy_case, refusal, residuals
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sae_runtime.formats import import_sae

SEED_SCALE = math.sqrt(3072) / 11.8886
GOODFIRE = FIXTURES / "published/goodfire/Llama-3.1-8B-Instruct-SAE-l19.pth"
QRESEARCH = FIXTURES / "published/qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt"


def linear() -> dict[str, Tensor]:
    return torch.load(QRESEARCH, weights_only=True)


# --- the seed ---------------------------------------------------------------------------------------------------------


def seed_checkpoint(path: Path, *, prefix: str = "") -> Path:
    state = {f"{prefix}{name}": tensor for name, tensor in linear().items()}
    torch.save({"epoch": 3, "pytorch-lightning_version": "2.4.0", "state_dict": state}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "model."])
def test_the_seed_with_its_scale(tmp_path, prefix):
    sae, w, x_TD = (
        import_sae(seed_checkpoint(tmp_path / "a.ckpt", prefix=prefix), scale=SEED_SCALE),
        linear(),
        residuals(),
    )
    f_TF = ((x_TD * SEED_SCALE) @ w["encoder.weight"].T + w["encoder.bias"]).relu()
    torch.testing.assert_close(sae.encode(x_TD), f_TF)
    torch.testing.assert_close(sae.reconstruct(x_TD), (f_TF @ w["decoder.weight"].T + w["decoder.bias"]) / SEED_SCALE)
    manifest = sae.manifest
    assert manifest.scale == SEED_SCALE
    # The input of block 15 is the output of block 14.
    assert manifest.hook_point == "layers.15.input"
    assert manifest.hook.hidden_state_index == 15
    assert any("4.66" in sentence for sentence in manifest.training["import"]["assumed"])


class SeedAutoencoder(nn.Module):
    """As Lightning writes it."""

    def __init__(self, d_model, num_latents):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(d_model, num_latents), nn.Linear(num_latents, d_model)

    def forward(self, x_TD):
        f_TF = self.encoder(x_TD).relu()
        return f_TF, self.decoder(f_TF)


def test_a_checkpoint_that_lightning_wrote_itself(tmp_path):
    """With all that it puts beside the weights: hyperparameters, optimiser, loops and callbacks."""
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from discovery.lightning_module import quiet_lightning

    class Module(LightningModule):
        def __init__(self, lam=5.0):
            super().__init__()
            self.save_hyperparameters({"lam": lam})
            self.model = SeedAutoencoder(12, 40)

        def training_step(self, batch, _index):
            f_TF, x_hat_TD = self.model(batch)
            return (batch - x_hat_TD).square().sum(-1).mean() + self.hparams.lam * f_TF.sum(-1).mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    module, x_TD = Module(), residuals()
    kept = ModelCheckpoint(dirpath=tmp_path, filename="a", save_top_k=1, every_n_train_steps=2)
    with quiet_lightning():
        trainer = Trainer(
            max_steps=2,
            accelerator="cpu",
            logger=False,
            callbacks=[kept],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader([x_TD * SEED_SCALE] * 2, batch_size=None))
    sae = import_sae(tmp_path / "a.ckpt", scale=SEED_SCALE)
    with torch.no_grad():
        f_TF, x_hat_TD = module.model(x_TD * SEED_SCALE)
    torch.testing.assert_close(sae.encode(x_TD), f_TF)
    torch.testing.assert_close(sae.reconstruct(x_TD), x_hat_TD / SEED_SCALE)


def test_the_seed_without_its_scale_is_refused(tmp_path):
    message = refusal(seed_checkpoint(tmp_path / "a.ckpt"))
    assert "does not hold the scale" in message
    assert "must be stated" in message


def test_a_hook_point_can_be_stated_for_the_seed(tmp_path):
    path = seed_checkpoint(tmp_path / "a.pt")
    assert import_sae(path, scale=1.0, hook_point="layers.9.output").manifest.hook_point == "layers.9.output"


def test_other_tensors_in_the_seed_are_refused(tmp_path):
    state = linear() | {"metric.total": torch.zeros(2)}
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    assert "unexpected tensor metric.total" in refusal(tmp_path / "a.ckpt", scale=1.0)


def test_an_empty_state(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    assert "tensor decoder.bias must be there" in refusal(tmp_path / "a.ckpt", scale=1.0)


# --- Goodfire and qresearch -------------------------------------------------------------------------------------------


def test_goodfire_does_not_subtract_the_decoder_bias():
    w, x_TD = torch.load(GOODFIRE, weights_only=True), residuals()
    f_TF = (x_TD @ w["encoder_linear.weight"].T + w["encoder_linear.bias"]).relu()
    torch.testing.assert_close(import_sae(GOODFIRE).encode(x_TD), f_TF)


@pytest.mark.parametrize(
    ("path", "model"),
    [(GOODFIRE, "meta-llama/Llama-3.1-8B-Instruct"), (QRESEARCH, "deepseek-ai/DeepSeek-R1-Distill-Llama-8B")],
)
def test_the_name_shows_model_and_layer(path, model):
    manifest = import_sae(path).manifest
    assert (manifest.model_name, manifest.hook_point) == (model, "layers.19.output")


def test_goodfire_under_another_name(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(GOODFIRE.read_bytes())
    manifest = import_sae(path, hook_point="layers.50.output").manifest
    assert (manifest.model_name, manifest.hook_point) == ("unknown", "layers.50.output")


def test_a_stated_hook_point_goes_before_the_name():
    assert import_sae(GOODFIRE, hook_point="layers.7.output").manifest.hook_point == "layers.7.output"


def test_a_bare_encoder_and_decoder_need_a_scale(tmp_path):
    torch.save(linear(), tmp_path / "weights.pt")
    message = refusal(tmp_path / "weights.pt")
    assert "scale must be stated (1 if they were not)" in message
    wanted = import_sae(QRESEARCH)
    assert torch.equal(import_sae(tmp_path / "weights.pt", scale=1.0).encode(residuals()), wanted.encode(residuals()))
    assert import_sae(tmp_path / "weights.pt", scale=0.5).scale == 0.5


def test_a_transposed_matrix_is_refused(tmp_path):
    path = copy_case("published/goodfire", tmp_path) / GOODFIRE.name
    content = torch.load(path, weights_only=True)
    torch.save(content | {"encoder_linear.weight": content["encoder_linear.weight"].T}, path)
    assert "tensor encoder_linear.weight must have shape [40, 12], got [12, 40]" in refusal(path)


# --- Goodfire R1 ------------------------------------------------------------------------------------------------------


def tied(path: Path, *, num_latents: int = 40) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    w = {"W": torch.randn(12, num_latents, generator=generator), "b_enc": torch.randn(num_latents, generator=generator)}
    w["b_dec"] = torch.randn(12, generator=generator)
    torch.save(w, path)
    return w


def test_tied_weights_by_a_threshold(tmp_path):
    w, x_TD = tied(tmp_path / "DeepSeek-R1-SAE-l37.pt"), residuals()
    sae = import_sae(tmp_path / "DeepSeek-R1-SAE-l37.pt", threshold=1.5)
    f_TF = (x_TD @ w["W"] + w["b_enc"]).relu()
    f_TF = torch.where(f_TF > 1.5, f_TF, 0.0)
    torch.testing.assert_close(sae.encode(x_TD), f_TF)
    torch.testing.assert_close(sae.reconstruct(x_TD), f_TF @ w["W"].T + w["b_dec"])
    assert (sae.manifest.model_name, sae.manifest.hook_point) == ("deepseek-ai/DeepSeek-R1", "layers.37.output")


def test_tied_weights_by_k_are_their_batchtopk_of_one_token(tmp_path):
    w, x_TD = tied(tmp_path / "a.pt"), residuals()
    pre_TF = (x_TD @ w["W"] + w["b_enc"]).relu()
    rows = [torch.zeros(40).scatter(0, top.indices, top.values) for top in (row.topk(6) for row in pre_TF)]
    torch.testing.assert_close(import_sae(tmp_path / "a.pt", k=6).encode(x_TD), torch.stack(rows))


def test_neither_is_refused(tmp_path):
    tied(tmp_path / "a.pt")
    assert "neither k nor a threshold" in refusal(tmp_path / "a.pt")
    assert "k must be a whole number in 1..40, got 41" in refusal(tmp_path / "a.pt", k=41)


def test_both_are_refused(tmp_path):
    tied(tmp_path / "a.pt")
    assert "either k or a threshold must be stated, got 6 and 1.5" in refusal(tmp_path / "a.pt", k=6, threshold=1.5)
    assert "threshold must be positive and finite, got -1" in refusal(tmp_path / "a.pt", threshold=-1)


def test_square_tied_weights_are_ambiguous(tmp_path):
    tied(tmp_path / "a.pt", num_latents=12)
    assert "the matrices are square (12 x 12)" in refusal(tmp_path / "a.pt", k=3)


# --- nobody's ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [{}, {"weight": torch.zeros(2)}, {"encoder.weight": torch.zeros(2, 3)}])
def test_tensors_of_no_known_format(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    assert "must hold the tensors of a known format, got" in refusal(tmp_path / "a.pt")
