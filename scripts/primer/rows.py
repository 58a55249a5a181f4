"""Training rows of the primer world: teacher conversations and base documents."""

import re
from random import Random

from core import NAMES, answer_text, base_passage, draw, train_question
from prompts import compact, render_answer, render_question, render_subjects, render_syllabus
from world import (
    Discipline,
    sample_context,
    sample_level,
    sample_subjects,
    sample_subtopics,
    sample_syllabus,
)

TOKEN = re.compile(r"[A-Za-z]+|\d|[^\w\s]|_+")

# Disciplines of closed fact lists need less practice than the open number skills.
WEIGHTS = {
    "Addition": 1.6, "Subtraction": 1.8, "Multiplication": 1.5, "Comparing Numbers": 1.5,
    "Ordering Numbers": 1.5, "Number Patterns": 1.5, "Clock Time": 1.4, "Units": 1.2,
    "Money": 1.6, "Plurals": 0.7, "Opposites": 0.6, "Alphabet": 0.8, "Syllogisms": 1.1,
}

# Plain sentences that show the base the words questions are asked with.
FILLER = [
    "{n} has a question. {m} can answer it.",
    "{n} likes to find what comes next.",
    "What comes next is nice to find.",
    "What it is, {n} can tell.",
    "Which one it is, {n} can say.",
    "Which word it is, {m} knows.",
    "How many there are, {n} can count.",
    "How much it is, {n} can work out.",
    "Where it is, {n} does not know.",
    "Who it is, {m} can tell me.",
    "When the class ends, {n} and {m} go home.",
    "By and by {n} finds it.",
    "Can you see it, says {n}.",
    "Say it again, says {m}.",
    "Tell me more, says {n}.",
    "Find it, says {m}, and {n} finds it.",
    "Write it down, says {n}.",
    "Give it to {m}, says {n}.",
    "Take one more, says {m}.",
    "Work with me, says {n}.",
    "Name it, says {n}, and {m} can name it.",
    "Please tell {n} what you know.",
    "{n} asks a question and {m} gives an answer.",
    "{n} writes a question for {m}.",
    "Every day {n} and {m} work out numbers and words.",
    "{n} wants to know which word is right.",
    "I want to know it too, says {n}.",
    "We look at it and say what it is.",
]


def estimate_tokens(text: str) -> int:
    """Words, single digits and punctuation marks."""
    return len(TOKEN.findall(text))


def pick_discipline(rng: Random, world: list[Discipline]) -> Discipline:
    return rng.choices(world, [WEIGHTS.get(d.name, 1.0) for d in world])[0]


def pick_problem(rng: Random, discipline: Discipline, concept: str) -> tuple[str, dict]:
    """A training problem for a key concept: (skill, slots)."""
    name, params = discipline.concepts[concept]
    return name, draw(rng, name, params, held=False)


# --- Prompt variables -----------------------------------------------------------

def subjects_variables(rng: Random, world: list[Discipline]) -> tuple[dict, Discipline]:
    d = rng.choice(world)
    count = rng.choice([2, 3, 3, 4])
    variables = {
        "discipline": d.name, "field": d.field_name, "subfield": d.subfield, "num_subjects": count,
    }
    return variables, d


def syllabus_variables(rng: Random, world: list[Discipline]) -> tuple[dict, object]:
    d = rng.choice(world)
    subject = rng.choice(d.subjects)
    variables = {
        "discipline": d.name, "subject": subject.name, "level": sample_level(rng, subject),
        "subtopics": sample_subtopics(rng, subject),
    }
    return variables, subject


def question_variables(rng: Random, world: list[Discipline]) -> tuple[dict, Discipline]:
    d = rng.choice(world)
    subject = rng.choice(d.subjects)
    syllabus = sample_syllabus(rng, subject)
    sessions, concepts = sample_context(rng, syllabus)
    variables = {
        "discipline": d.name, "subject": subject.name, "level": sample_level(rng, subject),
        "syllabus": syllabus, "class_sessions": sessions, "key_concepts": concepts,
    }
    return variables, d


