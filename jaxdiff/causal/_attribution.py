"""Attribution patching and integrated gradients by gating scalars.

A gate is a number alpha at a place of a site: the corrupt run goes on with
`h + alpha (h_clean - h_corrupt)`. The derivative of the metric by alpha at 0 estimates what
patching that place alone would do (Syed et al., arXiv:2310.10348), and only scores are computed,
never gradients of the size of the activations. All gates of all sites share one backward pass.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiff.edits import Edit, PerLayer, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import LM, At, Tap, canonical_site, sites
from jaxdiff.models._check import checked
from jaxdiff.models._run import forward, world_of
from jaxdiff.models._sites import layer_and_part
from jaxdiff.models._tap import as_pytree
from jaxdiff.models._traces import traced
from jaxdiff.types import HostOrDevice

Per = Literal["position", "head", "unit"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gate:
    """Op: goes `alpha` of the way from the corrupt value to the clean one.

    Attributes:
        alpha: Broadcasts against the value.
        clean: The site's value in the clean run.
        corrupt: Its value in the corrupt run; what the gate finds when None.
    """

    alpha: Any
    clean: Any
    corrupt: Any = None

    def __call__(self, value: Array, at: At) -> Array:
        """Returns `value + alpha * (clean - corrupt)`."""
        corrupt = value if self.corrupt is None else self.corrupt
        step = (self.clean - corrupt).astype(jnp.float32)
        return value + (jnp.broadcast_to(self.alpha, step.shape) * step).astype(value.dtype)


def attribute(
    lm: LM,
    clean: Int[HostOrDevice, "B T"],
    corrupt: Int[HostOrDevice, "B S"],
    metric: Callable[[Float[Array, "B V"]], Float[Array, " B"]],
    at: Sequence[str | Tap] = ("blocks.*.resid_post",),
    *,
    per: Per = "position",
    steps: int = 1,
    edits: Sequence[Edit] = (),
    sequences: Int[HostOrDevice, "B T"] | None = None,
    remat: bool = False,
) -> dict[str, Array]:
    """Estimates for every place of sites what patching it with its clean value would do.

        scores = attribute(lm, clean, corrupt, metric)["blocks.*.resid_post"]     # [N, B, T]

    With `steps` above 1, integrated gradients (arXiv:1703.01365): the derivative is averaged over
    that many points of the straight way of all gates from 0 to 1 (midpoints), so that the scores of
    all places add up to the metric with all gates at 1 minus that of the corrupt run, as the number
    of steps grows. Gates of several layers open together, and each adds its whole difference: for
    scores of one layer that are complete by themselves, ask for that site alone.

    Args:
        lm: The model.
        clean: Token ids that values are taken from.
        corrupt: Token ids of the run that is patched.
        metric: Of the logits of each row's last token; rows must not depend on each other.
        at: Sites, or `Tap`s whose `view` says what is gated: with the view `edits.Latents` the
            scores are those of latents.
        per: One gate for each position `[B, T]`, each head `[B, T, H]`, or each number of the value
            (neurons, coordinates). A tap with a view has a gate for each number it sees.
        steps: Points of integrated gradients; 1: the gradient at the corrupt run.
        edits: Edits of both runs.
        sequences: Document of each token, as in `models.run`.
        remat: Compute the inside of blocks again in the backward pass, for its memory.

    Returns:
        Scores by site, float32, with a leading axis N for `*` sites.

    Raises:
        JaxdiffError: If shapes differ, or a site has no such gates.
    """
    if clean.shape != corrupt.shape:
        raise JaxdiffError(
            f"clean tokens are {list(clean.shape)}, corrupt ones {list(corrupt.shape)}",
            where="attribute",
            fix="pad them to the same length; values are patched position by position",
        )
    if steps < 1 or per not in ("position", "head", "unit"):
        raise JaxdiffError(f"steps={steps}, per={per!r}", where="attribute")
    at = (at,) if isinstance(at, str) else at
    asked = checked(lm, tuple(_gated(lm, site, per) for site in at), edits, corrupt)
    taps = asked.taps
    scores = _attribute(
        asked.lm,
        jnp.asarray(clean),
        jnp.asarray(corrupt),
        as_pytree(metric),
        taps,
        asked.edits,
        sequences,
        skipped=asked.skipped,
        per=per,
        steps=steps,
        remat=remat,
    )
    return {tap.name: scores[tap.name] for tap in taps}


@functools.partial(jax.jit, static_argnames=("skipped", "per", "steps", "remat"))
@traced("attribute")
def _attribute(
    lm: LM,
    clean: Array,
    corrupt: Array,
    metric: Any,
    taps: tuple[Tap, ...],
    edits: tuple[Edit, ...],
    sequences: Array | None,
    *,
    skipped: frozenset[int],
    per: Per,
    steps: int,
    remat: bool,
) -> dict[str, Array]:
    run = functools.partial(_run, lm, sequences=sequences, skipped=skipped, remat=remat)
    target = run(clean, taps, edits)[1]
    # Several steps need the corrupt values that no gate has changed yet.
    source = run(corrupt, taps, edits)[1] if steps > 1 else {}
    closed = {tap.name: _gates(tap, target[tap.name], per) for tap in taps}

    def measured(gates: dict[str, Array]) -> Array:
        gated = tuple(
            _edit(tap, Gate(gates[tap.name], target[tap.name], source.get(tap.name)))
            for tap in taps
        )
        return jnp.sum(metric(run(corrupt, (), (*edits, *gated))[0]))

    def scores(alpha: Array | float) -> dict[str, Array]:
        found = jax.grad(measured)(jax.tree.map(lambda gate: gate + alpha, closed))
        return {tap.name: _without_ones(tap, found[tap.name], per) for tap in taps}

    if steps == 1:
        return scores(0.0)

    points = (jnp.arange(steps, dtype=jnp.float32) + 0.5) / steps
    total = jax.tree.map(jnp.zeros_like, jax.eval_shape(scores, points[0]))
    sums = jax.lax.scan(lambda t, p: (jax.tree.map(jnp.add, t, scores(p)), None), total, points)[0]
    return jax.tree.map(lambda x: x / steps, sums)


def _run(
    lm: LM,
    tokens: Array,
    taps: tuple[Tap, ...],
    edits: tuple[Edit, ...],
    *,
    sequences: Array | None,
    skipped: frozenset[int],
    remat: bool,
) -> tuple[Any, dict[str, Array]]:
    world = world_of(lm, tokens, taps, edits, sequences, skipped=skipped)
    logits = False if taps else "last"
    out, kept, _ = forward((world,), (tokens,), logits=logits, length=tokens.shape[1], remat=remat)
    return out[0], kept.worlds[0]


def _edit(tap: Tap, gate: Gate) -> Edit:
    wild = layer_and_part(tap.site)[0] == "*"
    return edit(tap.site, PerLayer(gate) if wild else gate, view=tap.view)


def _gated(lm: LM, site: str | Tap, per: Per) -> Tap:
    tap = Tap(site) if isinstance(site, str) else site
    if tap.reduce is not None or tap.offload:
        raise JaxdiffError(
            "a value that is reduced or offloaded cannot be gated", where=tap.site, fix="use a view"
        )
    canonical = canonical_site(lm.spec, tap.site)
    axes = sites(lm)[canonical.replace(".*.", ".0.", 1)]
    if axes[:2] != ("B", "T") and per != "unit" or per == "head" and len(axes) != 4:
        raise JaxdiffError(
            f"there is no gate per {per} at a site with axes {', '.join(map(str, axes))}",
            where=tap.site,
            fix="use per='unit', or another site: heads are at attn.q, attn.k, attn.v, attn.z",
        )
    return replace(tap, site=canonical, name=tap.name or tap.site)


def _gates(tap: Tap, value: Array, per: Per) -> Array:
    """Returns closed gates, with axes of size 1 where one gate is for all."""
    kept = _kept_axes(tap, value, per)
    return jnp.zeros((*value.shape[:kept], *(1,) * (value.ndim - kept)), jnp.float32)


def _without_ones(tap: Tap, gates: Array, per: Per) -> Array:
    return gates.reshape(gates.shape[: _kept_axes(tap, gates, per)])


def _kept_axes(tap: Tap, value: Array, per: Per) -> int:
    if per == "unit" or tap.view is not None:
        return value.ndim
    layers = int(layer_and_part(tap.site)[0] == "*")
    return layers + (3 if per == "head" else 2)
