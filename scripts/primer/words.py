"""Word lists of the primer world: categories, plurals, opposites, dates."""

# Kind -> its members, each with the article it takes ("" for none).
CATEGORIES = {
    "animal": ["a dog", "a cat", "a cow", "a horse", "a pig", "a lion", "a mouse", "a wolf"],
    "bird": ["a hen", "a duck", "a goose", "an owl", "an eagle", "a crow"],
    "fruit": ["an apple", "a pear", "a plum", "a lemon", "a banana", "a grape"],
    "color": ["red", "blue", "green", "yellow", "pink", "brown"],
    "drink": ["milk", "tea", "water", "juice"],
    "toy": ["a doll", "a kite", "a robot", "a puzzle", "a ball"],
    "tool": ["a hammer", "a saw", "a rake", "an axe", "a drill"],
    "vehicle": ["a car", "a bus", "a train", "a boat", "a bike", "a truck"],
    "flower": ["a rose", "a lily", "a daisy", "a tulip"],
    "clothing": ["a shirt", "a hat", "a sock", "a dress", "a coat", "a shoe"],
    "furniture": ["a chair", "a table", "a bed", "a desk", "a sofa", "a shelf"],
}

# Plural rule -> (one, many) pairs.
PLURALS = {
    "s": [
        (w, w + "s")
        for w in (
            "dog cat cow horse pig lion duck apple pear lemon car boat bike hammer chair table "
            "robot kite shirt coat book pen cup ball girl boy tree bird"
        ).split()
    ],
    "es": [
        (w, w + "es") for w in "bus box fox dish brush glass class dress watch bench".split()
    ],
    "ies": [
        (w, w[:-1] + "ies") for w in "baby lily daisy city puppy story berry party".split()
    ],
    "ves": [
        ("wolf", "wolves"), ("leaf", "leaves"), ("shelf", "shelves"), ("knife", "knives"),
        ("loaf", "loaves"), ("calf", "calves"),
    ],
    "odd": [
        ("mouse", "mice"), ("goose", "geese"), ("child", "children"), ("man", "men"),
        ("woman", "women"), ("foot", "feet"), ("tooth", "teeth"), ("ox", "oxen"),
    ],
}

# Theme -> opposite pairs; every word is in exactly one pair.
OPPOSITES = {
    "size": [
        ("big", "small"), ("tall", "short"), ("thick", "thin"), ("wide", "narrow"),
        ("full", "empty"), ("heavy", "light"),
    ],
    "place": [
        ("up", "down"), ("in", "out"), ("left", "right"), ("near", "far"), ("high", "low"),
        ("over", "under"), ("front", "back"), ("top", "bottom"), ("north", "south"),
        ("east", "west"),
    ],
    "feel": [
        ("hot", "cold"), ("warm", "cool"), ("wet", "dry"), ("hard", "soft"),
        ("happy", "sad"), ("loud", "quiet"),
    ],
    "act": [
        ("give", "take"), ("push", "pull"), ("buy", "sell"), ("win", "lose"),
        ("laugh", "cry"), ("love", "hate"), ("come", "go"), ("sit", "stand"),
    ],
    "state": [
        ("fast", "slow"), ("old", "young"), ("clean", "dirty"), ("open", "closed"),
        ("rich", "poor"), ("strong", "weak"), ("good", "bad"),
    ],
    "time": [("day", "night"), ("early", "late"), ("first", "last"), ("always", "never")],
}

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
]
MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# Things with a price, all taking "a".
GOODS = ["pen", "cup", "book", "ball", "hat", "cake", "card", "kite"]

# Made-up kinds and properties for the syllogisms.
KINDS = ["bim", "wug", "zup", "lom", "fep", "tak", "dov", "gub"]
TRAITS = [
    "red", "blue", "green", "yellow", "pink", "brown", "happy", "sad", "fast", "slow",
    "big", "small", "strong", "quiet",
]
PLACES = ["box", "bag", "desk", "car", "bus", "boat", "tree", "bed"]
