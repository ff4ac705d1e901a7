"""The programs of a run, compiled for a topology from shapes alone."""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxdiff.activations._devices import row_sharding
from jaxdiff.activations._program import observe
from jaxdiff.activations.normalization import Normalization
from jaxdiff.config import DictionaryConfig, RunConfig, TrainConfig
from jaxdiff.estimate.collectives import collectives
from jaxdiff.estimate.costs import PROGRAM, Costs
from jaxdiff.mesh import DATA, sharding
from jaxdiff.models import LM, ModelConfig
from jaxdiff.models._lm import abstract
from jaxdiff.models._sharding import shardings
from jaxdiff.training.compiled import compile_init, compile_step


def train_costs(
    dictionary: DictionaryConfig,
    train: TrainConfig,
    shape: tuple[int, int],
    dtype: str,
    mesh: Mesh,
) -> Costs:
    """Compiles the step of training a dictionary and returns what it asks of a device.

    Args:
        dictionary: Settings of the dictionary.
        train: Settings of training.
        shape: (M, D) of the activations.
        dtype: Their dtype as stored.
        mesh: Mesh, of devices that need not be there.
    """
    _, like = compile_init(dictionary, train, shape, mesh)
    x = jax.ShapeDtypeStruct((train.batch, *shape), jnp.dtype(dtype), sharding=sharding(mesh, DATA))
    normalization = _placed(Normalization.identity(shape), sharding(mesh))
    lowered = compile_step(dictionary, train, like, mesh).lower(like, x, normalization)
    memory = state_memory(like) | {"inputs": _bytes(x) + _bytes(normalization)}
    return _costs(lowered, memory, train.batch, train.dtype, mesh.size)


def harvest_costs(
    config: RunConfig, specs: tuple[ModelConfig, ...], site: str, mesh: Mesh
) -> Costs:
    """Compiles the forward pass of a harvest and returns what it asks of a device.

    Args:
        config: The run.
        specs: The models.
        site: Canonical name of the site.
        mesh: Mesh, of devices that need not be there.
    """
    models = tuple(abstract_model(spec, config.models.dtype, mesh) for spec in specs)
    rows, every = harvest_rows(config, mesh.size), row_sharding(mesh)
    assert every is not None

    def text(*shape: int, axis: int = 0):
        where = NamedSharding(mesh, PartitionSpec(*[None] * axis, *every.spec))
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=where)

    tokens, columns = (
        text(len(specs), rows, config.text.context, axis=1),
        text(rows, config.text.context),
    )
    first = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding(mesh))
    limit = jax.ShapeDtypeStruct((len(specs),), jnp.float32, sharding=sharding(mesh))
    lowered = observe.lower(
        *(models, tokens, columns, columns, first, limit),
        site=site,
        dtype=config.harvest.dtype,
        rows=every,
    )
    memory = {"parameters": _bytes(models), "inputs": _bytes(tokens) + 2 * _bytes(columns)}
    return _costs(lowered, memory, rows * config.text.context, config.models.dtype, mesh.size)


def harvest_rows(config: RunConfig, devices: int) -> int:
    """Returns the rows of text of one forward pass, with what is added to divide them evenly."""
    return math.ceil(config.harvest.batch / devices) * devices


def abstract_model(spec: ModelConfig, dtype: str, mesh: Mesh) -> LM:
    """Returns a model without weights: their shapes, dtype and where they would be."""
    graphdef, shapes = abstract(spec)
    params = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=where),
        shapes,
        shardings(shapes, mesh),
    )
    return LM(params=params, graphdef=graphdef, spec=spec)


def state_memory(like: Any) -> dict[str, float]:
    """Returns the bytes of a training state on one device, by cause."""
    causes = {"params": "parameters", "optimizer": "moments", "moments": "moments"}
    found: dict[str, float] = dict.fromkeys(("parameters", "moments", "counters"), 0.0)
    for name, part in like._asdict().items():
        found[causes.get(name, "counters")] += _bytes(part)
    return found


def _costs(
    lowered: jax.stages.Lowered,
    memory: Mapping[str, float],
    tokens: int,
    dtype: str,
    devices: int,
) -> Costs:
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if fault := _too_large(str(error)):
            return Costs(memory, 0.0, 0.0, tokens, dtype, fault=fault)
        raise
    used: Any = compiled.memory_analysis()
    known: Any = compiled.cost_analysis()
    rest = {
        # What the compiler pads the arguments by counts as input as well.
        "inputs": max(used.argument_size_in_bytes - sum(memory.values()), 0) + memory["inputs"],
        "outputs": used.output_size_in_bytes - used.alias_size_in_bytes,
        "temporaries": used.temp_size_in_bytes,
        PROGRAM: used.generated_code_size_in_bytes,
    }
    return Costs(
        memory={**memory, **rest},
        flops=known.get("flops", 0.0),
        bytes=known.get("bytes accessed", 0.0),
        tokens=tokens,
        dtype=dtype,
        collectives=collectives(compiled.as_text() or "", devices),
        optimal_seconds=known.get("optimal_seconds"),
    )


def _too_large(message: str) -> str | None:
    """Returns what the compiler says of a program that does not fit; None of other faults."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", message)
    if found:
        return f"the compiler needs {found[1]} of {found[2]} of memory"
    return message.splitlines()[0]


def _bytes(tree: PyTree) -> float:
    """Returns the bytes of a device's part of all arrays."""
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def _placed(tree: PyTree, where: NamedSharding) -> PyTree:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), tree)
