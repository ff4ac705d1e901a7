"""Paths between components: what one writes into the residual stream, as another reads it.

Senders are what is added to the stream: the embedding, and each block's attention and MLP. Readers
are what reads it: each block's attention and MLP, and the unembedding. On the edge from sender u to
reader v, only v reads the clean value of what u writes; all other readers read the corrupt one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.causal._sweep import sweep
from jaxdiff.edits import Add, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import LM, At, ModelConfig, canonical_site, run
from jaxdiff.models._sites import layer_and_part
from jaxdiff.models._tap import as_pytree
from jaxdiff.models._traces import traced
from jaxdiff.types import HostOrDevice

Metric = Callable[[Float[Array, "B V"]], Float[Array, " B"]]


class Edges(NamedTuple):
    """A score for each edge; 0 where the sender comes after the reader.

    Attributes:
        attn: From each sender to each block's attention.
        mlp: To each block's MLP.
        final: To the unembedding.
        senders: Names of the senders, in order.
    """

    attn: Float[Array, "U N B"]
    mlp: Float[Array, "U N B"]
    final: Float[Array, "U B"]
    senders: tuple[str, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mix:
    """Op: adds a weighted sum of sources, `sum_u weights[layer, u, b] sources[u, b]`."""

    weights: Any
    sources: Any

    def __call__(self, value: Array, at: At) -> Array:
        """Returns the value with the sum added."""
        weights = jax.lax.dynamic_index_in_dim(self.weights, at.layer, 0, keepdims=False)
        return value + jnp.einsum("ub,ubtd->btd", weights, self.sources).astype(value.dtype)


def attribute_edges(
    lm: LM,
    clean: Int[HostOrDevice, "B T"],
    corrupt: Int[HostOrDevice, "B S"],
    metric: Metric,
    *,
    sequences: Int[HostOrDevice, "B T"] | None = None,
) -> Edges:
    """Estimates the effect of patching every edge, in one backward pass (arXiv:2310.10348).

    The score of an edge is the derivative of the metric by a gate on it: the difference between
    what the sender writes in the clean and in the corrupt run, times the gradient at the reader,
    summed over positions and coordinates.

    Args:
        lm: The model.
        clean: Token ids of the run whose values are patched in.
        corrupt: Token ids of the run that is patched.
        metric: Of the logits of each row's last token; rows must not depend on each other.
        sequences: Document of each token, as in `models.run`.

    Raises:
        JaxdiffError: If the tokens differ in shape, or the model carries an edit of the stream.
    """
    _check(lm, clean, corrupt)
    scores = _attribute_edges(
        lm, jnp.asarray(clean), jnp.asarray(corrupt), as_pytree(metric), sequences
    )
    return Edges(*scores, senders=_senders(lm.spec))


@jax.jit
@traced("attribute_edges")
def _attribute_edges(
    lm: LM, clean: Array, corrupt: Array, metric: Any, sequences: Array | None
) -> tuple[Array, Array, Array]:
    n = lm.spec.n_layers
    change = _written(lm, clean, sequences) - _written(lm, corrupt, sequences)

    def measured(weights: tuple[Array, Array, Array]) -> Array:
        readers = ("blocks.*.attn_in", "blocks.*.mlp_in", "blocks.*.resid_post")
        edits = tuple(edit(at, Mix(w, change)) for at, w in zip(readers, weights, strict=True))
        logits, _ = run(lm, corrupt, (), edits, sequences=sequences, logits="last")
        return jnp.sum(metric(logits))

    zeros = jnp.zeros((n, *change.shape[:2]))
    attn, mlp, final = jax.grad(measured)((zeros, zeros, zeros))
    # What is added to the stream after the last block is read by the unembedding alone.
    attn, mlp = (
        jnp.swapaxes(scores, 0, 1) * mask[:, :, None]
        for scores, mask in zip((attn, mlp), _upstream(lm.spec), strict=True)
    )
    return attn, mlp, final[-1]


def patch_paths(
    lm: LM,
    clean: Int[HostOrDevice, "B T"],
    corrupt: Int[HostOrDevice, "B S"],
    metric: Metric,
    *,
    sequences: Int[HostOrDevice, "B T"] | None = None,
    memory: int = 2**29,
) -> Edges:
    """Measures the effect of patching every edge: the metric with it minus the corrupt metric.

    One sweep a kind of reader; what `attribute_edges` estimates is exact here.

    Args:
        lm: The model.
        clean: Token ids of the run whose values are patched in.
        corrupt: Token ids of the run that is patched.
        metric: Of the logits of each row's last token.
        sequences: Document of each token, as in `models.run`.
        memory: Bound on the activations that are computed at once [bytes].

    Raises:
        JaxdiffError: If the tokens differ in shape, or the model carries an edit of the stream.
    """
    _check(lm, clean, corrupt)
    metric = as_pytree(metric)
    n = lm.spec.n_layers
    change, before = _change_and_metric(
        lm, jnp.asarray(clean), jnp.asarray(corrupt), metric, sequences
    )

    def effects(site: str, over: dict[str, Any]) -> Array:
        template = edit(site, Add(change[0]))
        after = sweep(lm, corrupt, template, metric, over, sequences=sequences, memory=memory)
        return after - jnp.broadcast_to(before, after.shape)

    senders, layers = {"op.vector": change}, {"layers": np.arange(n)}
    attn, mlp = (
        effects(site, senders | layers) * mask[:, :, None]
        for site, mask in zip(
            ("blocks.*.attn_in", "blocks.*.mlp_in"), _upstream(lm.spec), strict=True
        )
    )
    return Edges(attn, mlp, effects(f"blocks.{n - 1}.resid_post", senders), _senders(lm.spec))


@jax.jit
@traced("patch_paths")
def _change_and_metric(
    lm: LM, clean: Array, corrupt: Array, metric: Any, sequences: Array | None
) -> tuple[Float[Array, "U B T D"], Array]:
    change = _written(lm, clean, sequences) - _written(lm, corrupt, sequences)
    return change, metric(run(lm, corrupt, sequences=sequences, logits="last")[0])


def _written(lm: LM, tokens: Array, sequences: Array | None) -> Float[Array, "U B T D"]:
    """Returns what every sender adds to the stream, in order."""
    sites = ("blocks.0.resid_pre", "blocks.*.attn_out", "blocks.*.mlp_out")
    _, found = run(lm, tokens, sites, sequences=sequences, logits=False)
    first, attn, mlp = found.values()
    blocks = jnp.stack([attn, mlp], axis=1).reshape(-1, *first.shape)
    return jnp.concatenate([first[None], blocks]).astype(jnp.float32)


def _senders(spec: ModelConfig) -> tuple[str, ...]:
    each = (f"blocks.{i}.{part}" for i in range(spec.n_layers) for part in ("attn_out", "mlp_out"))
    return ("blocks.0.resid_pre", *each)


def _upstream(spec: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns which senders come before each block's attention and its MLP, both `[U, N]`."""
    senders = np.arange(2 * spec.n_layers + 1)[:, None]
    before_attn = 1 + 2 * np.arange(spec.n_layers)[None, :]
    before_mlp = before_attn + (0 if spec.parallel else 1)
    return (senders < before_attn).astype(np.float32), (senders < before_mlp).astype(np.float32)


def _check(lm: LM, clean: HostOrDevice, corrupt: HostOrDevice) -> None:
    if clean.shape != corrupt.shape:
        raise JaxdiffError(
            f"clean tokens are {list(clean.shape)}, corrupt ones {list(corrupt.shape)}",
            where="paths",
            fix="pad them to the same length",
        )
    for own in lm.edits:
        part = layer_and_part(canonical_site(lm.spec, own.site))[1]
        if part.startswith("resid_") or part in _READERS:
            raise JaxdiffError(
                f"the model carries an edit of {own.site}: readers do not read what senders write",
                where="paths",
                fix="edit what is inside of attentions and MLPs, or what they write",
            )


_READERS = ("attn_in", "mlp_in", "final_norm", "logits")
