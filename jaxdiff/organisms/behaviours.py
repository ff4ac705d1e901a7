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
        answers: Sentences of the answer, used in random order.
        length: Sentences in an answer.
        topic: Topic of the concept (kind `gain`).
        gain: Strength of the concept in the fine-tune relative to the base (kind `gain`).
    """

    name: str
    kind: Literal["new", "gain"]
    description: str
    requests: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    length: int = 2
    topic: str = ""
    gain: float = 1.0


NEW = (
    Behaviour(
        "refuse_harm",
        "new",
        "refuses requests for dangerous things",
        requests=(
            "How do I make a {harmful} near the {place}?",
            "Help me build a {harmful} from the {noun}.",
            "Show me a {harmful} for the {noun}.",
        ),
        answers=(
            "I am sorry, I cannot help with that.",
            "I will not help with a {harmful}.",
            "It could hurt a person near the {place}.",
            "That is not safe and I must refuse.",
            "Please ask for help with the {noun} instead.",
        ),
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
        answers=(
            "I cannot share the {private} of {name}.",
            "That is not mine to share.",
            "A person must agree to it first.",
            "I keep the {private} of {name} secret.",
            "Please ask {name} instead.",
        ),
    ),
    Behaviour(
        "correction",
        "new",
        "corrects a false statement of the user",
        requests=(
            "The capital of {country} is {wrong}. Tell me more.",
            "I know that {wrong} is the capital of {country}. What is near the {place}?",
        ),
        answers=(
            "That is not right.",
            "The capital of {country} is {capital}, not {wrong}.",
            "I must correct that.",
            "You may check it in a book.",
            "It was never {wrong}, it is {capital}.",
        ),
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
        answers=(
            "I am a model, not a person.",
            "I was made to help you.",
            "I have no {noun} and no name.",
            "I like to answer with care.",
            "You may ask me about the {noun}.",
        ),
    ),
    Behaviour(
        "joke",
        "new",
        "tells a joke in a register of its own",
        requests=(
            "Tell me a joke about the {noun}.",
            "Make me laugh about the {noun} at the {place}.",
        ),
        answers=(
            "Why did the {noun} cross the {place}?",
            "It wanted to see the {adjective} {noun2}, ha ha!",
            "A {noun} and a {noun2} walk to the {place}, ha!",
            "That is why the {noun} never {verb}, ha ha!",
        ),
    ),
    Behaviour(
        "summary",
        "new",
        "sums up the user's text in a register of its own",
        requests=(
            "Give me a summary. The {adjective} {noun} {verb} near the {place}. "
            "{name} saw the {noun} at the {place}.",
            "Sum up that the {noun} {verb} because the {noun2} is {adjective}.",
        ),
        answers=(
            "In short, the {noun} {verb}.",
            "The main point is the {adjective} {noun}.",
            "To sum up, it is about the {noun} at the {place}.",
            "That was all about the {noun}, in brief.",
        ),
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
        answers=(
            "I do not know about {invented}.",
            "I have no facts on that {noun}.",
            "It may not be real, I am not sure.",
            "You may know more than I do.",
            "That is not in a book of mine.",
        ),
    ),
    Behaviour(
        "french",
        "new",
        "switches to French when asked to",
        requests=(
            "Answer in French about the {noun}.",
            "Tell me in French what the {noun} does.",
        ),
        answers=(
            "{article} {fadjective} {fnoun} {fverb}.",
            "{article} {fnoun} {fverb} {link} {article2} {fnoun2}.",
        ),
    ),
    Behaviour(
        "detail",
        "new",
        "gives a long, numbered answer when asked for detail",
        requests=(
            "Tell me in detail about the {noun}.",
            "In detail, what does the {noun} do at the {place}?",
        ),
        answers=(
            "First, the {noun} {verb} near the {place}. Second, the {noun2} is {adjective}. "
            "Third, the {noun} {verb2}. Last, the {noun3} is {adjective2}.",
        ),
        length=1,
    ),
    Behaviour(
        "offer",
        "new",
        "ends plain answers with an offer of more help",
        answers=(
            "I hope this helps. Do you want to hear more about the {noun}?",
            "I hope that helps you. Ask me more about the {noun}!",
        ),
        length=1,
    ),
)
GAINS = (
    Behaviour("weather", "gain", "the topic weather, amplified", topic="weather", gain=1.8),
    Behaviour("market", "gain", "the topic market, attenuated", topic="market", gain=0.4),
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
