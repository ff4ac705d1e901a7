"""Stage 3: what every dictionary says about its pair."""

import json

import jax

from jaxdiff import manifest, organisms, text
from jaxdiff.activations import Store
from jaxdiff.config import RunConfig
from jaxdiff.diffing import Behaviour
from jaxdiff.diffing import diff as diff_models
from jaxdiff.mesh import make_mesh, own_mesh
from jaxdiff.pipeline import inputs
from jaxdiff.pipeline.plan import Stage, pairs, plan
from jaxdiff.progress import log
from jaxdiff.training import read_result

NAME = "diff.json"


def diff(config: RunConfig) -> None:
    """Measures each trained dictionary on the held-out test split of its pair.

    Of several processes each measures all of it on its own devices, which takes no longer than if
    the others waited for one; the first one writes.

    Args:
        config: The run; harvest and training must be complete.

    Raises:
        JaxdiffError: If a store or a dictionary is missing or damaged.
    """
    stages = plan(config)
    for stage in stages.values():
        if stage.kind == "diff":
            _diff_one(config, stages, stage)


def behaviours(config: RunConfig) -> tuple[Behaviour, ...]:
    """Returns what is known to differ in the main pair; empty unless it is an organism."""
    if not config.models.ft.startswith(inputs.PREFIX):
        return ()
    organism, _ = inputs.split_name(config.models.ft)
    return tuple(
        Behaviour(id=i, name=b.name, kind=b.kind, description=b.description)
        for i, b in enumerate(organisms.behaviours(organism), start=1)
    )


def _diff_one(config: RunConfig, stages: dict[str, Stage], stage: Stage) -> None:
    trained = stages[f"{stage.pair}/train/{stage.what}"]
    test = stages[f"{stage.pair}/harvest/test"]
    trained.finished()
    test.finished()
    with stage.work() as work:
        if work is None:
            log(f"{stage.name}: done already")
            return
        log(stage.name)
        result = read_result(trained.folder)
        alone = jax.process_count() == 1
        found = diff_models(
            result.dictionary,
            Store.open(test.folder),
            normalization=result.normalization,
            config=config.diff,
            behaviours=behaviours(config),
            seed=config.seed,
            mesh=make_mesh(config.mesh.data, config.mesh.latent) if alone else own_mesh(),
        )
        tokenizer = inputs.load_tokenizer(pairs(config)[stage.pair])
        words = text.describe(tokenizer, range(len(tokenizer)))
        content = found.to_json(words.__getitem__) | {
            "l0_validation": result.evaluation.l0,
            "l1_weight": result.l1_weight,
            "training": {
                "steps": result.steps,
                "tokens": result.tokens,
                "history": [
                    {key: line[key] for key in ("step", "loss", "l0", "dead")}
                    | {"fve": line["fve_all"]}
                    for line in result.history
                ],
            },
        }
        if jax.process_index() == 0:
            data = json.dumps(content, allow_nan=False).encode()
            manifest.write_atomically(work / NAME, data)
