"""A check of a loaded model: every site leads to the logits, and taps read what edits made."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxdiff.edits import Add, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import LM, run, sites
from jaxdiff.types import HostOrDevice


def verify(
    lm: LM, tokens: Int[HostOrDevice, "B T"] | None = None, *, relative: float = 0.1
) -> dict[str, float]:
    """Changes a model at every site, one after the other, and measures how far the logits move.

    Edits that the model carries are left out.

    An experiment on a site that moves nothing would fail silently. The blocks share one program for
    each kind of site.

        moved = verify(lm)
        min(moved, key=moved.get)

    Args:
        lm: The model.
        tokens: Text to run; 8 random tokens when None. All values of all layers are held at once.
        relative: Standard deviation of the noise that is added, in units of the root mean square of
            the site's value.

    Returns:
        The largest change of any logit, by site, in the order of computation.

    Raises:
        JaxdiffError: If a site moves nothing, or what a tap reads is not what the edit made.
    """
    rng, lm = np.random.default_rng(0), replace(lm, edits=())
    if tokens is None:
        tokens = rng.integers(0, lm.spec.vocab_size, (1, 8)).astype(np.int32)
    kinds = tuple(dict.fromkeys(_of_all_layers(site) for site in sites(lm)))
    logits, unchanged = run(lm, tokens, kinds)
    plain = _wide(logits)
    moved, wrong = dict.fromkeys(sites(lm), 0.0), []
    for name, values in unchanged.items():
        for layer in range(lm.spec.n_layers) if "*" in name else (None,):
            before = _wide(values if layer is None else values[layer])
            noise = relative * np.sqrt(np.mean(before**2)) * rng.standard_normal(before.shape)
            change = edit(name, Add(jnp.asarray(noise, values.dtype)), layers=layer)
            logits, found = run(lm, tokens, (name,), (change,))
            after = _wide(found[name] if layer is None else found[name][layer])
            site = name if layer is None else name.replace("*", str(layer))
            moved[site] = float(np.max(np.abs(_wide(logits) - plain)))
            if not moved[site] > 0:
                wrong.append(f"{site}: changing it moves no logit")
            # bfloat16 keeps 8 bits.
            if not np.allclose(after, before + noise, rtol=2e-2, atol=1e-2 * np.abs(before).max()):
                wrong.append(f"{site}: a tap does not read what the edit made")
    if wrong:
        raise JaxdiffError(
            f"{len(wrong)} sites of this {lm.spec.architecture} fail:\n  " + "\n  ".join(wrong),
            where="verify",
            fix="check its weights, and its file in jaxdiff/models against the reference model",
        )
    return moved


def _of_all_layers(site: str) -> str:
    return site if not site.startswith("blocks.") else f"blocks.*.{site.split('.', 2)[2]}"


def _wide(x: Array | None) -> np.ndarray:
    return np.asarray(x, np.float32)
