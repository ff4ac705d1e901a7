"""What a torch model of transformers computes at every site, with gradients; needs torch.

Everything is read off transformers' own code while it runs: by hooks on modules, and by wrapping
the two functions that its attention calls. Only the scores, which that code does not return, and
the rows of experts, which it computes grouped, are computed here; both are checked against it.
"""

import contextlib
import sys
from unittest import mock

import torch

_LLAMA = dict(
    base="model",
    embed="embed_tokens",
    layers="layers",
    final="norm",
    attn="self_attn",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    attn_post_norm="",
    mlp_post_norm="",
    gate="gate_proj",
    up="up_proj",
    down="down_proj",
)
_SANDWICH = _LLAMA | dict(
    mlp_norm="pre_feedforward_layernorm",
    attn_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)
NAMES = {
    "gpt2": _LLAMA
    | dict(
        base="transformer",
        embed="wte",
        positions="wpe",
        layers="h",
        final="ln_f",
        attn="attn",
        attn_norm="ln_1",
        mlp_norm="ln_2",
        gate="",
        up="c_fc",
        down="c_proj",
    ),
    "gpt_neox": _LLAMA
    | dict(
        base="gpt_neox",
        embed="embed_in",
        final="final_layer_norm",
        attn="attention",
        gate="",
        up="dense_h_to_4h",
        down="dense_4h_to_h",
    ),
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
    "gemma3": _SANDWICH | dict(base="model.language_model"),
    "olmo2": _SANDWICH | dict(attn_norm="", mlp_norm=""),
    "phi3": _LLAMA | dict(gate="", up="gate_up_proj"),
}


def record(model, ids):
    """Runs a model and returns what it computes at every site, by jaxdiff's names."""
    return {site: view(value.detach()).clone() for site, (value, view) in _run(model, ids).items()}


def gradients(model, ids, parts):
    """Returns the gradient of the mean log-probability of the next tokens at sites.

    Args:
        model: The model.
        ids: Tokens.
        parts: Sites of every block, like `attn.q`.
    """
    found = _run(model, ids)
    wanted = {site: kept for site, kept in found.items() if site.split(".", 2)[-1] in parts}
    log_probs = torch.log_softmax(found["logits"][0], -1)[:, :-1]
    loss = log_probs.gather(-1, ids[:, 1:, None]).mean()
    grads = torch.autograd.grad(loss, [value for value, _ in wanted.values()])
    views = [view for _, view in wanted.values()]
    return {site: view(g) for site, view, g in zip(wanted, views, grads, strict=True)}


def _run(model, ids):
    """Returns site -> (tensor of the graph, function that puts it into jaxdiff's shape)."""
    names = NAMES.get(model.config.model_type, _LLAMA)
    base = model.get_submodule(names["base"])
    layers = base.get_submodule(names["layers"])
    found = {}

    def keep(site, value, view=lambda value: value):
        found[site] = (value, view)

    with contextlib.ExitStack() as stack:
        _hook(stack, base.get_submodule(names["embed"]), None, lambda out: keep("embed", out))
        if "positions" in names:
            learned = base.get_submodule(names["positions"])
            shape = (*ids.shape, learned.embedding_dim)
            view = lambda value: value.expand(shape)  # noqa: E731
            _hook(stack, learned, None, lambda out: keep("pos_embed", out, view))
        for i, layer in enumerate(layers):
            _hook_layer(stack, layer, names, f"blocks.{i}", model.config, ids.shape, keep)
        _wrap_attention(stack, model, keep)
        _hook(stack, base.get_submodule(names["final"]), None, lambda out: keep("final_norm", out))
        keep("logits", model(ids, use_cache=False).logits)
    return found


