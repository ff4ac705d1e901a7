"""One program of a run on a topology: what it costs, whether it fits, and what to change."""

from dataclasses import dataclass

from jaxdiff.estimate.chips import Chip
from jaxdiff.estimate.costs import Costs, Roofline, at_start, roofline
from jaxdiff.estimate.steps import Assumed

HARVEST = "harvest"
"""Name of the stage that runs the models."""


def training(name: str) -> str:
    """Returns the name of the stage that trains a dictionary."""
    return f"train {name}"


@dataclass(frozen=True)
class Stage:
    """One program of a run.

    Attributes:
        costs: What it asks of one device.
        times: What the peak figures allow.
        fits: Whether it fits into a device's memory.
        advice: What to change: because it does not fit, or since devices idle.
        step: The step of training that is assumed; None in a harvest.
    """

    costs: Costs
    times: Roofline
    fits: bool
    advice: tuple[str, ...]
    step: Assumed | None = None

    @property
    def memory(self) -> float:
        """Bytes in use on one device."""
        return sum(self.costs.memory.values())

    @property
    def start(self) -> float:
        """Bytes in use on one device while the first state is made; 0 in a harvest."""
        return _start(self.costs) if self.step else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all devices in a second, at the roofline; 0 if the program is refused."""
        return self.costs.tokens / self.times.seconds if self.times.seconds else 0.0


def stage(
    costs: Costs, chip: Chip, advice: tuple[str, ...] = (), step: Assumed | None = None
) -> Stage:
    """Returns a stage with what follows from its costs.

    Args:
        costs: What it asks of one device.
        chip: The device's chip.
        advice: What else to change.
        step: The step of training that is assumed.
    """
    needed = max(sum(costs.memory.values()), _start(costs) if step else 0.0)
    fits = costs.fault is None and needed <= chip.room
    if not fits:
        advice = (*_smaller(costs, needed / chip.room), *advice)
    times, ratio = roofline(costs, chip), chip.flops / chip.exact_flops
    if costs.precision == "highest" and times.bound == "compute":
        advice = (*advice, f"train.dtype = bfloat16 multiplies {ratio:.0f} times as fast")
    return Stage(costs, times, fits, advice, step)


def _start(costs: Costs) -> float:
    return at_start(costs.memory, costs.memory["parameters"])


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


def _smaller(costs: Costs, times: float) -> tuple[str, ...]:
    """Returns what lowers the largest parts of the memory."""
    causes = sorted(_REMEDIES, key=lambda cause: -costs.memory.get(cause, 0.0))
    why = f"needs {times:.2f} times a device's memory"
    if costs.fault:
        why = f"{costs.fault}; the figures here are those of the analytical model"
    remedies = [remedy for cause in causes[:2] for remedy in _REMEDIES[cause]]
    return (why, *dict.fromkeys(remedies))
