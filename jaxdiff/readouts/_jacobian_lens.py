"""Jacobian lens: each layer's stream is mapped to what it does to the last one, to first order.

Gurnee et al., Verbalizable Representations Form a Global Workspace in Language Models, 2026:
transformer-circuits.pub/2026/workspace.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.edits import edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import LM, At, ModelConfig, run
from jaxdiff.models._check import check_no_rows
from jaxdiff.models._context import in_document
from jaxdiff.models._traces import traced
from jaxdiff.progress import progress
from jaxdiff.readouts._affine import Affine
from jaxdiff.readouts._fitting import check_layers, texts_of


def jacobian_lens(
    lm: LM,
    batches: Iterable[Any],
    *,
    site: str = "blocks.*.resid_post",
    skip: int = 16,
    memory: int = 2**29,
) -> Affine:
    """Averages over texts how the last stream changes with each layer's stream.

        J_l = mean over texts of (1 / |V|) sum over t, t' in V, t' >= t, of d h[t'] / d x_l[t]

    x_l is the stream of layer l, h what the final norm reads, and V the positions of a text without
    the first `skip`, which the others attend to whatever they say, and the last, which predicts
    nothing of the text. What a position does to all later ones is summed, and positions and texts
    are averaged: a short text counts as much as a long one. The map of the last layer is the
    identity.

        through = jacobian_lens(lm, batches)       # a hundred texts of 128 tokens are a good start
        logit_lens(lm, tokens, through=through)    # unembed(final_norm(J_l x_l))

    A batch is one program: a forward pass, and for each of the D dimensions of the last stream a
    backward pass, which all rows and all layers share. Sums over batches are in float32.

    Args:
        lm: The model.
        batches: As in `train_lens`; all of them are used. Documents of `sequences` are texts.
        site: What is mapped, of all layers, as wide as the residual stream.
        skip: Positions at the start of each text that are left out [tokens].
        memory: Bound on the activations of the rows of a batch that are run at once, one at least
            [bytes]. Twice the maps come on top.

    Returns:
        The maps, weight `[N, D, D]` and bias `[N, D]`, which is 0.

    Raises:
        JaxdiffError: If the site is not one of all layers, a batch has no tokens, no text is longer
            than what is left out, or a derivative is not finite.
    """
    check_layers(lm.spec, site)
    check_no_rows(lm, "jacobian_lens")
    if skip < 0:
        raise JaxdiffError(f"skip={skip}", where="jacobian_lens", fix="it is 0 or more")
    n, d = lm.spec.n_layers, lm.spec.d_model
    total, texts = jnp.zeros((d, n, d)), jnp.zeros((), jnp.int32)
    with progress("Jacobian lens", None, "batches") as advance:
        for batch in batches:
            given = texts_of(lm, batch, site)
            _check_length(given["tokens"].shape[1], skip)
            rows = _at_once(lm.spec, given["tokens"].shape, memory)
            total, texts = _added(total, texts, lm, given, skip, site=site, rows=rows)
            advance()
    _check_length(0 if not int(texts) else skip + 2, skip)
    wrong = np.flatnonzero(~np.asarray(jnp.isfinite(total).all((0, 2))))
    if wrong.size:
        raise JaxdiffError(
            f"the derivative with respect to layers {wrong.tolist()} is not finite",
            where="jacobian_lens",
            fix="look for what is not finite in the model's activations on these texts",
        )
    return Affine(jnp.swapaxes(total, 0, 1) / texts.astype(jnp.float32), jnp.zeros((n, d)))


@functools.partial(jax.jit, static_argnames=("site", "rows"), donate_argnames="total")
@traced("jacobian_lens")
def _added(
    total: Float[Array, "D N D"],
    texts: Int[Array, ""],
    lm: LM,
    given: dict[str, Any],
    skip: Array | int,
    *,
    site: str,
    rows: int,
) -> tuple[Float[Array, "D N D"], Int[Array, ""]]:
    """Adds the sum of a batch's Jacobians, and the number of its texts."""
    d, n, _ = total.shape
    used, share, count = _positions(given, skip)
    end = f"blocks.{n - 1}.resid_post"

    def jacobian(total: Float[Array, "D N D"], piece: Any) -> tuple[Float[Array, "D N D"], None]:
        given, used, share = piece

        def final(by: Float[Array, "N D"]) -> Float[Array, " D"]:
            # All positions of a layer move together, each as far as it counts: the derivative is
            # the weighted sum over positions, and no larger one is ever there.
            move = edit(site, _Move(by, share))
            stream = run(lm, taps=(end,), edits=(move,), logits=False, **given)[1][end]
            return jnp.sum(jnp.where(used[..., None], stream.astype(jnp.float32), 0.0), (0, 1))

        _, back = jax.vjp(final, jnp.zeros((n, d)))
        # One by one, and rows for more work at a time: `vmap` here gives wrong numbers on CPU in
        # jaxlib 0.10.2 (jax issue 39103), and has no rule for the products of experts.
        return total + jax.lax.map(lambda i: back(jax.nn.one_hot(i, d))[0], jnp.arange(d)), None

    pieces = jax.tree.map(lambda x: x.reshape(-1, rows, x.shape[-1]), (given, used, share))
    return jax.lax.scan(jacobian, total, pieces)[0], texts + count


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Move:
    """Op: adds each layer's vector of `by` `[N, D]` to all positions, times `share` `[B, T]`."""

    by: Any
    share: Any

    def __call__(self, value: Array, at: At) -> Array:
        own = self.by[at.layer]
        return value + (self.share[..., None] * own[None, None]).astype(value.dtype)


def _positions(
    given: dict[str, Any], skip: Array | int
) -> tuple[Bool[Array, "B T"], Float[Array, "B T"], Int[Array, ""]]:
    """Returns which positions count, how much each does in its text, and the number of texts."""
    sequences = given.get("sequences")
    sequences = jnp.zeros(given["tokens"].shape, jnp.int32) if sequences is None else sequences
    sequences = jnp.asarray(sequences)
    place = in_document(sequences)
    last = jnp.pad(sequences[:, 1:] != sequences[:, :-1], ((0, 0), (0, 1)), constant_values=True)
    used = (sequences >= 0) & (place >= skip) & ~last
    same = sequences[:, :, None] == sequences[:, None, :]
    counts = jnp.sum(same & used[:, None, :], axis=-1, dtype=jnp.float32)
    share = jnp.where(used, 1.0 / jnp.maximum(counts, 1.0), 0.0)
    return used, share, jnp.sum(used & (place == skip), dtype=jnp.int32)


def _at_once(spec: ModelConfig, shape: tuple[int, ...], memory: int) -> int:
    """Returns how many rows are run at once: a divisor of their number."""
    b, t = shape
    hidden = 3 * spec.d_mlp * max(spec.experts_per_token, 1)
    row = 4 * t * spec.n_layers * (8 * spec.d_model + hidden + 3 * spec.n_heads * t)
    return max(
        rows for rows in range(1, b + 1) if b % rows == 0 and (rows * row <= memory or rows == 1)
    )


def _check_length(length: int, skip: int) -> None:
    if length < skip + 2:
        raise JaxdiffError(
            f"no text is longer than the {skip} positions at its start and the one at its end that "
            "are left out",
            where="jacobian_lens: batches",
            fix="give longer texts, or lower skip",
        )
