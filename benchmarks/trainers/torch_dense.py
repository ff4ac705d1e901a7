"""The step as dense torch code: five products, a top-k of the whole batch, clipping, Adam.

It is what the trainers of crosscoders that cannot be installed with pip do, without their logging.
"""

import torch

from trainers.problem import Problem


class TorchDense:
    """A dense step in plain torch."""

    def __init__(self, problem: Problem):
        torch.set_num_threads(2)
        s = problem.shape
        self._shape = s
        self._rows = torch.from_numpy(problem.rows)
        leaves = {
            "encoder": torch.from_numpy(problem.encoder.copy()),
            "decoder": torch.from_numpy(problem.decoder.copy()),
            "b_enc": torch.zeros(s.latents),
            "b_dec": torch.zeros(s.models * s.width),
        }
        self._p = {name: torch.nn.Parameter(value) for name, value in leaves.items()}
        self._optimizer = torch.optim.Adam(
            self._p.values(), lr=problem.rate, betas=(0.0, 0.999), fused=True
        )

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        p, s = self._p, self._shape
        codes = torch.relu(x @ p["encoder"] + p["b_enc"])
        keys = codes * p["decoder"].norm(dim=1)
        chosen = torch.topk(keys.flatten(), s.k * s.batch, sorted=False).indices
        mask = torch.zeros(keys.numel()).scatter_(0, chosen, 1.0).view_as(keys)
        error = x - ((codes * mask) @ p["decoder"] + p["b_dec"])
        return error.pow(2).sum(dim=1).mean()

    def first(self) -> float:
        """Does a step and returns its loss."""
        return self._take(0)

    def step(self, i: int) -> None:
        """Does a step."""
        self._take(i)

    def _take(self, i: int) -> float:
        loss = self._loss(self._rows[i % len(self._rows)])
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._p.values(), 1.0)
        self._optimizer.step()
        return loss.item()


class Encoder:
    """The product of the encoder alone."""

    def __init__(self, problem: Problem):
        torch.set_num_threads(2)
        self._rows = torch.from_numpy(problem.rows)
        self._weights = torch.from_numpy(problem.encoder)

    def first(self) -> float:
        """Multiplies once."""
        self.step(0)
        return 0.0

    def step(self, i: int) -> None:
        """Multiplies."""
        with torch.no_grad():
            torch.mm(self._rows[i % len(self._rows)], self._weights)
