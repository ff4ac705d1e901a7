"""Stage 4: one results.json, and the page that shows it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from jaxdiff import __version__, manifest, models
from jaxdiff import report as pages
from jaxdiff.activations import Store
from jaxdiff.config import RunConfig
from jaxdiff.pipeline import inputs
from jaxdiff.pipeline._diff import NAME, behaviours
from jaxdiff.pipeline.layout import (
    SPLITS,
    diff_folder,
    harvest_folder,
    pairs,
    report_folder,
    results_file,
    train_folder,
)
from jaxdiff.progress import log
from jaxdiff.types import Role


def report(config: RunConfig) -> Path:
    """Writes `results.json` with every number of a run, and the HTML page made from it.

    Args:
        config: The run; all earlier stages must be complete.

    Returns:
        The page.

    Raises:
        JaxdiffError: If an earlier stage is missing or damaged.
    """
    results = collect(config)
    folder = report_folder(config)
    data = json.dumps(results, indent=1, allow_nan=False).encode()
    read = {"results": manifest.fingerprint("results", config=results, inputs={}, seed=0)}
    with manifest.stage(folder, "report", config={}, inputs=read, seed=config.seed) as work:
        if work is None:
            log("report: done already")
        elif jax.process_index() == 0:
            manifest.write_atomically(results_file(config), data)
            pages.write(results, work)
    return folder / "index.html"


def collect(config: RunConfig) -> dict[str, Any]:
    """Reads the results of all stages of a run into one document (see `jaxdiff.report.check`)."""
    stages = _stages(config)
    diffs = {
        pair: {
            name: json.loads((diff_folder(config, pair, name) / NAME).read_text())
            for name in config.dictionaries
        }
        for pair in pairs(config)
    }
    harvested = stages["main/harvest/test"]
    return {
        "jaxdiff": __version__,
        "created": max(stage.created for stage in stages.values()),
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
                for name, stage in stages.items()
            },
            "seconds": sum(stage.seconds for stage in stages.values()),
        },
        "pair": {"base": config.models.base, "ft": config.models.ft},
        "null_pair": None
        if config.null_pair is None
        else {"base": config.null_pair.base, "ft": config.null_pair.ft},
        "site": config.site,
        "roles": [role.name.lower() for role in Role],
        "behaviours": [asdict(b) for b in behaviours(config)],
        "data": _data(config),
        "dictionaries": diffs["main"],
        "null": diffs.get("null"),
    }


def _stages(config: RunConfig) -> dict[str, manifest.Manifest]:
    splits = SPLITS if config.harvest.mode == "store" else SPLITS[1:]
    found = {}
    for pair in pairs(config):
        for split in splits:
            found[f"{pair}/harvest/{split}"] = manifest.read(harvest_folder(config, pair, split))
        for name in config.dictionaries:
            found[f"{pair}/train/{name}"] = manifest.read(train_folder(config, pair, name))
            found[f"{pair}/diff/{name}"] = manifest.read(diff_folder(config, pair, name))
    return found


def _model(name: str, fingerprint: str) -> dict[str, Any]:
    spec = models.load_spec(inputs.resolve(name))
    return {
        "path": name,
        "fingerprint": fingerprint,
        "parameters": models.parameters(spec),
        "architecture": spec.architecture,
    }


def _data(config: RunConfig) -> dict[str, Any]:
    counts = {}
    for split in SPLITS:
        folder = harvest_folder(config, "main", split)
        if folder.exists():
            store = Store.open(folder)
            mask = store.column("mask")
            counts[split] = {
                "sequences": int(len(set(store.column("sequences").tolist()))),
                "tokens": int(store.rows),
                "masked": int((~mask).sum()),
            }
        else:
            counts[split] = {"sequences": 0, "tokens": 0, "masked": 0}
    return counts
