"""Measuring skills: units and money."""

from random import Random

from core import near_numbers, pair_key, skill
from skills_arithmetic import add_steps, make_sub, mul_steps, sub_numbers, sub_steps
from words import GOODS


# --- Units --------------------------------------------------------------------

UNITS = {
    "length": [("meter", "centimeter", 100), ("centimeter", "millimeter", 10), ("kilometer", "meter", 1000)],
    "weight": [("kilogram", "gram", 1000)],
    "time": [("hour", "minute", 60), ("minute", "second", 60), ("week", "day", 7), ("year", "month", 12)],
}


def unit_steps(k: int, factor: int) -> str:
    """k x factor in easy steps."""
    if factor in (10, 100, 1000):
        return f"{k} x {factor} = {k * factor}."
    if factor == 60:
        return f"{k} x 6 = {k * 6}. So {k} x 60 = {k * 60}."
    if factor == 12:
        return f"{k} x 10 = {k * 10}. {k} x 2 = {k * 2}. Together: {k * 10} + {k * 2} = {k * 12}."
    return f"{k} x {factor} = {k * factor}."


def make_unit(rng: Random, of: str, way: str) -> dict:
    big, small, factor = rng.choice(UNITS[of])
    k = rng.randint(2, 9) if factor in (7, 12, 60) else rng.randint(2, 40)
    fact = f"1 {big} is {factor} {small}s."
    if way == "down":
        slots = {"a": f"{k} {big}s", "u": f"{small}s", "x": str(k * factor)}
        steps = f"{fact} {unit_steps(k, factor)}"
        wrong = [k * factor + factor, k * factor - factor, k * 10, k * 100, k * 1000, k * 12, k * 60]
    else:
        slots = {"a": f"{k * factor} {small}s", "u": f"{big}s", "x": str(k)}
        steps = f"{fact} {k} x {factor} = {k * factor}."
        wrong = [k + 1, k - 1, k * 10, k + 2, k + 10]
    return {
        **slots, "steps": steps, "key": ("unit", big, k),
        "wrong": [str(v) for v in wrong if v > 0],
    }


def make_mixed(rng: Random) -> dict:
    big, small, factor = rng.choice([("meter", "centimeter", 100), ("hour", "minute", 60)])
    k = rng.randint(2, 9)
    r = rng.randint(2, 99) if factor == 100 else 5 * rng.randint(1, 11)
    whole = k * factor
    added = f"{whole} + {r} = {whole + r}."
    return {
        "a": f"{k} {big}s and {r} {small}s", "u": f"{small}s", "x": str(whole + r),
        "steps": f"1 {big} is {factor} {small}s. {unit_steps(k, factor)} {added}",
        "key": ("mixed", big, k, r), "wrong": near_numbers(whole + r),
    }


_unit_wordings = dict(
    phrases=["the number of {u} in {a}", "{a} in {u}", "how many {u} are in {a}"],
    held_phrases=["{a} as {u}", "how many {u} there are in {a}"],
    train=[
        "How many {u} are in {a}?",
        "How many {u} is {a}?",
        "Change {a} to {u}.",
        "Write {a} in {u}.",
        "{n} has {a}. How many {u} is that?",
    ],
    held=[
        "How many {u} are there in {a}?",
        "How many {u} make {a}?",
        "Change {a} into {u}.",
        "{n} wants to change {a} to {u}. How many {u} is it?",
    ],
    close="So it is {x} {u}.",
    tells=[
        ("{n} wants to change {a} to {u}.", "That makes {x} {u}."),
        ("Change {a} into {u}.", "So {a} is {x} {u}."),
        ("Write {a} in {u}.", "There are {x} {u} in {a}."),
        ("{n} knows how many {u} make {a}.", "So {x} {u} make {a}."),
        ("{n} has {a}.", "That is {x} {u}."),
    ],
)
skill(name="unit", make=make_unit, **_unit_wordings)
skill(name="mixed", make=make_mixed, **_unit_wordings)


# --- Money --------------------------------------------------------------------

def cents(values) -> list[str]:
    return [f"{v} cents" for v in values]


def make_cost(rng: Random) -> dict:
    a, b = rng.randint(11, 89), rng.randint(11, 89)
    g, h = rng.sample(GOODS, 2)
    return {
        "g": g, "h": h, "a": a, "b": b, "x": f"{a + b} cents", "steps": add_steps(a, b),
        "key": pair_key("add", a, b), "wrong": cents(near_numbers(a + b)),
    }


