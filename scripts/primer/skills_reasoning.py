"""Reasoning skills: categories and syllogisms."""

from random import Random

from core import NAMES, skill
from words import CATEGORIES, KINDS, PLACES, TRAITS


# --- Categories ---------------------------------------------------------------

def bare(thing: str) -> str:
    """The thing without its article."""
    return thing.split()[-1]


def make_kind(rng: Random, kinds: str = "") -> dict:
    kind = rng.choice(kinds.split() if kinds else list(CATEGORIES))
    a = rng.choice(CATEGORIES[kind])
    return {
        "a": a, "w": bare(a), "x": kind, "be": "is", "key": None,
        "steps": f"{a} is a kind of {kind}.",
        "wrong": [k for k in CATEGORIES if k != kind],
    }


def make_odd(rng: Random, size: int) -> dict:
    kind, other = rng.sample(list(CATEGORIES), 2)
    things = [bare(t) for t in rng.sample(CATEGORIES[kind], size - 1)]
    x = bare(rng.choice(CATEGORIES[other]))
    spot = rng.randint(0, size - 1)
    shown = things[:spot] + [x] + things[spot:]
    kinds = [kind] * spot + [other] + [kind] * (size - 1 - spot)
    listing = ", ".join(f"{w}: {k}" for w, k in zip(shown, kinds))
    return {
        "l": ", ".join(shown), "x": x, "steps": f"{listing}.",
        "key": ("odd", *sorted(shown)), "wrong": things + [bare(t) for t in CATEGORIES[kind] if bare(t) not in things],
    }


def make_pick(rng: Random) -> dict:
    kinds = rng.sample(list(CATEGORIES), 4)
    things = [bare(rng.choice(CATEGORIES[k])) for k in kinds]
    spot = rng.randrange(4)
    listing = ", ".join(f"{w}: {k}" for w, k in zip(things, kinds))
    return {
        "l": ", ".join(things), "k": kinds[spot], "x": things[spot],
        "steps": f"{listing}.",
        "key": ("pick", kinds[spot], *sorted(things)), "wrong": [t for t in things if t != things[spot]],
    }


skill(
    name="kind",
    make=make_kind,
    phrases=["the group of {a}", "the group that {a} is in", "the right group for {a}"],
    held_phrases=["the group for {a}", "the kind of thing that {a} is"],
    train=[
        "What kind of thing is {a}?",
        "Which group is {a} in?",
        "{n} sees {a}. What kind of thing is it?",
        "Name the group of {a}.",
        "Name the right group for {a}.",
    ],
    held=[
        "Which kind of thing is {a}?",
        "{n} has {a}. Which group is it in?",
        "Name the group that {a} is in.",
    ],
    close="So the group is {x}.",
    tells=[
        ("{n} sees {a}.", "So it is in the group {x}."),
        ("{n} can name the group that {a} is in.", "It is {x}."),
        ("{n} knows which kind of thing {a} is.", "The kind of thing is {x}."),
        ("{n} has {a}.", "It is in the group {x}."),
    ],
)

skill(
    name="odd",
    make=make_odd,
    phrases=["the odd one out of {l}", "the word that does not fit in {l}", "the odd one of {l}"],
    held_phrases=["the one that does not fit with {l}", "the odd word out of {l}"],
    train=[
        "Which one does not fit: {l}?",
        "Which is the odd one out: {l}?",
        "Look at {l}. Which one does not fit?",
        "Which word is not in the same group: {l}?",
    ],
    held=[
        "Which word does not fit: {l}?",
        "Look at {l}. Which is the odd one out?",
        "{n} sees {l}. Which one is not in the same group?",
    ],
    close="So {x} does not fit.",
    tells=[
        ("Look at {l}.", "So {x} does not fit with the group."),
        ("One word is not in the same group: {l}.", "The odd one out is {x}."),
        ("{n} sees {l}.", "The odd word is {x}, which is not in the same group."),
    ],
)

