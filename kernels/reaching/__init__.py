"""How many keys reach pivots: the counts that exact selection is made of."""

from jaxtyping import Array, Float, Int32

from ..dispatch import Implementation, dispatch
from . import xla

__all__ = ["reaching"]


def reaching(
    keys: Float[Array, "R L"],
    pivots: Int32[Array, " P"],
    *,
    implementation: Implementation | None = None,
) -> Int32[Array, " P"]:
    """Returns how many keys have a bit pattern of at least each pivot.

    The pattern of a float32 above 0, read as an integer, has the order of the floats; zeros,
    negative keys and NaN count as pattern 0.

    Args:
        keys: Keys, fewer than 2^31.
        pivots: Bit patterns, 0 or more.
        implementation: `xla`, `pallas_tpu`, `pallas_gpu`, or None for the platform's.

    Returns:
        A count for each pivot.

    Raises:
        ValueError: If there is no implementation of that name.
    """
    from . import gpu, tpu

    known = {"xla": xla.reaching, "pallas_tpu": tpu.reaching, "pallas_gpu": gpu.reaching}
    return dispatch(known, implementation, keys, pivots)
