"""The forward pass: one pure function for all models."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxdiff.models._lm import LM
from jaxdiff.models._sites import canonical_site
from jaxdiff.models.decoder import Context, Decoder, Tap
from jaxdiff.models.rope import angles
from jaxdiff.models.spec import ModelConfig
from jaxdiff.types import HostOrDevice

Wanted = frozenset[tuple[int, str]]
"""Tapped `(layer, part)` pairs."""


def run(
    lm: LM,
    tokens: Int[HostOrDevice, "B T"],
    taps: tuple[str, ...] = (),
    *,
    sequences: Int[HostOrDevice, "B T"] | None = None,
    positions: Int[HostOrDevice, "B T"] | None = None,
    logits: bool = True,
) -> tuple[Float[Array, "B T V"] | None, dict[str, Array]]:
    """Runs a model on tokens and returns its logits and the activations at the tapped sites.

    Blocks after the last thing asked for are not computed, nor (under jit) the rest of the last
    block. `taps` and `logits` are static. Products follow `jax.default_matmul_precision`: on GPU
    and TPU, float32 weights alone do not make them exact.

    Args:
        lm: The model; differentiable with respect to `lm.params`.
        tokens: Token ids.
        taps: Sites, by any name that `canonical_site` knows.
        sequences: Document of each token: tokens see earlier tokens of the same document only.
            One document per row when None.
        positions: Position in the document [tokens]; the position in the row when None, which
            gives the same result, as rotary positions are relative.
        logits: Whether to return logits.

    Returns:
        Logits, or None; and the tapped activations by the names that were asked for, each
        `[B, T, *sites(lm)[name]]`, in the dtype of the weights.

    Raises:
        JaxdiffError: If a site does not exist.
    """
    names = {tap: canonical_site(lm.spec, tap) for tap in taps}
    model = nnx.merge(lm.graphdef, lm.params)
    context = _context(lm.spec, tokens, sequences, positions)
    head = logits or not {"final_norm", "logits"}.isdisjoint(names.values())
    wanted = frozenset(
        (int(parts[1]), parts[2]) for site in names.values() if (parts := site.split("."))[2:]
    )

    found = {"embed": model.embed(tokens)}
    x = _blocks(model, found["embed"], context, wanted, head, found)
    out = None
    if head:
        found["final_norm"] = model.final_norm(x)
        if logits or "logits" in names.values():
            found["logits"] = out = model.unembed(found["final_norm"])
    return out if logits else None, {tap: found[site] for tap, site in names.items()}


def _context(
    spec: ModelConfig,
    tokens: HostOrDevice,
    sequences: HostOrDevice | None,
    positions: HostOrDevice | None,
) -> Context:
    if positions is None:
        positions = jnp.arange(tokens.shape[1])[None, :]
    cos, sin = angles(spec.rope, spec.head_dim, positions)
    return Context(cos=cos, sin=sin, sequences=sequences)


def _blocks(
    model: Decoder, x: Array, context: Context, wanted: Wanted, whole: bool, found: dict[str, Array]
) -> Array:
    """Runs the blocks that are needed: scans between cuts, and blocks tapped inside on their own.

    A cut is the stream between two blocks: cut i is `resid_pre` of block i and `resid_post` of
    block i - 1, so tapping it opens no block.
    """
    n = model.spec.n_layers
    opened = {i for i, part in wanted if part not in ("resid_pre", "resid_post")}
    cuts = {i + (part == "resid_post") for i, part in wanted if i not in opened}
    cuts |= {c for i in opened for c in (i, i + 1)} | {0} | ({n} if whole else set())

    windows = _windows(model.spec, x.shape[1])
    graphdef, stacked = nnx.split(model.blocks)

    def block(x, params, window, tap=lambda part, value: value):
        return nnx.merge(graphdef, params)(x, context, window, tap)

    found["blocks.0.resid_pre"] = x
    for low, high in pairwise(sorted(cuts)):
        if low in opened:
            x = block(x, *_layer((stacked, windows), low), tap=_tap(f"blocks.{low}", found))
        else:
            x = _scan(block, x, (stacked, windows), low, high)
        found[f"blocks.{high}.resid_pre"] = found[f"blocks.{high - 1}.resid_post"] = x
    return x


def _scan(block: Callable[..., Array], x: Array, layers: Any, low: int, high: int) -> Array:
    """Runs blocks low to high - 1."""
    if high - low == jax.tree.leaves(layers)[0].shape[0]:
        return jax.lax.scan(lambda x, layer: (block(x, *layer), None), x, layers)[0]

    # A part of the stack is indexed inside the loop: slicing it first would copy its weights.
    def body(x, i):
        return block(x, *_layer(layers, i)), None

    return jax.lax.scan(body, x, jnp.arange(low, high))[0]


def _layer(layers: Any, i: int | Array) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, 0, False), layers)


def _windows(spec: ModelConfig, t: int) -> Int[Array, " N"] | None:
    """Returns how far back each layer looks [tokens], or None when all look back to the start."""
    if all(window is None or window >= t for window in spec.windows):
        return None
    return jnp.asarray([t if window is None else window for window in spec.windows])


def _tap(prefix: str, found: dict[str, Array]) -> Tap:
    def tap(part: str, value: Array) -> Array:
        found[f"{prefix}.{part}"] = value
        return value

    return tap
