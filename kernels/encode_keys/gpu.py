"""The fused encoder on GPUs: XLA's product, whose keys a Mosaic GPU kernel counts.

The library's matrix product is faster than one written here; the keys are read once more.
"""

from typing import Any

from jaxtyping import Array, Float, Int32

from ..reaching.gpu import reaching
from .xla import keys


def encode_keys(
    x: Float[Array, "B K"],
    W: Float[Array, "K L"],
    b: Float[Array, " L"],
    norms: Float[Array, " L"],
    pivots: Int32[Array, " P"],
    *,
    interpret: Any = None,
) -> tuple[Float[Array, "B L"], Int32[Array, " P"]]:
    """Returns ranking keys and their counts; see `jaxdiff.kernels.encode_keys`."""
    made = keys(x, W, b, norms)
    return made, reaching(made, pivots, interpret=interpret)
