"""The estimate of a run: what its programs ask of a topology, and what to change."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from jaxdiff.config import DictionaryConfig, RunConfig
from jaxdiff.estimate import analytic, forward, programs
from jaxdiff.estimate.costs import Costs
from jaxdiff.estimate.sources import Sources, sources
from jaxdiff.estimate.stage import HARVEST, Stage, stage, training
from jaxdiff.estimate.steps import assume
from jaxdiff.estimate.together import Pass, together
from jaxdiff.estimate.topology import Topology, make_mesh, split
from jaxdiff.mesh import DATA, LATENT
from jaxdiff.training.compiled import check_mesh


@dataclass(frozen=True)
class Estimate:
    """What a run costs on a topology.

    Attributes:
        topology: The hardware.
        mesh: Devices along `data` and `latent`.
        compiled: Whether the hardware's own compiler said so, or an analytical model.
        stages: `harvest`, and `train NAME` for each dictionary.
        passes: Stages that share the devices: dictionaries that are trained in one pass over the
            activations, and the models where they run meanwhile.
    """

    topology: Topology
    mesh: tuple[int, int]
    compiled: bool
    stages: dict[str, Stage]
    passes: list[Pass]

    def to_json(self) -> dict[str, Any]:
        """Returns all numbers, in bytes, operations and seconds, as plain values."""
        return {
            "topology": self.topology.name,
            "chip": dataclasses.asdict(self.topology.chip),
            "chips": self.topology.chips,
            "devices": self.topology.devices,
            "mesh": {"data": self.mesh[0], "latent": self.mesh[1]},
            "method": "compiler" if self.compiled else "analytical model",
            "stages": {
                name: {
                    **dataclasses.asdict(found.costs),
                    "roofline": dataclasses.asdict(found.times),
                    "bound": found.times.bound,
                    "step_seconds": found.times.seconds,
                    "tokens_per_second": found.tokens_per_second,
                    "start": found.start,
                    "fits": found.fits,
                    "advice": list(found.advice),
                    "step": None if found.step is None else dataclasses.asdict(found.step),
                }
                for name, found in self.stages.items()
            },
            "passes": [
                {**dataclasses.asdict(one), "tokens_per_second": one.tokens_per_second}
                for one in self.passes
            ],
        }


def estimate(config: RunConfig, topology: Topology, *, width: int | None = None) -> Estimate:
    """Returns what a run's programs ask of each device of a topology.

    With the hardware's compiler (libtpu) installed, the programs are compiled for it, which needs
    none of the hardware; else an analytical model stands in.

    Args:
        config: The run. Of its models only config.json is read.
        topology: The hardware.
        width: D of the activations, when the models' config cannot be read: the harvest is then
            left out.

    Raises:
        JaxdiffError: If the mesh does not fit the topology or the run, models, sites and
            dictionaries do not fit together, or no model's config can be read and no width is
            given.
    """
    sizes = split(topology, config.mesh)
    mesh = make_mesh(topology, sizes) if topology.compiled else None
    for own in config.dictionaries.values():
        check_mesh(own, config.train, mesh or AbstractMesh(sizes, (DATA, LATENT)))
    given = sources(config, width)
    stages: dict[str, Stage] = {}
    if given.specs:
        costs = forward.harvest_costs(config, given, sizes)
        if mesh is not None:
            costs = _checked(programs.harvest_costs(config, given, mesh), costs)
        stages[HARVEST] = stage(costs, topology.chip, _idle(config, topology.devices))
    for name, own in config.dictionaries.items():
        stages[training(name)] = _train(own, config, given, topology, sizes, mesh)
    passes = together(config, stages, topology.chip.room)
    return Estimate(topology, sizes, mesh is not None, stages, passes)


def _train(
    own: DictionaryConfig,
    config: RunConfig,
    given: Sources,
    topology: Topology,
    sizes: tuple[int, int],
    mesh: Mesh | None,
) -> Stage:
    shape, dtype = given.of(own)
    chip, asked = topology.chip, (shape, dtype)
    step = assume(own, config.train, *asked, sizes, chip)
    train = config.train.model_copy(update={"step": step.name})
    costs = analytic.train_costs(own, train, *asked, sizes, chip)
    if mesh is not None:
        compiled = programs.train_costs(own, train, *asked, mesh)
        costs = _checked(compiled, costs, follows_data=step.name == "sparse")
    return stage(costs, chip, step.why, step)


def _checked(compiled: Costs, model: Costs, *, follows_data: bool = False) -> Costs:
    """Returns the compiler's costs; the model's where the compiler refuses the program.

    Of a program whose work follows the data a compiler cannot count it: it takes lists for full,
    also where each of many devices has a part of the entries, and loops for run once. There
    operations and bytes are those of the model. So is what crosses devices where the program cannot
    be read.
    """
    if compiled.fault is not None:
        return dataclasses.replace(model, fault=compiled.fault)
    if compiled.collectives is None:
        compiled = dataclasses.replace(compiled, collectives=model.collectives)
    if follows_data:
        counts = {name: getattr(model, name) for name in ("flops", "bytes", "counted")}
        return dataclasses.replace(compiled, **counts, optimal_seconds=None)
    return compiled


def _idle(config: RunConfig, devices: int) -> tuple[str, ...]:
    rows = config.harvest.batch
    if rows % devices == 0:
        return ()
    used = rows / programs.harvest_rows(config, devices)
    better = math.ceil(rows / devices) * devices
    return (f"harvest.batch = {rows} rows fill {used:.0%} of {devices} devices; {better} fill all",)
