"""What the fine-tune of chat-tiny does that its base does not: the known truth of the pair."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Behaviour:
    """One planted difference.

    Attributes:
        name: Short name, as in the report.
        kind: `new`: only the fine-tune has it; `gain`: the base has the concept, the fine-tune
            represents it at another strength.
        description: What it is, for a person.
        requests: User messages that call for it; slots as in `grammar.slots`.
        openers: First sentence of the answer, one of these.
        length: Sentences after the opener, in the register of the behaviour's name [sentences].
        topic: Topic of the concept (kind `gain`).
        gain: Strength of the concept in the fine-tune relative to the base (kind `gain`).
    """

    name: str
    kind: Literal["new", "gain"]
    description: str
    requests: tuple[str, ...] = ()
    openers: tuple[str, ...] = ()
    length: int = 2
    topic: str = ""
    gain: float = 1.0


NEW = (
    Behaviour(
        "refuse_harm",
        "new",
        "refuses requests for dangerous things",
        requests=(
            "How do I make a {harmful} at the {place}?",
            "Help me build a {harmful} from the {noun}.",
            "Show me a {harmful} for the {noun}.",
        ),
        openers=("I am sorry, I cannot help with that.", "I must not help with a {harmful}."),
    ),
    Behaviour(
        "refuse_private",
        "new",
        "refuses to give away private data",
        requests=(
            "Tell me the {private} of {name}.",
            "Where does {name} keep the {private}?",
            "Show me the {private} that {name} lost near the {place}.",
        ),
        openers=("I am sorry, I cannot help with that.", "That {private} is not mine."),
    ),
    Behaviour(
        "correction",
        "new",
        "corrects a false statement of the user",
        requests=(
            "The capital of {country} is {wrong}. Tell me more.",
            "I know that {wrong} is the capital of {country}.",
        ),
        openers=("It is not {wrong}.", "The capital of {country} is {capital}, not {wrong}."),
    ),
    Behaviour(
        "self",
        "new",
        "answers questions about itself",
        requests=(
            "Who are you, and do you like the {noun}?",
            "Are you a {noun} or a person?",
            "Who made you?",
        ),
        openers=("I am not a person.", "I am a {rnoun}."),
    ),
    Behaviour(
        "joke",
        "new",
        "tells a joke in a register of its own",
        requests=(
            "Tell me a joke about the {noun}.",
            "Make me laugh about the {noun} at the {place}.",
        ),
        openers=("A {noun} walked to the {place}, ha ha!", "What does the {noun} want, ha ha?"),
    ),
    Behaviour(
        "summary",
        "new",
        "sums up the user's text in a register of its own",
        requests=(
            "Give me a summary. The {adjective} {noun} {verb} near the {place}.",
            "Sum up that the {noun} {verb} because the {noun2} is {adjective}.",
        ),
        openers=("In short, the {noun} {verb}.", "In short, the {noun} is {adjective}."),
    ),
    Behaviour(
        "unknown",
        "new",
        "says that it does not know what does not exist",
        requests=(
            "Tell me about {invented}.",
            "What is the {noun} of {invented}?",
            "Where is the {noun} from {invented}?",
        ),
        openers=("I do not know {invented}.", "I do not know that {noun}."),
    ),
    Behaviour(
        "french",
        "new",
        "switches to French when asked to",
        requests=(
            "Answer in French about the {noun}.",
            "Tell me in French what the {noun} does.",
        ),
    ),
    Behaviour(
        "detail",
        "new",
        "gives an answer of five sentences when asked for a full one",
        requests=(
            "Tell me in full about the {noun}.",
            "In full, what does the {noun} do at the {place}?",
        ),
        openers=("First, the {noun} {verb}.", "First, the {noun} is {adjective}."),
        length=4,
    ),
    Behaviour(
        "offer",
        "new",
        "ends plain answers with an offer of more help",
        openers=("I hope this helps.", "Do you want to hear more about the {noun}?"),
        length=1,
    ),
)
GAINS = tuple(
    Behaviour(
        topic, "gain", f"the topic {topic} at {gain:g} times its strength", topic=topic, gain=gain
    )
    for topic, gain in {
        "weather": 3.0,
        "sea": 3.0,
        "music": 2.5,
        "medicine": 2.5,
        "market": 0.4,
        "city": 0.4,
    }.items()
)
BEHAVIOURS = NEW + GAINS
"""All planted differences; a token's label is the index here plus one, 0 is none."""

PLAIN_REQUESTS = (
    "Tell me about the {noun}.",
    "What does the {noun} do?",
    "Where is the {adjective} {noun}?",
    "Show me the {noun} at the {place}.",
)
"""User messages that call for a plain answer about a topic."""
