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
        l0: Active latents that the work is taken to follow where a penalty decides how many there
            are [latents per token]; None elsewhere.
    """

    name: Step
    compared: dict[Step, float]
    l0: float | None = None

    @property
    def why(self) -> tuple[str, ...]:
        """What to know of the choice, one line each."""
        lines = []
        if self.compared:
            (first, one), (other, two) = sorted(self.compared.items(), key=lambda item: item[1])
            lines.append(
                f"train.step = auto: the {first} step is estimated, {one * 1e3:.3g} ms at the "
                f"roofline by formulas against {two * 1e3:.3g} ms of the {other} one; a run "
                "measures both"
            )
        if self.l0 is not None:
            lines.append(f"the sparse step is estimated for an L0 of k = {self.l0:g}")
        return tuple(lines)


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
    l0 = dictionary.k if dictionary.penalised else None
    if train.step == "sparse":
        return Assumed("sparse", {}, l0)

    def seconds(step: Step) -> float:
        own = train.model_copy(update={"step": step})
        costs = analytic.train_costs(dictionary, own, shape, dtype, sizes, chip)
        return roofline(costs, chip).seconds

    compared: dict[Step, float] = {"dense": seconds("dense"), "sparse": seconds("sparse")}
    return Assumed(min(compared, key=lambda step: compared[step]), compared, l0)