def change_steps(a: int, b: int) -> str:
    """a - b; from 100, go up to the next ten first."""
    if a != 100 or b % 10 == 0:
        return sub_steps(a, b)
    ones = 10 - b % 10
    ten = b + ones
    return (
        f"To the next ten: {b} + {ones} = {ten}. {a} - {ten} = {a - ten}. "
        f"Together: {a - ten} + {ones} = {a - b}."
    )


def make_change(rng: Random) -> dict:
    if rng.random() < 0.5:
        a = 10 * rng.randint(3, 10)
        b = rng.randint(11, a - 5)
    else:
        a, b = sub_numbers(rng, "any")
    return {
        "g": rng.choice(GOODS), "a": a, "b": b, "x": f"{a - b} cents",
        "steps": change_steps(a, b), "key": ("sub", a, b), "wrong": cents(near_numbers(a - b)),
    }


def make_each(rng: Random) -> dict:
    # Some things at a small price each, or few things at a larger price.
    k = rng.randint(2, 9)
    b = rng.choice([rng.randint(2, 9), rng.randint(11, 30)])
    steps = mul_steps(k, b) if b < 10 else mul_steps(b, k)
    return {
        "g": rng.choice(GOODS), "k": k, "b": b, "x": f"{k * b} cents", "steps": steps,
        "key": pair_key("mul", k, b), "wrong": cents(near_numbers(k * b) + [str(k * b + b)]),
    }


def make_coins(rng: Random) -> dict:
    c = rng.choice([2, 5, 10])
    k = rng.randint(2, 9) if c != 10 else rng.randint(2, 40)
    steps = mul_steps(k, c) if c != 10 else f"{k} x 10 = {k * 10}."
    return {
        "k": k, "c": c, "x": f"{k * c} cents", "steps": steps, "key": ("coins", k, c),
        "wrong": cents(near_numbers(k * c) + [str(k * c + c)]),
    }


def make_dearer(rng: Random) -> dict:
    g, h = rng.sample(GOODS, 2)
    slots = make_sub(rng, "any")
    return {**slots, "g": g, "h": h, "x": slots["x"] + " cents", "wrong": cents(slots["wrong"])}


skill(
    name="cost",
    make=make_cost,
    phrases=[
        "the cost of a {g} at {a} cents and a {h} at {b} cents",
        "the sum of {a} cents and {b} cents",
    ],
    held_phrases=["the total of {a} cents and {b} cents", "{a} cents and {b} cents together"],
    train=[
        "A {g} costs {a} cents and a {h} costs {b} cents. How much do they cost together?",
        "{n} pays {a} cents for a {g} and {b} cents for a {h}. How much does {n} pay?",
        "{n} has {a} cents and gets {b} cents more. How much money does {n} have now?",
        "Add {a} cents and {b} cents.",
    ],
    held=[
        "A {g} costs {a} cents. A {h} costs {b} cents. How much is it together?",
        "{n} buys a {g} for {a} cents and a {h} for {b} cents. How much does {n} pay?",
        "{n} has {a} cents and {m} has {b} cents. How much money do they have together?",
    ],
    close="So it is {x}.",
    tells=[
        ("A {g} costs {a} cents and a {h} costs {b} cents.", "They cost {x} together."),
        ("{n} buys a {g} for {a} cents and a {h} for {b} cents.", "{n} does pay {x}."),
        ("{n} pays {a} cents for a {g} and {b} cents for a {h}.", "So {n} pays {x}."),
        ("{n} has {a} cents and {m} has {b} cents.", "The money they have together is {x}."),
        ("{n} adds {a} cents and {b} cents.", "That makes {x}."),
        ("{n} has {a} cents and gets {b} cents more.", "How much money {n} has now: {x}."),
    ],
)

