"""Time skills: the clock and the calendar."""

from random import Random

from core import skill
from words import DAYS, MONTHS, MONTH_DAYS, ORDINALS


# --- Clock time ---------------------------------------------------------------

def clock(hour: int, minute: int) -> str:
    return f"{(hour - 1) % 12 + 1}:{minute:02d}"


def near_times(hour: int, minute: int) -> list[str]:
    """Plausible wrong times."""
    pairs = [(1, 0), (-1, 0), (0, 5), (0, -5), (0, 10), (0, -10), (1, 5), (-1, -5)]
    return [clock(hour + dh, (minute + dm) % 60) for dh, dm in pairs]


def make_read(rng: Random, kind: str) -> dict:
    h = rng.randint(1, 12)
    said, minute = {
        "half": ("half past {h}", 30),
        "quarter past": ("quarter past {h}", 15),
        "quarter to": ("quarter to {h}", 45),
        "past": ("{d} minutes past {h}", 5 * rng.randint(1, 5)),
        "to": ("{d} minutes to {h}", 60 - 5 * rng.randint(1, 5)),
    }[kind]
    to = kind in ("quarter to", "to")
    hour = h - 1 if to else h
    d = 60 - minute if to else minute
    t = said.format(h=h, d=d)
    if to:
        steps = f"The hour before {h} is {clock(hour, 0)[:-3]}. 60 - {d} = {minute}."
    else:
        steps = f"It is {d} minutes after {h}:00."
    x = clock(hour, minute)
    wrong = [clock(h, minute), clock(h + 1, minute), clock(hour, d), clock(h, d)]
    return {
        "t": t, "x": x, "steps": steps, "key": None,
        "wrong": wrong + near_times(hour, minute),
    }


def make_minutes(rng: Random, kind: str) -> dict:
    while True:
        h, m, d = rng.randint(1, 12), 5 * rng.randint(0, 11), 5 * rng.randint(1, 11)
        if (m + d >= 60) == (kind == "wrap"):
            break
    if m + d >= 60:
        hour, minute = h + 1, m + d - 60
        steps = (
            f"{m} + {d} = {m + d}. {m + d} - 60 = {minute}. "
            f"The hour after {h} is {clock(hour, 0)[:-3]}."
        )
    else:
        hour, minute = h, m + d
        steps = f"{m} + {d} = {minute}. The hour is {h}."
    return {
        "t": clock(h, m), "d": f"{d} minutes", "x": clock(hour, minute), "steps": steps,
        "way": "after", "key": ("minutes", h, m, d), "wrong": near_times(hour, minute),
    }


def make_hours(rng: Random) -> dict:
    h, m, d = rng.randint(1, 12), 5 * rng.randint(0, 11), rng.randint(2, 9)
    steps = f"{h} + {d} = {h + d}."
    if h + d > 12:
        steps += f" {h + d} - 12 = {h + d - 12}."
    x = clock(h + d, m)
    steps += f" The hour is {(h + d - 1) % 12 + 1}."
    return {
        "t": clock(h, m), "d": f"{d} hours", "x": x, "steps": steps,
        "key": ("hours", h, m, d), "wrong": near_times(h + d, m),
    }


