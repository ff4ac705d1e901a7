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

from .bitmap import pack, places
from .encode_marks import encode_marks
from .encode_marks.xla import chunks, product
from .gathered_dots import gathered_dots

# Patterns of the smallest normal float and of the first one above +inf. Processors that flush
# subnormal numbers would take a subnormal pivot for 0.
LOWEST, ABOVE = 0x00800000, 0x7F800001
# What an addition and a multiplication round off, with room to spare, and what a product does.
_ROUNDING, _PRODUCT = 2.0**-20, 2.0**-23

Keys = Callable[[], Float[Array, "C L"]]


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
        """Returns a map of the scores that reach a pivot, and how many do."""
        words = self.reaching(pivot)
        return words, places(words)

    def reaching(self, pivot: Float[Array, ""]) -> UInt32[Array, "W L"]:
        """Returns a map of the scores that reach a pivot."""
        # The barrier keeps scores inside of a loop over pivots: one pass, and no array of them.
        bias, norms, pivot = lax.optimization_barrier((self.bias, self.norms, pivot))
        return pack((self.pre + bias[None, :]) * norms[None, :] >= pivot)

    def below(self, pivot: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """Returns what every score reaches that may be among n, if n scores reach a pivot."""
        return pivot

    def values(
        self, rows: Int32[Array, " N"], latents: Int32[Array, " N"], _: Int32[Array, ""]
    ) -> Float[Array, " N"]:
        """Returns `x W^T + b` at places."""
        return self.pre[rows, latents] + self.bias[latents]

    def columns(self, latents: Int32[Array, " n"]) -> Float[Array, "R n"]:
        """Returns `x W^T + b` of listed latents; those out of range have any values."""
        return self.pre[:, latents] + self.bias[latents][None, :]

    def by_rows(self, function: Callable[[Keys], PyTree]) -> PyTree:
        """Returns what a function makes of all scores, a result for each row or 32 rows.

        The function gets another one that returns the scores, to be called for each pass over them.
        """

        def keys():
            # Made anew for each pass: what passes share, the compiler would hold as an array.
            bias, norms = lax.optimization_barrier((self.bias, self.norms))
            return (self.pre + bias[None, :]) * norms[None, :]

        return function(keys)


class Streamed(NamedTuple):
    """Scores of which the encoder's products are taken in every pass.

    Attributes:
        x: Rows.
        W: Encoder weights, this device's latents.
        bias: Encoder bias.
        norms: Code norms, 0 or more.
        slack: Bound of how far a score may be from that of the same place in another sum.
        dtype: What the factors of products are rounded to.
        share: This device's share.
    """

    x: Float[Array, "R K"]
    W: Float[Array, "L K"]
    bias: Float[Array, " L"]
    norms: Float[Array, " L"]
    slack: Float[Array, ""]
    dtype: Any
    share: Share

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.x.shape[0]

    def marks(self, pivot: Float[Array, ""]) -> tuple[UInt32[Array, "W L"], Int32[Array, ""]]:
        """Returns a map of the scores that may be among n, and how many products reach a pivot.

        The map is of those that are `below` it, for any n up to that number.
        """
        operands = self.x, self.W, self.bias, self.norms, self.below(pivot), pivot
        return encode_marks(*operands, dtype=self.dtype)

    def reaching(self, pivot: Float[Array, ""]) -> UInt32[Array, "W L"]:
        """Returns a map of the scores whose products reach a pivot."""
        operands = self.x, self.W, self.bias, self.norms, pivot, pivot
        return encode_marks(*operands, dtype=self.dtype)[0]

    def below(self, pivot: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """Returns what the product of every score reaches that may be among n, if n products do.

        The n-th largest score is then at most a slack below the pivot, and the product of a score
        that reaches that is at most another slack below. Products of 0 and less never count.
        """
        lowest = lax.bitcast_convert_type(jnp.int32(LOWEST), jnp.float32)
        return jnp.maximum(pivot * (1 - _ROUNDING) - 2 * self.slack, lowest)

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

    def by_rows(self, function: Callable[[Keys], PyTree]) -> PyTree:
        """Returns what a function makes of chunks of rows, as `Held.by_rows` does."""
        W = self.W.astype(self.dtype)
        parts = chunks(self.x.astype(self.dtype), len(W))

        def part(x):
            keys = (product(x, W) + self.bias[None, :]) * self.norms[None, :]
            return function(lambda: keys)

        made = lax.map(part, parts)

        def join(a):
            count = -(-self.rows * a.shape[1] // parts.shape[1])
            return a.reshape(-1, *a.shape[2:])[:count]

        return jax.tree.map(join, made)


Scores = Held | Streamed


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

    Two sums of the same K products differ by no more than K times the rounding of one, in units of
    the sum of their magnitudes, which is at most |x| |w| (Cauchy and Schwarz).

    Args:
        x: Rows.
        W: Encoder weights, this device's latents.
        bias: Encoder bias.
        norms: Code norms.
        squares: Squared norms of the rows of W.
        share: This device's share.
        dtype: What the factors of products are rounded to.
    """
    lengths = jnp.sum(jnp.square(x), axis=1)
    # Rows with NaN select nothing.
    lengths = jnp.where(jnp.isnan(lengths), 0.0, lengths)
    longest = jnp.max(lengths) * jnp.max(squares * jnp.square(norms))
    longest = lax.pmax(longest, share.axes) if share.axes else longest
    slack = 2 * x.shape[1] * _PRODUCT * jnp.sqrt(longest)
    return Streamed(x, W, bias, norms, slack, dtype, share)
