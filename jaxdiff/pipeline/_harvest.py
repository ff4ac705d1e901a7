"""Stage 1: activations of both models of every pair, on every split of the text."""

import jax

from jaxdiff import manifest, text
from jaxdiff.activations import StreamSource, write_store
from jaxdiff.activations import harvest as harvest_rows
from jaxdiff.config import PairConfig, RunConfig
from jaxdiff.mesh import make_mesh
from jaxdiff.pipeline import inputs
from jaxdiff.pipeline.layout import SPLITS, harvest_folder, pairs
from jaxdiff.progress import log, progress


def harvest(config: RunConfig) -> None:
    """Writes one store for each pair and split; in stream mode, the train split is left out.

    Args:
        config: The run.

    Raises:
        JaxdiffError: If models, text or site cannot be used, or the disk is full.
    """
    splits = SPLITS if config.harvest.mode == "store" else SPLITS[1:]
    for name, pair in pairs(config).items():
        read = inputs.fingerprints(config, pair)
        for split in splits:
            _harvest_split(config, name, pair, split, read)


def _harvest_split(
    config: RunConfig, name: str, pair: PairConfig, split: str, read: dict[str, str]
) -> None:
    folder = harvest_folder(config, name, split)
    decides = settings(config, pair, split)
    with manifest.stage(folder, "harvest", config=decides, inputs=read, seed=config.seed) as work:
        if work is None:
            log(f"harvest {name}/{split}: done already")
            return
        mesh = make_mesh(config.mesh.data, config.mesh.latent)
        start, stop = text.splits(inputs.resolve_text(config))[split]
        rows = harvest_rows(
            inputs.load_pair(pair, mesh),
            token_batches(config, pair, start, stop),
            config.site,
            config=config.harvest,
            mesh=mesh,
        )
        with progress(f"harvest {name}/{split}", stop - start, "documents") as advance:
            write_store(work, rows, config=config.harvest, advance=advance)


def settings(config: RunConfig, pair: PairConfig, split: str) -> dict:
    """Returns what decides the rows of a split, beside the inputs."""
    return {
        "split": split,
        "site": config.site,
        "text": config.text.model_dump(mode="json", exclude={"sources": {"__all__": {"path"}}}),
        "harvest": config.harvest.model_dump(mode="json"),
        "dtype": pair.dtype,
        "base_token_map": pair.base_token_map,
    }


def stream(config: RunConfig, pair: PairConfig) -> StreamSource:
    """Returns a source that runs the models while a dictionary trains."""
    mesh = make_mesh(config.mesh.data, config.mesh.latent)
    start, stop = text.splits(inputs.resolve_text(config))["train"]
    rows = token_batches(config, pair, start, stop)
    loaded = inputs.load_pair(pair, mesh)
    return StreamSource(loaded, rows, config.site, config=config.harvest, mesh=mesh)


def token_batches(config: RunConfig, pair: PairConfig, start: int, stop: int):
    """Returns this process's shard of a range of documents."""
    settings = inputs.resolve_text(config)
    return text.batches(
        settings.sources,
        inputs.load_tokenizer(pair),
        context=settings.context,
        batch=config.harvest.batch // jax.process_count(),
        pack=settings.pack,
        seed=config.seed,
        start=start,
        stop=stop,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
    )
