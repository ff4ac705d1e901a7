"""Which of the two steps of training is estimated."""

from dataclasses import dataclass
from typing import Literal

from jaxdiff.config import DictionaryConfig, TrainConfig
from jaxdiff.estimate import analytic
from jaxdiff.estimate.chips import Chip
from jaxdiff.estimate.costs import roofline
from jaxdiff.training.compiled import is_sparse

Step = Literal["dense", "sparse"]


@dataclass(frozen=True)
class Assumed:
    """A step, and why it is that one.

    Attributes:
        name: The step.
        compared: Roofline times of both by formulas, where `auto` leaves the choice [s].
    """

    name: Step
    compared: dict[Step, float]

    @property
    def why(self) -> tuple[str, ...]:
        """One line on how the choice was made; none where there was no choice."""
        if not self.compared:
            return ()
        (first, one), (other, two) = sorted(self.compared.items(), key=lambda item: item[1])
        return (
            f"train.step = auto: the {first} step is estimated, {one * 1e3:.3g} ms at the roofline "
            f"by formulas against {two * 1e3:.3g} ms of the {other} one; a run measures both",
        )


def assume(
    dictionary: DictionaryConfig,
    train: TrainConfig,
    shape: tuple[int, int],
    dtype: str,
    sizes: tuple[int, int],
    chip: Chip,
) -> Assumed:
    """Returns the step that is set or the only one that can be taken; else the faster one.

    Arguments are those of `analytic.train_costs`.
    """
    if not is_sparse(dictionary, train):
        return Assumed("dense", {})
    if train.step == "sparse":
        return Assumed("sparse", {})

    def seconds(step: Step) -> float:
        own = train.model_copy(update={"step": step})
        costs = analytic.train_costs(dictionary, own, shape, dtype, sizes, chip)
        return roofline(costs, chip).seconds

    compared: dict[Step, float] = {"dense": seconds("dense"), "sparse": seconds("sparse")}
    return Assumed(min(compared, key=lambda step: compared[step]), compared)
