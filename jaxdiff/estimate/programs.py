"""The programs of a run, compiled for a topology from shapes alone."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxdiff.activations._devices import row_sharding
from jaxdiff.activations._program import observe
from jaxdiff.activations.normalization import Normalization
from jaxdiff.activations.pair import SEPARATOR
from jaxdiff.config import DictionaryConfig, RunConfig, TrainConfig
from jaxdiff.estimate.collectives import collectives
from jaxdiff.estimate.costs import FEED, PROGRAM, Costs, Precision
from jaxdiff.estimate.sources import Sources
from jaxdiff.mesh import DATA, sharding
from jaxdiff.models import LM, ModelConfig
from jaxdiff.models._lm import abstract
from jaxdiff.models._sharding import shardings
from jaxdiff.models._sites import layer_and_part
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
        shape: (S, D) of the activations.
        dtype: Their dtype as stored.
        mesh: Mesh, of devices that need not be there.
    """
    _, like = compile_init(dictionary, train, shape, mesh)
    x = jax.ShapeDtypeStruct((train.batch, *shape), jnp.dtype(dtype), sharding=sharding(mesh, DATA))
    step = compile_step(dictionary, train, like, mesh)
    lowered = step.lower(like, x, Normalization.identity(shape))
    memory = state_memory(like) | {"inputs": _bytes(x)}
    costs = _costs(lowered, memory, train.batch, precision(train), mesh.size)
    return dataclasses.replace(costs, memory={**costs.memory, FEED: _bytes(x)})


def precision(train: TrainConfig) -> Precision:
    """Returns how the products of training are computed: float32 factors are not rounded."""
    return "bfloat16" if train.dtype == "bfloat16" else "highest"


def harvest_costs(config: RunConfig, sources: Sources, mesh: Mesh) -> Costs:
    """Compiles the forward pass of a harvest and returns what it asks of a device.

    Memory and traffic are those of the real program. Compilers count the inside of its loop over
    blocks once; so operations, bytes and the compiler's time are those of programs of one and of
    two blocks without a loop, carried on in a straight line.

    Args:
        config: The run.
        sources: Models and sites.
        mesh: Mesh, of devices that need not be there.
    """
    whole = _forward(config, sources, mesh, loop=True)
    depth = blocks_until(sources.specs[0], sources.site)
    if whole.fault or not depth:
        return whole
    least = _fewest(sources.site, depth)
    counts = range(least, min(depth, least + 1) + 1)
    cut = [_forward(config, _cut(sources, depth, n), mesh, loop=False) for n in counts]

    def at_depth(name: str) -> float | None:
        first, last = (getattr(costs, name) for costs in (cut[0], cut[-1]))
        return None if None in (first, last) else first + (depth - least) * (last - first)

    names = ("flops", "bytes", "optimal_seconds")
    return dataclasses.replace(whole, **{name: at_depth(name) for name in names})


def _fewest(site: str, depth: int) -> int:
    """Returns the fewest blocks that have sites in the last and in earlier blocks as a run has."""
    layers = {layer_and_part(name)[0] for name in site.split(SEPARATOR)} - {""}
    return 1 if layers <= {str(depth - 1)} else 2


def _cut(sources: Sources, depth: int, blocks: int) -> Sources:
    """Returns the sources of models with fewer blocks: those in earlier ones in the last but one.

    Where a site is below the last one, it costs the same.
    """

    def moved(name: str) -> str:
        layer, part = layer_and_part(name)
        last = blocks - 1 if layer == str(depth - 1) else max(blocks - 2, 0)
        return f"blocks.{last}.{part}" if layer else part

    names = map(moved, sources.site.split(SEPARATOR))
    return dataclasses.replace(
        sources,
        specs=tuple(replace_depth(spec, blocks) for spec in sources.specs),
        site=SEPARATOR.join(names),
    )


def replace_depth(spec: ModelConfig, depth: int) -> ModelConfig:
    """Returns a model with fewer blocks."""
    return dataclasses.replace(spec, n_layers=depth, windows=spec.windows[:depth])


