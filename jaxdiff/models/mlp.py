"""The two kinds of MLP: one for all tokens, or experts that a router chooses for each token."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxdiff.models.layers import Linear, Normal, Tap
from jaxdiff.models.spec import ModelConfig

_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


class MLP(nnx.Module):
    """`down(act(gate(x)) * up(x))`, or `down(act(up(x)))` without a gate."""

    def __init__(self, spec: ModelConfig, *, normal: Normal):
        n, d, hidden, bias = spec.n_layers, spec.d_model, spec.d_mlp, spec.mlp_bias
        rank = {name: dict(spec.lora).get(f"mlp.{name}", 0) for name in ("gate", "up", "down")}
        self.activation = spec.activation
        self.gate = (
            Linear(n, hidden, d, bias=bias, rank=rank["gate"], normal=normal)
            if spec.gated
            else None
        )
        self.up = Linear(n, hidden, d, bias=bias, rank=rank["up"], normal=normal)
        self.down = Linear(
            n, d, hidden, bias=bias, scale=(2 * n) ** -0.5, rank=rank["down"], normal=normal
        )

    def __call__(self, x: Float[Array, "B T D"], tap: Tap) -> Float[Array, "B T D"]:
        """Applies the MLP to each token; `tap` sees pre, up, post and out."""
        act = _ACTIVATIONS[self.activation]
        if self.gate is None:
            hidden = act(tap("mlp.pre", self.up(x)))
        else:
            hidden = act(tap("mlp.pre", self.gate(x))) * tap("mlp.up", self.up(x))
        return tap("mlp.out", self.down(tap("mlp.post", hidden)))


class Experts(nnx.Module):
    """A mixture of gated MLPs (arXiv:1701.06538) that drops no token.

    The rows of all tokens are sorted by expert and multiplied in groups, so that each row's result
    depends on that row alone.
    """

    def __init__(self, spec: ModelConfig, *, normal: Normal):
        n, e, d, hidden = spec.n_layers, spec.experts, spec.d_model, spec.d_mlp
        self.spec = spec
        self.router = Linear(n, e, d, bias=False, normal=normal)
        self.gate = Linear(n, e, hidden, d, bias=False, normal=normal)
        self.up = Linear(n, e, hidden, d, bias=False, normal=normal)
        self.down = Linear(n, e, d, hidden, bias=False, scale=(2 * n) ** -0.5, normal=normal)

    def __call__(self, x: Float[Array, "B T D"], tap: Tap) -> Float[Array, "B T D"]:
        """Applies to each token its experts; `tap` sees router, pre, up, post and out."""
        b, t, _ = x.shape
        k, act = self.spec.experts_per_token, _ACTIVATIONS[self.spec.activation]
        scores = tap("mlp.router", self.router(x))
        weights, chosen = jax.lax.top_k(jax.nn.softmax(scores.astype(jnp.float32), axis=-1), k)
        if self.spec.normalize_experts:
            weights /= jnp.sum(weights, axis=-1, keepdims=True)
        groups = _Groups(chosen.reshape(-1), self.spec.experts)
        rows = jnp.repeat(x.reshape(b * t, -1), k, axis=0)

        def apply(linear: Linear, rows: Array) -> Float[Array, "B T k o"]:
            return groups(rows, linear.weight[...]).reshape(b, t, k, -1)

        hidden = act(tap("mlp.pre", apply(self.gate, rows))) * tap("mlp.up", apply(self.up, rows))
        hidden = tap("mlp.post", hidden)
        out = apply(self.down, hidden.reshape(b * t * k, -1))
        return tap("mlp.out", jnp.einsum("btkd,btk->btd", out, weights.astype(x.dtype)))


class _Groups:
    """Multiplies each row by the matrix of its expert."""

    def __init__(self, chosen: Int[Array, " R"], experts: int):
        self.order = jnp.argsort(chosen, stable=True)
        self.back = jnp.argsort(self.order)
        self.sizes = jnp.bincount(chosen, length=experts)

    def __call__(self, rows: Float[Array, "R i"], weight: Float[Array, "E o i"]) -> Array:
        sorted_rows = jnp.take(rows, self.order, axis=0)
        out = jax.lax.ragged_dot_general(sorted_rows, weight, self.sizes, _ROWS_BY_EXPERT)
        return jnp.take(out, self.back, axis=0)


_ROWS_BY_EXPERT = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (2,)), ((), ())),
    lhs_ragged_dimensions=[0],
    rhs_group_dimensions=[0],
)
