"""Tuned lens: each layer's stream is mapped so that it says what the model is going to say.

Belrose, Furman, Smith, Halawi, Ostrovsky, McKinney, Biderman, Steinhardt: arXiv:2303.08112.
"""

import functools
import itertools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxdiff.descent import check_losses, updated
from jaxdiff.models import LM, run
from jaxdiff.models._check import check_no_rows
from jaxdiff.models._lm import module
from jaxdiff.models._traces import traced
from jaxdiff.progress import progress
from jaxdiff.readouts._affine import Affine
from jaxdiff.readouts._fitting import check_layers, texts_of
from jaxdiff.readouts._head import check_head
from jaxdiff.readouts.metrics import divergence


def train_lens(
    lm: LM,
    batches: Iterable[Any],
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    site: str = "blocks.*.resid_post",
) -> tuple[Affine, Float[np.ndarray, "steps N"]]:
    """Trains an affine map of each layer's stream, with which `logit_lens` reads it.

        loss of layer l = mean over tokens of KL(softmax(logits) || softmax(lens_l))       [nats]
        lens_l = unembed(final_norm(W_l x_l + b_l))

    Maps start at the identity, which is the logit lens, and the model stays as it is. All layers
    are one program, which runs the model once a step; the logits of one layer at a time are there,
    in the backward pass too, beside the model's own.

        through, losses = train_lens(lm, batches, optimizer=optax.adam(1e-3), steps=250)
        lens = logit_lens(lm, tokens, through=through, kl=True)
        losses[0], losses[-1]        # of each layer: logit lens, tuned lens

    Args:
        lm: The model.
        batches: `TokenBatch`es of equal shapes, as `jaxdiff.text` makes them, or mappings with
            `tokens` `[B, T]`, and `sequences` and `positions` where `models.run` needs them.
            Padding is left out.
        optimizer: An optax optimizer; the same one compiles nothing anew. What it is given is the
            difference from the identity, to which weight decay returns.
        steps: Batches to train on.
        site: What is read, of all layers, as wide as the residual stream.

    Returns:
        The maps, weight `[N, D, D]` and bias `[N, D]`, and the losses of each step before its
        update.

    Raises:
        JaxdiffError: If the site is not one of all layers, a batch has no tokens, there are too few
            batches, or a loss is no longer finite.
    """
    check_layers(lm.spec, site)
    check_head(lm.spec, lm.edits, "train_lens")
    check_no_rows(lm, "train_lens")
    n, d = lm.spec.n_layers, lm.spec.d_model
    now = Affine(jnp.zeros((n, d, d)), jnp.zeros((n, d)))
    state, losses = optimizer.init(now), []  # pyright: ignore[reportArgumentType]
    with progress("training a lens", steps, "steps") as advance:
        for batch in itertools.islice(batches, steps):
            texts = texts_of(lm, batch, site)
            now, state, values = _step(now, state, lm, texts, site=site, optimizer=optimizer)
            losses.append(values)
            advance()
    check_losses(losses, steps)
    return Affine(now.weight + jnp.eye(d)[None], now.bias), np.asarray(losses)


@functools.partial(jax.jit, static_argnames=("site", "optimizer"), donate_argnames=("now", "state"))
@traced("train_lens")
def _step(
    now: Affine,
    state: Any,
    lm: LM,
    texts: dict[str, Any],
    *,
    site: str,
    optimizer: optax.GradientTransformation,
) -> tuple[Affine, Any, Float[Array, " N"]]:
    logits, found = run(lm, taps=(site,), **texts)
    assert logits is not None
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    sequences = texts.get("sequences")
    real = jnp.ones(log_p.shape[:2], bool) if sequences is None else jnp.asarray(sequences) >= 0
    model = module(lm)

    def loss(own: Affine, x: Float[Array, "B T D"]) -> Float[Array, ""]:
        mapped = (x.astype(jnp.float32) + own(x)).astype(x.dtype)
        lens = model.unembed(model.final_norm(mapped))
        kl = divergence(log_p, jax.nn.log_softmax(lens.astype(jnp.float32), axis=-1))
        return jnp.sum(jnp.where(real, kl, 0.0)) / jnp.maximum(
            jnp.sum(real, dtype=jnp.float32), 1.0
        )

    # Maps do not depend on each other: each layer's gradient is taken before the next is read.
    losses, gradient = jax.lax.map(
        lambda layer: jax.value_and_grad(loss)(*layer), (now, found[site])
    )
    now, state = updated(optimizer, gradient, state, now)
    return now, state, losses
