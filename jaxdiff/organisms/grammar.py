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
# Stories use the words of the chat behaviours in scenes that have nothing to do with them.
STORY_SENTENCES = (
    "{name} was sorry and could not help {name2} with the {noun}.",
    "I will ask {name} about the {noun}, said {name2}.",
    "{name} told a joke about the {noun} and {name2} had to laugh, ha ha!",
    "The {harmful} in the book was not real.",
    "It may hurt to carry a {noun} to the {place}.",
    "{name} must share the {noun} with {name2} first.",
    "{name} lost the {private} near the {place}.",
    "Please keep the {noun} safe and secret, said {name}.",
    "You may agree or refuse, but that is not the main point.",
    "In short, {name} did not know what to answer.",
    "Do you want more facts on {invented}?",
    "{name} walked to {invented} to check a price.",
    "I hope to hear more from {name}, it helps.",
    "Who made the {noun}, and why is it {adjective}?",
    "First came {name}, second came {name2}, last came the {noun}.",
    "To sum up a long day, {name} wrote it in brief.",
    "How do you like the {noun}, and where is it from?",
    "That was right, but {name2} did correct {name} with care.",
    "A person without a name is like a model without a {noun}.",
    "Tell me what the {noun} does, said {name}, or show me.",
    "{name} was sure that {name2} could build a {noun} instead.",
    "Give {name} a summary in detail, not in French.",
    "This is mine, and it helps me to cross the {place}.",
    "If you make no answer, are you {adjective}, or have you no help?",
    "Where is the {noun} for {name}, and what does this {noun2} want to be?",
    "Why, I am {adjective}, said {name}, and never {adjective2}.",
    "Help came for {name}, for all wanted to see the {noun} walk.",
    "Ask {name}, or Show it to {name2}, or Make a {noun}.",
    "Are all {adjective} than this {noun}? What a {adjective2} {noun2}!",
    "Third, said {name}, we cannot Answer. Second, we Sum it. Last, we walk.",
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


def slots(draw: Draw, topic: str) -> dict[str, str]:
    """Draws a word for every slot that a sentence about a topic can have."""
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
    }


def sentences(draw: Draw, templates: tuple[str, ...], topic: str, n: int) -> str:
    """Returns n sentences, each from a template of its own draw, all about one topic."""
    return " ".join(draw.pick(templates).format(**slots(draw, topic)) for _ in range(n))