def make_earlier(rng: Random, unit: str) -> dict:
    if unit == "hours":
        d = rng.randint(1, 8)
        h, m = rng.randint(d + 1, 12), 5 * rng.randint(0, 11)
        x, steps = (h - d, m), f"{h} - {d} = {h - d}. The hour is {h - d}."
        said = f"{d} hours" if d > 1 else "1 hour"
    else:
        d = 5 * rng.randint(1, 10)
        h, m = rng.randint(1, 12), 5 * rng.randint(d // 5, 11)
        x, steps = (h, m - d), f"{m} - {d} = {m - d}. The hour is {h}."
        said = f"{d} minutes"
    return {
        "t": clock(h, m), "d": said, "x": clock(*x), "steps": steps,
        "key": ("earlier", h, m, said), "wrong": near_times(*x),
    }


def make_duration(rng: Random) -> dict:
    h = rng.randint(1, 12)
    a, b = sorted(rng.sample(range(0, 60, 5), 2))
    return {
        "t": clock(h, a), "u": clock(h, b), "x": str(b - a), "steps": f"{b} - {a} = {b - a}.",
        "key": ("duration", h, a, b),
        "wrong": [str(b - a + k) for k in (5, -5, 10, -10, 15) if b - a + k > 0],
    }


skill(
    name="read",
    make=make_read,
    phrases=["the time {t} in numbers", "{t} in numbers", "{t} as the clock shows it"],
    held_phrases=["the time {t} as a clock shows it", "the numbers for {t}"],
    train=[
        "It is {t}. What does the clock show?",
        "Write {t} in numbers.",
        "How does the clock show {t}?",
        "The class starts at {t}. Write the time in numbers.",
    ],
    held=[
        "Write the time {t} in numbers.",
        "What does the clock show at {t}?",
        "{n} comes at {t}. Write the time in numbers.",
    ],
    close="So the clock shows {x}.",
    tells=[
        ("It is {t}.", "So the clock does show {x}."),
        ("{n} can write {t} in numbers.", "That is {x}."),
        ("The class starts at {t}.", "The time in numbers is {x}."),
        ("{n} comes at {t}.", "At that time the clock shows {x}."),
    ],
)

_later = dict(
    phrases=["the time {d} after {t}", "the clock time {d} after {t}"],
    held_phrases=["the time {d} later than {t}", "the time when {d} have gone by after {t}"],
    train=[
        "It is {t} now. What time is it in {d}?",
        "It is {t}. What time is it {d} later?",
        "What time is {d} after {t}?",
        "A class starts at {t} and takes {d}. When does it end?",
        "{n} starts at {t} and reads for {d}. When does {n} end?",
    ],
    held=[
        "The clock shows {t}. What time is it {d} later?",
        "A game starts at {t} and takes {d}. What time does it end?",
        "{n} starts to read at {t}. What time is it after {d}?",
    ],
    close="So the time is {x}.",
    tells=[
        ("It is {t} now, and {n} wants the time in {d}.", "In {d} it is {x}."),
        ("The clock shows {t}, and then it is {d} later.", "So the time is {x}."),
        ("A class starts at {t} and takes {d}.", "It does end at {x}."),
        ("A game starts at {t} and takes {d}.", "So the time when it ends is {x}."),
        ("{n} starts to read at {t} and reads for {d}.", "After {d} it is {x}."),
    ],
)
skill(name="minutes", make=make_minutes, **_later)
skill(name="hours", make=make_hours, **_later)

skill(
    name="earlier",
    make=make_earlier,
    phrases=["the time {d} before {t}", "the clock time {d} before {t}"],
    held_phrases=["the time {d} earlier than {t}"],
    train=[
        "It is {t} now. What time was it {d} before?",
        "What time is {d} before {t}?",
        "A class ends at {t} and takes {d}. When does it start?",
        "It is {t}. What time was it {d} earlier?",
    ],
    held=[
        "The clock shows {t}. What time was it {d} earlier?",
        "A game ends at {t} and takes {d}. When does it start?",
    ],
    close="So the time is {x}.",
    tells=[
        ("It is {t} now, and {n} wants the time {d} before.", "It was {x}."),
        ("The clock shows {t}.", "The time {d} earlier was {x}."),
        ("A class ends at {t} and takes {d}.", "It does start at {x}."),
        ("A game ends at {t} and takes {d}.", "So it starts at {x}."),
    ],
)

skill(
    name="duration",
    make=make_duration,
    phrases=["the number of minutes from {t} to {u}", "the minutes between {t} and {u}"],
    held_phrases=["the number of minutes between {t} and {u}"],
    train=[
        "How many minutes are there from {t} to {u}?",
        "How many minutes is it from {t} to {u}?",
        "A class starts at {t} and ends at {u}. How many minutes does it take?",
    ],
    held=[
        "How many minutes are there between {t} and {u}?",
        "A game starts at {t} and ends at {u}. How many minutes is that?",
    ],
    close="So it takes {x} minutes.",
    tells=[
        ("A class starts at {t} and ends at {u}.", "It does take {x} minutes."),
        ("A game starts at {t} and ends at {u}.", "That is {x} minutes."),
        ("It was {t} and now it is {u}.", "There are {x} minutes between."),
    ],
)


# --- Calendar -----------------------------------------------------------------

def make_cycle(rng: Random, of: str, way: str, far: bool) -> dict:
    """The day or month some steps after or before another."""
    names = DAYS if of == "day" else MONTHS
    start = rng.randrange(len(names))
    k = rng.randint(2, 5) if far else 1
    sign = 1 if way == "after" else -1
    walk = [names[(start + sign * i) % len(names)] for i in range(1, k + 1)]
    if k == 1:
        steps = f"Just {way} {names[start]} comes {walk[0]}."
    else:
        steps = ", ".join(f"{i}: {name}" for i, name in enumerate(walk, 1)) + "."
    return {
        "a": names[start], "way": way, "of": of, "x": walk[-1], "steps": steps,
        "d": f"{k} {of}s", "key": (of, way, start, k) if far else None,
        "wrong": [v for v in names if v not in (walk[-1], names[start])],
    }


def make_month_days(rng: Random) -> dict:
    i = rng.randrange(12)
    x = str(MONTH_DAYS[i])
    return {
        "a": MONTHS[i], "x": x, "steps": f"{MONTHS[i]} has {x} days.", "key": None,
        "wrong": [v for v in ("28", "30", "31", "29", "27", "32") if v != x],
    }


def make_position(rng: Random, of: str) -> dict:
    names = DAYS if of == "day" else MONTHS[:7]
    i = rng.randrange(len(names))
    whole = "week" if of == "day" else "year"
    return {
        "k": ORDINALS[i], "of": of, "whole": whole, "x": names[i], "key": None,
        "steps": f"The {ORDINALS[i]} {of} is {names[i]}.", "wrong": [v for v in names if v != names[i]],
    }


skill(
    name="next in calendar",
    make=lambda rng, of, way: make_cycle(rng, of, way, False),
    phrases=[
        "the {of} just {way} {a}",
        "the {of} that comes {way} {a}",
        "the {of} right {way} {a}",
    ],
    held_phrases=["the {of} {way} {a}", "the {of} which comes {way} {a}"],
    train=[
        "Which {of} comes just {way} {a}?",
        "Which {of} comes {way} {a}?",
        "Which {of} is just {way} {a}?",
    ],
    held=["Which {of} comes right {way} {a}?", "Which {of} is {way} {a}?"],
    close="So it is {x}.",
    tells=[
        ("{n} knows which {of} comes right {way} {a}.", "It is {x}."),
        ("Look at the {of} {way} {a}.", "So the {of} {way} {a} is {x}."),
    ],
)

skill(
    name="steps in calendar",
    make=lambda rng, of, way: make_cycle(rng, of, way, True),
    phrases=["the {of} {d} {way} {a}", "the {of} that comes {d} {way} {a}"],
    held_phrases=["the {of} which is {d} {way} {a}"],
    train=[
        "Which {of} is {d} {way} {a}?",
        "Which {of} comes {d} {way} {a}?",
        "Start at {a}. Which {of} is {d} {way}?",
        "Count {d} {way} {a}. Which {of} is it?",
    ],
    held=[
        "Go {d} {way} {a}. Which {of} is it?",
        "{n} starts at {a}. Which {of} is {d} {way} that?",
    ],
    close="So it is {x}.",
    tells=[
        ("{n} starts at {a}.", "So {d} {way} that is {x}."),
        ("Start at {a} and count {d} {way} it.", "It is {x}."),
        ("Count {d} {way} {a}.", "Then the {of} is {x}."),
        ("Go {d} {way} {a}.", "So {x} is {d} {way} {a}."),
    ],
)

skill(
    name="month days",
    make=make_month_days,
    phrases=["the number of days in {a}", "how many days {a} has"],
    held_phrases=["how many days there are in {a}", "how many days are in {a}"],
    train=[
        "How many days does {a} have?",
        "How many days are in {a}?",
        "How many days are there in the month of {a}?",
    ],
    held=["How many days are there in {a}?", "How many days does the month of {a} have?"],
    close="So {a} has {x} days.",
    tells=[
        ("{n} counts the days in the month of {a}.", "There are {x} days in {a}."),
        ("{n} knows how many days {a} does have.", "It is {x} days."),
    ],
)

skill(
    name="position in calendar",
    make=make_position,
    phrases=["the {k} {of} of the {whole}", "the {of} that is {k} in the {whole}"],
    held_phrases=["the {k} {of} in the {whole}"],
    train=[
        "Which {of} is the {k} {of} of the {whole}?",
        "Which {of} is {k} in the {whole}?",
        "Which {of} comes {k} in the {whole}?",
    ],
    held=["Which is the {k} {of} of the {whole}?", "Which {of} of the {whole} is {k}?"],
    close="So it is {x}.",
    tells=[
        ("{n} knows which {of} comes {k} in the {whole}.", "It is {x}."),
        ("One {of} of the {whole} is {k}.", "So {x} is {k}."),
    ],
)
