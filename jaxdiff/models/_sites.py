"""Names of the places in a model where activations can be read and changed."""

import difflib
import fnmatch
import re
from collections.abc import Iterator
from functools import lru_cache

from jaxdiff.errors import JaxdiffError
from jaxdiff.models._lm import LM
from jaxdiff.models.spec import ModelConfig

Shape = tuple[str | int, ...]
"""Axes of a site's value: B rows, T positions, S positions of keys; the others are numbers."""

HEADS = {"attn.q": 2, "attn.k": 2, "attn.v": 2, "attn.scores": 1, "attn.pattern": 1, "attn.z": 2}
"""The axis that counts heads, by part of the block."""


def sites(model: LM | ModelConfig) -> dict[str, Shape]:
    """Returns every site of a model in the order of computation, with the shape of its value.

    `attn_in` and `mlp_in` are what attention and MLP read of the residual stream, `attn_out` and
    `mlp_out` what they add to it; `attn.in`, `attn.out`, `mlp.in` and `mlp.out` are what the
    modules themselves read and return, inside the norms that a model has there. `attn.q` and
    `attn.k` come before the rotation, `attn.scores` before the mask, `mlp.pre` before the
    nonlinearity. `attn_norm.scale` and the like are what a norm multiplies by, `1 / rms`, in
    float32: set to those of another run, they make the norm linear.
    """
    return dict(_sites(model.spec if isinstance(model, LM) else model))


def match(model: LM | ModelConfig, pattern: str) -> tuple[str, ...]:
    """Returns the sites whose names match a glob, like `blocks.[0-3].attn.*`.

    Raises:
        JaxdiffError: If there is none.
    """
    found = tuple(fnmatch.filter(sites(model), pattern))
    if not found:
        raise JaxdiffError(
            f"no site matches {pattern!r}", where="site", fix="`jaxdiff sites MODEL` lists them"
        )
    return found


@lru_cache(maxsize=4096)
def canonical_site(spec: ModelConfig, name: str) -> str:
    """Returns jaxdiff's name of a site that may be named as TransformerLens, nnterp or HF do.

    A `*` in place of the layer stands for all layers. Where a name of another library means a value
    that the model does not have (the raw output of a module that a norm follows is not what is
    added to the stream), it is no alias of one that is alike.

    Raises:
        JaxdiffError: If there is no such site; the message has the nearest names.
    """
    known = _sites(spec)
    for candidate in (name, *_translated(spec, name)):
        if candidate.replace(".*.", ".0.", 1) in known:
            return candidate
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    parts = ", ".join(n.removeprefix("blocks.0.") for n in known if n.startswith("blocks.0."))
    raise JaxdiffError(
        f"there is no site {name!r} in a {spec.architecture} of {spec.n_layers} layers",
        where="site",
        fix=f"nearest: {', '.join(near) or 'embed, blocks.0.resid_post'}; "
        f"blocks.0 to blocks.{spec.n_layers - 1} have {parts}",
    )


def whole_block(site: str) -> bool:
    """Returns whether a name is that of a block, which only `Skip` edits."""
    return re.fullmatch(r"blocks\.\d+", site) is not None


def layer_and_part(site: str) -> tuple[str, str]:
    """Splits `blocks.3.attn.q` into `3` and `attn.q`; the layer is empty outside of the blocks."""
    if not site.startswith("blocks."):
        return "", site
    _, layer, part = site.split(".", 2)
    return layer, part


@lru_cache(maxsize=64)
def _sites(spec: ModelConfig) -> dict[str, Shape]:
    stream: Shape = ("B", "T", spec.d_model)
    first = {"embed": stream} | ({} if spec.rope else {"pos_embed": stream})
    blocks = {
        f"blocks.{i}.{part}": shape
        for i in range(spec.n_layers)
        for part, shape in _block(spec, stream)
    }
    last: dict[str, Shape] = {"final_norm.scale": _SCALE, "final_norm": stream}
    return first | blocks | last | {"logits": ("B", "T", spec.vocab_size)}


_SCALE: Shape = ("B", "T", 1)


