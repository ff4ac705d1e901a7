"""What is read of source texts, and where it goes in target texts: checked before it runs."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.errors import JaxdiffError
from jaxdiff.models import LM, Tap, canonical_site, run
from jaxdiff.models._traces import traced
from jaxdiff.readouts._affine import Affine
from jaxdiff.readouts._logit_lens import check_width
from jaxdiff.readouts._positions import Positions, checked_positions
from jaxdiff.types import HostOrDevice


class Side(NamedTuple):
    """Source or target: tokens `[B or 1, T]`, layers `[L]`, a position for each of B rows."""

    tokens: HostOrDevice
    layers: np.ndarray
    positions: np.ndarray
    site: str


class Scope(NamedTuple):
    """Both sides, and the axes of layers that the result has."""

    source: Side
    target: Side
    cells: tuple[int, ...]


def scope_of(source: tuple[Any, ...], target: tuple[Any, ...]) -> Scope:
    """Checks both sides, each (spec, tokens, layers, positions, site), and pairs their layers.

    Raises:
        JaxdiffError: If a site is not one of all blocks, or layers or positions do not exist.
    """
    sides, counts = [], []
    for name, (spec, tokens, layers, positions, site) in {
        "source": source,
        "target": target,
    }.items():
        check_width(spec, site)
        if not canonical_site(spec, site).startswith("blocks.*."):
            raise JaxdiffError("a patchscope reads all layers", where=site, fix="write blocks.*.…")
        # Layers of the target that are not given are those of the source.
        given = source[2] if layers is None else layers
        numbers = np.arange(source[0].n_layers) if given is None else np.asarray(given)
        beyond = numbers[(numbers < 0) | (numbers >= spec.n_layers)]
        if beyond.size or numbers.ndim > 1 or not numbers.size:
            raise JaxdiffError(
                f"{name}_layers={numbers.tolist()} in a model of {spec.n_layers} layers",
                where="patchscope",
                fix="give one layer, or [L] of them",
            )
        where = f"patchscope: {name}_positions"
        places = np.asarray(checked_positions(positions, tokens.shape[1], where=where))
        sides.append(Side(tokens, numbers.reshape(-1), places, site))
        counts.append(numbers.shape)
    rows = {len(s.tokens) for s in sides} | {s.positions.size for s in sides}
    b = max(rows)
    if rows - {1, b} or max(s.positions.ndim for s in sides) > 1:
        raise JaxdiffError(
            f"rows of tokens and positions do not belong together: {sorted(rows)}",
            where="patchscope",
            fix="give as many of each, or one for all",
        )
    one, other = (s._replace(positions=np.broadcast_to(s.positions.ravel(), (b,))) for s in sides)
    tokens = jnp.broadcast_to(jnp.asarray(other.tokens), (b, other.tokens.shape[1]))
    cells = counts[0] if target[2] is None else counts[0] + counts[1]
    return Scope(one, other._replace(tokens=tokens), cells)


def hidden_states(lm: LM, target: LM, scope: Scope, through: Any) -> Float[Array, "L B 1 E"]:
    """Returns what the source texts have at their positions, of all source layers."""
    if isinstance(through, Affine) and jnp.ndim(through.weight) != 2:
        raise JaxdiffError(
            f"a weight {list(jnp.shape(through.weight))} is not one map, as a lens has many",
            where="patchscope: through",
            fix="give that of one layer: Affine(lens.weight[3], lens.bias[3])",
        )
    source = scope.source
    hidden = _hidden(lm, source.tokens, source.layers, source.positions, through, site=source.site)
    if hidden.shape[-1] != target.spec.d_model:
        raise JaxdiffError(
            f"hidden states of width {hidden.shape[-1]} do not fit a model of width "
            f"{target.spec.d_model}",
            where="patchscope: through",
            fix="give through=Affine(weight, bias)",
        )
    return hidden


@functools.partial(jax.jit, static_argnames="site")
@traced("patchscope")
def _hidden(lm, tokens, layers, positions, through, *, site):
    # With one text, all positions are read in its one row.
    wanted = positions if len(tokens) == 1 else positions[:, None]
    read = Tap(site, reduce=Positions(wanted))
    hidden = run(lm, tokens, (read,), logits=False)[1][site][layers]
    hidden = jnp.swapaxes(hidden, 1, 2) if len(tokens) == 1 else hidden
    return hidden if through is None else through(hidden)
