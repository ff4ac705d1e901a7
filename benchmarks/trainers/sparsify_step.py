"""The sparse coder of sparsify with Adam: TopK for each row, the best sparse CPU path of others."""

import torch
from sparsify import SparseCoder, SparseCoderConfig

from trainers.problem import Problem


class Sparsify:
    """Forward, backward, clipping and Adam of a `SparseCoder`; models are concatenated."""

    def __init__(self, problem: Problem):
        torch.set_num_threads(2)
        s = problem.shape
        self._rows = torch.from_numpy(problem.rows)
        self._coder = SparseCoder(
            s.models * s.width, SparseCoderConfig(num_latents=s.latents, k=s.k)
        )
        with torch.no_grad():
            self._coder.encoder.weight.copy_(torch.from_numpy(problem.encoder.T.copy()))
            self._coder.W_dec.copy_(torch.from_numpy(problem.decoder))
        self._optimizer = torch.optim.Adam(
            self._coder.parameters(), lr=problem.rate, betas=(0.0, 0.999), fused=True
        )

    def first(self) -> float:
        """Does a step and returns its squared error."""
        x = self._rows[0]
        return self._take(0) * (x - x.mean(0)).square().sum().item() / len(x)

    def step(self, i: int) -> None:
        """Does a step."""
        self._take(i)

    def _take(self, i: int) -> float:
        loss = self._coder(self._rows[i % len(self._rows)]).fvu
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._coder.parameters(), 1.0)
        self._optimizer.step()
        return loss.item()