def _block(spec: ModelConfig, stream: Shape) -> Iterator[tuple[str, Shape]]:
    heads: Shape = ("B", "T", spec.n_heads, spec.head_dim)
    kv_heads: Shape = ("B", "T", spec.n_kv_heads, spec.head_dim)
    square: Shape = ("B", spec.n_heads, "T", "S")
    expert = (spec.experts_per_token,) if spec.experts else ()
    hidden: Shape = ("B", "T", *expert, spec.d_mlp)
    yield from (("resid_pre", stream), ("attn_in", stream))
    yield from (("attn_norm.scale", _SCALE),) * spec.pre_norms
    yield ("attn.in", stream)
    yield from (("attn.q", heads), ("attn.k", kv_heads), ("attn.v", kv_heads))
    yield from (("attn.scores", square), ("attn.pattern", square), ("attn.z", heads))
    yield from (("attn.out", stream), ("attn_post_norm.scale", _SCALE)) * spec.post_norms
    yield ("attn_out", stream)
    yield from (("resid_mid", stream),) * (not spec.parallel)
    yield ("mlp_in", stream)
    yield from (("mlp_norm.scale", _SCALE),) * spec.pre_norms
    yield ("mlp.in", stream)
    yield from (("mlp.router", ("B", "T", spec.experts)),) * bool(spec.experts)
    yield ("mlp.pre", hidden)
    yield from (("mlp.up", hidden),) * spec.gated
    yield ("mlp.post", hidden)
    yield from (("mlp.out", stream), ("mlp_post_norm.scale", _SCALE)) * spec.post_norms
    yield from (("mlp_out", stream), ("resid_post", stream))


def _translated(spec: ModelConfig, name: str) -> Iterator[str]:
    for pattern, part in _aliases(spec).items():
        found = re.fullmatch(pattern, name)
        if found:
            yield f"blocks.{found[1]}.{part}" if found.groups() else part


@lru_cache(maxsize=64)
def _aliases(spec: ModelConfig) -> dict[str, str]:
    """Returns pattern -> canonical name; a group is the layer, and the name is a part of it."""
    n = r"(\d+|\*)"
    hook = rf"blocks\.{n}\.hook_"
    layer = rf"(?:(?:model|transformer|gpt_neox)\.)?(?:layers|h)\.{n}"
    attn, mlp = rf"{layer}\.(?:self_attn|attn|attention)", rf"{layer}\.mlp"
    inner = rf"blocks\.{n}"
    raw_attn, raw_mlp = ("attn.out", "mlp.out") if spec.post_norms else ("attn_out", "mlp_out")
    read_attn, read_mlp = ("attn.in", "mlp.in")

    aliases = {
        r"hook_embed|embed\.hook_out|(?:model\.|gpt_neox\.)?embed_(?:tokens|in)"
        r"|(?:transformer\.)?wte|token_embeddings": "embed",
        r"hook_pos_embed|pos_embed\.hook_out|(?:transformer\.)?wpe": "pos_embed",
        r"(?:model\.)?norm|(?:transformer\.)?ln_f|(?:gpt_neox\.)?final_layer_norm|ln_final"
        r"|ln_final\.hook_out": "final_norm",
        layer: "resid_post",
        rf"layers_input\[{n}\]": "resid_pre",
        rf"layers_output\[{n}\]": "resid_post",
        rf"attentions_input\[{n}\]": read_attn,
        rf"attentions_output\[{n}\]": raw_attn,
        rf"mlps_input\[{n}\]": read_mlp,
        rf"mlps_output\[{n}\]": raw_mlp,
        rf"attention_probabilities\[{n}\]": "attn.pattern",
        hook + "in": "resid_pre",
        hook + "out": "resid_post",
        attn: raw_attn,
        mlp: raw_mlp,
        inner + r"\.attn\.hook_in": read_attn,
        inner + r"\.attn\.hook_out": raw_attn,
        inner + r"\.mlp\.hook_in": read_mlp,
        inner + r"\.mlp\.hook_out": raw_mlp,
        inner + r"\.attn\.hook_pattern": "attn.pattern",
        inner + r"\.mlp\.hook_pre": "mlp.pre",
        inner + r"\.mlp\.hook_pre_linear": "mlp.up",
        inner + r"\.mlp\.hook_post": "mlp.post",
        rf"{mlp}\.gate_proj": "mlp.pre",
        rf"{mlp}\.up_proj": "mlp.up" if spec.gated else "mlp.pre",
        rf"{mlp}\.(?:c_fc|dense_h_to_4h)": "mlp.pre",
    }
    stream = ("resid_pre", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")
    aliases |= {hook + part: part for part in stream}
    # Their queries and keys come before the norms that some models have there.
    same = "v" if spec.qk_norm else "qkv"
    aliases |= {inner + rf"\.attn\.hook_{part}": f"attn.{part}" for part in same + "z"}
    aliases |= {rf"{inner}\.attn\.{part}\.hook_out": f"attn.{part}" for part in same}
    if spec.post_norms:
        aliases[rf"{layer}\.post_attention_layernorm"] = "attn_out"
        aliases[rf"{layer}\.post_feedforward_layernorm"] = "mlp_out"
    if spec.pre_norms:
        aliases[rf"{layer}\.(?:input_layernorm|ln_1)"] = read_attn
        after = "pre_feedforward_layernorm" if spec.post_norms else "post_attention_layernorm|ln_2"
        aliases[rf"{layer}\.(?:{after})"] = read_mlp
    if not spec.logit_softcap:
        aliases[r"lm_head|embed_out|unembed\.hook_out"] = "logits"
    return aliases
