"""Every recipe, step by step, beside a plain autograd loop written from the papers' formulas.

Nothing is shared with the trainer but the numbers it begins with and torch's Adam: loss, gradients, clipping, the
decoder's constraint, warm-up and decay of the rate, warm-up of lambda and JumpReLU's straight-through estimate are
written out here.
"""

import math

import pytest
import torch
from training import buffers_of, settings_for, write_harvest

from discovery.buffers import stream_batches
from discovery.dictionary_trainer import Trainer

STEPS = 12
RECIPES = [
    ("relu", {"sparsity_weight": 1.0}),
    ("topk", {}),
    ("topk", {"decoder_norm": "unit"}),
    ("batchtopk", {}),
    ("batchtopk", {"decoder_norm": "unit"}),
    ("jumprelu", {"sparsity_weight": 0.5, "bandwidth": 0.6}),
    ("gated", {"sparsity_weight": 0.5}),
]


class PlainLoop:
    """The obvious way: dense, in fp32, autograd for everything that has a derivative."""

    def __init__(self, trainer):
        self.settings, self.scale, self.subtracts = trainer.settings, trainer.sae.scale, trainer.sae.apply_b_dec
        self.mean = trainer.sae.resid_mean.clone()
        self.w = {name: torch.nn.Parameter(p.detach().clone()) for name, p in trainer.sae.named_parameters()}
        if self.settings.activation == "jumprelu":
            self.w["log_threshold"] = torch.nn.Parameter(self.w.pop("threshold").detach().log())
        betas = (self.settings.adam_beta1, 0.999)
        self.adam = torch.optim.Adam(self.w.values(), lr=self.settings.learning_rate, betas=betas)

    def step(self, number, resid_BD):
        s = self.settings
        warmup, decay = (number + 1) / s.warmup_steps, (s.num_steps - number) / (s.decay_share * s.num_steps)
        self.adam.param_groups[0]["lr"] = s.learning_rate * min(1, warmup, decay)
        lam = s.sparsity_weight * min(1, number / (s.sparsity_warmup_share * s.num_steps))
        self.adam.zero_grad()
        loss = getattr(self, s.activation)(resid_BD.float() * self.scale, lam)
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in self.w.values()))
        for p in self.w.values():
            p.grad *= min(1, s.max_grad_norm / (norm + 1e-6))
        rows = self.w["W_dec"]
        has_unit_rows = s.decoder_norm == "unit"
        if has_unit_rows:  # gradients along them would only change their norm
            rows.grad -= (rows.grad * rows.detach()).sum(-1, keepdim=True) * rows.detach()
        self.adam.step()
        if has_unit_rows:
            rows.data /= rows.data.norm(dim=-1, keepdim=True)
        return float(loss.detach())

    def z(self, x_BD, bias="b_enc"):
        seen_BD = x_BD - self.w["b_dec"] if self.subtracts else x_BD
        return seen_BD @ self.w["W_enc"] + (self.w[bias] if bias else 0)

    def error(self, x_BD, f_BF):
        return x_BD - (f_BF @ self.w["W_dec"] + self.w["b_dec"])

    def relu(self, x_BD, lam):
        f_BF = self.z(x_BD).relu()
        penalty_B = (f_BF * self.w["W_dec"].norm(dim=-1)).sum(-1)
        return (self.error(x_BD, f_BF).square().sum(-1) + lam * penalty_B).mean()

    def of_active(self, x_BD, kept_BF):
        spread = (x_BD - self.mean * self.scale).square().sum()
        return x_BD.shape[1] * self.error(x_BD, self.z(x_BD) * kept_BF).square().sum() / spread

    def contribution(self, x_BD):
        return (self.z(x_BD) * self.w["W_dec"].norm(dim=-1)).detach()

    def topk(self, x_BD, _):
        rank_BF = self.contribution(x_BD)
        kept_BF = rank_BF >= rank_BF.topk(self.settings.k).values[:, -1:]
        return self.of_active(x_BD, kept_BF & (rank_BF > 0))

    def batchtopk(self, x_BD, _):
        rank_BF, k = self.contribution(x_BD), self.settings.k
        of_token_BF = rank_BF.masked_fill(rank_BF < rank_BF.topk(2 * k).values[:, -1:], 0)  # at most 2k of each token
        threshold = of_token_BF.flatten().topk(k * len(x_BD)).values[-1]
        return self.of_active(x_BD, (of_token_BF >= threshold) & (rank_BF > 0))

    def gated(self, x_BD, lam):
        z_BF = self.z(x_BD, bias=None)
        gate_BF = z_BF + self.w["b_gate"]
        f_BF = (z_BF * self.w["r_mag"].exp() + self.w["b_mag"]).relu() * (gate_BF > 0)
        of_gate_BD = x_BD - (gate_BF.relu() @ self.w["W_dec"].detach() + self.w["b_dec"].detach())
        parts_B = self.error(x_BD, f_BF).square().sum(-1) + of_gate_BD.square().sum(-1) + lam * gate_BF.relu().sum(-1)
        return parts_B.mean()

    def jumprelu(self, x_BD, lam):
        """The threshold's gradient is no derivative: it is written out, and put in as that of a term of value 0."""
        theta_F, width = self.w["log_threshold"].exp(), self.settings.bandwidth
        z_BF = self.z(x_BD)
        active_BF = (z_BF > theta_F).detach()
        error_BD = self.error(x_BD, z_BF * active_BF)
        d_f_BF = (-2 / len(x_BD) * error_BD @ self.w["W_dec"].T).detach()
        window_BF = ((z_BF - theta_F).abs() < width / 2).detach() / width
        d_theta_F = (window_BF * (-theta_F.detach() * d_f_BF - lam / len(x_BD))).sum(0)
        of_theta = (d_theta_F * (theta_F - theta_F.detach())).sum()
        return (error_BD.square().sum(-1) + lam * active_BF.sum(-1)).mean() + of_theta


@pytest.fixture(scope="module")
def buffers(tmp_path_factory):
    return buffers_of(write_harvest(tmp_path_factory.mktemp("harvest")))


@pytest.mark.parametrize(("activation", "fields"), RECIPES)
def test_a_recipe_is_what_its_formulas_say(buffers, activation, fields):
    """Clipping bites, the rate warms up, stays and decays within these steps, and lambda warms up."""
    settings = settings_for(
        activation,
        precision="fp32",
        num_steps=STEPS,
        warmup_steps=3,
        decay_share=0.5,
        max_grad_norm=0.05,
        **fields,
    )
    trainer = Trainer(settings, buffers)
    plain = PlainLoop(trainer)
    batches = stream_batches(buffers, settings.batch_size, settings.seed)
    for number in range(STEPS):
        resid_BD, _ = next(batches)
        ours, theirs = trainer.step(resid_BD).loss, plain.step(number, resid_BD)
        assert ours == pytest.approx(theirs, rel=1e-4), number
    state = dict(trainer.sae.named_parameters())
    for name, wanted in plain.w.items():
        found = trainer.log_threshold if name == "log_threshold" else state[name]
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")
