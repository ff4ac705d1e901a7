"""What a run costs on hardware that is not at hand: memory, time and traffic of its programs."""

from typing import TYPE_CHECKING

from jaxdiff.lazy import lazy

if TYPE_CHECKING:
    from jaxdiff.estimate._estimate import Estimate as Estimate
    from jaxdiff.estimate._estimate import estimate as estimate
    from jaxdiff.estimate.costs import Costs as Costs
    from jaxdiff.estimate.show import advice as advice
    from jaxdiff.estimate.show import table as table
    from jaxdiff.estimate.show import title as title
    from jaxdiff.estimate.stage import Stage as Stage
    from jaxdiff.estimate.together import Pass as Pass
    from jaxdiff.estimate.topology import Topology as Topology
    from jaxdiff.estimate.topology import parse as parse

# Programs are made of Flax models and optax; `import jaxdiff.estimate` imports neither.
_HOMES = {
    "Costs": "costs",
    "Estimate": "_estimate",
    "Pass": "together",
    "Stage": "stage",
    "Topology": "topology",
    "advice": "show",
    "estimate": "_estimate",
    "parse": "topology",
    "table": "show",
    "title": "show",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy(__name__, _HOMES)