skill(
    name="change",
    make=make_change,
    phrases=[
        "the change from {a} cents for a {g} at {b} cents",
        "the money left from {a} cents after {b} cents are paid",
    ],
    held_phrases=["the change from {a} cents when {b} cents are paid"],
    train=[
        "{n} has {a} cents and pays {b} cents for a {g}. How much money is left?",
        "A {g} costs {b} cents. {n} pays with {a} cents. How much change does {n} get?",
        "Take {b} cents from {a} cents.",
        "{n} pays {b} cents from {a} cents. How much is left?",
    ],
    held=[
        "{n} has {a} cents and buys a {g} for {b} cents. How much money is left?",
        "{n} has {a} cents and pays {b} cents. How much money does {n} have now?",
        "A {g} costs {b} cents and {n} pays with {a} cents. How much change is that?",
    ],
    close="So the change is {x}.",
    tells=[
        ("{n} has {a} cents and pays {b} cents for a {g}.", "So {x} are left."),
        ("{n} has {a} cents and buys a {g} for {b} cents.", "The money left is {x}."),
        ("A {g} costs {b} cents and {n} pays with {a} cents.", "The change is {x}."),
        ("{n} takes {b} cents from {a} cents.", "Now {n} has {x}."),
    ],
)

skill(
    name="each",
    make=make_each,
    phrases=["the cost of {k} {g}s at {b} cents each", "the money for {k} {g}s at {b} cents each"],
    held_phrases=["how much {k} {g}s cost at {b} cents each"],
    train=[
        "One {g} costs {b} cents. How much do {k} {g}s cost?",
        "{n} buys {k} {g}s at {b} cents each. How much does {n} pay?",
        "A {g} costs {b} cents. What do {k} {g}s cost?",
        "How much do {k} {g}s cost at {b} cents each?",
    ],
    held=[
        "One {g} costs {b} cents. How much does {n} pay for {k} {g}s?",
        "{n} pays {b} cents for each {g}. How much do {k} {g}s cost?",
        "{n} buys {k} {g}s. Each {g} costs {b} cents. How much is that?",
    ],
    close="So it is {x}.",
    tells=[
        ("One {g} costs {b} cents and {n} buys {k} {g}s.", "So {n} pays {x}."),
        ("{n} pays {b} cents for each {g}.", "So {k} {g}s cost {x}."),
        ("Each {g} costs {b} cents, and {n} does buy {k} {g}s.", "{k} {g}s cost {x}."),
        ("{n} buys {k} {g}s at {b} cents each.", "That is {x}."),
    ],
)

skill(
    name="coins",
    make=make_coins,
    phrases=["the money in {k} coins of {c} cents", "the sum of {k} coins of {c} cents"],
    held_phrases=["the total of {k} coins of {c} cents"],
    train=[
        "{n} has {k} coins of {c} cents. How much money does {n} have?",
        "How much money are {k} coins of {c} cents?",
        "There are {k} coins of {c} cents in a box. How much money is in the box?",
        "Count {k} coins of {c} cents. How much is it?",
    ],
    held=[
        "How much do {k} coins of {c} cents make?",
        "{n} finds {k} coins of {c} cents. How much money is that?",
        "There are {k} coins in a bag. Each coin is {c} cents. How much money is that?",
    ],
    close="So it is {x}.",
    tells=[
        ("{n} has {k} coins of {c} cents.", "That is {x}."),
        ("{n} finds {k} coins of {c} cents.", "The money makes {x}."),
        ("There are {k} coins in a bag and each coin is {c} cents.", "So there are {x}."),
        ("Count {k} coins of {c} cents.", "How much it is: {x}."),
    ],
)

skill(
    name="dearer",
    make=make_dearer,
    phrases=[
        "the difference between {a} cents and {b} cents",
        "how much more {a} cents is than {b} cents",
    ],
    held_phrases=["the difference of {a} cents and {b} cents"],
    train=[
        "A {g} costs {a} cents and a {h} costs {b} cents. How much more does the {g} cost?",
        "How much more is {a} cents than {b} cents?",
        "{n} has {a} cents and {m} has {b} cents. How much more does {n} have?",
    ],
    held=[
        "A {g} costs {a} cents. A {h} costs {b} cents. How much more is the {g}?",
        "{n} pays {a} cents and {m} pays {b} cents. How much more does {n} pay?",
    ],
    close="So the difference is {x}.",
    tells=[
        ("A {g} costs {a} cents and a {h} costs {b} cents.", "The {g} costs {x} more."),
        ("{n} pays {a} cents and {m} pays {b} cents.", "{n} does pay {x} more."),
        ("{n} has {a} cents and {m} has {b} cents.", "{n} has {x} more."),
    ],
)
