"""Activations of a model pair on the same tokens: harvested, stored or streamed, and normalised.

rows = harvest(ModelPair((base, ft)), batches, "blocks.8.resid_post", config=config)
write_store(folder, rows, config=config)
source = StoreSource(Store.open(folder))          # or: StreamSource(pair, batches, site, ...)
for batch in source.batches(2048, seed=0): ...    # shuffled, usable rows only, raw space
for batch in scan(source, 2048): ...              # all rows in document order
"""

from typing import TYPE_CHECKING

from jaxdiff.lazy import lazy

if TYPE_CHECKING:
    from jaxdiff.activations._difference import DifferenceSource as DifferenceSource
    from jaxdiff.activations._difference import difference as difference
    from jaxdiff.activations._harvest import Harvest as Harvest
    from jaxdiff.activations._harvest import harvest as harvest
    from jaxdiff.activations._scan import scan as scan
    from jaxdiff.activations.normalization import Moments as Moments
    from jaxdiff.activations.normalization import Normalization as Normalization
    from jaxdiff.activations.pair import ModelPair as ModelPair
    from jaxdiff.activations.recorded import Recorded as Recorded
    from jaxdiff.activations.source import ActivationSource as ActivationSource
    from jaxdiff.activations.source import BatchIterator as BatchIterator
    from jaxdiff.activations.source import StoreSource as StoreSource
    from jaxdiff.activations.store import Store as Store
    from jaxdiff.activations.stream import StreamSource as StreamSource
    from jaxdiff.activations.write import write_store as write_store

# Flax, Grain and TensorStore are imported by the first use of a name that needs them.
_HOMES = {
    "ActivationSource": "source",
    "BatchIterator": "source",
    "DifferenceSource": "_difference",
    "Harvest": "_harvest",
    "ModelPair": "pair",
    "Moments": "normalization",
    "Normalization": "normalization",
    "Recorded": "recorded",
    "Store": "store",
    "StoreSource": "source",
    "StreamSource": "stream",
    "difference": "_difference",
    "harvest": "_harvest",
    "scan": "_scan",
    "write_store": "write",
}

__all__ = [
    "ActivationSource",
    "BatchIterator",
    "DifferenceSource",
    "Harvest",
    "ModelPair",
    "Moments",
    "Normalization",
    "Recorded",
    "Store",
    "StoreSource",
    "StreamSource",
    "difference",
    "harvest",
    "scan",
    "write_store",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
