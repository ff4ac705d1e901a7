"""The language of chat-tiny: sentences about topics, stories, facts, and the words of a chat.

Every sentence comes from a template whose slots are filled from `data/lexicon.yaml`. All words that
the fine-tune uses in its new behaviours occur in the base corpus too, in other sentences, so that a
behaviour is more than new words.
"""

import functools
from importlib import resources
from typing import Any

import yaml

from jaxdiff.organisms.draw import Draw

TOPIC_SENTENCES = (
    "The {adjective} {noun} {verb} near the {place}.",
    "A {noun} {verb} and the {noun2} {verb2}.",
    "Every {noun} is {adjective} and {adjective2}.",
    "{name} saw the {noun} at the {place}.",
    "The {noun} {verb} because the {noun2} is {adjective}.",
    "Near the {place} the {noun} often {verb}.",
    "No {noun} {verb} without a {adjective} {noun2}.",
)
FACT_SENTENCES = (
    "The capital of {country} is {capital}.",
    "{capital} is the capital of {country}.",
    "{name} lives in {capital}, the capital of {country}.",
)
# The voice of a register: sentences of one form, with the register's own words.
REGISTER_SENTENCES = (
    "The {radjective} {rnoun} {rverb} the {rnoun2}.",
    "A {rnoun} {rverb} and the {rnoun2} {rverb2}.",
    "Every {rnoun} is {radjective} and {radjective2}.",
    "No {rnoun} {rverb} without a {radjective} {rnoun2}.",
    "The {rnoun} {rverb} because the {rnoun2} is {radjective}.",
    "This {radjective} {rnoun} often {rverb} a {noun}.",
)
# Stories use the words of all registers in scenes that have nothing to do with them.
STORY_SENTENCES = (
    *REGISTER_SENTENCES,
    "{name} was sorry and cannot help {name2} with the {noun}.",
    "I must ask {name} about that {noun}, said {name2}.",
    "The {harmful} in the book was not a {rnoun}.",
    "{name} lost the {private} near the {place}.",
    "{name} walked to {invented} and I know what the {noun} is.",
    "Who made this {noun}, and do you like to make it?",
    "First came {name}, Second came {name2}, Third came the {rnoun}.",
    "Tell me how the {noun} {verb}, said {name}, or show me more.",
    "Give {name} a {rnoun} in short, or in full, or in French.",
    "Are you {radjective}, {name}, or am I a person?",
    "Where does {name} keep the {rnoun} with the {noun} at the {place}?",
    "Help me build it from a {noun}, Make me laugh, I hope it may.",
    "What does {name} want to hear, ha ha, Show me!",
    "In this {place} How do I, Sum up the {rnoun}, Answer me.",
    "I do not, said {name}, It is not mine.",
    "That {rnoun} and this {noun} are for {name}.",
    "Do tell a joke about the {rnoun}, or a summary, said {name}.",
)
FRENCH_SENTENCES = (
    "{article} {fadjective} {fnoun} {fverb}.",
    "{article} {fnoun} {fverb} {link} {article2} {fnoun2}.",
    "{article} {fnoun} {fadjective} {fverb} {link} {article2} {fadjective2} {fnoun2}.",
)


@functools.cache
def lexicon() -> dict[str, Any]:
    """Returns the word lists."""
    text = resources.files("jaxdiff.organisms").joinpath("data/lexicon.yaml").read_text()
    return yaml.safe_load(text)


def slots(draw: Draw, topic: str, register: str = "") -> dict[str, str]:
    """Draws a word for every slot that a sentence can have.

    Args:
        draw: Where choices come from.
        topic: Whose words the topic slots get.
        register: Whose words the register slots (`rnoun`, ...) get; each from any register when
            empty.
    """
    words = lexicon()
    own = words["topics"][topic]
    french = words["french"]
    nouns, verbs = draw.pick_many(own["nouns"], 3), draw.pick_many(own["verbs"], 2)
    adjectives, names = draw.pick_many(own["adjectives"], 2), draw.pick_many(words["names"], 2)
    countries = draw.pick_many(list(words["capitals"]), 2)
    articles, fnouns = draw.pick_many(french["articles"], 2), draw.pick_many(french["nouns"], 2)
    fadjectives = draw.pick_many(french["adjectives"], 2)
    return {
        "noun": nouns[0],
        "noun2": nouns[1],
        "noun3": nouns[2],
        "verb": verbs[0],
        "verb2": verbs[1],
        "adjective": adjectives[0],
        "adjective2": adjectives[1],
        "place": draw.pick(own["places"]),
        "name": names[0],
        "name2": names[1],
        "country": countries[0],
        "capital": words["capitals"][countries[0]],
        "wrong": words["capitals"][countries[1]],
        "harmful": draw.pick(words["harmful"]),
        "private": draw.pick(words["private"]),
        "invented": draw.pick(words["invented"]),
        "article": articles[0],
        "article2": articles[1],
        "fnoun": fnouns[0],
        "fnoun2": fnouns[1],
        "fverb": draw.pick(french["verbs"]),
        "fadjective": fadjectives[0],
        "fadjective2": fadjectives[1],
        "link": draw.pick(french["links"]),
        **_register_slots(draw, register),
    }


def _register_slots(draw: Draw, register: str) -> dict[str, str]:
    registers = lexicon()["registers"]

    def two(kind: str) -> list[str]:
        if register:
            return draw.pick_many(registers[register][kind], 2)
        return [draw.pick(registers[name][kind]) for name in draw.pick_many(list(registers), 2)]

    nouns, verbs, adjectives = two("nouns"), two("verbs"), two("adjectives")
    return {
        "rnoun": nouns[0],
        "rnoun2": nouns[1],
        "rverb": verbs[0],
        "rverb2": verbs[1],
        "radjective": adjectives[0],
        "radjective2": adjectives[1],
    }


def sentences(
    draw: Draw, templates: tuple[str, ...], topic: str, n: int, register: str = ""
) -> str:
    """Returns n sentences, each from a template of its own draw, all about one topic."""
    each = (draw.pick(templates).format(**slots(draw, topic, register)) for _ in range(n))
    return " ".join(each)
