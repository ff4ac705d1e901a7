"""The compiled programs of training on a mesh: the first state and the donated step."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PyTree

from jaxdiff.activations.normalization import Normalization
from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.dictionaries.constraints import constrain
from jaxdiff.dictionaries.dictionary import Dictionary
from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import DATA, LATENT, data_parts, sharding
from jaxdiff.training.penalised_step import penalised_step
from jaxdiff.training.rows import RowState, to_dictionary, to_rows
from jaxdiff.training.sparse_step import sparse_step
from jaxdiff.training.state import TrainState, init_state
from jaxdiff.training.step import Info, train_step
from jaxdiff.types import HostOrDevice

# Which dimension of a leaf runs over latents, by a name on its path; all others are replicated.
_DENSE: dict[str, tuple] = {
    "W_enc": (None, None, LATENT),
    "b_enc": (LATENT,),
    "W_dec": (LATENT,),
    "idle": (LATENT,),
}
# In the sparse step each device sees the whole batch and has latents of its own.
_SPARSE: dict[str, tuple] = dict.fromkeys(
    ("W_enc", "b_enc", "W_dec", "threshold", "last", "idle"), ((DATA, LATENT),)
)

# Settings of the dictionary that the sparse step does not know, unless they are left alone.
_DENSE_ONLY = ("prefixes", "tied", "shared", "dedicated", "reads", "writes", "skip")

State = TrainState | RowState
Step = Callable[[State, Array, Normalization], tuple[State, Info]]


def is_sparse(config: DictionaryConfig, train: TrainConfig) -> bool:
    """Tells whether training takes the sparse step; with `auto`, whether it could.

    Raises:
        JaxdiffError: If the sparse step is asked for and these settings do not allow it.
    """
    wanted = {
        "dictionary.activation": (
            config.activation,
            config.activation in ("batch_topk", "topk", "relu", "jumprelu"),
        ),
        "dictionary.code_norm": (config.code_norm, config.code_norm != "decoupled"),
        "dictionary.pre_penalty": (config.pre_penalty, config.pre_penalty == 0),
        "train.beta1": (train.beta1, train.beta1 == 0),
    }
    for name in _DENSE_ONLY:
        value = getattr(config, name)
        wanted[f"dictionary.{name}"] = (value, value == type(config).model_fields[name].default)
    wrong = [f"{name} = {value}" for name, (value, fits) in wanted.items() if not fits]
    if wrong and train.step == "sparse":
        raise JaxdiffError(
            f"the sparse step cannot be taken with {', '.join(wrong)}",
            where="train.step",
            fix="it needs a plain batch_topk, topk, relu or jumprelu without pre_penalty, a code "
            "norm other than decoupled, and beta1 = 0; or let train.step be auto",
        )
    return train.step != "dense" and not wrong


def state_shardings(state: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
    """Returns the sharding of every leaf of a training state.

    Latents are split, over the axis `latent` or, in the state of the sparse step, over all
    devices: parameters, moments and counters stay where they are, and only activations and sums
    over them cross devices, and in the dense step gradients over `data`.
    """
    specs = _SPARSE if isinstance(state, RowState) else _DENSE

    def leaf(path, _) -> NamedSharding:
        names = [jax.tree_util.keystr((key,), simple=True) for key in path]
        return sharding(mesh, *next((specs[name] for name in names if name in specs), ()))

    return jax.tree_util.tree_map_with_path(leaf, state)


def check_mesh(config: DictionaryConfig, train: TrainConfig, mesh: Mesh | AbstractMesh) -> None:
    """Refuses a mesh that does not divide the latents and the batch.

    Raises:
        JaxdiffError: If it does not; the nearest numbers that would are named.
    """
    over = mesh.size if is_sparse(config, train) else mesh.shape[LATENT]
    for name, size, parts, axis in (
        ("latents", config.latents, over, LATENT),
        ("batch", train.batch, mesh.shape[DATA], DATA),
    ):
        if size % parts:
            below, above = size // parts * parts, -(-size // parts) * parts
            near = f"{below} or {above}" if below else f"{above}"
            raise JaxdiffError(
                f"{name} = {size} cannot be split over {parts} devices",
                where=f"mesh.{axis}",
                fix=f"make {name} a multiple of {parts}, such as {near}, or change the mesh",
            )


def put(x: Float[HostOrDevice, "B M D"], mesh: Mesh) -> Float[Array, "B M D"]:
    """Places this process's part of a batch on the mesh, split over the axis `data`."""
    target = sharding(mesh, DATA)
    if jax.process_count() == 1:
        # A CPU device would otherwise go on using the source's own buffer.
        return jax.device_put(x, target, may_alias=False)
    parts, count = data_parts(mesh)
    blocks = dict(zip(parts, np.split(np.asarray(x), len(parts)), strict=True))
    each = len(x) // len(parts)

    def block(index):
        return blocks[(index[0].start or 0) // each]

    return jax.make_array_from_callback((each * count, *x.shape[1:]), target, block)


def compile_init(
    config: DictionaryConfig,
    train: TrainConfig,
    shape: tuple[int, int],
    mesh: Mesh | AbstractMesh,
) -> tuple[Callable[..., State], State]:
    """Returns the jitted `(x, normalization, key=) -> state`, and the state's shapes and shardings.

    The state is made where it will stay; no device ever holds all of it.

    Raises:
        JaxdiffError: If more latents are to be active than there are, or none.
    """
    most = max(config.k, config.k_start or 0.0)
    if not config.penalised and most > config.latents:
        raise JaxdiffError(
            f"k = {most:g} is above its {config.latents} latents",
            where="dictionary.k",
            fix="lower k and k_start, or raise latents",
        )
    least = min(config.k, config.k_start or config.k)
    if config.activation == "batch_topk" and round(least * train.batch) < 1:
        raise JaxdiffError(
            f"k = {least:g} of a batch of {train.batch} tokens is no latent at all",
            where="dictionary.k",
            fix="raise k, k_start or train.batch",
        )

    listed = 2 * most * train.batch * mesh.size
    if not config.penalised and is_sparse(config, train) and listed >= 2**31:
        raise JaxdiffError(
            f"selection counts to 2^31 - 1, not to 2 k batch devices = {listed:.3g}",
            where="train.step",
            fix="lower train.batch or k, take fewer devices, or set train.step to dense",
        )

    def start(x, normalization, *, key) -> State:
        state = init_state(config, train, normalization.apply(x.astype(jnp.float32)), key=key)
        return to_rows(state, train) if is_sparse(config, train) else state

    x = jax.ShapeDtypeStruct((train.batch, *shape), jnp.float32)
    abstract = jax.eval_shape(
        start, x, Normalization.identity(shape), key=jax.eval_shape(lambda: jax.random.key(0))
    )
    shardings = state_shardings(abstract, mesh)
    like = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
    )
    return jax.jit(start, out_shardings=shardings), like


