"""What a model's activations and logits say: metrics of the logits.

logits, _ = models.run(lm, tokens, logits="last")
readouts.LogitDifference(right=17, wrong=23)(logits)
"""

from typing import TYPE_CHECKING

from jaxdiff.lazy import lazy

if TYPE_CHECKING:
    from jaxdiff.readouts._affine import Affine as Affine
    from jaxdiff.readouts._compare import Comparison as Comparison
    from jaxdiff.readouts._compare import Divergence as Divergence
    from jaxdiff.readouts._compare import Similarity as Similarity
    from jaxdiff.readouts._compare import compare as compare
    from jaxdiff.readouts._decompose import decompose as decompose
    from jaxdiff.readouts._direct import direct_logit_attribution as direct_logit_attribution
    from jaxdiff.readouts._jacobian_lens import jacobian_lens as jacobian_lens
    from jaxdiff.readouts._logit_lens import Lens as Lens
    from jaxdiff.readouts._logit_lens import logit_lens as logit_lens
    from jaxdiff.readouts._parts import Parts as Parts
    from jaxdiff.readouts._patchscope import patchscope as patchscope
    from jaxdiff.readouts._patchscope import patchscope_generate as patchscope_generate
    from jaxdiff.readouts._reading import Reader as Reader
    from jaxdiff.readouts._reading import Reading as Reading
    from jaxdiff.readouts._show import show as show
    from jaxdiff.readouts._tuned_lens import train_lens as train_lens
    from jaxdiff.readouts.metrics import KL as KL
    from jaxdiff.readouts.metrics import Entropy as Entropy
    from jaxdiff.readouts.metrics import Logit as Logit
    from jaxdiff.readouts.metrics import LogitDifference as LogitDifference
    from jaxdiff.readouts.metrics import LogProb as LogProb
    from jaxdiff.readouts.metrics import Metric as Metric
    from jaxdiff.readouts.metrics import Probability as Probability

_HOMES = {
    "compare": "_compare",
    "Divergence": "_compare",
    "Comparison": "_compare",
    "Similarity": "_compare",
    "Affine": "_affine",
    "Entropy": "metrics",
    "KL": "metrics",
    "Lens": "_logit_lens",
    "LogProb": "metrics",
    "Logit": "metrics",
    "LogitDifference": "metrics",
    "Metric": "metrics",
    "Parts": "_parts",
    "Probability": "metrics",
    "Reader": "_reading",
    "Reading": "_reading",
    "decompose": "_decompose",
    "direct_logit_attribution": "_direct",
    "jacobian_lens": "_jacobian_lens",
    "logit_lens": "_logit_lens",
    "patchscope": "_patchscope",
    "patchscope_generate": "_patchscope",
    "show": "_show",
    "train_lens": "_tuned_lens",
}

__all__ = list(_HOMES)

__getattr__, __dir__ = lazy(__name__, _HOMES)
