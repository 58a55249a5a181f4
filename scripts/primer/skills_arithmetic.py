"""Arithmetic skills: addition, subtraction, multiplication, and their worked steps."""

from random import Random

from core import near_numbers, pair_key, skill


def add_steps(a: int, b: int) -> str:
    """a + b as tens, ones, together; small sums and whole tens more directly."""
    if a < 10 and b < 10:
        return f"{a} + {b} = {a + b}."
    if a % 10 == 0 and b % 10 == 0:
        return f"{a // 10} + {b // 10} = {(a + b) // 10}. So {a} + {b} = {a + b}."
    tens_a, tens_b, ones_a, ones_b = a - a % 10, b - b % 10, a % 10, b % 10
    tens, ones = tens_a + tens_b, ones_a + ones_b
    return (
        f"Tens: {tens_a} + {tens_b} = {tens}. Ones: {ones_a} + {ones_b} = {ones}. "
        f"Together: {tens} + {ones} = {a + b}."
    )


def sub_steps(a: int, b: int) -> str:
    """a - b; the first number is broken so that no borrowing is left to do."""
    if a < 20 and b < 10 and a - b < 10:
        return f"{a} - {b} = {a - b}."
    if a % 10 == 0 and b % 10 == 0:
        return f"{a // 10} - {b // 10} = {(a - b) // 10}. So {a} - {b} = {a - b}."
    ones_a, ones_b = a % 10, b % 10
    if ones_a < ones_b:
        ones_a += 10
    tens_a, tens_b = a - ones_a, b - ones_b
    return (
        f"Break {a} into {tens_a} and {ones_a}. Tens: {tens_a} - {tens_b} = {tens_a - tens_b}. "
        f"Ones: {ones_a} - {ones_b} = {ones_a - ones_b}. "
        f"Together: {tens_a - tens_b} + {ones_a - ones_b} = {a - b}."
    )


def mul_steps(a: int, b: int) -> str:
    """a x b for one-digit b: table rows for small a, else tens and ones."""
    if a < 10:
        return ", ".join(f"{k} x {b} = {k * b}" for k in range(1, a + 1)) + "."
    if a % 10 == 0:
        return f"{a // 10} x {b} = {a // 10 * b}. So {a} x {b} = {a * b}."
    tens, ones = a - a % 10, a % 10
    return (
        f"Tens: {tens} x {b} = {tens * b}. Ones: {ones} x {b} = {ones * b}. "
        f"Together: {tens * b} + {ones * b} = {a * b}."
    )


def add_numbers(rng: Random, kind: str) -> tuple[int, int]:
    """Two numbers for one kind of addition."""
    if kind == "small":
        return rng.randint(1, 9), rng.randint(1, 9)
    if kind == "tens":
        return 10 * rng.randint(1, 9), 10 * rng.randint(1, 9)
    if kind == "one":
        return rng.randint(11, 99), rng.randint(1, 9)
    if kind == "double":
        a = rng.randint(2, 99)
        return a, a
    while True:
        low = 50 if kind == "large" else 10
        a, b = rng.randint(low, 99), rng.randint(low, 99)
        carries = a % 10 + b % 10 >= 10
        if kind in ("any", "large") or carries == (kind == "carry"):
            return a, b


def make_add(rng: Random, kind: str) -> dict:
    a, b = add_numbers(rng, kind)
    return {
        "a": a, "b": b, "x": str(a + b), "steps": add_steps(a, b),
        "key": pair_key("add", a, b), "wrong": near_numbers(a + b),
    }


def make_add3(rng: Random, top: int) -> dict:
    a, b, c = (rng.randint(1, top) for _ in range(3))
    steps = f"{a} + {b} = {a + b}. {a + b} + {c} = {a + b + c}."
    return {
        "a": a, "b": b, "c": c, "x": str(a + b + c), "steps": steps,
        "key": ("add3", *sorted((a, b, c))), "wrong": near_numbers(a + b + c),
    }


def sub_numbers(rng: Random, kind: str) -> tuple[int, int]:
    """Two numbers for one kind of subtraction, the larger first."""
    if kind == "small":
        b, x = rng.randint(1, 9), rng.randint(1, 9)
        return b + x, b
    if kind == "tens":
        b = rng.randint(1, 8)
        return 10 * rng.randint(b + 1, 9), 10 * b
    while True:
        a = rng.randint(20, 99)
        b = rng.randint(1, 9) if kind == "one" else rng.randint(10, a - 1)
        borrows = a % 10 < b % 10
        if kind in ("any", "one") or borrows == (kind == "borrow"):
            return a, b


def make_sub(rng: Random, kind: str) -> dict:
    a, b = sub_numbers(rng, kind)
    return {
        "a": a, "b": b, "x": str(a - b), "steps": sub_steps(a, b),
        "key": ("sub", a, b), "wrong": near_numbers(a - b),
    }


def make_mul(rng: Random, kind: str, by: int = 0) -> dict:
    if kind == "table":
        a, b = rng.randint(2, 9), by or rng.randint(2, 9)
    elif kind == "tens":
        a, b = 10 * rng.randint(1, 9), rng.randint(2, 9)
    else:
        a, b = rng.randint(11, 99), by or rng.randint(2, 9)
    return {
        "a": a, "b": b, "x": str(a * b), "steps": mul_steps(a, b),
        "key": pair_key("mul", a, b), "wrong": near_numbers(a * b) + [str(a * b + b)],
    }


