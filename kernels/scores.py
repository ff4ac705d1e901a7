"""Scores of all (row, latent) pairs, as what they are computed from; never held as an array.

A score is `(x W^T + b) * norm`. Either the product is held, one float for each pair, and scores are
made of it in every pass; or each pass takes the product anew, chunk by chunk, and only bit maps
are as large as the pairs. Products and single values are then different sums of the same numbers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32, PyTree, UInt32

from .bitmap import WORD, pack, places
from .encode_marks import encode_marks
from .gathered_dots import gathered_dots
from .product import chunks, product

# Patterns of the smallest normal float and of the first one above +inf. Processors that flush
# subnormal numbers would take a subnormal pivot for 0.
LOWEST, ABOVE = 0x00800000, 0x7F800001
# What rounds off one addition in each of two sums: 2^-23, also where hardware cuts off.
_ROUNDING = 2.0**-22

# Keys of a part of the rows, where products are held: they stay in a processor's cache.
_HELD = 1 << 18

Keys = Callable[..., Float[Array, "C L"]]


class Share(NamedTuple):
    """This device's share of the latents.

    Attributes:
        first: Number of latents on the devices before this one.
        axes: Mesh axes over which the latents are split.
    """

    first: Int32[Array, ""]
    axes: tuple[str, ...] = ()

    def total(self, local: Array) -> Array:
        """Returns the sum over devices of what each has of its latents."""
        return lax.psum(local, self.axes) if self.axes else local

    @property
    def pivots(self) -> int:
        """Pivots to count at once: where each round is a sum over devices, 15 take 8 for 31."""
        return 15 if self.axes else 1


class Held(NamedTuple):
    """Scores of which the encoder's products are held.

    Attributes:
        pre: Products of the encoder, this device's latents.
        bias: Encoder bias.
        norms: Code norms, 0 or more.
        share: This device's share.
    """

    pre: Float[Array, "R L"]
    bias: Float[Array, " L"]
    norms: Float[Array, " L"]
    share: Share

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.pre.shape[0]

    def marks(self, pivot: Float[Array, ""]) -> tuple[UInt32[Array, "W L"], Int32[Array, ""]]:
        """Returns a map of the scores that may reach a pivot, and how many surely do."""
        words = self.reaching(pivot)
        return words, places(words)

    def reaching(self, pivot: Float[Array, ""]) -> UInt32[Array, "W L"]:
        """Returns a map of the scores that reach a pivot."""
        # The barrier keeps scores inside of a loop over pivots: one pass, and no array of them.
        bias, norms, pivot = lax.optimization_barrier((self.bias, self.norms, pivot))
        return pack((self.pre + bias[None, :]) * norms[None, :] >= pivot)

    def values(
        self, rows: Int32[Array, " N"], latents: Int32[Array, " N"], _: Int32[Array, ""]
    ) -> Float[Array, " N"]:
        """Returns `x W^T + b` at places."""
        return self.pre[rows, latents] + self.bias[latents]

    def columns(self, latents: Int32[Array, " n"]) -> Float[Array, "R n"]:
        """Returns `x W^T + b` of listed latents; those out of range have any values."""
        return self.pre[:, latents] + self.bias[latents][None, :]

    def part(self, first: Int32[Array, ""], size: int) -> Float[Array, "R n"]:
        """Returns `x W^T + b` of `size` latents from `first` on."""
        made = lax.dynamic_slice_in_dim(self.pre, first, size, 1)
        return made + lax.dynamic_slice_in_dim(self.bias, first, size)[None, :]

    def by_rows(self, function: Callable[[Keys], PyTree]) -> PyTree:
        """Returns what a function makes of all scores, a result for each row or 32 rows.

        The function gets another one that returns the scores, to be called for each pass over them:
        `keys()`, or bounds of what other sums give, `keys(-1)` and `keys(1)`.
        """
        rows, latents = self.pre.shape
        # On a mesh a function's sums over devices would be as many times more.
        each = rows if self.share.axes else _rows_at_once(rows, latents)

        def part(start):
            pre = lax.dynamic_slice_in_dim(self.pre, start, each)

            def keys(_=0):
                # Made anew for each pass: what passes share, the compiler would hold as an array.
                bias, norms = lax.optimization_barrier((self.bias, self.norms))
                return (pre + bias[None, :]) * norms[None, :]

            return function(keys)

        made = lax.map(part, jnp.arange(0, rows, each, dtype=jnp.int32))
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), made)

    def with_encoder(self, *_: Array) -> "Held":
        """Returns these scores: their products are there already."""
        return self


class Streamed(NamedTuple):
    """Scores of which the encoder's products are taken in every pass.

    Attributes:
        x: Rows.
        W: Encoder weights, this device's latents.
        bias: Encoder bias.
        norms: Code norms, 0 or more.
        slack: Of rows and of latents: their product bounds how far two sums of a score differ.
        dtype: What the factors of products are rounded to.
        share: This device's share.
    """

    x: Float[Array, "R K"]
    W: Float[Array, "L K"]
    bias: Float[Array, " L"]
    norms: Float[Array, " L"]
    slack: tuple[Float[Array, " R"], Float[Array, " L"]]
    dtype: Any
    share: Share

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.x.shape[0]

    def marks(self, pivot: Float[Array, ""]) -> tuple[UInt32[Array, "W L"], Int32[Array, ""]]:
        """Returns a map of the scores that may reach a pivot, and how many surely do.

        Where n surely do, the n-th largest score reaches it, and the n largest are in the map.
        """
        operands = self.x, self.W, self.bias, self.norms, pivot, self.slack
        return encode_marks(*operands, dtype=self.dtype)

    def reaching(self, pivot: Float[Array, ""]) -> UInt32[Array, "W L"]:
        """Returns a map of the scores whose products reach a pivot."""
        exact = jax.tree.map(jnp.zeros_like, self.slack)
        return self._replace(slack=exact).marks(pivot)[0]

    def values(
        self, rows: Int32[Array, " N"], latents: Int32[Array, " N"], count: Int32[Array, ""]
    ) -> Float[Array, " N"]:
        """Returns `x W^T + b` at the first `count` places."""
        dots = gathered_dots(self.W, latents, self.x, rows, count, dtype=self.dtype)
        return dots + self.bias[latents]

    def columns(self, latents: Int32[Array, " n"]) -> Float[Array, "R n"]:
        """Returns `x W^T + b` of listed latents; those out of range have any values."""
        made = product(self.x.astype(self.dtype), self.W[latents].astype(self.dtype))
        return made + self.bias[latents][None, :]

    def part(self, first: Int32[Array, ""], size: int) -> Float[Array, "R n"]:
        """Returns `x W^T + b` of `size` latents from `first` on."""
        W, bias = rows_from(first, size, (self.W, self.bias))
        return product(self.x.astype(self.dtype), W.astype(self.dtype)) + bias[None, :]

    def by_rows(self, function: Callable[[Keys], PyTree]) -> PyTree:
        """Returns what a function makes of chunks of rows, as `Held.by_rows` does."""
        W, latents = self.W.astype(self.dtype), self.norms.size
        parts = chunks(self.x.astype(self.dtype), latents), chunks(self.slack[0][:, None], latents)

        def part(rows):
            x, loose = rows
            sums = (product(x, W) + self.bias[None, :]) * self.norms[None, :]

            def keys(side=0):
                return sums + side * loose * self.slack[1][None, :] if side else sums

            return function(keys)

        made = lax.map(part, parts)

        def join(a):
            count = -(-self.rows * a.shape[1] // parts[0].shape[1])
            return a.reshape(-1, *a.shape[2:])[:count]

        return jax.tree.map(join, made)

    def with_encoder(self, W: Float[Array, "L K"], bias: Float[Array, " L"]) -> "Streamed":
        """Returns the scores of another encoder, with the same norms and slack."""
        return self._replace(W=W, bias=bias)


Scores = Held | Streamed


def rows_from(first: Int32[Array, ""], size: int, tree: PyTree) -> PyTree:
    """Returns rows of arrays; the barrier keeps compilers from rounding all outside of a loop."""
    some = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, first, size), tree)
    return lax.optimization_barrier(some)


def _rows_at_once(rows: int, latents: int) -> int:
    """Returns how many rows of held products to take at once: equal parts, of whole words."""
    parts = [n for n in range(WORD, rows + 1, WORD) if rows % n == 0]
    return max((n for n in parts if n * latents <= _HELD), default=WORD if parts else rows)


def stream(
    x: Float[Array, "R K"],
    W: Float[Array, "L K"],
    bias: Float[Array, " L"],
    norms: Float[Array, " L"],
    squares: Float[Array, " L"],
    share: Share,
    dtype: Any,
) -> Streamed:
    """Returns scores that are never held.

    Two sums of the same K products differ by no more than K times what their additions round off,
    in units of the sum of all magnitudes, which is at most |x| |w| (Cauchy and Schwarz). Factors of
    bfloat16 are rounded alike in both, and their products are exact.

    Args:
        x: Rows.
        W: Encoder weights, this device's latents.
        bias: Encoder bias.
        norms: Code norms.
        squares: Squared norms of the rows of W.
        share: This device's share.
        dtype: What the factors of products are rounded to.
    """
    rows = x.shape[1] * _ROUNDING * jnp.linalg.norm(x, axis=1)
    latents = (jnp.sqrt(squares) + jnp.abs(bias)) * norms
    # Rows and latents with NaN select nothing.
    slack = jnp.nan_to_num(rows), jnp.nan_to_num(latents)
    return Streamed(x, W, bias, norms, slack, dtype, share)
