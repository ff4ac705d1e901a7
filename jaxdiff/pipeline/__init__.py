"""The stages of a run, each a function of its settings: harvest, train, diff, report, and all."""

from typing import TYPE_CHECKING

from jaxdiff.lazy import lazy

if TYPE_CHECKING:
    from jaxdiff.pipeline._diff import diff as diff
    from jaxdiff.pipeline._feed import bench_feed as bench_feed
    from jaxdiff.pipeline._harvest import harvest as harvest
    from jaxdiff.pipeline._report import report as report
    from jaxdiff.pipeline._run import run as run
    from jaxdiff.pipeline._run import summarize as summarize
    from jaxdiff.pipeline._train import train as train

# Stages import Flax, Orbax and Grain; `import jaxdiff.pipeline` does not.
_HOMES = {
    "bench_feed": "_feed",
    "diff": "_diff",
    "harvest": "_harvest",
    "report": "_report",
    "run": "_run",
    "summarize": "_run",
    "train": "_train",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy(__name__, _HOMES)
