"""jaxdiff: one compiled program a workload, with weights stacked in a loop over layers or apart."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from jaxdiff import causal, dictionaries, edits, models
from jaxdiff.models import LM, At, Between
from jaxdiff.readouts.metrics import LogitDifference, divergence
from workloads import Case, Library, Outputs, Subject, Ways, middle, quarter

ALL = "blocks.*.resid_post"


class JaxdiffPrograms(Library):
    """Both models in both layouts of their weights."""

    def __init__(self, subject: Subject):
        self.shape, inputs = subject.shape, subject.inputs
        stacked = models.load(subject.base), models.load(subject.ft)
        apart = tuple(models.unstack(lm) for lm in stacked)
        self.layouts = {"weights stacked": stacked, "weights apart": apart}
        self.site = f"blocks.{middle(subject.shape)}.resid_post"
        self.tokens, self.pairs = jnp.asarray(inputs.tokens), jnp.asarray(inputs.pairs)
        self.clean, self.corrupt = jnp.asarray(inputs.clean), jnp.asarray(inputs.corrupt)
        self.prompts = self.tokens[:, : subject.shape.prompt]
        self.metric = LogitDifference(*(jnp.asarray(token) for token in inputs.answers))
        self.steering, self.ablated = jnp.asarray(inputs.steering), jnp.asarray(inputs.ablated)
        self.dictionary = dictionaries.Dictionary(
            W_enc=jnp.asarray(inputs.encoder)[None],
            b_enc=jnp.asarray(inputs.encoder_bias),
            W_dec=jnp.asarray(inputs.decoder)[:, None],
            b_dec=jnp.zeros((1, subject.shape.width)),
            threshold=jnp.zeros(()),
            activation="topk",
            k=float(subject.shape.k),
            code_norm="none",
        )

    def compiles(self) -> int:
        """Returns jaxdiff's own count of traces."""
        return models.traces()

    def ways(self, case: Case) -> Ways:
        """Returns the ways of running a case: in each layout of the weights."""
        method = getattr(self, case.workload.lower(), None)
        if method is None:
            return {}
        return {name: method(*lms, case.batch) for name, lms in self.layouts.items()}

    def w0(self, base: LM, ft: LM, batch: int) -> Callable[[], Outputs]:
        """Plain forward."""
        tokens = self.tokens[:batch]
        return lambda: _numpy(models.run(base, tokens)[0])

    def w1(self, base: LM, ft: LM, batch: int) -> Callable[[], Outputs]:
        """A tap of all layers."""
        tokens = self.tokens[:batch]
        return lambda: _numpy(models.run(base, tokens, (ALL,), logits=False)[1][ALL])

    def w2(self, base: LM, ft: LM, batch: int) -> Callable[[], Outputs]:
        """A tap of one layer; what comes after it is not in the program."""
        tokens, site = self.tokens[:batch], f"blocks.{quarter(self.shape)}.resid_post"
        return lambda: _numpy(models.run(base, tokens, (site,), logits=False)[1][site])

    def w3(self, base: LM, ft: LM, batch: int) -> Callable[[], Outputs]:
        """A patch with an activation that was captured before."""
        position = self.shape.tokens // 2
        source = models.run(base, self.clean, (self.site,), logits=False)[1][self.site]
        patch = edits.edit(self.site, edits.Set(source[0, position]), positions=position)
        return lambda: _numpy(models.run(base, self.corrupt, edits=(patch,))[0])

    def w4(self, base: LM, ft: LM, batch: int) -> Callable[[], Outputs]:
        """A sweep of a patch with the clean activations of its layer."""
        over = {"layers": np.arange(self.shape.layers), "positions": np.arange(self.shape.tokens)}

        def sweep() -> Outputs:
            clean = models.run(base, self.clean, (ALL,), logits=False)[1][ALL]
            patch = edits.edit(ALL, edits.PerLayer(edits.Set(clean)))
            return _numpy(causal.sweep(base, self.corrupt, patch, self.metric, over)[..., 0])

        return sweep

    def w5(self, base: LM, ft: LM, batch: int) -> Callable[[], Outputs]:
        """Steering at every step of one compiled loop."""
        prompts, new = self.prompts[:batch], self.shape.new
        steer = edits.edit(self.site, edits.Add(self.steering))
        return lambda: _numpy(models.generate(base, prompts, new, edits=(steer,)).generated)

    def w6(self, base: LM, ft: LM, batch: int) -> Callable[[], Outputs]:
        """Gradients of zeros that are added at all layers."""
        shape = (self.shape.layers, batch, self.shape.tokens, self.shape.width)

        @jax.jit
        def gradients(base: LM, tokens: Array) -> Array:
            def total(zeros: Array) -> Array:
                add = edits.edit(ALL, edits.PerLayer(edits.Add(zeros)))
                return self.metric(models.run(base, tokens, edits=(add,), logits="last")[0]).sum()

            return jax.grad(total)(jnp.zeros(shape))

        tokens = self.tokens[:batch]
        return lambda: _numpy(gradients(base, tokens))

    def w7(self, base: LM, ft: LM, batch: int) -> Callable[[], Outputs]:
        """Gates of all places in one backward pass; no gradient of an activation's size is kept."""

        def attribute() -> Outputs:
            scores = causal.attribute(base, self.clean, self.corrupt, self.metric, (ALL,))
            return _numpy(scores[ALL][:, 0])

        return attribute

    def w8(self, base: LM, ft: LM, batch: int) -> Callable[[], Outputs]:
        """Latents set to zero; a view writes back the change alone, so that the error stays."""
        tokens = self.tokens[:batch]
        view = edits.Latents(self.dictionary, self.ablated, normalization=None)
        ablate = edits.edit(self.site, edits.Set(0.0), view=view)
        return lambda: _numpy(models.run(base, tokens, edits=(ablate,))[0])

    def w9(self, base: LM, ft: LM, batch: int) -> Callable[[], Outputs]:
        """Both models in lockstep; what differs is reduced inside the program."""
        between = (Between(ALL, Partial(_cosine)), Between("logits", Partial(_kl)))
        chunks = self.pairs.reshape(-1, self.shape.chunk, self.shape.tokens)

        @jax.jit
        def diff(base: LM, ft: LM, chunks: Array) -> tuple[Array, Array]:
            def one(tokens: Array) -> tuple[Array, Array]:
                both = models.run_together((base, ft), tokens, between=between, logits=False)
                return both.between["logits"], both.between[ALL]

            kl, cosine = jax.lax.map(one, chunks)
            cosine = jnp.moveaxis(cosine, 0, 1)
            return kl.reshape(-1, kl.shape[-1]), cosine.reshape(len(cosine), -1, kl.shape[-1])

        return lambda: _numpy(*diff(base, ft, chunks))


def _cosine(values: tuple[Array, ...], at: At) -> Array:
    base, ft = values
    norms = jnp.linalg.norm(base, axis=-1) * jnp.linalg.norm(ft, axis=-1)
    return jnp.sum(base * ft, axis=-1) / norms


def _kl(values: tuple[Array, ...], at: At) -> Array:
    return divergence(*(jax.nn.log_softmax(value, axis=-1) for value in values))


def _numpy(*arrays: Array) -> Outputs:
    return tuple(np.asarray(array) for array in arrays)
