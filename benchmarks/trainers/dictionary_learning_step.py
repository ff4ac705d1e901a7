"""The BatchTopK trainer of dictionary_learning; models are concatenated."""

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

from trainers.problem import Problem


class DictionaryLearning:
    """`BatchTopKTrainer.update`, which also keeps the decoder at norm 1."""

    def __init__(self, problem: Problem):
        torch.set_num_threads(2)
        s = problem.shape
        self._rows = torch.from_numpy(problem.rows)
        self._trainer = BatchTopKTrainer(
            steps=100_000,
            activation_dim=s.models * s.width,
            dict_size=s.latents,
            k=s.k,
            layer=0,
            lm_name="none",
            lr=problem.rate,
            warmup_steps=0,
            device="cpu",
        )
        with torch.no_grad():
            self._trainer.ae.encoder.weight.copy_(torch.from_numpy(problem.encoder.T.copy()))
            self._trainer.ae.decoder.weight.copy_(torch.from_numpy(problem.decoder.T.copy()))

    def first(self) -> float:
        """Does a step and returns its loss; step 0 would move the decoder bias to the median."""
        return self._trainer.update(1, self._rows[0])

    def step(self, i: int) -> None:
        """Does a step."""
        self._trainer.update(2, self._rows[i % len(self._rows)])
