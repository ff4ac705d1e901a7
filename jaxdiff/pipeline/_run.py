"""All stages of a run, in order."""

import json
from pathlib import Path

import jax

from jaxdiff import report as pages
from jaxdiff.config import RunConfig
from jaxdiff.pipeline._diff import diff
from jaxdiff.pipeline._harvest import harvest
from jaxdiff.pipeline._report import RESULTS, report
from jaxdiff.pipeline._train import train
from jaxdiff.progress import log


def run(config: RunConfig) -> Path | None:
    """Harvests, trains, diffs and reports; what is complete is not done again.

    Args:
        config: The run.

    Returns:
        The HTML page; None where no dictionary can be diffed, which leaves what was trained.

    Raises:
        JaxdiffError: If anything given cannot be used; complete stages are kept.
    """
    harvest(config)
    train(config)
    if not any(map(config.compares, config.dictionaries)):
        log("no dictionary is of two models at one site: there is nothing to diff")
        return None
    diff(config)
    return report(config)


def summarize(config: RunConfig, page: Path | None) -> None:
    """Prints the short table of a finished run, and where its page is; the first process does."""
    from rich.console import Console

    if jax.process_index() != 0:
        return
    if page is None:
        print(f"dictionaries: {(config.out / 'main' / 'train').resolve()}")
        return
    results = json.loads((config.out / RESULTS).read_text())
    Console().print(pages.summary(results))
    print(f"report:  {page.resolve()}\nnumbers: {(config.out / RESULTS).resolve()}")
