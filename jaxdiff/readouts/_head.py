"""What reads the last stream: readouts use the model's own final norm and unembedding."""

from collections.abc import Sequence

from jaxdiff.errors import JaxdiffError
from jaxdiff.models import Edit, ModelConfig, canonical_site
from jaxdiff.models._sites import whole_block

_HEAD = ("final_norm.scale", "final_norm", "logits")


def check_head(spec: ModelConfig, edits: Sequence[Edit], where: str) -> None:
    """Refuses edits of the final norm or the logits.

    Raises:
        JaxdiffError: If there is one.
    """
    for edit in edits:
        if not whole_block(edit.site) and canonical_site(spec, edit.site) in _HEAD:
            raise JaxdiffError(
                f"an edit of {edit.site} changes the model's logits, and not what is read here",
                where=where,
                fix="leave it out",
            )
