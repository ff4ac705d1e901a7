"""Loss, gradients and Adam of a dictionary in float64 NumPy, written from the formulas."""

import numpy as np

NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def norms_and_gradient(W, kind):
    """Returns code norms [L, G] and a function that pulls a gradient on them back to W_dec."""
    n = np.sqrt((W**2).sum(-1))
    unit = W / n[..., None]
    joint = np.sqrt((n**2).sum(1, keepdims=True))
    if kind == "crosscoder":
        return n.sum(1, keepdims=True), lambda g: g[:, :, None] * unit
    if kind == "sae":
        return joint, lambda g: g[:, :, None] * W / joint[..., None]
    if kind == "mixed":
        both = joint + 0.1 * n.sum(1, keepdims=True)
        return both, lambda g: g[:, :, None] * (W / joint[..., None] + 0.1 * unit)
    if kind == "none":
        return np.ones_like(joint), lambda g: np.zeros_like(W)
    return n, lambda g: g[:, :, None] * unit


def keep_largest(keys, n):
    order = np.argsort(-keys.ravel(), kind="stable")[:n]
    mask = np.zeros(keys.size, bool)
    mask[order] = keys.ravel()[order] > 0
    return mask.reshape(keys.shape)


def loss_and_gradient(p, x, *, activation, kind, k, l1=0.0, aux=0.0, dead=None, squared=False):
    """Returns the loss, its gradient, and which latents fired. Groups G: 1, or M if decoupled."""
    B, M, D = x.shape
    N, pull = norms_and_gradient(p["W_dec"], kind)
    G = N.shape[1]
    pre = np.einsum("bmd,mdl->bl", x, p["W_enc"]) + p["b_enc"]
    f = np.maximum(pre, 0)
    keys = f[:, None, :] * N.T[None]  # [B, G, L]
    if activation == "relu":
        keep = np.broadcast_to(f[:, None, :] > 0, keys.shape)
    elif activation == "topk":
        keep = np.stack([np.stack([keep_largest(row, round(k)) for row in b]) for b in keys])
    else:
        keep = np.stack([keep_largest(keys[:, g], round(k * B)) for g in range(G)], axis=1)
    a = np.broadcast_to(f[:, None, :] * keep, (B, G, len(N)))
    a = np.broadcast_to(a, (B, M, len(N))) if G == 1 else a
    error = x - np.einsum("bml,lmd->bmd", a, p["W_dec"]) - p["b_dec"]
    size = np.sqrt((error**2).sum(-1))
    value = (size**2).mean() if squared else size.mean()
    if squared:
        g_out = -2 * error / (B * M)
    else:
        g_out = -error / np.where(size > 0, size, 1)[..., None] / (B * M)
    grad = {"b_dec": g_out.sum(0), "W_dec": np.einsum("bml,bmd->lmd", a, g_out)}
    g_a = np.einsum("bmd,lmd->bml", g_out, p["W_dec"])
    g_f = (g_a * keep).sum(1)
    if activation == "relu":
        value += l1 * (keys * keep).sum() / B
        g_f = g_f + l1 / B * (N.T[None] * keep).sum(1)
        grad["W_dec"] = grad["W_dec"] + pull(l1 / B * (f[:, None] * keep).sum(0).T)
    elif aux and dead.any():
        keys_dead = np.where(dead, keys, 0)
        limit = min(D // 2, int(dead.sum()))
        chosen = np.stack([np.stack([keep_largest(r, limit) for r in b]) for b in keys_dead])
        a_dead = np.broadcast_to(f[:, None] * chosen, (B, M, len(N)))
        missed = error - np.einsum("bml,lmd->bmd", a_dead, p["W_dec"])
        energy = ((error - error.mean(0)) ** 2).sum()
        value += aux * (missed**2).sum() / energy
        g_guess = -2 * aux * missed / energy
        grad["W_dec"] = grad["W_dec"] + np.einsum("bml,bmd->lmd", a_dead, g_guess)
        g_f = g_f + (np.einsum("bmd,lmd->bml", g_guess, p["W_dec"]) * chosen).sum(1)
    g_pre = g_f * (pre > 0)
    grad["W_enc"] = np.einsum("bmd,bl->mdl", x, g_pre)
    grad["b_enc"] = g_pre.sum(0)
    return value, grad, keep.any(axis=(0, 1))


def adam(p, grads, *, lr, warmup, clip):
    """Returns the parameters after clipped Adam steps with linear warm-up; `grads` maps p to g."""
    m = {n: np.zeros_like(p[n]) for n in NAMES}
    v = {n: np.zeros_like(p[n]) for n in NAMES}
    for t, gradient in enumerate(grads, 1):
        g = gradient(p)
        norm = np.sqrt(sum((g[n] ** 2).sum() for n in NAMES))
        rate = lr * min(t / warmup, 1)
        new = {}
        for n in NAMES:
            c = g[n] * min(1, clip / norm)
            m[n] = 0.9 * m[n] + 0.1 * c
            v[n] = 0.999 * v[n] + 0.001 * c**2
            step = (m[n] / (1 - 0.9**t)) / (np.sqrt(v[n] / (1 - 0.999**t)) + 1e-8)
            new[n] = p[n] - rate * step
        p = new
    return p
