"""The stages of a run, each a function of its settings: harvest, train, diff, report, and all."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdiff.pipeline._diff import diff as diff
    from jaxdiff.pipeline._harvest import harvest as harvest
    from jaxdiff.pipeline._report import report as report
    from jaxdiff.pipeline._run import run as run
    from jaxdiff.pipeline._run import summarize as summarize
    from jaxdiff.pipeline._train import train as train

# Stages import Flax, Orbax and Grain; `import jaxdiff.pipeline` does not.
_HOMES = {
    "diff": "_diff",
    "harvest": "_harvest",
    "report": "_report",
    "run": "_run",
    "summarize": "_run",
    "train": "_train",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
