"""Number sense skills: comparing, ordering, number patterns."""

from random import Random

from core import near_numbers, skill
from skills_arithmetic import add_steps, make_sub


# --- Comparing and ordering -------------------------------------------------

def number_list(rng: Random, kind: str, size: int) -> tuple[list[int], str, list[int]]:
    """Distinct numbers that differ in one place: (numbers, place name, digits)."""
    digits = rng.sample(range(1, 10), size)
    if kind == "ones":
        ten = rng.randint(1, 9)
        return [10 * ten + d for d in digits], "Ones", digits
    if kind == "tens":
        return [10 * d + rng.randint(0, 9) for d in digits], "Tens", digits
    return [100 * d + rng.randint(0, 99) for d in digits], "Hundreds", digits


def join(values) -> str:
    return ", ".join(str(v) for v in values)


def make_extreme(rng: Random, kind: str, way: str) -> dict:
    numbers, place, digits = number_list(rng, kind, rng.choice([4, 4, 5]))
    best = max if way == "largest" else min
    x = best(numbers)
    steps = f"{place}: {join(digits)}. The {way} is {best(digits)}. So it is {x}."
    return {
        "l": join(numbers), "w": way, "v": "biggest" if way == "largest" else "least",
        "x": str(x), "steps": steps, "key": ("list", *sorted(numbers)),
        "wrong": [str(v) for v in numbers if v != x],
    }


def make_sort(rng: Random, kind: str, way: str, size: int = 0) -> dict:
    numbers, place, digits = number_list(rng, kind, size or rng.choice([3, 3, 4]))
    down = way == "down"
    order, digits_order = sorted(numbers, reverse=down), sorted(digits, reverse=down)
    wrong = []
    for _ in range(12):
        other = numbers[:]
        rng.shuffle(other)
        if other != order and join(other) not in wrong:
            wrong.append(join(other))
    ends = ("large", "small") if down else ("small", "large")
    return {
        "l": join(numbers), "w": f"{ends[0]} to {ends[1]}",
        "v": ("largest" if down else "smallest"),
        "x": join(order), "steps": f"{place}: {join(digits)}. In order: {join(digits_order)}.",
        "key": ("list", *sorted(numbers)), "wrong": wrong,
    }


def make_rank(rng: Random, kind: str, rank: str) -> dict:
    numbers, place, digits = number_list(rng, kind, 3 if rank == "middle" else 4)
    down = "largest" in rank
    order = sorted(numbers, reverse=down)
    x = order[1]
    mark = sorted(digits, reverse=down)[1]
    name = rank.split()[0]
    steps = (
        f"{place}: {join(digits)}. In order: {join(sorted(digits, reverse=down))}. "
        f"The {name} is {mark}. So it is {x}."
    )
    return {
        "l": join(numbers), "w": rank, "x": str(x), "steps": steps,
        "key": ("list", *sorted(numbers)),
        "wrong": [str(v) for v in numbers if v != x] + near_numbers(x),
    }


def make_neighbour(rng: Random, way: str, top: int) -> dict:
    x = rng.randint(2, top)
    if way == "after":
        a, steps = x - 1, f"Count on: {x - 1}, {x}."
    else:
        a, steps = x + 1, f"Count back: {x + 1}, {x}."
    return {
        "a": a, "way": way, "turn": "on" if way == "after" else "back", "x": str(x),
        "steps": steps, "key": (way, a), "wrong": near_numbers(x),
    }


def make_between(rng: Random, top: int) -> dict:
    x = rng.randint(2, top)
    return {
        "a": x - 1, "b": x + 1, "x": str(x), "steps": f"Count on: {x - 1}, {x}, {x + 1}.",
        "key": ("between", x), "wrong": near_numbers(x),
    }


skill(
    name="extreme",
    make=make_extreme,
    phrases=["the {w} of {l}", "the {w} number of {l}", "the {w} of the numbers {l}"],
    held_phrases=["the {v} of {l}", "the {v} number of {l}"],
    train=[
        "Which number is the {w}: {l}?",
        "Which of {l} is the {w}?",
        "Look at {l}. Which is the {w}?",
        "{n} has the numbers {l}. Which one is the {w}?",
    ],
    held=[
        "Which number is the {v}: {l}?",
        "Look at the numbers {l}. Find the {w} one.",
        "{n} wants the {w} of {l}. Which is it?",
    ],
    tells=[
        ("Look at {l}.", "The {w} is {x}."),
        ("Look at the numbers {l}.", "The {v} number is {x}."),
        ("{n} has the numbers {l}.", "The {w} one is {x}."),
        ("{n} wants the {w} of {l}.", "So {x} is the {w}."),
        ("{n} knows which of {l} is the {v}.", "So {x} is the {v}."),
        ("{n} finds which number is the {w}: {l}.", "It is {x}."),
    ],
)

