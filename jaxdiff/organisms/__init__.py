"""Model pairs with planted, known differences: what a diff should find, and what it should not.

`chat-tiny` (base, chat) and `null-tiny` (the same base, and the base trained a little longer) ship
trained; `path("chat-tiny/chat")` is an ordinary Hugging Face directory.
"""

import difflib
from importlib import resources
from pathlib import Path

from jaxdiff import manifest
from jaxdiff.errors import JaxdiffError
from jaxdiff.organisms.draw import Draw
from jaxdiff.organisms.planted import BEHAVIOURS, Behaviour

# Folder of each model, by organism.
_MODELS = {
    "chat-tiny": {"base": "base", "chat": "chat"},
    "null-tiny": {"base": "base", "longer": "null"},
}
NAMES = tuple(_MODELS)

PLANTING = (
    "How this truth was made: the fine-tune learned the behaviours from chats, and its loss also "
    "asked for a direction of its own at this site for each new behaviour, and for a factor on the "
    "base's direction of each changed topic. The test is whether a diff finds what is known to be "
    "there, not whether behaviours always look like this. One seed was run."
)
"""How the differences came into chat-tiny, for the report."""


def path(name: str) -> Path:
    """Returns the directory of a shipped model.

    Args:
        name: `ORGANISM/MODEL`, for instance `chat-tiny/base`.

    Raises:
        JaxdiffError: If there is no such model.
    """
    organism, _, model = name.partition("/")
    check(organism)
    if model not in _MODELS[organism]:
        raise JaxdiffError(
            f"the organism {organism} has no model {model!r}",
            fix=f"it has {', '.join(_MODELS[organism])}",
        )
    data = Path(str(resources.files("jaxdiff.organisms"))) / "data" / "chat-tiny"
    return data / _MODELS[organism][model]


def behaviours(organism: str) -> tuple[Behaviour, ...]:
    """Returns the planted differences; a token's label is the index here plus one."""
    check(organism)
    return BEHAVIOURS if organism == "chat-tiny" else ()


def fingerprint(organism: str) -> str:
    """Returns a hash of the corpora that `write_corpora` writes; 16 hex digits."""
    check(organism)
    from jaxdiff.organisms import chat_tiny

    return manifest.fingerprint("corpora", config=chat_tiny.CORPORA, inputs={}, seed=0)


def write_corpora(organism: str, folder: Path) -> None:
    """Writes the labelled text that an organism's models are compared on."""
    check(organism)
    from jaxdiff.organisms import chat_tiny

    chat_tiny.write_corpora(folder)


def build(organism: str, folder: Path) -> None:
    """Makes an organism anew: corpora, labels, trained models; those of both pairs at once."""
    check(organism)
    from jaxdiff.organisms import chat_tiny

    chat_tiny.build(folder)


def check(organism: str) -> None:
    """Raises a JaxdiffError if there is no organism of that name."""
    if organism not in NAMES:
        near = difflib.get_close_matches(organism, NAMES, 1)
        raise JaxdiffError(
            f"there is no organism called {organism!r}",
            fix=(f"did you mean {near[0]}? " if near else "") + f"there is {', '.join(NAMES)}",
        )


__all__ = [
    "BEHAVIOURS",
    "NAMES",
    "PLANTING",
    "Behaviour",
    "Draw",
    "behaviours",
    "build",
    "check",
    "fingerprint",
    "path",
    "write_corpora",
]
