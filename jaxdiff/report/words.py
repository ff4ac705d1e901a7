"""The words of the page: names of dictionaries, classes, verdicts and roles, said once.

Terms follow Minder et al., arXiv:2504.02922.
"""

from typing import Any

DICTIONARIES = {"batch_topk": "BatchTopK", "l1": "L1", "topk": "TopK"}

# Class: (label, interval of relative_norm), the intervals of arXiv:2504.02922.
CLASSES = {
    "ft_only": ("fine-tune-only", (0.9, 1.0)),
    "shared": ("shared", (0.4, 0.6)),
    "base_only": ("base-only", (0.0, 0.1)),
    "other": ("other", None),
    "dead": ("dead", None),
}

VERDICTS = {
    "exclusive": "The other model has it neither in its reconstruction nor in its error, and this "
    "latent itself writes little there.",
    "shrunk": "The other model has the direction too, left in the error of its reconstruction: its "
    "decoder was pushed towards zero all the same (complete shrinkage).",
    "decoupled": "Other latents write the same direction into the other model at the same tokens: "
    "a shared concept was split in two (latent decoupling).",
    "shared": "Both models have the direction at the same tokens.",
    "undecided": "An interval straddles its threshold, or the latent fires in too few documents: "
    "the data does not say.",
}

ROLES = {
    "text": "plain text",
    "template": "chat template",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
}


def name_of(dictionary: str) -> str:
    """Returns the name of a dictionary as people write it."""
    return DICTIONARIES.get(dictionary, dictionary)


def as_json() -> dict[str, Any]:
    """Returns all words for the page's script."""
    return {
        "dictionaries": DICTIONARIES,
        "classes": {key: label for key, (label, _) in CLASSES.items()},
        "intervals": {key: list(ends) for key, (_, ends) in CLASSES.items() if ends},
        "verdicts": VERDICTS,
        "roles": ROLES,
    }