skill(
    name="pick",
    make=make_pick,
    phrases=["the {k} in {l}", "the one {k} in {l}", "the word for a kind of {k} in {l}"],
    held_phrases=["the word in {l} that is a kind of {k}", "the {k} of the group {l}"],
    train=[
        "Which one is a kind of {k}: {l}?",
        "Look at {l}. Which one is a kind of {k}?",
        "Which of {l} is in the group {k}?",
        "Which word is a kind of {k}: {l}?",
    ],
    held=[
        "Which of {l} is a kind of {k}?",
        "Look at {l}. Which word is in the group {k}?",
        "{n} sees {l}. Which one is a kind of {k}?",
    ],
    close="So the {k} is {x}.",
    tells=[
        ("Look at {l}.", "The one which is a kind of {k} is {x}."),
        ("{n} sees {l}.", "So {x} is the word in the group {k}."),
        ("One of {l} is a kind of {k}.", "It is {x}."),
    ],
)


# --- Syllogisms ---------------------------------------------------------------

def make_trait(rng: Random) -> dict:
    kind, trait, name = rng.choice(KINDS), rng.choice(TRAITS), rng.choice(NAMES)
    return {
        "k": kind, "t": trait, "who": name, "x": trait,
        "steps": f"{name} is a {kind}. All {kind}s are {trait}. So {name} is {trait}.",
        "key": ("trait", kind, trait, name), "wrong": [t for t in TRAITS if t != trait] + [kind],
    }


def make_chain(rng: Random) -> dict:
    (k, q), trait, name = rng.sample(KINDS, 2), rng.choice(TRAITS), rng.choice(NAMES)
    return {
        "k": k, "q": q, "t": trait, "who": name, "x": trait,
        "steps": (
            f"{name} is a {k}. All {k}s are {q}s. So {name} is a {q}. "
            f"All {q}s are {trait}. So {name} is {trait}."
        ),
        "key": ("chain", k, q, trait), "wrong": [t for t in TRAITS if t != trait] + [k, q],
    }


def make_taller(rng: Random, way: str) -> dict:
    a, b, c = rng.sample(NAMES, 3)
    word, top, low = rng.choice([
        ("taller", "tallest", "shortest"), ("older", "oldest", "youngest"),
        ("faster", "fastest", "slowest"),
    ])
    facts = [f"{a} is {word} than {b}.", f"{b} is {word} than {c}."]
    if rng.random() < 0.5:
        facts.reverse()
    x = a if way == "top" else c
    return {
        "facts": " ".join(facts), "w": top if way == "top" else low, "x": x,
        "steps": f"The order is {a}, {b}, {c}. The {top} is {a}. The {low} is {c}.",
        "key": ("taller", word, a, b, c), "wrong": [v for v in (a, b, c) if v != x] + NAMES,
    }


def make_either(rng: Random) -> dict:
    p, q = rng.sample(PLACES, 2)
    thing = rng.choice(["ball", "cup", "book", "hat", "pen", "kite"])
    no, x = rng.sample([p, q], 2)
    return {
        "g": thing, "p": p, "q": q, "no": no, "x": x,
        "steps": f"The {thing} is not in the {no}. So it is in the {x}.",
        "key": ("either", thing, p, q), "wrong": [no] + [v for v in PLACES if v not in (p, q)],
    }


skill(
    name="trait",
    make=make_trait,
    train=[
        "All {k}s are {t}. {who} is a {k}. What is {who} like?",
        "{who} is a {k}. All {k}s are {t}. What is {who} like?",
        "Every {k} is {t}. {who} is a {k}. What is {who} like?",
        "All {k}s are {t}. {who} is a {k}. What do we know of {who}?",
        "Every {k} is {t}. {who} is a {k}. What do we know of {who}?",
        "{who} is a {k} and all {k}s are {t}. What is {who} like?",
        "All {k}s are {t} and {who} is a {k}. Tell me what {who} is like.",
        "{who} is a {k}. Every {k} is {t}. Tell me what {who} is like.",
    ],
    held=[
        "All {k}s are {t}. {who} is a {k}. Tell me what {who} is like.",
        "{who} is a {k}. Every {k} is {t}. What is {who} like?",
        "Every {k} is {t} and {who} is a {k}. What is {who} like?",
        "{who} is a {k}. All {k}s are {t}. What do we know of {who}?",
    ],
    tells=[
        ("All {k}s are {t}. {who} is a {k}.", "That is what {who} is like."),
        ("Every {k} is {t}. {who} is a {k}.", "I can tell what {who} is like."),
        ("{who} is a {k} and all {k}s are {t}.", "We do know what {who} is like."),
        ("{who} is a {k}. Every {k} is {t}.", "That is what we know of {who}."),
        ("All {k}s are {t} and {who} is a {k}.", "Tell {n} what {who} is like."),
    ],
)

