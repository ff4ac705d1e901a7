"""Which of an op's implementations runs: the one for the platform, or the one that is named."""

from collections.abc import Callable, Mapping
from typing import Literal

from jax import lax
from jaxtyping import PyTree

Implementation = Literal["xla", "pallas_tpu", "pallas_gpu"]
_PLATFORMS = {"pallas_tpu": "tpu", "pallas_gpu": "cuda"}


def dispatch(
    implementations: Mapping[str, Callable[..., PyTree]],
    implementation: Implementation | None,
    *operands: PyTree,
) -> PyTree:
    """Calls an implementation of an op.

    Args:
        implementations: What there is; all give the same result to rounding.
        implementation: The one to call, whatever the platform. None leaves the choice to the
            compiler, which knows the platform also where it compiles for another machine.
        *operands: Operands of the op.

    Returns:
        The op's result.

    Raises:
        ValueError: If there is no implementation of that name.
    """
    if implementation is not None:
        if implementation not in implementations:
            names = ", ".join(implementations)
            raise ValueError(f"no implementation {implementation!r}; there is {names}")
        return implementations[implementation](*operands)
    platforms = {
        _PLATFORMS[name]: function for name, function in implementations.items() if name != "xla"
    }
    return lax.platform_dependent(*operands, default=implementations["xla"], **platforms)
