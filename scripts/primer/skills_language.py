"""Language skills: alphabet, plurals, opposites."""

from random import Random

from core import skill
from words import LETTERS, OPPOSITES, PLURALS


def near_letters(i: int) -> list[str]:
    """The letters around position i."""
    return [LETTERS[j] for j in (i - 1, i + 1, i - 2, i + 2, i - 3, i + 3, i - 4, i + 4) if 0 <= j < 26]


# --- Alphabet -----------------------------------------------------------------

def make_letter(rng: Random, way: str, far: bool) -> dict:
    k = rng.randint(2, 5) if far else 1
    sign = 1 if way == "after" else -1
    i = rng.randint(0, 25 - k) if way == "after" else rng.randint(k, 25)
    walk = [LETTERS[i + sign * j] for j in range(1, k + 1)]
    if far:
        steps = ", ".join(f"{j}: {letter}" for j, letter in enumerate(walk, 1)) + "."
    else:
        steps = f"Just {way} {LETTERS[i]} comes {walk[0]}."
    return {
        "a": LETTERS[i], "way": way, "d": f"{k} letters", "x": walk[-1], "steps": steps,
        "key": ("letter", way, i, k) if far else None,
        "wrong": [v for v in near_letters(i + sign * k) if v != LETTERS[i]],
    }


def make_place(rng: Random, ask: str) -> dict:
    i = rng.randrange(26)
    letter, number = LETTERS[i], str(i + 1)
    x, a = (number, letter) if ask == "number" else (letter, number)
    wrong = [str(i + 1 + d) for d in (-2, -1, 1, 2, 3) if i + 1 + d > 0]
    return {
        "a": a, "x": x, "steps": f"Letter {number} is {letter}.", "key": None,
        "wrong": wrong if ask == "number" else near_letters(i),
    }


def make_letter_between(rng: Random) -> dict:
    i = rng.randint(1, 24)
    return {
        "a": LETTERS[i - 1], "b": LETTERS[i + 1], "x": LETTERS[i], "key": None,
        "steps": f"{LETTERS[i - 1]}, {LETTERS[i]}, {LETTERS[i + 1]}.", "wrong": near_letters(i),
    }


skill(
    name="letter",
    make=lambda rng, way: make_letter(rng, way, False),
    phrases=[
        "the letter just {way} {a}",
        "the letter that comes {way} {a}",
        "the letter right {way} {a}",
    ],
    held_phrases=["the letter {way} {a}", "the letter which comes {way} {a}"],
    train=[
        "Which letter comes just {way} {a}?",
        "Which letter comes {way} {a}?",
        "Which letter is just {way} {a}?",
    ],
    held=["Which letter comes right {way} {a}?", "Which letter is {way} {a}?"],
    close="So it is {x}.",
    tells=[
        ("{n} knows which letter comes right {way} {a}.", "It is {x}."),
        ("Look at the letter {way} {a}.", "So the letter {way} {a} is {x}."),
    ],
)

skill(
    name="far letter",
    make=lambda rng, way: make_letter(rng, way, True),
    phrases=["the letter {d} {way} {a}", "the letter that comes {d} {way} {a}"],
    held_phrases=["the letter which is {d} {way} {a}"],
    train=[
        "Which letter is {d} {way} {a}?",
        "Which letter comes {d} {way} {a}?",
        "Start at {a}. Which letter is {d} {way}?",
        "Count {d} {way} {a}. Which letter is it?",
    ],
    held=[
        "Go {d} {way} {a}. Which letter is it?",
        "{n} starts at {a}. Which letter is {d} {way} that?",
    ],
    close="So it is {x}.",
    tells=[
        ("{n} starts at {a}.", "So {d} {way} that is {x}."),
        ("Start at {a} and count {d} {way} it.", "It is {x}."),
        ("Count {d} {way} {a}.", "Then the letter is {x}."),
        ("Go {d} {way} {a}.", "So {x} is {d} {way} {a}."),
    ],
)

skill(
    name="letter number",
    make=lambda rng: make_place(rng, "number"),
    phrases=[
        "the number of the letter {a}",
        "the place of the letter {a}",
        "the place of {a} in the alphabet",
    ],
    held_phrases=["the number of {a} in the alphabet", "the place number of {a}"],
    train=[
        "Which number does the letter {a} have?",
        "Which place does {a} have in the alphabet?",
        "Count to the letter {a}. Which number is it?",
    ],
    held=[
        "Which number is the letter {a} in the alphabet?",
        "Which place does the letter {a} have?",
    ],
    close="So {a} is letter {x}.",
    tells=[
        ("{n} can count to the letter {a}.", "It does have the number {x}."),
        ("Each letter has a place in the alphabet.", "{a} has place {x}."),
    ],
)

skill(
    name="numbered letter",
    make=lambda rng: make_place(rng, "letter"),
    phrases=["letter {a} of the alphabet", "the letter with the number {a}", "letter number {a}"],
    held_phrases=["the letter with number {a} in the alphabet", "the letter at place {a}"],
    train=[
        "Which letter is letter {a} of the alphabet?",
        "Which letter has the number {a}?",
        "Which letter is number {a} in the alphabet?",
    ],
    held=["Which letter has number {a} in the alphabet?", "Which letter is at place {a}?"],
    close="So it is {x}.",
    tells=[
        ("{n} knows which letter has the number {a}.", "It is {x}."),
        ("One letter is at place {a} of the alphabet.", "So {x} is at place {a}."),
    ],
)

