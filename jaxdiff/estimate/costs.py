"""What a program asks of one device, and the time that its peak figures allow."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxdiff.estimate.chips import Chip
from jaxdiff.estimate.collectives import Volume

PROGRAM = "program"
FEED = "next batch"
"""Causes of memory: the program's code, and the batch that waits while a step is done."""
Precision = Literal["bfloat16", "default", "highest"]
"""Products of bfloat16, or of float32 by default (factors rounded) or as they are."""


@dataclass(frozen=True)
class Costs:
    """One run of a program on one of the devices that share it.

    Attributes:
        memory: Bytes that are in use at once, by cause.
        flops: Floating-point operations.
        bytes: Bytes read from and written to the device's memory.
        tokens: Tokens that all devices handle in this run [tokens].
        precision: How most of the products are computed.
        collectives: What crosses devices, by kind; None where the program cannot be read.
        optimal_seconds: The compiler's own estimate; None where none was asked.
        counted: Whether operations and bytes are the compiler's or those of formulas.
        fault: Why the compiler refuses the program; None if it does not.
    """

    memory: Mapping[str, float]
    flops: float
    bytes: float
    tokens: int
    precision: Precision
    collectives: Mapping[str, Volume] | None = field(default_factory=dict)
    optimal_seconds: float | None = None
    counted: Literal["compiler", "formulas"] = "formulas"
    fault: str | None = None


def at_start(memory: Mapping[str, float], largest: float) -> float:
    """Returns the bytes in use while training's first state is made.

    That takes about as much again as its parameters (compiled for TPUs, 0.75 and 1.0 of them),
    and none of a step's temporaries.

    Args:
        memory: What is in use in a step, by cause.
        largest: Bytes of the parameters of the largest state.
    """
    return sum(memory.values()) - memory.get("temporaries", 0.0) + largest


@dataclass(frozen=True)
class Roofline:
    """The shortest time that peak figures allow; real programs take longer.

    Attributes:
        compute: Operations at the peak rate [s].
        memory: Bytes at the peak bandwidth [s].
        network: What crosses devices, on all links at once [s].
    """

    compute: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        """The longest of the three, as if they overlapped perfectly [s]."""
        return max(self.compute, self.memory, self.network)

    @property
    def bound(self) -> str:
        """Name of the one that takes longest."""
        return max(("compute", "memory", "network"), key=lambda name: getattr(self, name))


def roofline(costs: Costs, chip: Chip) -> Roofline:
    """Returns the times of a program on a chip; a device has its part of the chip's figures."""
    rates = {"bfloat16": chip.flops, "default": chip.rounded_flops, "highest": chip.exact_flops}
    peak = rates[costs.precision]
    network = 0.0
    for volume in (costs.collectives or {}).values():
        far = chip.node is not None and volume.devices > chip.node
        network += volume.sent / (chip.network if far else chip.link / chip.devices)
    return Roofline(
        compute=costs.flops / (peak / chip.devices),
        memory=costs.bytes / (chip.bandwidth / chip.devices),
        network=network,
    )
