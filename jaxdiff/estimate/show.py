"""The estimate as a table."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from jaxdiff.estimate._estimate import Estimate
from jaxdiff.estimate.stage import HARVEST, Stage
from jaxdiff.estimate.together import Pass


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
    """Returns an estimate as a table to print with rich: a column for each program and pass."""
    out = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    out.add_column("each device, in one step", no_wrap=True)
    for name in (*found.stages, *_pass_names(found)):
        out.add_column(name, justify="right", no_wrap=True)
    for name, cells in _rows(found):
        out.add_row(name, *cells)
    return out


def _pass_names(found: Estimate) -> list[str]:
    """Returns what passes are called: numbered where there are several."""
    if len(found.passes) == 1:
        return ["together"]
    return [f"together {number}" for number in range(1, len(found.passes) + 1)]


def _rows(found: Estimate) -> list[tuple[str, list[str]]]:
    stages, passes = list(found.stages.values()), found.passes
    room, blank = found.topology.chip.room, ["-"] * len(passes)
    memory = [stage.costs.memory for stage in stages] + [one.memory for one in passes]
    causes = dict.fromkeys(cause for own in memory for cause in own)
    rows = [(cause, [_bytes(own.get(cause)) for own in memory]) for cause in causes]
    everything: list[Stage | Pass] = [*stages, *passes]
    rows += [
        ("= memory", [_bytes(sum(own.values())) for own in memory]),
        ("= at the start", [_bytes(one.start or None) for one in everything]),
        (f"fits {room / 2**30:.4g} GiB", ["yes" if one.fits else "NO" for one in everything]),
        ("step", [_step(stage) for stage in stages] + blank),
        ("operations", [_quantity(stage.costs.flops, "flop") for stage in stages] + blank),
        ("bytes moved", [_bytes(stage.costs.bytes) for stage in stages] + blank),
    ]
    if found.compiled:
        rows.append(("both counted by", [stage.costs.counted for stage in stages] + blank))
    kinds = sorted({kind for stage in stages for kind in stage.costs.collectives or {}})
    for kind in kinds:
        volumes = [(stage.costs.collectives or {}).get(kind) for stage in stages]
        cells = [f"{_bytes(v.bytes)} in {v.count}" if v else "-" for v in volumes]
        rows.append((kind, cells + blank))
    times = [f"{_seconds(one.times.seconds)} ({one.times.bound})" for one in stages]
    rows += [
        ("compute", [_seconds(stage.times.compute) for stage in stages] + blank),
        ("memory traffic", [_seconds(stage.times.memory) for stage in stages] + blank),
        ("network", [_seconds(stage.times.network) for stage in stages] + blank),
        ("= roofline step", times + [_seconds(one.seconds) for one in passes]),
    ]
    if found.compiled:
        known = [_seconds(stage.costs.optimal_seconds) for stage in stages]
        rows.append(("the compiler's time", known + blank))
    speeds = [f"{one.tokens_per_second:,.0f}" for one in everything]
    return [*rows, ("tokens/s, all devices", speeds)]


def _step(stage: Stage) -> str:
    if stage.step is None:
        return "-"
    return f"{stage.step.name} (auto)" if stage.step.compared else stage.step.name


def advice(found: Estimate) -> list[str]:
    """Returns what to know and to change, one line each."""
    lines = [f"{name}: {line}" for name, stage in found.stages.items() for line in stage.advice]
    for name, one in zip(_pass_names(found), found.passes, strict=True):
        models = " while the models run" if HARVEST in one.stages else ""
        trained = [stage.removeprefix("train ") for stage in one.stages if stage != HARVEST]
        lines.append(f"{name}: {', '.join(trained)} take turns on each batch{models}")
        lines += [f"{name}: {line}" for line in one.advice]
    return lines


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
