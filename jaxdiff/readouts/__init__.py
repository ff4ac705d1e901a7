"""What a model's activations and logits say: metrics of the logits.

logits, _ = models.run(lm, tokens, logits="last")
readouts.LogitDifference(right=17, wrong=23)(logits)
"""

from typing import TYPE_CHECKING

from jaxdiff.lazy import lazy

if TYPE_CHECKING:
    from jaxdiff.readouts.metrics import KL as KL
    from jaxdiff.readouts.metrics import Entropy as Entropy
    from jaxdiff.readouts.metrics import Logit as Logit
    from jaxdiff.readouts.metrics import LogitDifference as LogitDifference
    from jaxdiff.readouts.metrics import LogProb as LogProb
    from jaxdiff.readouts.metrics import Metric as Metric
    from jaxdiff.readouts.metrics import Probability as Probability

_HOMES = {
    "Entropy": "metrics",
    "KL": "metrics",
    "LogProb": "metrics",
    "Logit": "metrics",
    "LogitDifference": "metrics",
    "Metric": "metrics",
    "Probability": "metrics",
}

__all__ = list(_HOMES)

__getattr__, __dir__ = lazy(__name__, _HOMES)