skill(
    name="add",
    make=make_add,
    phrases=["{a} plus {b}", "{a} + {b}", "the sum of {a} and {b}", "{b} added to {a}"],
    held_phrases=["the total of {a} and {b}", "{b} more than {a}", "{a} and {b} together"],
    train=[
        "Add {a} and {b}.",
        "How much is {a} and {b}?",
        "How much is {a} plus {b}?",
        "{n} has {a} {things} and gets {b} more. How many {things} does {n} have now?",
        "There are {a} {things} in a box and {b} in a bag. How many {things} are there?",
        "{n} has {a} {things} and finds {b} {things}. How many {things} is that?",
    ],
    held=[
        "How much do {a} and {b} make?",
        "Put {a} and {b} together. How much is it?",
        "{n} has {a} {things} and {m} has {b} {things}. How many {things} do they have?",
        "{n} had {a} {things} and got {b} more. How many {things} are there now?",
    ],
    tells=[
        ("{n} adds {a} and {b}.", "So {a} and {b} make {x}."),
        ("Add {a} and {b}.", "So {a} + {b} = {x}."),
        ("Put {a} and {b} together.", "So {a} and {b} make {x}."),
        ("{n} finds how much {a} and {b} make.", "It is {x}."),
        ("{n} knows how much {a} plus {b} is.", "How much it is: {x}."),
        ("{n} has {a} {things} and gets {b} more.", "Now {n} has {x} {things}."),
        ("{n} had {a} {things} and got {b} more.", "There are {x} {things} now."),
        ("{n} has {a} {things} and {m} has {b} {things}.", "They have {x} {things} together."),
        ("There are {a} {things} in a box and {b} in a bag.", "That is {x} {things}."),
        ("{n} has {a} {things} and finds {b} {things}.", "{n} does have {x} {things} now."),
    ],
)

skill(
    name="add3",
    make=make_add3,
    phrases=["{a} plus {b} plus {c}", "{a} + {b} + {c}", "the sum of {a}, {b} and {c}"],
    held_phrases=["the total of {a}, {b} and {c}", "{a}, {b} and {c} together"],
    train=["Add {a}, {b} and {c}.", "How much is {a} plus {b} plus {c}?"],
    held=["How much do {a}, {b} and {c} make?", "Put {a}, {b} and {c} together. How much is it?"],
    tells=[
        ("{n} adds {a}, {b} and {c}.", "So {a}, {b} and {c} make {x}."),
        ("Put {a}, {b} and {c} together.", "It is {x}."),
    ],
)

skill(
    name="sub",
    make=make_sub,
    phrases=["{a} minus {b}", "{a} - {b}", "{b} taken from {a}", "{a} take away {b}"],
    held_phrases=["{b} less than {a}", "the difference of {a} and {b}"],
    train=[
        "Take {b} from {a}.",
        "How much is {a} minus {b}?",
        "How much is left when you take {b} from {a}?",
        "{n} has {a} {things} and gives away {b}. How many {things} are left?",
        "There are {a} {things} in a box. {n} takes {b}. How many {things} are left?",
        "{n} has {a} {things} and sells {b}. How many {things} does {n} have now?",
    ],
    held=[
        "How much is {a} take away {b}?",
        "Take {b} away from {a}. How much is left?",
        "{n} had {a} {things} and gave away {b}. How many {things} does {n} have left?",
        "There are {a} {things} and {n} sells {b}. How many {things} are left?",
    ],
    tells=[
        ("{n} takes {b} from {a}.", "So {a} - {b} = {x}."),
        ("Take {b} away from {a}.", "So {x} is left."),
        ("{n} knows how much is left when you take {b} from {a}.", "It is {x}."),
        ("{n} has {a} {things} and gives away {b}.", "So {x} {things} are left."),
        ("{n} had {a} {things} and gave away {b}.", "{n} has {x} {things} left."),
        ("There are {a} {things} in a box and {n} takes {b}.", "So {x} {things} are left."),
        ("There are {a} {things} and {n} sells {b}.", "Now {x} {things} are left."),
        ("{n} has {a} {things} and sells {b}.", "Now {n} has {x} {things}."),
    ],
)

skill(
    name="mul",
    make=make_mul,
    phrases=["{a} times {b}", "{a} x {b}", "the product of {a} and {b}"],
    held_phrases=["{a} groups of {b}", "{a} multiplied by {b}"],
    train=[
        "Multiply {a} by {b}.",
        "How much is {a} times {b}?",
        "There are {a} boxes with {b} {things} in each. How many {things} are there?",
        "{n} has {a} bags. Each bag has {b} {things}. How many {things} does {n} have?",
        "How many {things} are in {a} groups of {b} {things}?",
    ],
    held=[
        "How much do {a} groups of {b} make?",
        "There are {a} bags with {b} {things} in each bag. How many {things} is that?",
        "Each box has {b} {things}. How many {things} are in {a} boxes?",
    ],
    tells=[
        ("{n} can multiply {a} by {b}.", "So {a} x {b} = {x}."),
        ("Multiply {a} by {b}.", "So {a} times {b} is {x}."),
        ("There are {a} boxes with {b} {things} in each.", "That is {x} {things}."),
        ("{n} has {a} bags and each bag has {b} {things}.", "{n} has {x} {things}."),
        ("Each box has {b} {things}, and {n} has {a} boxes.", "So there are {x} {things}."),
        ("{n} makes {a} groups of {b} {things}.", "So {a} groups of {b} make {x}."),
    ],
)
