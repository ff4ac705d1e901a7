"""Between a format's arrays and a `Dictionary`: biases, norms and thresholds, folded in float64."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxdiff.dictionaries.dictionary import Activation, CodeNorm, Dictionary, code_norms
from jaxdiff.dictionaries.folding import fold
from jaxdiff.dictionaries.formats._format import Imported, unsupported
from jaxdiff.dictionaries.normalization import Normalization
from jaxdiff.errors import JaxdiffError

FLOAT = np.float32


def dictionary(
    W_enc: np.ndarray,
    b_enc: np.ndarray,
    W_dec: np.ndarray,
    b_dec: np.ndarray,
    *,
    activation: Activation,
    threshold: np.ndarray | float = 0.0,
    k: float | int | np.ndarray | None = 0.0,
    code_norm: CodeNorm = "none",
    centred: bool = False,
    W_skip: np.ndarray | None = None,
    transcoder: bool = False,
) -> Dictionary:
    """Makes a dictionary from a format's arrays.

    Args:
        W_enc: Encoder, [M, D, L]; [D, L] of an SAE.
        b_enc: Encoder bias, [L].
        W_dec: Decoder, [L, M, D]; [L, D] of an SAE.
        b_dec: Decoder bias, [M, D]; [D] of an SAE.
        activation: Rule of the latents.
        threshold: What `Dictionary.threshold` asks for.
        k: Active latents per token; 0 where the format does not say.
        code_norm: How decoder norms weigh.
        centred: The format encodes x - b_dec; the difference goes into the bias.
        W_skip: Map from what an SAE or transcoder reads to what it writes, [D, D].
        transcoder: Whether it reads source 0 and writes source 1.

    Returns:
        The dictionary.

    Raises:
        JaxdiffError: If topk or batch_topk have no k that they could keep.
    """
    if activation in ("topk", "batch_topk", "group_max") and not (
        k is not None and 1 <= k <= b_enc.size
    ):
        raise JaxdiffError(f"k must be from 1 to the {b_enc.size} latents, not {k}", where="k")
    if W_enc.ndim == 2:
        W_enc, W_dec, b_dec = W_enc[None], W_dec[:, None], b_dec[None]
    bias = b_enc.astype(np.float64) - (_shift(W_enc, b_dec) if centred else 0.0)
    leaves = [np.ascontiguousarray(a, FLOAT) for a in (W_enc, bias, W_dec, b_dec)]
    return Dictionary(
        *map(jnp.asarray, leaves),
        threshold=jnp.asarray(np.asarray(threshold, FLOAT)),
        activation=activation,
        k=float(k or 0),
        code_norm=code_norm,
        W_skip=None if W_skip is None else jnp.asarray(W_skip.astype(FLOAT)[None, :, None]),
        reads=(0,) if transcoder else None,
        writes=(1,) if transcoder else None,
    )


def imported(d: Dictionary, scale: np.ndarray | float = 1.0) -> Imported:
    """Returns a dictionary for activations times `scale`, one number or one a source."""
    shape = (d.sources, d.b_dec.shape[1])
    scales = np.broadcast_to(np.asarray(scale, FLOAT), shape[:1])
    return Imported(d, Normalization(np.zeros(shape, FLOAT), np.array(scales)))


def gated(
    b_gate: np.ndarray, r_mag: np.ndarray, b_mag: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale and threshold with which a gated SAE is a jumprelu one; the bias is b_mag.

    Its latent is relu(e^r a + b_mag) where a + b_gate > 0, and a > -b_gate means that
    e^r a + b_mag > b_mag - e^r b_gate. Reference: arXiv:2404.16014, section 3.
    """
    scale = np.exp(r_mag.astype(np.float64))
    return scale, b_mag - scale * b_gate


def raw(d: Dictionary, normalization: Normalization) -> Dictionary:
    """Folds the normalisation in, for formats that have none; nothing changes when it does not."""
    mean, scale = np.asarray(normalization.mean), np.asarray(normalization.scale)
    if not mean.any() and (scale == 1).all():
        return d
    return fold(d, jnp.asarray(mean), jnp.asarray(scale))


def sae(d: Dictionary, where: Path, format: str) -> Dictionary:
    """Returns a dictionary over one model, where the code norm is the decoder norm or none.

    Raises:
        JaxdiffError: If it is a crosscoder.
    """
    if d.W_dec.shape[1] != 1:
        raise unsupported(f"a crosscoder over {d.W_dec.shape[1]} models in {format}", where)
    if d.code_norm == "none":
        return d
    threshold = d.threshold
    if d.code_norm == "decoupled":
        threshold = threshold.reshape(-1 if d.activation == "jumprelu" else ())
    if d.code_norm == "mixed" and d.activation == "batch_topk":
        threshold = threshold / 1.1
    return dataclasses.replace(d, code_norm="sae", threshold=threshold)


def arrays(d: Dictionary) -> dict[str, np.ndarray]:
    """Returns the leaves in float64, without the model axis when there is one model."""
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    found = {name: np.asarray(getattr(d, name), np.float64) for name in names}
    if found["b_dec"].shape[0] == 1:
        found |= {
            "W_enc": found["W_enc"][0],
            "W_dec": found["W_dec"][:, 0],
            "b_dec": found["b_dec"][0],
        }
    if d.W_skip is not None:
        found["W_skip"] = np.asarray(d.W_skip, np.float64)[0, :, 0]
    return found


def uncentred_bias(d: Dictionary) -> np.ndarray:
    """Returns the encoder bias of a format that encodes x - b_dec, [L] in float64."""
    b_enc, W_enc, b_dec = (np.asarray(a) for a in (d.b_enc, d.W_enc, d.b_dec))
    return b_enc.astype(np.float64) + _shift(W_enc, b_dec)


def unit_decoders(d: Dictionary) -> Dictionary:
    """Moves code norms into the encoder, so that latents are ranked by their values.

    Reconstructions stay; latents come out scaled by their norm, as in formats that keep decoders at
    norm 1. A latent without a decoder becomes one that is never active.
    """
    if d.code_norm == "none":
        return d
    norms = code_norms(d)
    safe = jnp.where(norms > 0, norms, 1.0)
    return dataclasses.replace(
        d,
        W_enc=d.W_enc * norms[None, None],
        b_enc=d.b_enc * norms,
        W_dec=d.W_dec / safe[:, None, None],
        code_norm="none",
    )


def thresholds(d: Dictionary, where: Path, format: str) -> np.ndarray:
    """Returns what each latent's value must exceed, [L] in float64.

    Raises:
        JaxdiffError: If that is no rule of `d`: topk, or other thresholds for other models.
    """
    latents = d.b_enc.shape
    if d.activation in ("topk", "group_max") or d.code_norm == "decoupled":
        raise unsupported(f"a {d.code_norm} {d.activation} dictionary in {format}", where)
    if d.activation == "relu":
        return np.zeros(latents)
    values = np.asarray(d.threshold, np.float64)
    if d.activation == "batch_topk":
        norms = np.asarray(code_norms(d), np.float64)
        # A latent without a decoder has key 0 and is active only under a negative threshold.
        unreachable = np.inf if values >= 0 else 0.0
        values = np.where(norms > 0, values / np.where(norms > 0, norms, 1.0), unreachable)
    return np.broadcast_to(values, latents)


def _shift(W_enc: np.ndarray, b_dec: np.ndarray) -> np.ndarray:
    # Model by model: a whole encoder in float64 takes much memory.
    parts = [b.astype(np.float64) @ W.astype(np.float64) for b, W in zip(b_dec, W_enc, strict=True)]
    return np.sum(parts, axis=0)
