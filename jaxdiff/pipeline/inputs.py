"""What a run reads: models, tokenizer and corpora, with `organism:` names made into paths."""

import json
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdiff import manifest, models, organisms, text
from jaxdiff.activations import ModelPair
from jaxdiff.config import PairConfig, RunConfig, SourceConfig, TextConfig
from jaxdiff.text import Tokenizer

PREFIX = "organism:"


def resolve(name: str) -> str:
    """Returns the folder of `organism:NAME/MODEL`; any other name as it is."""
    return str(organisms.path(name.removeprefix(PREFIX))) if name.startswith(PREFIX) else name


def resolve_text(config: RunConfig) -> TextConfig:
    """Returns the text settings with every `organism:NAME/CORPUS` as a file.

    The corpora of an organism are generated into the run's folder, once.
    """
    sources = tuple(_resolve_source(source, config.out) for source in config.text.sources)
    return config.text.model_copy(update={"sources": sources})


def load_pair(pair: PairConfig, mesh: Mesh) -> ModelPair:
    """Loads both models to the mesh."""
    dtype = jnp.dtype(pair.dtype)
    both = tuple(
        models.load(resolve(name), dtype=dtype, mesh=mesh) for name in (pair.base, pair.ft)
    )
    return ModelPair(both, base_token_map=pair.base_token_map)


def load_tokenizer(pair: PairConfig) -> Tokenizer:
    """Loads the tokenizer that has the chat template."""
    return text.load_tokenizer(resolve(pair.tokenizer or pair.ft))


def fingerprints(config: RunConfig, pair: PairConfig) -> dict[str, str]:
    """Returns the fingerprints of all that a harvest reads."""
    tokenizer = load_tokenizer(pair)
    state = json.dumps([tokenizer.get_vocab(), tokenizer.chat_template], sort_keys=True)
    return {
        "base": models.fingerprint(resolve(pair.base)),
        "ft": models.fingerprint(resolve(pair.ft)),
        "tokenizer": manifest.fingerprint("tokenizer", config={}, inputs={"state": state}, seed=0),
        "text": text.fingerprint(resolve_text(config).sources),
    }


def _resolve_source(source: SourceConfig, out: Path) -> SourceConfig:
    if not source.path.startswith(PREFIX):
        return source
    organism, corpus = source.path.removeprefix(PREFIX).split("/", 1)
    folder = out / "corpus" / organism
    inputs = {"grammar": organisms.fingerprint(organism)}
    with manifest.stage(folder, "corpus", config={}, inputs=inputs, seed=0) as work:
        if work is not None:
            organisms.write_corpora(organism, work)
    return source.model_copy(update={"path": str(folder / f"{corpus}.jsonl")})