skill(
    name="gap",
    make=make_sub,
    phrases=["the difference between {a} and {b}", "how much larger {a} is than {b}"],
    held_phrases=["how much more {a} is than {b}", "how much smaller {b} is than {a}"],
    train=[
        "How much larger is {a} than {b}?",
        "How much smaller is {b} than {a}?",
        "{n} has {a} {things} and {m} has {b}. How many more does {n} have?",
        "By how much is {a} larger than {b}?",
    ],
    held=[
        "How much bigger is {a} than {b}?",
        "How much more is {a} than {b}?",
        "By how much is {b} smaller than {a}?",
        "{n} has {a} {things} and {m} has {b} {things}. How many more {things} does {n} have?",
    ],
    close="So the difference is {x}.",
    tells=[
        ("{n} finds by how much {a} is larger than {b}.", "So {a} is larger by {x}."),
        ("{a} is bigger than {b}.", "It is bigger by {x}."),
        ("{b} is smaller than {a}.", "It is smaller by {x}."),
        ("{n} has {a} {things} and {m} has {b} {things}.", "{n} has {x} more."),
    ],
)

skill(
    name="sort",
    make=make_sort,
    phrases=["the order of {l} from {w}", "the numbers {l} from {w}"],
    held_phrases=["{l} in order from {w}", "the numbers {l} in order from {w}"],
    close="So the order is {x}.",
    train=[
        "Put {l} in order from {w}.",
        "Write {l} from {w}.",
        "Order the numbers {l} from {w}.",
        "Put the numbers {l} in order, the {v} first.",
    ],
    held=[
        "Write the numbers {l} in order from {w}.",
        "Order {l} from {w}.",
        "Put {l} in order with the {v} first.",
    ],
    tells=[
        ("{n} can put {l} in order from {w}.", "So {n} can write {x}."),
        ("Put the numbers {l} in order from {w}.", "That makes {x}."),
        ("Write {l} with the {v} first.", "So the order is {x}."),
        ("Order the numbers {l}, the {v} first.", "So we write {x}."),
        ("Write {l} in order from {w}.", "It is {x}."),
    ],
)

skill(
    name="rank",
    make=make_rank,
    phrases=["the {w} number of {l}", "the {w} of {l}"],
    held_phrases=["the {w} one of the numbers {l}", "the {w} when you order {l}"],
    train=[
        "Which number is the {w}: {l}?",
        "Look at {l}. Which is the {w}?",
        "Which of {l} is the {w} number?",
    ],
    held=[
        "Order {l}. Which is the {w}?",
        "Look at the numbers {l}. Find the {w} one.",
        "{n} wants the {w} of {l}. Which is it?",
    ],
    tells=[
        ("Look at the numbers {l}.", "The {w} one is {x}."),
        ("Order {l}.", "The {w} is {x}."),
        ("{n} wants the {w} of {l}.", "So it is {x}."),
    ],
)

skill(
    name="neighbour",
    make=make_neighbour,
    phrases=["the number just {way} {a}", "the next number {way} {a}"],
    held_phrases=["the number right {way} {a}", "the number that comes {way} {a}"],
    train=[
        "Which number comes just {way} {a}?",
        "Count {turn} from {a}. Which number comes next?",
        "Which number is {way} {a}?",
    ],
    held=[
        "Which number comes right {way} {a}?",
        "{n} wants to count {turn} from {a}. Which number is next?",
    ],
    tells=[
        ("{n} can count {turn} from {a}.", "The next number is {x}."),
        ("{n} knows which number comes right {way} {a}.", "Just {way} {a} comes {x}."),
    ],
)

skill(
    name="between",
    make=make_between,
    phrases=["the number between {a} and {b}", "the number after {a} and before {b}"],
    held_phrases=["the number that comes between {a} and {b}"],
    train=["Which number is between {a} and {b}?", "Which number comes between {a} and {b}?"],
    held=[
        "Which number is after {a} and before {b}?",
        "Look at {a} and {b}. Which number is between?",
    ],
    tells=[
        ("Look at {a} and {b}.", "So {x} is between."),
        ("One number comes between {a} and {b}.", "It is {x}."),
    ],
)


# --- Number patterns ----------------------------------------------------------