def _hook_layer(stack, layer, names, at, config, shape, keep):
    def on(name, before=None, after=None):
        if name:
            _hook(stack, layer.get_submodule(name) if name != "." else layer, before, after)

    parallel = getattr(config, "use_parallel_residual", False)
    pre_norms = bool(names["attn_norm"])

    def read_attn(x):
        keep(f"{at}.attn.in", x)
        if not pre_norms:
            keep(f"{at}.attn_in", x)

    def read_mlp(x):
        keep(f"{at}.mlp.in", x)
        if not pre_norms:
            mid(x)

    def mid(x):
        keep(f"{at}.mlp_in", x)
        if not parallel:
            keep(f"{at}.resid_mid", x)

    on(".", lambda x: keep(f"{at}.resid_pre", x), lambda out: keep(f"{at}.resid_post", out))
    on(names["attn_norm"], lambda x: keep(f"{at}.attn_in", x))
    on(names["mlp_norm"], mid)
    post = names["attn_post_norm"], names["mlp_post_norm"]
    raw = [
        f"{at}.{part}" for part in (("attn.out", "mlp.out") if post[0] else ("attn_out", "mlp_out"))
    ]
    on(names["attn"], read_attn, lambda out: keep(raw[0], out))
    on("mlp", read_mlp, lambda out: keep(raw[1], out))
    on(post[0], None, lambda out: keep(f"{at}.attn_out", out))
    on(post[1], None, lambda out: keep(f"{at}.mlp_out", out))
    mlp = layer.mlp
    if hasattr(mlp, "experts"):
        _hook_experts(stack, mlp, at, shape, keep)
        return
    if names["gate"]:
        on(f"mlp.{names['gate']}", None, lambda out: keep(f"{at}.mlp.pre", out))
        on(f"mlp.{names['up']}", None, lambda out: keep(f"{at}.mlp.up", out))
    elif config.model_type == "phi3":
        first, second = (lambda x: x.chunk(2, -1)[0]), (lambda x: x.chunk(2, -1)[1])

        def both(out):
            keep(f"{at}.mlp.pre", out, first)
            keep(f"{at}.mlp.up", out, second)

        on(f"mlp.{names['up']}", None, both)
    else:
        on(f"mlp.{names['up']}", None, lambda out: keep(f"{at}.mlp.pre", out))
    on(f"mlp.{names['down']}", lambda x: keep(f"{at}.mlp.post", x))


def _hook_experts(stack, mlp, at, shape, keep):
    def by_token(value):
        return value.reshape(*shape, *value.shape[1:])

    _hook(stack, mlp.gate, None, lambda out: keep(f"{at}.mlp.router", out, by_token))
    grouped = mlp.experts.forward

    def one_by_one(x, chosen, weights):
        both = torch.einsum("rkhd,rd->rkh", mlp.experts.gate_up_proj[chosen], x)
        gate, up = both.chunk(2, -1)
        post = mlp.experts.act_fn(gate) * up
        for name, value in (("pre", gate), ("up", up), ("post", post)):
            keep(f"{at}.mlp.{name}", value, by_token)
        out = torch.einsum("rkdh,rkh->rkd", mlp.experts.down_proj[chosen], post)
        out = torch.einsum("rkd,rk->rd", out, weights)
        torch.testing.assert_close(out, grouped(x, chosen, weights), atol=1e-5, rtol=1e-5)
        return out

    stack.enter_context(mock.patch.object(mlp.experts, "forward", one_by_one))


def _wrap_attention(stack, model, keep):
    """Wraps the functions of the model's file that rotate and that compute attention."""
    file = sys.modules[type(model).__module__]
    rotate, attend = getattr(file, "apply_rotary_pos_emb", None), file.eager_attention_forward
    layers, heads_last = iter(range(10**6)), lambda value: value.transpose(1, 2)

    def rotated(q, k, *args, **kwargs):
        i = next(layers)
        keep(f"blocks.{i}.attn.q", q, heads_last)
        keep(f"blocks.{i}.attn.k", k, heads_last)
        return rotate(q, k, *args, **kwargs)

    def attended(module, q, k, v, mask, scaling=None, softcap=None, **kwargs):
        at = f"blocks.{module.layer_idx}.attn"
        if rotate is None:
            keep(f"{at}.q", q, heads_last)
            keep(f"{at}.k", k, heads_last)
        keep(f"{at}.v", v, heads_last)
        extra = {} if softcap is None else dict(softcap=softcap)
        z, pattern = attend(module, q, k, v, mask, scaling=scaling, **extra, **kwargs)
        scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2) * scaling
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        torch.testing.assert_close(torch.softmax(scores + mask, -1), pattern)
        keep(f"{at}.scores", scores)
        keep(f"{at}.pattern", pattern)
        keep(f"{at}.z", z)
        return z, pattern

    stack.enter_context(mock.patch.object(file, "eager_attention_forward", attended))
    if rotate is not None:
        stack.enter_context(mock.patch.object(file, "apply_rotary_pos_emb", rotated))


def _hook(stack, module, before, after):
    """Calls `before(first argument)` and `after(output, or its first part)`."""

    def pre(module, args, kwargs):
        before(args[0] if args else kwargs["hidden_states"])

    def post(module, args, output):
        after(output[0] if isinstance(output, tuple) else output)

    if before is not None:
        stack.callback(module.register_forward_pre_hook(pre, with_kwargs=True).remove)
    if after is not None:
        stack.callback(module.register_forward_hook(post).remove)