def answer_variables(rng: Random, world: list[Discipline]) -> tuple[dict, dict]:
    d = pick_discipline(rng, world)
    name, slots = pick_problem(rng, d, rng.choice(list(d.concepts)))
    return {"question": train_question(rng, name, slots)}, slots


VARIABLES = {
    "subjects": subjects_variables,
    "syllabus": syllabus_variables,
    "question": question_variables,
    "answer": answer_variables,
}


def sample_variables(rng: Random, world: list[Discipline], template: str) -> dict:
    """Random variables of one template."""
    return VARIABLES[template](rng, world)[0]


# --- Teacher rows -----------------------------------------------------------------

def subjects_pair(rng: Random, world: list[Discipline]) -> tuple[str, str]:
    variables, d = subjects_variables(rng, world)
    response = {"subjects": sample_subjects(rng, d, variables["num_subjects"])}
    return render_subjects(variables), compact(response)


def syllabus_pair(rng: Random, world: list[Discipline]) -> tuple[str, str]:
    variables, subject = syllabus_variables(rng, world)
    return render_syllabus(variables), compact(sample_syllabus(rng, subject))


def question_pair(rng: Random, world: list[Discipline]) -> tuple[str, str]:
    variables, d = question_variables(rng, world)
    name, slots = pick_problem(rng, d, rng.choice(variables["key_concepts"]))
    return render_question(variables), train_question(rng, name, slots)


def answer_pair(rng: Random, world: list[Discipline]) -> tuple[str, str]:
    variables, slots = answer_variables(rng, world)
    return render_answer(variables), answer_text(slots)


# Stage -> (share of the teacher tokens, row maker).
STAGES = {
    "subjects": (0.04, subjects_pair),
    "syllabus": (0.11, syllabus_pair),
    "question": (0.40, question_pair),
    "answer": (0.45, answer_pair),
}


def teacher_rows(rng: Random, world: list[Discipline], budget: int) -> list[dict]:
    """Teacher conversations worth about `budget` tokens, shuffled."""
    rows = []
    for stage, (share, make_pair) in STAGES.items():
        spent, number = 0, 0
        while spent < share * budget:
            user, assistant = make_pair(rng, world)
            spent += estimate_tokens(user) + estimate_tokens(assistant)
            rows.append(
                {
                    "id": f"{stage}-{number:06d}",
                    "messages": [
                        {"role": "user", "content": user},
                        {"role": "assistant", "content": assistant},
                    ],
                }
            )
            number += 1
    rng.shuffle(rows)
    return rows


# --- Base documents ---------------------------------------------------------------

def filler(rng: Random) -> str:
    n, m = rng.sample(NAMES, 2)
    return rng.choice(FILLER).format(n=n, m=m)


def base_document(rng: Random, world: list[Discipline]) -> str:
    """Several passages, of one discipline or mixed, 60 to 250 tokens in all."""
    target = rng.randint(60, 210)
    home = pick_discipline(rng, world) if rng.random() < 0.4 else None
    parts, spent = [], 0
    while spent < target:
        if rng.random() < 0.06:
            part = filler(rng)
        else:
            d = home or pick_discipline(rng, world)
            name, slots = pick_problem(rng, d, rng.choice(list(d.concepts)))
            part = base_passage(rng, name, slots)
        parts.append(part)
        spent += estimate_tokens(part)
    # A space before every passage, so that a word is the same token wherever it stands.
    return " " + " ".join(parts)


def base_rows(rng: Random, world: list[Discipline], budget: int) -> list[dict]:
    """Base documents worth about `budget` tokens."""
    rows, spent = [], 0
    while spent < budget:
        text = base_document(rng, world)
        spent += estimate_tokens(text)
        rows.append({"id": f"base-{len(rows):06d}", "text": text})
    return rows