def make_next(rng: Random, way: str) -> dict:
    d = rng.randint(2, 10)
    if way == "up":
        start = rng.randint(1, 60)
        seq = [start + d * k for k in range(5)]
        steps = f"{seq[1]} - {seq[0]} = {d}. So add {d}: {seq[3]} + {d} = {seq[4]}."
    else:
        start = rng.randint(1, 55)
        seq = [start + d * (4 - k) for k in range(5)]
        steps = f"{seq[0]} - {seq[1]} = {d}. So take {d}: {seq[3]} - {d} = {seq[4]}."
    return {
        "l": join(seq[:4]), "x": str(seq[4]), "steps": steps,
        "key": ("seq", start, d), "wrong": near_numbers(seq[4]),
    }


def make_missing(rng: Random) -> dict:
    d, start = rng.randint(2, 10), rng.randint(1, 60)
    seq = [start + d * k for k in range(4)]
    gap = rng.choice([1, 2])
    shown = [str(v) if k != gap else "__" for k, v in enumerate(seq)]
    low = 2 if gap == 1 else 0
    steps = f"{seq[low + 1]} - {seq[low]} = {d}. So add {d}: {seq[gap - 1]} + {d} = {seq[gap]}."
    return {
        "l": ", ".join(shown), "x": str(seq[gap]), "steps": steps,
        "key": ("seq", start, d), "wrong": near_numbers(seq[gap]),
    }


def make_rule(rng: Random) -> dict:
    d, start = rng.randint(2, 20), rng.randint(1, 60)
    seq = [start + d * k for k in range(4)]
    return {
        "l": join(seq), "x": str(d), "steps": f"{seq[1]} - {seq[0]} = {d}. So add {d} each time.",
        "key": ("seq", start, d), "wrong": near_numbers(d),
    }


def make_double(rng: Random) -> dict:
    start = rng.randint(2, 24)
    seq = [start, 2 * start, 4 * start]
    return {
        "l": join(seq), "x": str(8 * start), "key": ("double", start),
        "steps": f"Each number is doubled. Double {seq[2]}: {add_steps(seq[2], seq[2])}",
        "wrong": near_numbers(8 * start),
    }


_next_wordings = dict(
    phrases=["the next number in {l}", "the next number of the pattern {l}"],
    held_phrases=["the number after {l}", "the number that comes next in {l}"],
    train=[
        "Which number comes next: {l}?",
        "What comes next in {l}?",
        "Look at {l}. Which number is next?",
        "{n} counts {l}. Which number comes next?",
        "Go on with the pattern {l}.",
    ],
    held=[
        "What comes after {l}?",
        "Look at the pattern {l}. What comes next?",
        "{n} counts {l}. What is the next number?",
    ],
    close="So the next number is {x}.",
    tells=[
        ("{n} counts {l}.", "The next number is {x}."),
        ("Look at the pattern {l}.", "What comes next is {x}."),
        ("We go on with the pattern {l}.", "So {x} comes next."),
        ("{n} knows what comes after {l}.", "After that comes {x}."),
    ],
)
skill(name="next", make=make_next, **_next_wordings)
skill(name="double", make=make_double, **_next_wordings)

skill(
    name="missing",
    make=make_missing,
    phrases=["the missing number in {l}", "the missing number of the pattern {l}"],
    held_phrases=["the number that is missing in {l}", "the number for __ in {l}"],
    train=[
        "Which number is missing: {l}?",
        "Which number goes in {l}?",
        "Look at {l}. Which number is missing?",
        "Write the missing number: {l}.",
    ],
    held=[
        "What is missing in {l}?",
        "Look at the pattern {l}. Find the missing number.",
        "{n} counts {l}. Which number is missing?",
    ],
    close="So the missing number is {x}.",
    tells=[
        ("Look at the pattern {l}.", "The missing number is {x}."),
        ("{n} counts {l}.", "What is missing is {x}."),
        ("One number is missing in {l}.", "So {x} goes in for __."),
        ("{n} can write the missing number in {l}.", "It is {x}."),
    ],
)

skill(
    name="rule",
    make=make_rule,
    phrases=["the step in {l}", "the step of the pattern {l}", "the number added each time in {l}"],
    held_phrases=["the step from number to number in {l}", "the number we add each time in {l}"],
    train=[
        "How much is added each time in {l}?",
        "Look at {l}. How much is added each time?",
        "Which number is added in {l}?",
    ],
    held=[
        "How much do we add each time in {l}?",
        "Look at the pattern {l}. What is the step?",
        "{n} counts {l}. How much is added?",
    ],
    close="So the step is {x}.",
    tells=[
        ("Look at the pattern {l}.", "The step is {x}."),
        ("{n} counts {l}.", "How much is added each time is {x}."),
        ("We add the same number each time in {l}.", "It is {x}."),
    ],
)

