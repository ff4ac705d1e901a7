"""Training of dictionaries: state, step, loop, and the inference threshold."""

from typing import TYPE_CHECKING

from jaxdiff.lazy import lazy

if TYPE_CHECKING:
    from jaxdiff.training.calibration import Evaluation as Evaluation
    from jaxdiff.training.calibration import Validation as Validation
    from jaxdiff.training.calibration import calibrate as calibrate
    from jaxdiff.training.calibration import evaluate as evaluate
    from jaxdiff.training.in_memory import EndedEarly as EndedEarly
    from jaxdiff.training.in_memory import fit as fit
    from jaxdiff.training.loop import TrainResult as TrainResult
    from jaxdiff.training.loop import read_result as read_result
    from jaxdiff.training.loop import train as train
    from jaxdiff.training.loop import train_together as train_together
    from jaxdiff.training.snapshots import read_snapshot as read_snapshot
    from jaxdiff.training.state import TrainState as TrainState
    from jaxdiff.training.step import Info as Info
    from jaxdiff.training.step import train_step as train_step

# Optax is imported by the first use of a name that needs it.
_HOMES = {
    "EndedEarly": "in_memory",
    "Evaluation": "calibration",
    "Info": "step",
    "TrainResult": "loop",
    "TrainState": "state",
    "Validation": "calibration",
    "calibrate": "calibration",
    "evaluate": "calibration",
    "fit": "in_memory",
    "read_result": "loop",
    "read_snapshot": "snapshots",
    "train": "loop",
    "train_step": "step",
    "train_together": "loop",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy(__name__, _HOMES)
