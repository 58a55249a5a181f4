"""The committed files of the primer world: benchmarks, taxonomy and prompt samples.

They depend on a fixed seed only, so a rebuild must reproduce them byte for byte.
"""

import json
from random import Random

from core import draw, held_question
from prompts import RENDERERS
from rows import sample_variables
from world import Discipline, skill_variants

BENCH_SEED = 20240213
OPEN_PER_DISCIPLINE = 40
CHOICE_PER_DISCIPLINE = 27
FIXTURES_PER_TEMPLATE = 3


def variant_name(name: str, params: dict) -> str:
    """A readable name of a skill variant."""
    return " ".join([name] + [f"{k}={v}" for k, v in params.items()])


def held_item(rng: Random, variants: list, turn: int, seen: set[str]) -> tuple[str, str, dict]:
    """One unseen held-out problem, going round the variants: (skill, question, slots)."""
    for attempt in range(turn, turn + 500):
        name, params = variants[attempt % len(variants)]
        slots = draw(rng, name, params, held=True)
        question = held_question(rng, name, slots) if slots else None
        if question and question not in seen:
            seen.add(question)
            return variant_name(name, params), question, slots
    raise AssertionError("no unseen held-out problem left")


def shuffled_choices(rng: Random, slots: dict, place: int) -> list[str]:
    """Three distinct distractors with the right answer at the given place."""
    wrong = [w for w in dict.fromkeys(slots["wrong"]) if w != slots["x"]]
    assert len(wrong) >= 3, slots
    # The first candidates are the nearest ones, so draw among the first six.
    choices = rng.sample(wrong[:6], 3)
    choices.insert(place, slots["x"])
    return choices


def build_benchmarks(world: list[Discipline]) -> tuple[list[dict], list[dict]]:
    """The generative and the multiple-choice benchmark."""
    rng = Random(BENCH_SEED)
    seen: set[str] = set()
    open_rows, choice_rows = [], []
    for number, discipline in enumerate(world):
        variants = skill_variants(discipline)
        for turn in range(OPEN_PER_DISCIPLINE):
            skill_name, question, slots = held_item(rng, variants, turn, seen)
            open_rows.append(
                {
                    "id": f"primer-{len(open_rows):04d}",
                    "discipline": discipline.name,
                    "skill": skill_name,
                    "question": question,
                    "answer": slots["x"],
                }
            )
        places = [(number + i) % 4 for i in range(CHOICE_PER_DISCIPLINE)]
        rng.shuffle(places)
        for turn, place in enumerate(places):
            skill_name, question, slots = held_item(rng, variants, turn, seen)
            choice_rows.append(
                {
                    "id": f"primer-mc-{len(choice_rows):04d}",
                    "discipline": discipline.name,
                    "skill": skill_name,
                    "question": question,
                    "choices": shuffled_choices(rng, slots, place),
                    "answer": place,
                }
            )
    return interleave(open_rows, OPEN_PER_DISCIPLINE), interleave(choice_rows, CHOICE_PER_DISCIPLINE)


def interleave(rows: list[dict], per_discipline: int) -> list[dict]:
    """Rows taken from every discipline in turn, so that the first or last few are a fair sample of all."""
    order = sorted(range(len(rows)), key=lambda row: (row % per_discipline, row // per_discipline))
    return [{**rows[row], "id": rows[place]["id"]} for place, row in enumerate(order)]


def taxonomy_toml(world: list[Discipline]) -> str:
    """The taxonomy of the world in the program's TOML form."""
    tree: dict[str, dict[str, list[str]]] = {}
    for d in world:
        tree.setdefault(d.field_name, {}).setdefault(d.subfield, []).append(d.name)
    lines = ["# The taxonomy of the primer world (written by scripts/primer/make_text.py)."]
    for field_name, subfields in tree.items():
        lines += ["", "[[fields]]", f'name = "{field_name}"']
        for subfield, names in subfields.items():
            quoted = ", ".join(f'"{n}"' for n in names)
            lines += ["", "[[fields.subfields]]", f'name = "{subfield}"', f"disciplines = [{quoted}]"]
    return "\n".join(lines) + "\n"


def prompt_fixtures(world: list[Discipline]) -> list[dict]:
    """A few samples of every template with its variables and rendered text."""
    rng = Random(BENCH_SEED + 1)
    samples = []
    for template, render in RENDERERS.items():
        for _ in range(FIXTURES_PER_TEMPLATE):
            variables = sample_variables(rng, world, template)
            samples.append(
                {"template": template, "variables": variables, "rendered": render(variables)}
            )
    return samples


def to_jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)


def committed_files(world: list[Discipline]) -> tuple[dict[str, str], list[dict]]:
    """Path in the repository -> text, and all benchmark rows."""
    open_rows, choice_rows = build_benchmarks(world)
    files = {
        "benchmarks/primer/primer.jsonl": to_jsonl(open_rows),
        "benchmarks/primer/primer_mc.jsonl": to_jsonl(choice_rows),
        "configs/primer_taxonomy.toml": taxonomy_toml(world),
        "tests/fixtures/primer_prompts.json": json.dumps(prompt_fixtures(world), indent=1) + "\n",
    }
    return files, open_rows + choice_rows
