"""The trainer of SAELens; models are concatenated."""

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer

from trainers.problem import Problem


class SAELens:
    """`SAETrainer.step` of a BatchTopK SAE."""

    def __init__(self, problem: Problem):
        torch.set_num_threads(2)
        s = problem.shape
        self._rows = torch.from_numpy(problem.rows)
        sae = BatchTopKTrainingSAE(
            BatchTopKTrainingSAEConfig(
                d_in=s.models * s.width, d_sae=s.latents, k=s.k, apply_b_dec_to_input=False
            )
        )
        with torch.no_grad():
            sae.W_enc.copy_(torch.from_numpy(problem.encoder))
            sae.W_dec.copy_(torch.from_numpy(problem.decoder))
        config = SAETrainerConfig(
            total_training_samples=10**9,
            train_batch_size_samples=s.batch,
            lr=problem.rate,
            lr_end=problem.rate,
        )
        self._trainer = SAETrainer(config, sae, iter(()))

    def first(self) -> float:
        """Does a step and returns its loss."""
        return self._take(0)

    def step(self, i: int) -> None:
        """Does a step."""
        self._take(i)

    def _take(self, i: int) -> float:
        output = self._trainer.step(self._rows[i % len(self._rows)])
        self._trainer.n_training_steps += 1
        return float(output.losses["mse_loss"])
