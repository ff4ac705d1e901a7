"""Names of the places in a model where activations can be read."""

import difflib
import re

from jaxdiff.errors import JaxdiffError
from jaxdiff.models._lm import LM
from jaxdiff.models.spec import ModelConfig

PARTS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


def sites(model: LM | ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns every site of a model in the order of computation, with its shape at one position."""
    spec = model.spec if isinstance(model, LM) else model
    blocks = [f"blocks.{i}.{part}" for i in range(spec.n_layers) for part in PARTS]
    return {name: (spec.d_model,) for name in ["embed", *blocks, "final_norm"]} | {
        "logits": (spec.vocab_size,)
    }


def canonical_site(spec: ModelConfig, name: str) -> str:
    """Returns jaxdiff's name of a site that may be named as TransformerLens, nnterp or HF do.

    `attn_out` and `mlp_out` are what is added to the residual stream. Where a model normalises
    them first (Gemma 2), names of the raw module outputs are no aliases of them.

    Raises:
        JaxdiffError: If there is no such site; the message has the nearest names.
    """
    known = sites(spec)
    if name in known:
        return name
    for pattern, template in _aliases(spec).items():
        match = re.fullmatch(pattern, name)
        site = match and match.expand(template)
        if site in known:
            return site
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    raise JaxdiffError(
        f"there is no site {name!r} in a {spec.architecture} of {spec.n_layers} layers",
        where="site",
        fix=f"nearest: {', '.join(near) or 'embed, blocks.0.resid_post'}; "
        f"blocks.0 to blocks.{spec.n_layers - 1} have {', '.join(PARTS)}",
    )


def _aliases(spec: ModelConfig) -> dict[str, str]:
    """Returns pattern -> canonical name."""
    layer, hook = r"(?:model\.)?layers\.(\d+)", r"blocks\.(\d+)\.hook_"
    aliases = {
        hook + "(resid_pre|attn_out|resid_mid|mlp_out|resid_post)": r"blocks.\1.\2",
        hook + "in": r"blocks.\1.resid_pre",
        hook + "out": r"blocks.\1.resid_post",
        "hook_embed|embed.hook_out|(?:model.)?embed_tokens|token_embeddings": "embed",
        layer: r"blocks.\1.resid_post",
        r"layers_input\[(\d+)\]": r"blocks.\1.resid_pre",
        r"layers_output\[(\d+)\]": r"blocks.\1.resid_post",
        "model.norm|ln_final": "final_norm",
    }
    if spec.post_norms:
        aliases |= {
            layer + r"\.post_attention_layernorm": r"blocks.\1.attn_out",
            layer + r"\.post_feedforward_layernorm": r"blocks.\1.mlp_out",
        }
    else:
        aliases |= {
            layer + r"\.self_attn": r"blocks.\1.attn_out",
            layer + r"\.mlp": r"blocks.\1.mlp_out",
            r"attentions_output\[(\d+)\]": r"blocks.\1.attn_out",
            r"mlps_output\[(\d+)\]": r"blocks.\1.mlp_out",
        }
    return aliases if spec.logit_softcap else aliases | {"lm_head": "logits"}
