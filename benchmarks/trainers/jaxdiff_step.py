"""The steps of jaxdiff, and the encoder's product in jax."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.activations.normalization import Normalization
from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries import Dictionary
from jaxdiff.mesh import make_mesh
from jaxdiff.training import compiled
from jaxdiff.training.rows import to_rows
from jaxdiff.training.sparsity import init_l1
from jaxdiff.training.state import TrainState, make_optimizer
from trainers.problem import Problem


class Sparse:
    """The sparse step, with clipping and AuxK as by default."""

    kind = "sparse"
    activation = "batch_topk"

    def __init__(self, problem: Problem):
        s = problem.shape
        self._models = s.models
        self.config = config = DictionaryConfig(
            latents=s.latents, k=s.k, activation=self.activation, loss="mse", code_norm="sae"
        )
        self.train = train = TrainConfig(
            batch=s.batch, lr=problem.rate, warmup=0, beta1=0.0, step=self.kind, dtype="float32"
        )
        mesh, shape = make_mesh(1, 1), (s.models, s.width)
        _, like = compiled.compile_init(config, train, shape, mesh)
        self._step = compiled.compile_step(config, train, like, mesh)
        self._same = Normalization.identity(shape)
        self.batches = [compiled.put(rows.reshape(s.batch, *shape), mesh) for rows in problem.rows]
        state = jax.jit(lambda e, d: self._start(config, train, e, d))(
            problem.encoder.reshape(*shape, s.latents), problem.decoder.reshape(s.latents, *shape)
        )
        self.state = jax.device_put(state, jax.tree.map(lambda a: a.sharding, like))

    def _start(self, config, train, encoder, decoder):
        params = Dictionary(
            W_enc=encoder,
            b_enc=jnp.zeros(config.latents),
            W_dec=decoder,
            b_dec=jnp.zeros(decoder.shape[1:]),
            threshold=jnp.zeros(()),
            activation=config.activation,
            k=config.k,
            code_norm=config.code_norm,
        )
        state = TrainState(
            params=params,
            optimizer=make_optimizer(config, train).init(params),
            step=jnp.int32(0),
            idle=jnp.zeros(config.latents, jnp.int32),
            l1=init_l1(config),
        )
        return to_rows(state, train) if self.kind == "sparse" else state

    def first(self) -> float:
        """Compiles, does a step, and returns its squared error."""
        self.state, info = self._step(self.state, self.batches[0], self._same)
        return float(info.reconstruction) * self._models

    def step(self, i: int) -> None:
        """Does a step."""
        batch = self.batches[i % len(self.batches)]
        self.state, _ = self._step(self.state, batch, self._same)
        jax.block_until_ready(self.state)


class Dense(Sparse):
    """The dense step with the same optimizer."""

    kind = "dense"


class SparseTopK(Sparse):
    """The sparse step of a dictionary that selects for each row."""

    activation = "topk"


class Encoder:
    """The product of the encoder alone."""

    def __init__(self, problem: Problem):
        self._encode = jax.jit(lambda x, w: jnp.matmul(x, w, precision="highest"))
        self._rows, self._weights = jnp.asarray(problem.rows), jnp.asarray(problem.encoder)

    def first(self) -> float:
        """Compiles and multiplies once."""
        self.step(0)
        return float(np.asarray(self._rows[0, 0, 0]))

    def step(self, i: int) -> None:
        """Multiplies."""
        x = self._rows[i % len(self._rows)]
        jax.block_until_ready(self._encode(x, self._weights))
