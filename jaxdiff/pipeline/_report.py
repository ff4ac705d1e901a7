"""Stage 4: one results.json, and the page that shows it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from jaxdiff import __version__, manifest, models, organisms
from jaxdiff import report as pages
from jaxdiff.activations import Store
from jaxdiff.config import RunConfig
from jaxdiff.errors import JaxdiffError
from jaxdiff.pipeline import inputs
from jaxdiff.pipeline._diff import NAME, behaviours
from jaxdiff.pipeline.plan import SPLITS, Stage, pairs, plan
from jaxdiff.progress import log
from jaxdiff.types import Role

RESULTS = "results.json"


def report(config: RunConfig) -> Path:
    """Writes `results.json` with every number of a run, and the HTML page made from it.

    Args:
        config: The run; all earlier stages must be complete.

    Returns:
        The page.

    Raises:
        JaxdiffError: If an earlier stage is missing or damaged, or there is no diff to report.
    """
    if not any(map(config.compares, config.dictionaries)):
        raise JaxdiffError(
            "there is nothing to report: no dictionary is of two models at one site",
            where="dictionaries",
            fix="read what was trained with `jaxdiff.training.read_result`",
        )
    results = collect(config)
    folder, data = config.out / "report", json.dumps(results, indent=1, allow_nan=False).encode()
    read = {"results": manifest.fingerprint("results", config=results, inputs={}, seed=0)}
    with manifest.stage(folder, "report", config={}, inputs=read, seed=config.seed) as work:
        if work is None:
            log("report: done already")
        elif jax.process_index() == 0:
            pages.write(results, work)
    file = config.out / RESULTS
    if jax.process_index() == 0 and (not file.exists() or file.read_bytes() != data):
        manifest.write_atomically(file, data)
    return folder / "index.html"


def collect(config: RunConfig) -> dict[str, Any]:
    """Reads the results of all stages of a run into one document (see `jaxdiff.report.check`)."""
    stages = plan(config)
    made = {name: stage.finished() for name, stage in stages.items()}
    diffs = {
        pair: {
            name: json.loads((stages[f"{pair}/diff/{name}"].folder / NAME).read_text())
            for name in filter(config.compares, config.dictionaries)
        }
        for pair in pairs(config)
    }
    harvested = made["main/harvest/test"]
    return {
        "jaxdiff": __version__,
        "created": max(stage.created for stage in made.values()),
        "config": config.model_dump(mode="json"),
        "provenance": {
            "seed": config.seed,
            "versions": harvested.versions,
            "platform": jax.default_backend(),
            "devices": ", ".join(sorted({d.device_kind for d in jax.devices()}))
            + f" x {jax.device_count()}",
            "models": {
                side: _model(getattr(config.models, side), harvested.inputs[side])
                for side in ("base", "ft")
            },
            "stages": {
                name: {"fingerprint": stage.fingerprint, "seconds": stage.seconds}
                for name, stage in made.items()
            },
            "seconds": sum(stage.seconds for stage in made.values()),
        },
        "pair": {"base": config.models.base, "ft": config.models.ft},
        "null_pair": None
        if config.null_pair is None
        else {"base": config.null_pair.base, "ft": config.null_pair.ft},
        "site": config.site,
        "roles": [role.name.lower() for role in Role],
        "behaviours": [asdict(b) for b in behaviours(config)],
        "planting": organisms.PLANTING if behaviours(config) else None,
        "data": _data(stages),
        "dictionaries": diffs["main"],
        "null": diffs.get("null"),
    }


def _model(name: str, fingerprint: str) -> dict[str, Any]:
    path = inputs.resolve(name)
    spec = models.load_spec(path)
    return {
        "path": name,
        "fingerprint": fingerprint,
        "parameters": models.parameters(spec),
        "architecture": spec.architecture,
        "changes": models.load_report(path).changes,
    }


def _data(stages: dict[str, Stage]) -> dict[str, Any]:
    counts = {}
    for split in SPLITS:
        if stage := stages.get(f"main/harvest/{split}"):
            store = Store.open(stage.folder)
            counts[split] = {
                "sequences": int(store.documents),
                "tokens": int(store.rows),
                "masked": int(store.masked),
            }
    return counts
