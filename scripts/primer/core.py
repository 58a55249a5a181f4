"""Shared machinery of the primer world: skills, wordings, and the held-out split.

A *skill* is a family of questions. `make(rng, **params)` draws one problem and
returns a dict of slots; some slot names have a meaning everywhere:

    x       the final answer (a short string)
    steps   the worked steps, full sentences, without the final answer sentence
    key     the operand tuple deciding the held-out split (None: a plain fact)
    wrong   candidate distractors for the multiple-choice benchmark

All other slots fill the wordings. A skill has *phrases* (noun phrases naming
the thing to find, e.g. "the sum of {a} and {b}"), which are combined with
sentence frames, and *extra* wordings which stand alone. Phrases, frames and
extras each come in a training set and a held-out set; the held-out ones are
seen in training only as plain declarative text.
"""

import zlib
from dataclasses import dataclass, field
from random import Random
from typing import Callable

NAMES = ["Ann", "Ben", "Mia", "Sam", "Tom", "Eva", "Leo", "Zoe"]
THINGS = ["apples", "books", "cups", "pens", "balls", "eggs", "cards", "hats"]

# Frames turn a noun phrase into a question ...
TRAIN_FRAMES = [
    "What is {p}?",
    "Find {p}.",
    "Work out {p}.",
    "Tell me {p}.",
    "Please find {p}.",
]
# ... these are kept for the benchmark ...
HELD_FRAMES = [
    "Can you work out {p}?",
    "Can you find {p}?",
    "Please tell me {p}.",
    "Please work out {p}.",
    "I want to know {p}.",
]
# ... and these open a passage of the declarative base text.
BASE_FRAMES = [
    "{n} wants to know {p}.",
    "{n} wants to find {p}.",
    "I can tell you what {p} is.",
    "You can say what {p} is.",
    "{n} can work out {p}.",
    "Let me find {p}.",
    "I want to tell you {p}.",
    "Please look at {p}.",
    "{p}.",
    "{p}.",
    "This is {p}.",
    "We work out {p}.",
]

HELD_OUT_PERCENT = 12
# Chosen so that also the small number families (each multiplication table, the
# sums below ten) have a few held-out members and never too many.
HELD_OUT_SALT = 1831


def is_clause(phrase: str) -> bool:
    """Whether a phrase holds a verb of its own, so that "what ... is" sounds wrong."""
    words = phrase.split()
    return words[0] == "how" or any(w in ("is", "are", "it", "that", "which") for w in words)


def framed(frames: list[str], phrases: list[str]) -> list[str]:
    """Every fitting combination of sentence frame and phrase."""
    return [
        frame.replace("{p}", phrase)
        for frame in frames
        for phrase in phrases
        if not (is_clause(phrase) and "hat {p} is" in frame)
        and not (phrase.startswith("how ") and frame.startswith("What is"))
    ]


@dataclass
class Skill:
    """One family of questions with all of its wordings."""

    name: str
    make: Callable[..., dict]
    phrases: list[str] = field(default_factory=list)
    held_phrases: list[str] = field(default_factory=list)
    train: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    # Pairs (opening, closing) of declarative passages; the steps go between.
    tells: list[tuple[str, str]] = field(default_factory=list)
    # Closing sentence after an opening built from a phrase.
    close: str = "So {p} is {x}."

    def train_groups(self) -> list[list[str]]:
        """The wordings that training questions may use, in groups of equal weight."""
        return [framed(TRAIN_FRAMES, self.phrases), self.train]

    def held_groups(self) -> list[list[str]]:
        """The wordings that only the benchmark uses, in groups of equal weight."""
        return [
            framed(HELD_FRAMES, self.phrases),
            framed(TRAIN_FRAMES, self.held_phrases),
            self.held,
        ]


SKILLS: dict[str, Skill] = {}


def skill(**fields) -> None:
    """Registers a skill."""
    made = Skill(**fields)
    assert made.name not in SKILLS, made.name
    SKILLS[made.name] = made


def is_held_out(key) -> bool:
    """Whether an operand tuple belongs to the benchmark's held-out numbers."""
    return zlib.crc32(repr((HELD_OUT_SALT, *key)).encode()) % 100 < HELD_OUT_PERCENT


def pair_key(family: str, a, b) -> tuple:
    """The key of a commutative operation, the same in either order."""
    return (family, min(a, b), max(a, b))


def draw(rng: Random, name: str, params: dict, held: bool) -> dict:
    """Draws one problem of a skill from the training or the held-out numbers.

    Facts (key None) are in both halves. With `held`, a draw whose parameters
    admit no held-out tuple gives up and returns an empty dict.
    """
    for _ in range(400):
        slots = SKILLS[name].make(rng, **params)
        if slots["key"] is None or is_held_out(slots["key"]) == held:
            n, m = rng.sample(NAMES, 2)
            return {"n": n, "m": m, "things": rng.choice(THINGS), **slots}
    assert held, f"no training numbers for {name} {params}"
    return {}


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def fill(template: str, slots: dict) -> str:
    """Fills a wording and starts it with a capital letter."""
    return capital(template.format_map(slots))


def pick_wording(rng: Random, groups: list[list[str]]) -> str:
    """Picks a non-empty group, then a wording in it."""
    return rng.choice(rng.choice([group for group in groups if group]))


def train_question(rng: Random, name: str, slots: dict) -> str:
    """One training wording of a drawn problem."""
    return fill(pick_wording(rng, SKILLS[name].train_groups()), slots)


def held_question(rng: Random, name: str, slots: dict) -> str:
    """One held-out wording of a drawn problem: mostly a new frame around a known phrase."""
    frames, phrases, alone = SKILLS[name].held_groups()
    if frames and rng.random() < 0.75:
        return fill(rng.choice(frames), slots)
    return fill(pick_wording(rng, [phrases, alone]), slots)


def answer_text(slots: dict) -> str:
    """The worked answer to a drawn problem."""
    return f"{slots['steps']} The answer is {slots['x']}."


def base_passage(rng: Random, name: str, slots: dict) -> str:
    """One declarative passage: opening, worked steps, closing."""
    made = SKILLS[name]
    phrases = made.phrases + made.held_phrases
    if phrases and (not made.tells or rng.random() < 0.5):
        phrase = rng.choice(phrases)
        opening = rng.choice(framed(BASE_FRAMES, [phrase]))
        closing = made.close.replace("{p}", rng.choice(phrases))
    else:
        opening, closing = rng.choice(made.tells)
    parts = [fill(opening, slots), slots["steps"], fill(closing, slots)]
    return " ".join(part for part in parts if part)


def near_numbers(x: int) -> list[str]:
    """Plausible wrong numbers around x."""
    offsets = [1, -1, 2, -2, 10, -10, 9, -9, 11]
    if x >= 200:
        offsets += [100, -100, 20, -20]
    return [str(x + d) for d in offsets if x + d >= 0]
