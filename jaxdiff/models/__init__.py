"""Language models as arguments: load, run with taps and edits at named sites, generate, save.

    lm = load("meta-llama/Llama-3.2-1B", dtype=jnp.bfloat16)
    _, acts = run(lm, tokens, taps=("blocks.8.resid_post",), logits=False)

`run` is pure and compiled: differentiate it, with respect to `lm.params` or the leaves of an edit,
or use it inside programs of your own. `registry.py` lists the architectures.
"""

from typing import TYPE_CHECKING

from jaxdiff.lazy import lazy

if TYPE_CHECKING:
    from jaxdiff.models._files import fingerprint as fingerprint
    from jaxdiff.models._forward import Between as Between
    from jaxdiff.models._generate import generate as generate
    from jaxdiff.models._generation import Generation as Generation
    from jaxdiff.models._hf import load as load
    from jaxdiff.models._hf import load_report as load_report
    from jaxdiff.models._hf import load_spec as load_spec
    from jaxdiff.models._hf import save as save
    from jaxdiff.models._lm import LM as LM
    from jaxdiff.models._lm import init as init
    from jaxdiff.models._lm import parameters as parameters
    from jaxdiff.models._lm import stack as stack
    from jaxdiff.models._lm import unstack as unstack
    from jaxdiff.models._prompts import pad_left as pad_left
    from jaxdiff.models._report import LoadReport as LoadReport
    from jaxdiff.models._run import run as run
    from jaxdiff.models._shapes import shapes as shapes
    from jaxdiff.models._sites import canonical_site as canonical_site
    from jaxdiff.models._sites import match as match
    from jaxdiff.models._sites import sites as sites
    from jaxdiff.models._state import State as State
    from jaxdiff.models._stream import decode as decode
    from jaxdiff.models._stream import extend as extend
    from jaxdiff.models._stream import prefill as prefill
    from jaxdiff.models._tap import At as At
    from jaxdiff.models._tap import Edit as Edit
    from jaxdiff.models._tap import Reducer as Reducer
    from jaxdiff.models._tap import Tap as Tap
    from jaxdiff.models._tap import View as View
    from jaxdiff.models._together import Together as Together
    from jaxdiff.models._together import run_together as run_together
    from jaxdiff.models._traces import traces as traces
    from jaxdiff.models._with_edits import chosen as chosen
    from jaxdiff.models._with_edits import with_edits as with_edits
    from jaxdiff.models.adapters import attach as attach
    from jaxdiff.models.adapters import merge as merge
    from jaxdiff.models.centering import center_unembedding as center_unembedding
    from jaxdiff.models.centering import center_writing as center_writing
    from jaxdiff.models.folding import fold_norms as fold_norms
    from jaxdiff.models.spec import ModelConfig as ModelConfig
    from jaxdiff.models.spec import Rope as Rope

# Flax is imported by the first use of one of these names, not by `import jaxdiff.models`.
_HOMES = {
    "Generation": "_generation",
    "decode": "_stream",
    "extend": "_stream",
    "generate": "_generate",
    "prefill": "_stream",
    "pad_left": "_prompts",
    "State": "_state",
    "run_together": "_together",
    "Together": "_together",
    "Between": "_forward",
    "attach": "adapters",
    "merge": "adapters",
    "fold_norms": "folding",
    "center_unembedding": "centering",
    "center_writing": "centering",
    "traces": "_traces",
    "chosen": "_with_edits",
    "with_edits": "_with_edits",
    "unstack": "_lm",
    "stack": "_lm",
    "match": "_sites",
    "Reducer": "_tap",
    "View": "_tap",
    "Tap": "_tap",
    "Edit": "_tap",
    "At": "_tap",
    "LM": "_lm",
    "ModelConfig": "spec",
    "Rope": "spec",
    "canonical_site": "_sites",
    "fingerprint": "_files",
    "init": "_lm",
    "load": "_hf",
    "load_report": "_hf",
    "LoadReport": "_report",
    "load_spec": "_hf",
    "parameters": "_lm",
    "run": "_run",
    "save": "_hf",
    "shapes": "_shapes",
    "sites": "_sites",
}

__all__ = [
    "Generation",
    "decode",
    "extend",
    "generate",
    "prefill",
    "pad_left",
    "State",
    "attach",
    "merge",
    "fold_norms",
    "center_unembedding",
    "center_writing",
    "run_together",
    "Together",
    "Between",
    "traces",
    "chosen",
    "with_edits",
    "unstack",
    "stack",
    "match",
    "Reducer",
    "View",
    "Tap",
    "Edit",
    "At",
    "LM",
    "LoadReport",
    "ModelConfig",
    "Rope",
    "canonical_site",
    "fingerprint",
    "init",
    "load",
    "load_report",
    "load_spec",
    "parameters",
    "run",
    "save",
    "shapes",
    "sites",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