skill(
    name="chain",
    make=make_chain,
    train=[
        "All {k}s are {q}s. All {q}s are {t}. {who} is a {k}. What is {who} like?",
        "{who} is a {k}. All {k}s are {q}s. All {q}s are {t}. What is {who} like?",
        "All {q}s are {t}. All {k}s are {q}s. {who} is a {k}. What is {who} like?",
        "Every {k} is a {q}. Every {q} is {t}. {who} is a {k}. What is {who} like?",
        "All {k}s are {q}s. All {q}s are {t}. {who} is a {k}. What do we know of {who}?",
        "{who} is a {k}. Every {k} is a {q}. Every {q} is {t}. What do we know of {who}?",
        "Every {q} is {t}. Every {k} is a {q}. {who} is a {k}. What is {who} like?",
        "{who} is a {k}. All {k}s are {q}s and all {q}s are {t}. What is {who} like?",
    ],
    held=[
        "{who} is a {k}. Every {k} is a {q}. Every {q} is {t}. What is {who} like?",
        "All {q}s are {t}. All {k}s are {q}s. {who} is a {k}. What do we know of {who}?",
        "All {k}s are {q}s. All {q}s are {t}. {who} is a {k}. Tell me what {who} is like.",
    ],
    tells=[
        ("All {k}s are {q}s. All {q}s are {t}. {who} is a {k}.", "That is what {who} is like."),
        ("{who} is a {k}. All {k}s are {q}s. All {q}s are {t}.", "We know what {who} is like."),
        ("Every {q} is {t}. Every {k} is a {q}. {who} is a {k}.", "That is what we know of {who}."),
        ("{who} is a {k}. Every {k} is a {q}. Every {q} is {t}.", "I can tell what {who} is like."),
        ("All {q}s are {t}. All {k}s are {q}s. {who} is a {k}.", "So we do know it."),
    ],
)

skill(
    name="taller",
    make=make_taller,
    train=[
        "{facts} Who is the {w}?",
        "{facts} Who is the {w} of them?",
        "{facts} Find the {w}.",
        "{facts} Tell me who is the {w}.",
        "{facts} Which one is the {w}?",
        "Here is what we know. {facts} Who is the {w}?",
        "We know this. {facts} Find the {w}.",
        "We know this. {facts} Who is the {w} of them?",
    ],
    held=[
        "We know this. {facts} Who is the {w}?",
        "{facts} Find the {w} of them.",
        "Here is what we know. {facts} Which one is the {w}?",
        "{facts} Say who is the {w}.",
    ],
    tells=[
        ("{facts}", "So {x} is the {w}."),
        ("Here is what we know. {facts}", "So we know who is the {w}: {x}."),
        ("We know this. {facts}", "I can say who is the {w} of them: {x}."),
        ("{n} can tell who is the {w}. {facts}", "So {x} is the {w} one."),
    ],
)

skill(
    name="either",
    make=make_either,
    train=[
        "The {g} is in the {p} or in the {q}. It is not in the {no}. Where is the {g}?",
        "The {g} is in the {p} or the {q}. The {g} is not in the {no}. Where is it?",
        "The {g} is not in the {no}. It is in the {p} or in the {q}. Where is the {g}?",
        "{n} puts the {g} in the {p} or in the {q}. It is not in the {no}. Where is it?",
        "The {g} is in the {p} or in the {q}, but not in the {no}. Where is the {g}?",
        "The {g} is in the {p} or in the {q}. It is not in the {no}. Find the {g}.",
        "{n} looks for the {g} in the {p} and the {q}. It is not in the {no}. Where is it?",
        "The {g} is not in the {no}. It is in the {p} or in the {q}. Find the {g}.",
    ],
    held=[
        "The {g} is in the {p} or the {q}. It is not in the {no}. Find the {g}.",
        "{n} puts the {g} in the {p} or in the {q}. The {g} is not in the {no}. Where is the {g}?",
        "The {g} is in the {p} or the {q}, but not in the {no}. Where is it?",
    ],
    tells=[
        ("The {g} is in the {p} or in the {q}.", "{n} can find it."),
        ("{n} puts the {g} in the {p} or in the {q}. It is not in the {no}.", "That is where it is."),
        ("The {g} is in the {p} or the {q}, but not in the {no}.", "So {n} can find the {g}."),
        ("{n} looks for the {g} in the {p} and the {q}. It is not in the {no}.", "There it is."),
    ],
)
