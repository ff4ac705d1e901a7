"""The estimate as a table."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from jaxdiff.estimate._estimate import Estimate, Stage


def title(found: Estimate) -> str:
    """Returns one line that says what was estimated, and how."""
    chip, (data, latent) = found.topology.chip, found.mesh
    many = f" ({chip.devices} devices each)" if chip.devices > 1 else ""
    method = (
        "compiled for it" if found.compiled else "ANALYTICAL MODEL: no compiler for it is installed"
    )
    return (
        f"{found.topology.name}: {found.topology.chips} x {chip.about}{many}, "
        f"mesh data={data} x latent={latent}; {method}"
    )


def table(found: Estimate) -> Table:
    """Returns an estimate as a table to print with rich: a column for each program."""
    out = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    out.add_column("each device, in one step", no_wrap=True)
    for name in found.stages:
        out.add_column(name, justify="right")
    chip, stages = found.topology.chip, list(found.stages.values())
    for name, cells in _rows(stages, chip.memory / chip.devices):
        out.add_row(name, *cells)
    return out


def _rows(stages: list[Stage], room: float) -> list[tuple[str, list[str]]]:
    causes = dict.fromkeys(cause for stage in stages for cause in stage.costs.memory)
    rows = [
        (cause, [_bytes(stage.costs.memory.get(cause)) for stage in stages]) for cause in causes
    ]
    rows += [
        ("= memory", [_bytes(stage.memory) for stage in stages]),
        (f"fits {room / 2**30:.4g} GiB", ["yes" if stage.fits else "NO" for stage in stages]),
        ("operations", [_quantity(stage.costs.flops, "flop") for stage in stages]),
        ("bytes moved", [_bytes(stage.costs.bytes) for stage in stages]),
    ]
    kinds = sorted({kind for stage in stages for kind in stage.costs.collectives})
    for kind in kinds:
        volumes = [stage.costs.collectives.get(kind) for stage in stages]
        rows.append((kind, [f"{_bytes(v.bytes)} in {v.count}" if v else "-" for v in volumes]))
    rows += [
        ("compute", [_seconds(stage.times.compute) for stage in stages]),
        ("memory traffic", [_seconds(stage.times.memory) for stage in stages]),
        ("network", [_seconds(stage.times.network) for stage in stages]),
        ("= roofline step", [f"{_seconds(s.times.seconds)} ({s.times.bound})" for s in stages]),
        ("the compiler's time", [_seconds(stage.costs.optimal_seconds) for stage in stages]),
        ("tokens/s, all devices", [f"{stage.tokens_per_second:,.0f}" for stage in stages]),
    ]
    return rows


def advice(found: Estimate) -> list[str]:
    """Returns what to change, one line each."""
    return [f"{name}: {line}" for name, stage in found.stages.items() for line in stage.advice]


def _bytes(value: float | None) -> str:
    if value is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.3f} GiB"


def _quantity(value: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:.3f} T{unit}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1e6:.3g} us" if value < 1e-3 else f"{value * 1e3:.4g} ms"
