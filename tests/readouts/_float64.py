"""The end of a model in float64 NumPy, and what logits say: written apart from the package."""

import numpy as np
from scipy.special import log_softmax


def final_norm(lm, x, *, scale=None):
    """Norm of x, or with another's scale; the bias is left out where a scale is given."""
    spec, p = lm.spec, {k: np.asarray(v, np.float64) for k, v in lm.params["final_norm"].items()}
    x = np.asarray(x, np.float64)
    x = x - x.mean(-1, keepdims=True) if spec.norm == "layer" else x
    own = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + spec.norm_eps)
    y = x * (own if scale is None else scale) * (p["weight"] + spec.norm_offset)
    return y + p["bias"] if spec.norm == "layer" and scale is None else y


def unembedding(lm):
    return np.asarray(lm.params["embedding" if lm.spec.tied else "unembedding"], np.float64)


def read(lm, x):
    """Logits of a stream."""
    logits = final_norm(lm, x) @ unembedding(lm).T
    cap = lm.spec.logit_softcap
    return logits if cap is None else cap * np.tanh(logits / cap)


def reading(logits, k, targets, reference):
    """What `Reading` has, from `[..., V]`; targets `[..., K]`."""
    log_p, log_r = log_softmax(logits, -1), log_softmax(np.asarray(reference, np.float64), -1)
    order = np.argsort(-log_p, -1)[..., :k]
    targets = np.broadcast_to(targets, (*logits.shape[:-1], targets.shape[-1]))
    found = np.take_along_axis(log_p, targets, -1)
    return {
        "tokens": order,
        "probabilities": np.exp(np.take_along_axis(log_p, order, -1)),
        "entropy": -(np.exp(log_p) * log_p).sum(-1),
        "log_prob": found,
        "rank": (log_p[..., None, :] > found[..., None]).sum(-1),
        "kl": (np.exp(log_r) * (log_r - log_p)).sum(-1),
        "logits": logits,
    }
