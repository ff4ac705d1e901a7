"""Traffic of collectives over a ring of devices, from formulas."""

from jaxdiff.estimate.collectives import Volume


def all_reduce(count: int, size: float, devices: int) -> Volume:
    """Returns the traffic of summing `size` bytes, in `count` results."""
    return Volume(count, size, size * 2 * (devices - 1) / devices, devices)


def all_gather(count: int, size: float, devices: int) -> Volume:
    """Returns the traffic of collecting `size` bytes, in `count` results."""
    return Volume(count, size, size * (devices - 1) / devices, devices)


def summed(kind: str, volumes: list[Volume]) -> dict[str, Volume]:
    """Returns the volume of one kind; nothing where only one device takes part."""
    total = Volume(0, 0.0, 0.0, 1)
    for volume in volumes:
        total = total.plus(volume) if volume.devices > 1 else total
    return {kind: total} if total.count else {}
