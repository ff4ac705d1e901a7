"""What a run reads: models, tokenizer and corpora, with `organism:` names made into paths."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdiff import manifest, models, organisms, text
from jaxdiff.activations import ModelPair
from jaxdiff.config import PairConfig, RunConfig, SourceConfig, TextConfig
from jaxdiff.errors import JaxdiffError
from jaxdiff.text import Tokenizer

PREFIX = "organism:"


def split_name(name: str) -> tuple[str, str]:
    """Splits `organism:NAME/PART` into NAME and PART."""
    organism, slash, part = name.removeprefix(PREFIX).partition("/")
    if not slash:
        raise JaxdiffError(
            f"{name} names an organism, but no part of it",
            fix=f"for instance {PREFIX}chat-tiny/base, or {PREFIX}chat-tiny/plain for text",
        )
    organisms.check(organism)
    return organism, part


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
    """Loads the models to the mesh."""
    dtype = jnp.dtype(pair.dtype)
    names = (pair.base, pair.ft, *pair.others)
    loaded = tuple(models.load(resolve(name), dtype=dtype, mesh=mesh) for name in names)
    return ModelPair(loaded, base_token_map=pair.base_token_map)


def load_tokenizer(pair: PairConfig) -> Tokenizer:
    """Loads the tokenizer that has the chat template."""
    return text.load_tokenizer(resolve(pair.tokenizer or pair.ft))


def fingerprints(config: RunConfig, pair: PairConfig) -> dict[str, str]:
    """Returns the fingerprints of all that a harvest reads."""
    tokenizer = load_tokenizer(pair)
    _check_vocabularies(pair, tokenizer)
    state = json.dumps([tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template])
    others = {f"model {i}": models.fingerprint(resolve(n)) for i, n in enumerate(pair.others, 3)}
    return others | {
        "base": models.fingerprint(resolve(pair.base)),
        "ft": models.fingerprint(resolve(pair.ft)),
        "tokenizer": manifest.fingerprint("tokenizer", config={}, inputs={"state": state}, seed=0),
        "text": text.fingerprint(resolve_text(config).sources),
    }


def _check_vocabularies(pair: PairConfig, tokenizer: Tokenizer) -> None:
    """Refuses two models that read the same token id as different tokens.

    A model without tokenizer files is trusted.
    """
    for name in (pair.base, *pair.others):
        try:
            known = text.load_tokenizer(resolve(name)).get_vocab()
        except JaxdiffError:
            continue
        other = {t: i for t, i in tokenizer.get_vocab().items() if known.get(t, i) != i}
        if other:
            token, i = next(iter(other.items()))
            raise JaxdiffError(
                f"the models have different vocabularies: {len(other)} tokens have other ids, "
                f"for instance {token!r}, {known[token]} in {name} and {i} in the fine-tune",
                where=f"{name}, {pair.ft}",
                fix="compare a model with a fine-tune of itself",
            )


def _resolve_source(source: SourceConfig, out: Path) -> SourceConfig:
    if not source.path.startswith(PREFIX):
        return source
    organism, corpus = split_name(source.path)
    folder = out / "corpus" / organism
    inputs = {"grammar": organisms.fingerprint(organism)}
    with manifest.stage(folder, "corpus", config={}, inputs=inputs, seed=0) as work:
        if work is not None and jax.process_index() == 0:
            organisms.write_corpora(organism, work)
    return source.model_copy(update={"path": str(folder / f"{corpus}.jsonl")})
