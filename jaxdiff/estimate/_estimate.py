"""The estimate of a run: what its programs ask of a topology, and what to change."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from jax.sharding import AbstractMesh

from jaxdiff import models
from jaxdiff.config import RunConfig
from jaxdiff.errors import JaxdiffError
from jaxdiff.estimate import analytic, programs
from jaxdiff.estimate.costs import Costs, Roofline, roofline
from jaxdiff.estimate.topology import Topology, make_mesh, split
from jaxdiff.mesh import DATA, LATENT
from jaxdiff.pipeline import inputs
from jaxdiff.training.compiled import check_mesh


@dataclass(frozen=True)
class Stage:
    """One program of a run.

    Attributes:
        costs: What it asks of one device.
        times: What the peak figures allow.
        fits: Whether it fits into a device's memory.
        advice: What to change: because it does not fit, or since devices idle.
    """

    costs: Costs
    times: Roofline
    fits: bool
    advice: tuple[str, ...]

    @property
    def memory(self) -> float:
        """Bytes in use on one device."""
        return sum(self.costs.memory.values())

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all devices in a second, at the roofline; 0 if the program is refused."""
        return self.costs.tokens / self.times.seconds if self.times.seconds else 0.0


@dataclass(frozen=True)
class Estimate:
    """What a run costs on a topology.

    Attributes:
        topology: The hardware.
        mesh: Devices along `data` and `latent`.
        compiled: Whether the hardware's own compiler said so, or an analytical model.
        stages: `harvest`, and `train NAME` for each dictionary.
    """

    topology: Topology
    mesh: tuple[int, int]
    compiled: bool
    stages: dict[str, Stage]

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
                    **dataclasses.asdict(stage.costs),
                    "roofline": dataclasses.asdict(stage.times),
                    "bound": stage.times.bound,
                    "step_seconds": stage.times.seconds,
                    "tokens_per_second": stage.tokens_per_second,
                    "fits": stage.fits,
                    "advice": list(stage.advice),
                }
                for name, stage in self.stages.items()
            },
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
        JaxdiffError: If the mesh does not fit the topology or the run, there are other sources
            than two models at one site, or no model's config can be read and no width is given.
    """
    if "," in config.site or config.models.others:
        raise JaxdiffError(
            "only runs of two models at one site are estimated",
            where="site",
            fix="give one --site and no models.others; more sources need more in proportion",
        )
    sizes = split(topology, config.mesh)
    mesh = make_mesh(topology, sizes) if topology.compiled else None
    for own in config.dictionaries.values():
        check_mesh(own, config.train, mesh or AbstractMesh(sizes, (DATA, LATENT)))
    stages: dict[str, Stage] = {}
    if width is None:
        specs = _specs(config)
        site = models.canonical_site(specs[0], config.site)
        width = specs[0].d_model
        costs = analytic.harvest_costs(config, specs, site, sizes)
        if mesh is not None:
            costs = _checked(programs.harvest_costs(config, specs, site, mesh), costs)
        stages["harvest"] = _stage(costs, topology, _idle(config, topology.devices))
    for name, own in config.dictionaries.items():
        sources = 1 if own.difference else 2
        asked = own, config.train, (sources, width), config.harvest.computed
        costs = analytic.train_costs(*asked, sizes)
        if mesh is not None:
            costs = _checked(programs.train_costs(*asked, mesh), costs)
        stages[f"train {name}"] = _stage(costs, topology)
    return Estimate(topology, sizes, mesh is not None, stages)


def _specs(config: RunConfig) -> tuple[models.ModelConfig, ...]:
    names = (config.models.base, config.models.ft)
    try:
        return tuple(models.load_spec(inputs.resolve(name)) for name in names)
    except JaxdiffError as error:
        raise JaxdiffError(
            f"the models' config cannot be read: {error.what}",
            where=error.where,
            fix="give --width, the width of their activations, to estimate training alone; or "
            + error.fix,
        ) from None


def _checked(compiled: Costs, model: Costs) -> Costs:
    """Returns the compiler's costs; the model's where the compiler refuses the program."""
    if compiled.fault is None:
        return compiled
    return dataclasses.replace(model, fault=compiled.fault)


def _stage(costs: Costs, topology: Topology, advice: tuple[str, ...] = ()) -> Stage:
    chip = topology.chip
    room = chip.memory / chip.devices
    fits = costs.fault is None and sum(costs.memory.values()) <= room
    if not fits:
        advice = (*_smaller(costs, room), *advice)
    times, ratio = roofline(costs, chip), chip.flops / chip.exact_flops
    if costs.precision == "highest" and times.bound == "compute":
        advice = (*advice, f"train.dtype = bfloat16 multiplies {ratio:.0f} times as fast")
    return Stage(costs, times, fits, advice)


# What helps against each cause of memory, the most effective first.
_REMEDIES = {
    "parameters": ("split the latents over more devices (mesh.latent, or a larger topology)",),
    "moments": (
        "split the latents over more devices (mesh.latent, or a larger topology)",
        "train with beta1 = 0, which needs no first moment",
    ),
    "inputs": ("lower the batch",),
    "outputs": ("lower the batch",),
    "temporaries": (
        "split the batch over more devices (mesh.data), or lower it",
        "compute in bfloat16 (train.dtype, models.dtype)",
    ),
}


def _smaller(costs: Costs, room: float) -> tuple[str, ...]:
    """Returns what lowers the largest parts of the memory."""
    causes = sorted(_REMEDIES, key=lambda cause: -costs.memory.get(cause, 0.0))
    total = sum(costs.memory.values())
    why = f"needs {total / room:.2f} times a device's memory"
    if costs.fault:
        why = f"{costs.fault}; the figures here are those of the analytical model"
    remedies = [remedy for cause in causes[:2] for remedy in _REMEDIES[cause]]
    return (why, *dict.fromkeys(remedies))


def _idle(config: RunConfig, devices: int) -> tuple[str, ...]:
    rows = config.harvest.batch
    if rows % devices == 0:
        return ()
    used = rows / programs.harvest_rows(config, devices)
    better = math.ceil(rows / devices) * devices
    return (f"harvest.batch = {rows} rows fill {used:.0%} of {devices} devices; {better} fill all",)
