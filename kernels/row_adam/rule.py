"""Adam's rule for rows, with beta1 = 0 and a second moment that decays when it is needed.

With beta1 = 0 a row without a gradient does not move; only its second moment decays, by beta2 in
every step. Multiplying by beta2^(steps since) when the row is next touched is the same to rounding,
so rows that nothing selected are neither read nor written.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

BETA2, EPSILON = 0.999, 1e-8


def adam(
    value: Float[Array, "*s"],
    moment: Float[Array, "*s"],
    gradient: Float[Array, "*s"],
    *,
    since: Int32[Array, "*t"],
    step: Int32[Array, ""],
    rate: Float[Array, ""],
) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """Returns values and second moments (float32) after a step.

    Args:
        value: Parameters.
        moment: Second moments as of the last step that touched them.
        gradient: Gradient.
        since: Steps since then, this one included [steps]; of a shape that broadcasts.
        step: Number of this step, from 1 [steps].
        rate: Learning rate.
    """
    decay = jnp.exp(since.astype(jnp.float32) * jnp.log(jnp.float32(BETA2)))
    moment = moment.astype(jnp.float32) * decay + (1 - BETA2) * jnp.square(gradient)
    unbiased = moment / (1 - jnp.exp(step.astype(jnp.float32) * jnp.log(jnp.float32(BETA2))))
    return value - rate * gradient / (jnp.sqrt(unbiased) + EPSILON), moment


def update_rows(
    state: tuple[Float[Array, "L D"], Float[Array, "L D"]],
    rows: Int32[Array, " T"],
    gradient: Float[Array, "T D"],
    last: Int32[Array, " L"],
    *,
    step: Int32[Array, ""],
    rate: Float[Array, ""],
    scale: Float[Array, ""],
) -> tuple[Float[Array, "L D"], Float[Array, "L D"]]:
    """Updates listed rows, all different; those out of range are left out.

    Args:
        state: Parameters and second moments.
        rows: Rows.
        gradient: Their gradient.
        last: Step that last touched each row, 0 for none [steps].
        step: Number of this step, from 1 [steps].
        rate: Learning rate.
        scale: Factor of the gradient, below 1 where it is clipped.
    """
    params, moment = state
    since = (step - last.at[rows].get(mode="clip"))[:, None]
    old = params.at[rows].get(mode="clip"), moment.at[rows].get(mode="clip")
    new = adam(*old, scale * gradient, since=since, step=step, rate=rate)

    def put(all_rows, some):
        return all_rows.at[rows].set(some.astype(all_rows.dtype), mode="drop", unique_indices=True)

    return put(params, new[0]), put(moment, new[1])
