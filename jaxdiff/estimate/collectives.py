"""What a compiled program sends between devices, read from its HLO text."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Volume:
    """Traffic of one kind, on one device.

    Attributes:
        count: Operations.
        bytes: Size of their results, or of the operand of a reduce-scatter [bytes].
        sent: What the device sends in a ring or by the like [bytes].
        devices: Devices of the largest group that takes part.
    """

    count: int
    bytes: float | int
    sent: float | int
    devices: int

    def plus(self, other: "Volume", times: int = 1) -> "Volume":
        """Adds another volume, several times."""
        return Volume(
            self.count + times * other.count,
            self.bytes + times * other.bytes,
            self.sent + times * other.sent,
            max(self.devices, other.devices),
        )


Volumes = dict[str, Volume]


def collectives(hlo: str, devices: int) -> Volumes:
    """Returns what one run of a program sends, by kind.

    What is in a loop counts as often as the loop is known to run, and once where that depends on
    data; of the branches of a condition, the one that sends most counts.

    Args:
        hlo: Text of the optimized module, from `compiled.as_text()`.
        devices: Devices of the program, for operations that name no groups.
    """
    computations, entry = _computations(hlo)
    done: dict[str, Volumes] = {}

    def of(name: str) -> Volumes:
        if name not in done:
            done[name] = {}  # HLO has no recursion; this only ends the search in broken text.
            total: Volumes = {}
            for line in computations.get(name, ()):
                _add(total, _own(line, devices))
                for called, times in _calls(line, of):
                    _add(total, called, times)
            done[name] = total
        return done[name]

    return of(entry)


_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "c64": 8, "c128": 16}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALL = re.compile(r"(?:to_apply|calls|body|condition)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_OPERATION = re.compile(r"= (\(.*?\)|\S+) ([a-z][\w-]*)\(")
_ARRAY = re.compile(r"(pred|[a-z]+\d+\w*)\[([\d,]*)\]")


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Splits a module into the lines of its computations; returns them and the entry's name."""
    found: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        if header := _HEADER.match(line):
            name = header[2]
            entry = name if header[1] else entry
            found[name] = []
        elif name and line.startswith("  "):
            found[name].append(line)
    return found, entry


def _calls(line: str, of) -> list[tuple[Volumes, int]]:
    branches = [a or b for a, b in _BRANCHES.findall(line)]
    if branches:
        names = re.findall(r"[\w.-]+", " ".join(branches))
        return [(max(map(of, names), key=_sent), 1)]
    called = _CALL.findall(line)
    trips = _TRIPS.search(line)
    return [(of(name), int(trips[1]) if trips else 1) for name in called]


def _own(line: str, devices: int) -> Volumes:
    """Returns the volume of the operation in one line; nothing if it is no collective."""
    operation = _OPERATION.search(line)
    if operation is None:
        return {}
    shape, name = operation[1], operation[2]
    kind = name.removesuffix("-start")
    if kind not in KINDS:
        return {}
    arrays = [_size(*array) for array in _ARRAY.findall(shape)]
    if name in ("all-gather-start", "collective-permute-start"):
        # The operands come first, then as many results; a permute adds two numbers of context.
        whole = len(arrays) - (2 if name.startswith("collective") and len(arrays) > 2 else 0)
        arrays = arrays[whole // 2 : whole]
    n = _group(line, devices)
    size = sum(arrays) * (n if kind == "reduce-scatter" else 1)
    part = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(kind, (n - 1) / n)
    return {kind: Volume(1, size, size * part, n)}


def _size(dtype: str, dimensions: str) -> float:
    bits = re.search(r"\d+", dtype)
    each = _BYTES.get(dtype) or int(bits[0] if bits else 8) / 8
    return float(each * math.prod(int(n) for n in dimensions.split(",") if n))


def _group(line: str, devices: int) -> int:
    """Returns how many devices take part together, in any of the forms that XLA prints."""
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    if found := re.search(r"source_target_pairs=\{(.*?)\}\}", line):
        return found[1].count("{")
    return devices


def _add(total: Volumes, more: Mapping[str, Volume], times: int = 1) -> None:
    for kind, volume in more.items():
        total[kind] = total.get(kind, Volume(0, 0.0, 0.0, 1)).plus(volume, times)


def _sent(volumes: Volumes) -> float:
    return sum(volume.sent for volume in volumes.values())
