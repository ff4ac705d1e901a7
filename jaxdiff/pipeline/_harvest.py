"""Stage 1: activations of both models of every pair, on every split of the text."""

import jax

from jaxdiff import text
from jaxdiff.activations import StreamSource, write_store
from jaxdiff.activations import harvest as harvest_rows
from jaxdiff.config import PairConfig, RunConfig
from jaxdiff.errors import JaxdiffError
from jaxdiff.mesh import make_mesh
from jaxdiff.pipeline import inputs
from jaxdiff.pipeline.plan import Stage, pairs, plan
from jaxdiff.progress import log, progress


def harvest(config: RunConfig) -> None:
    """Writes one store for each pair and split; in stream mode, the train split is left out.

    Args:
        config: The run.

    Raises:
        JaxdiffError: If models, text or site cannot be used, or the disk is full.
    """
    for stage in plan(config).values():
        if stage.kind == "harvest":
            _harvest_split(config, stage)


def _harvest_split(config: RunConfig, stage: Stage) -> None:
    with stage.work() as work:
        if work is None:
            log(f"{stage.name}: done already")
            return
        mesh = make_mesh(config.mesh.data, config.mesh.latent)
        pair = pairs(config)[stage.pair]
        start, stop = stage.config["documents"]
        batches = _token_batches(config, pair, start, stop)
        rows = harvest_rows(
            inputs.load_pair(pair, mesh),
            batches,
            config.site,
            config=config.harvest,
            mesh=mesh,
        )
        with progress(stage.name, stop - start, "documents") as advance:
            write_store(work, rows, config=config.harvest, advance=advance)


def stream(config: RunConfig, pair: PairConfig) -> StreamSource:
    """Returns a source that runs the models while a dictionary trains."""
    mesh = make_mesh(config.mesh.data, config.mesh.latent)
    start, stop = text.splits(inputs.resolve_text(config))["train"]
    rows = _token_batches(config, pair, start, stop)
    loaded = inputs.load_pair(pair, mesh)
    return StreamSource(loaded, rows, config.site, config=config.harvest, mesh=mesh)


def _token_batches(config: RunConfig, pair: PairConfig, start: int, stop: int):
    """Returns this process's shard of a range of documents."""
    batch, processes = config.harvest.batch, jax.process_count()
    if batch % processes:
        raise JaxdiffError(
            f"{batch} rows of text cannot be shared by {processes} processes",
            where="harvest.batch",
            fix=f"make it a multiple of {processes}",
        )
    settings = inputs.resolve_text(config)
    return text.batches(
        settings.sources,
        inputs.load_tokenizer(pair),
        context=settings.context,
        batch=batch // processes,
        pack=settings.pack,
        seed=config.seed,
        start=start,
        stop=stop,
        shard_index=jax.process_index(),
        shard_count=processes,
    )
