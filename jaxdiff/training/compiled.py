"""The compiled programs of training on a mesh: the first state and the donated step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, PyTree

from jaxdiff.activations.normalization import Normalization
from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import DATA, LATENT, sharding
from jaxdiff.training.state import TrainState, init_state
from jaxdiff.training.step import Info, train_step
from jaxdiff.types import HostOrDevice

# Which dimension of a leaf runs over latents, by the leaf's name; all others are replicated.
_SPECS = {"W_enc": (None, None, LATENT), "b_enc": (LATENT,), "W_dec": (LATENT,), "idle": (LATENT,)}

Step = Callable[[TrainState, Array, Normalization], tuple[TrainState, Info]]


def state_shardings(state: PyTree, mesh: Mesh) -> PyTree:
    """Returns the sharding of every leaf of a training state, or of any part of one.

    Latents are split over the axis `latent`: parameters, moments and counters stay where they are,
    and only activations and sums over them cross devices.
    """

    def leaf(path, _) -> NamedSharding:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return sharding(mesh, *_SPECS.get(name, ()))

    return jax.tree_util.tree_map_with_path(leaf, state)


def check_mesh(config: DictionaryConfig, train: TrainConfig, mesh: Mesh) -> None:
    """Refuses a mesh that does not divide the latents and the batch.

    Raises:
        JaxdiffError: If it does not.
    """
    for name, size, axis in (("latents", config.latents, LATENT), ("batch", train.batch, DATA)):
        if size % mesh.shape[axis]:
            raise JaxdiffError(
                f"{name} = {size} cannot be split over {mesh.shape[axis]} devices",
                where=f"mesh.{axis}",
                fix=f"make {name} a multiple of mesh.{axis}",
            )


def put(x: Float[HostOrDevice, "B M D"], mesh: Mesh) -> Float[Array, "B M D"]:
    """Places this process's part of a batch on the mesh, split over the axis `data`."""
    target = sharding(mesh, DATA)
    if jax.process_count() > 1:
        return jax.make_array_from_process_local_data(target, np.asarray(x))
    # A CPU device would otherwise go on using the source's own buffer.
    return jax.device_put(x, target, may_alias=False)


def compile_init(
    config: DictionaryConfig, train: TrainConfig, shape: tuple[int, int], mesh: Mesh
) -> tuple[Callable[..., TrainState], TrainState]:
    """Returns the jitted `(x, normalization, key=) -> state`, and the state's shapes and shardings.

    The state is made where it will stay; no device ever holds all of it.
    """

    def start(x, normalization, *, key) -> TrainState:
        return init_state(config, train, normalization.apply(x.astype(jnp.float32)), key=key)

    x = jax.ShapeDtypeStruct((train.batch, *shape), jnp.float32)
    abstract = jax.eval_shape(
        start, x, Normalization.identity(shape), key=jax.eval_shape(lambda: jax.random.key(0))
    )
    shardings = state_shardings(abstract, mesh)
    like = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
    )
    return jax.jit(start, out_shardings=shardings), like


def compile_step(
    config: DictionaryConfig, train: TrainConfig, like: TrainState, mesh: Mesh
) -> Step:
    """Returns the jitted `(state, x, normalization) -> (state, info)`; the state is donated."""

    def step(state, x, normalization) -> tuple[TrainState, Info]:
        x = normalization.apply(x.astype(jnp.float32))
        return train_step(state, x, config=config, train=train)

    shardings = jax.tree.map(lambda a: a.sharding, like)
    return jax.jit(step, donate_argnames="state", out_shardings=(shardings, sharding(mesh)))