def compile_step(config: DictionaryConfig, train: TrainConfig, like: State, mesh: Mesh) -> Step:
    """Returns the jitted `(state, x, normalization) -> (state, info)`; the state is donated."""

    def dense(state, x, normalization) -> tuple[State, Info]:
        step = functools.partial(train_step, config=config, train=train)
        return _guarded(step, state, x, normalization, train)

    def part(state, x, normalization) -> tuple[State, Info]:
        # A sum over one device would still be a copy.
        axes = (DATA, LATENT) if mesh.size > 1 else ()
        x = lax.all_gather(x, DATA, tiled=True) if axes else x
        rule = penalised_step if config.penalised else sparse_step
        step = functools.partial(rule, config=config, train=train, axes=axes, held=held)
        return _guarded(step, state, x, normalization, train)

    held = _holds_products(mesh)
    shardings = jax.tree.map(lambda a: a.sharding, like)
    specs = jax.tree.map(lambda s: s.spec, shardings)
    sparse = jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(specs, P(DATA), P()),
        out_specs=(specs, P()),
        check_vma=False,
    )
    step = sparse if isinstance(like, RowState) else dense
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, sharding(mesh)))


def _holds_products(mesh: Mesh) -> bool:
    """Tells whether the sparse step holds the encoder's product: CPUs have the memory, and gain."""
    return mesh.devices.flat[0].platform == "cpu"


def _guarded(
    step: Callable, state: State, x: Array, normalization: Any, train: TrainConfig
) -> tuple[State, Info]:
    """Takes a step on raw rows; where bad ones are skipped, they leave the state as it was."""
    finite = jnp.all(jnp.isfinite(x))

    def take(state, x) -> tuple[State, Info]:
        return step(state, normalization.apply(x.astype(jnp.float32)))

    if train.bad_batch == "stop":
        state, info = take(state, x)
    else:
        shapes = jax.eval_shape(take, state, x)[1]
        nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        state, info = lax.cond(finite, take, lambda state, x: (state, nothing), state, x)
    return state, info._replace(bad=~finite)


def trained(
    state: State, config: DictionaryConfig, shape: tuple[int, int], mesh: Mesh
) -> Dictionary:
    """Returns the dictionary that a state holds, its latents split over the axis `latent`."""
    if isinstance(state, TrainState):
        return constrain(state.params, config)
    start = functools.partial(to_dictionary, config=config, shape=shape)
    shardings = state_shardings(jax.eval_shape(start, state.tables), mesh)
    return jax.jit(start, out_shardings=shardings)(state.tables)