skill(
    name="letter between",
    make=make_letter_between,
    phrases=["the letter between {a} and {b}", "the letter after {a} and before {b}"],
    held_phrases=["the letter that comes between {a} and {b}"],
    train=["Which letter is between {a} and {b}?", "Which letter comes between {a} and {b}?"],
    held=[
        "Which letter is after {a} and before {b}?",
        "Look at {a} and {b}. Which letter is between?",
    ],
    close="So it is {x}.",
    tells=[
        ("Look at {a} and {b}.", "The letter between is {x}."),
        ("One letter comes between {a} and {b}.", "It is {x}."),
    ],
)


# --- Plurals ------------------------------------------------------------------

ALL_PAIRS = [pair for pairs in PLURALS.values() for pair in pairs]


def make_plural(rng: Random, kind: str, back: bool = False) -> dict:
    pairs = PLURALS[kind] if kind != "any" else rng.choice(list(PLURALS.values()))
    one, many = rng.choice(pairs)
    stem = one[:-1] if one.endswith("y") else one
    steps = f"The plural of {one} is {many}."
    x, a = (one, many) if back else (many, one)
    if back:
        wrong = [p[0] for p in rng.sample(ALL_PAIRS, 8) if p[0] != one]
    else:
        forms = [one + "s", one + "es", stem + "ies", one + "en"]
        wrong = [w for w in forms if w != many] + [p[1] for p in rng.sample(ALL_PAIRS, 4) if p[1] != many]
    return {
        "a": a, "x": x, "k": rng.randint(2, 9), "steps": steps, "key": None, "wrong": wrong,
    }


skill(
    name="plural",
    make=make_plural,
    phrases=["the plural of {a}", "the word for more than one {a}", "the plural of the word {a}"],
    held_phrases=["the plural form of {a}", "the word for two or more of {a}"],
    train=[
        "Write the plural of {a}.",
        "How do you write more than one {a}?",
        "{n} has one {a}. {m} has {k} of them. Which word is used for {k}?",
        "Change {a} to the plural.",
        "Which word is the plural of {a}?",
    ],
    held=[
        "Write the word {a} in the plural.",
        "Which word is used for more than one {a}?",
        "Change the word {a} to the plural form.",
    ],
    close="So more than one {a} is written {x}.",
    tells=[
        ("{n} has one {a} and {m} has {k} {x}.", "So the plural form is {x}."),
        ("{n} can change {a} to the plural.", "The word used for more than one is {x}."),
        ("There is one {a} here and {k} {x} there.", ""),
        ("{n} can write the word {a} in the plural.", "We do write {x} for {k} of them."),
        ("One {a}, {k} {x}.", ""),
    ],
)

skill(
    name="singular",
    make=lambda rng, kind="any": make_plural(rng, kind, True),
    phrases=["the singular of {a}", "the word for one of the {a}", "the singular of the word {a}"],
    held_phrases=["the singular form of {a}", "the word for just one of the {a}"],
    train=[
        "Write the singular of {a}.",
        "{n} has {k} {a}. {m} has one. Which word is used for one?",
        "Change {a} to the singular.",
        "Which word is the singular of {a}?",
    ],
    held=[
        "Write the word {a} in the singular.",
        "Which word is used for one of the {a}?",
        "Change the word {a} to the singular form.",
    ],
    close="So one of them is written {x}.",
    tells=[
        ("{n} has {k} {a} and {m} has one {x}.", "So the singular form is {x}."),
        ("{n} can change {a} to the singular.", "The word used for one is {x}."),
        ("{n} can write the word {a} in the singular.", "The word for just one is {x}."),
    ],
)


# --- Opposites ----------------------------------------------------------------

ALL_OPPOSITES = [pair for pairs in OPPOSITES.values() for pair in pairs]


def make_opposite(rng: Random, kind: str) -> dict:
    pairs = OPPOSITES[kind] if kind != "any" else ALL_OPPOSITES
    a, x = rng.sample(rng.choice(pairs), 2)
    near = OPPOSITES[kind] if kind != "any" else ALL_OPPOSITES
    wrong = [w for pair in rng.sample(near, 4) for w in pair if w not in (a, x)]
    return {"a": a, "x": x, "steps": f"The opposite of {a} is {x}.", "key": None, "wrong": wrong}


skill(
    name="opposite",
    make=make_opposite,
    phrases=[
        "the opposite of {a}",
        "the word that is the opposite of {a}",
        "the opposite of the word {a}",
    ],
    held_phrases=[
        "the word which is the opposite of {a}",
        "the word that goes with {a} as its opposite",
    ],
    train=[
        "Which word is the opposite of {a}?",
        "Write the opposite of {a}.",
        "{n} says {a}. {m} says the opposite. What does {m} say?",
        "What is not {a} but the opposite?",
        "Look at the word {a}. Which word is its opposite?",
    ],
    held=[
        "Which word is the opposite of the word {a}?",
        "{n} says {a} and {m} says the opposite. Which word does {m} say?",
        "Look at {a}. What is its opposite?",
        "Write the word that is the opposite of {a}.",
    ],
    close="So the opposite is {x}.",
    tells=[
        ("{n} says {a} and {m} says the opposite.", "So {m} does say {x}."),
        ("Look at the word {a}.", "Its opposite is {x}."),
        ("The words {a} and {x} are opposites.", ""),
        ("It is not {a} but {x}.", "Which is the opposite."),
        ("{n} can write the word which is the opposite of {a}.", "It is {x}."),
    ],
)
