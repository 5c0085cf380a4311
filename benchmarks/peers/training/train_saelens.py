"""Trains with SAELens: its TrainingSAE classes under its own SAETrainer, which takes any iterator of activations.

    python train_saelens.py --data DATA --recipe topk --rate 1e-3 --num-steps 250 --output RUN

Not used of SAELens: its ActivationsStore (the residuals are given) and its logging. Settings are its defaults but for
those below; README.md says why each was changed. All changes are meant in its favour.
"""

from dataclasses import replace

import torch
from common import BATCH_SIZE, DECAY_SHARE, WARMUP_STEPS, Batches, Run, parse_run, variance_explained, write_result
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer

CLASSES = {
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
}


def new_trainer(run: Run, batches: Batches) -> SAETrainer:
    sae_class, config_class = CLASSES[run.recipe]
    torch.manual_seed(run.seed)
    # Its threshold is a running mean from 0 that takes hundreds of steps to arrive: it gets a faster one.
    options = {"topk_threshold_lr": 0.1} if run.recipe == "batchtopk" else {}
    metadata = SAEMetadata(model_name="SmolLM2-135M-Instruct", hook_name="blocks.15.hook_resid_post", prepend_bos=False)
    sae = sae_class(
        config_class(
            d_in=batches.resid_ND.shape[1],
            d_sae=run.num_latents,
            k=run.k,
            normalize_activations="expected_average_only_in",
            metadata=metadata,
            **options,
        )
    )
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=run.num_tokens,
            train_batch_size_samples=BATCH_SIZE,
            lr=run.rate,
            lr_end=run.rate,
            lr_warm_up_steps=WARMUP_STEPS,
            lr_decay_steps=int(DECAY_SHARE * run.num_steps),
            dead_feature_window=run.dead_after_steps,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=batches,
    )
    # Its own estimate of the scale, from the same tokens as the others' but before the clock runs.
    trainer.activation_scaler.estimate_scaling_factor(
        d_in=sae.cfg.d_in, data_provider=Batches(replace(run, paced=0)), n_batches_for_norm_estimate=100
    )
    if run.variant != "b_dec from 0":
        sae.b_dec.data = batches.mean_D * trainer.activation_scaler.scaling_factor
    return trainer


def main() -> None:
    run = parse_run()
    batches = Batches(run)
    trainer = new_trainer(run, batches)
    sae = trainer.fit()
    batches.stop()
    sae.save_inference_model(run.output / "dictionary")
    saved = SAE.load_from_disk(run.output / "dictionary")
    write_result(
        run,
        "SAELens",
        ["sae-lens"],
        batches,
        own_variance_explained=variance_explained(saved, run.data),
    )


if __name__ == "__main__":
    main()