def unstacked(lm: LM) -> LM:
    """Returns the model with the shapes of each block's weights apart, as `models.unstack` does."""

    def one(leaf):
        where = NamedSharding(leaf.sharding.mesh, PartitionSpec(*leaf.sharding.spec[1:]))
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=where)

    blocks = (jax.tree.map(one, lm.params["blocks"]),) * lm.spec.n_layers
    return dataclasses.replace(lm, params={**lm.params, "blocks": blocks})


def blocks_until(spec: ModelConfig, site: str) -> int:
    """Returns how many blocks are computed for sites."""

    def blocks(name: str) -> int:
        layer, part = layer_and_part(name)
        if layer:
            return int(layer) + 1
        return 0 if part in ("embed", "pos_embed") else spec.n_layers

    return max(map(blocks, site.split(SEPARATOR)))


def _forward(config: RunConfig, sources: Sources, mesh: Mesh, *, loop: bool) -> Costs:
    models = tuple(abstract_model(spec, config.models.dtype, mesh) for spec in sources.specs)
    models = models if loop else tuple(map(unstacked, models))
    rows, every = harvest_rows(config, mesh.size), row_sharding(mesh)
    context = config.text.context
    assert every is not None

    def text(*shape: int, axis: int = 0):
        where = NamedSharding(mesh, PartitionSpec(*[None] * axis, *every.spec))
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=where)

    tokens, columns = text(len(models), rows, context, axis=1), text(rows, context)
    limits = (np.int32(0), np.zeros(sources.shape[0], np.float32))
    lowered = observe.lower(
        *(models, tokens, columns, columns, *limits),
        site=sources.site,
        dtype=sources.dtype,
        rows=every,
    )
    memory = {"parameters": _bytes(models), "inputs": _bytes(tokens) + 2 * _bytes(columns)}
    products = "bfloat16" if config.models.dtype == "bfloat16" else "default"
    return _costs(lowered, memory, rows * context, products, mesh.size)


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


_CAUSES: tuple[str, ...] = ("parameters", "moments", "counters")


def state_memory(like: PyTree) -> dict[str, float]:
    """Returns the bytes of a training state on one device, by cause."""
    found: dict[str, float] = dict.fromkeys(_CAUSES, 0.0)
    for path, leaf in jax.tree_util.tree_flatten_with_path(like)[0]:
        names = [jax.tree_util.keystr((key,), simple=True) for key in path]
        if {"optimizer", "moment"} & set(names):
            cause = "moments"
        else:
            cause = "parameters" if names[0] in ("params", "tables") else "counters"
        found[cause] += _bytes(leaf)
    return found


def _costs(
    lowered: jax.stages.Lowered,
    memory: dict[str, float],
    tokens: int,
    precision: Precision,
    devices: int,
) -> Costs:
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if fault := _too_large(str(error)):
            return Costs(memory, 0.0, 0.0, tokens, precision, fault=fault)
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
        memory={cause: float(size) for cause, size in (memory | rest).items()},
        flops=known.get("flops", 0.0),
        bytes=known.get("bytes accessed", 0.0),
        tokens=tokens,
        precision=precision,
        collectives=None if (text := _text(compiled)) is None else collectives(text, devices),
        counted="compiler",
        # Below 0 where the compiler does not know the time of an operation, which counts as -1.
        optimal_seconds=seconds if (seconds := known.get("optimal_seconds", -1.0)) > 0 else None,
    )


def _text(compiled: jax.stages.Compiled) -> str | None:
    """Returns the text of a program; None where it has what this jaxlib cannot read.

    TPU compilers write asynchronous updates of several operands, which jaxlib 0.10.2 refuses.
    """
    try:
        return compiled.as_text() or ""
    except jax.errors.JaxRuntimeError as error:
        if "async-update" in str(error):
            return None
        raise


def _too_large(message: str) -> str | None:
    """Returns what the compiler says of a program that does not fit; None of other faults."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", message) or re.search(
        r"required for .*? \(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", message
    )
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
