"""The primer world: the school plan tied to the skills that write questions.

`load_world()` parses the plan into disciplines; the `sample_*` functions draw
random subject lists, syllabi and GLAN-style question contexts from it.
"""

from dataclasses import dataclass, field
from random import Random

import skills_arithmetic  # noqa: F401  (importing a module registers its skills)
import skills_language  # noqa: F401
import skills_order  # noqa: F401
import skills_reasoning  # noqa: F401
import skills_things  # noqa: F401
import skills_time  # noqa: F401
from core import SKILLS
from curriculum import PLAN

LEVELS = ["beginner", "intermediate", "advanced"]


@dataclass
class Session:
    """A class session with its pool of key concepts."""

    title: str
    description: str
    concepts: list[str]


@dataclass
class Subject:
    """A subject with its pool of class sessions."""

    name: str
    level: str
    subtopics: list[str]
    introduction: str
    sessions: list[Session] = field(default_factory=list)


@dataclass
class Discipline:
    """A discipline; `concepts` maps a key concept to (skill, parameters)."""

    name: str
    field_name: str
    subfield: str
    concepts: dict[str, tuple[str, dict]] = field(default_factory=dict)
    subjects: list[Subject] = field(default_factory=list)


def parse_value(key: str, text: str):
    """A parameter value: an integer, a flag, or words joined by underscores."""
    if text.isdigit():
        return int(text)
    return text.replace("_", " ")


def parse_concept(text: str) -> tuple[str, tuple[str, dict]]:
    """Reads `concept = skill param=value ...`."""
    name, spec = text.split(" = ")
    skill_name, *params = spec.split()
    skill_name = skill_name.replace("_", " ")
    assert skill_name in SKILLS, skill_name
    pairs = (p.split("=") for p in params)
    return name, (skill_name, {k: parse_value(k, v) for k, v in pairs})


def split_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def load_world() -> list[Discipline]:
    """Parses the plan and checks that it hangs together."""
    world: list[Discipline] = []
    field_name = subfield = ""
    for line in PLAN.strip().splitlines():
        if not line:
            continue
        mark, rest = line.split(" ", 1)
        if mark == "F":
            field_name, subfield = rest.split(" / ")
        elif mark == "D":
            world.append(Discipline(rest, field_name, subfield))
        elif mark == "C":
            name, spec = parse_concept(rest)
            assert name not in world[-1].concepts, name
            world[-1].concepts[name] = spec
        elif mark == "S":
            name, level, subtopics, intro = rest.split(" | ")
            assert level in LEVELS, level
            world[-1].subjects.append(Subject(name, level, split_list(subtopics), intro))
        else:
            title, description, concepts = rest.split(" | ")
            session = Session(title, description, split_list(concepts))
            world[-1].subjects[-1].sessions.append(session)
    for discipline in world:
        check_discipline(discipline)
    return world


def check_discipline(discipline: Discipline) -> None:
    """Every session names known concepts, and every concept is used."""
    used = set()
    for subject in discipline.subjects:
        assert len(subject.sessions) >= 4 and len(subject.subtopics) >= 2, subject.name
        for session in subject.sessions:
            assert len(session.concepts) >= 2, session.title
            used.update(session.concepts)
    assert used == set(discipline.concepts), (discipline.name, used ^ set(discipline.concepts))


def skill_variants(discipline: Discipline) -> list[tuple[str, dict]]:
    """The distinct skill variants of a discipline."""
    seen, variants = set(), []
    for spec in discipline.concepts.values():
        if repr(spec) not in seen:
            seen.add(repr(spec))
            variants.append(spec)
    return variants


# --- Random variation ---------------------------------------------------------

def sample_level(rng: Random, subject: Subject) -> str:
    """Mostly the subject's own level, sometimes any."""
    return subject.level if rng.random() < 0.8 else rng.choice(LEVELS)


def sample_subtopics(rng: Random, subject: Subject) -> list[str]:
    """Two or three subtopics in random order."""
    size = rng.randint(2, len(subject.subtopics))
    return rng.sample(subject.subtopics, size)


def sample_subjects(rng: Random, discipline: Discipline, count: int) -> list[dict]:
    """A random subject list, in random order."""
    count = min(count, len(discipline.subjects))
    return [
        {
            "subject_name": s.name,
            "level": sample_level(rng, s),
            "subtopics": sample_subtopics(rng, s),
        }
        for s in rng.sample(discipline.subjects, count)
    ]


def sample_syllabus(rng: Random, subject: Subject) -> dict:
    """A random syllabus: 3-4 sessions, 2-3 concepts in each."""
    sessions = []
    for s in rng.sample(subject.sessions, rng.choice([3, 4])):
        size = rng.randint(2, min(3, len(s.concepts)))
        sessions.append(
            {
                "title": s.title,
                "description": s.description,
                "key_concepts": rng.sample(s.concepts, size),
            }
        )
    return {"introduction": subject.introduction, "class_sessions": sessions}


def unique(items: list[str]) -> list[str]:
    """The items without repeats, in their first order."""
    return list(dict.fromkeys(items))


def sample_context(rng: Random, syllabus: dict) -> tuple[list[dict], list[str]]:
    """Sessions and key concepts for one question, by one of GLAN's two strategies."""
    sessions = syllabus["class_sessions"]
    if rng.random() < 0.5:
        chosen = [rng.choice(sessions)]
        pool = chosen[0]["key_concepts"]
        concepts = rng.sample(pool, rng.randint(1, min(5, len(pool))))
    else:
        chosen = rng.sample(sessions, 2)
        firsts = [rng.choice(s["key_concepts"]) for s in chosen]
        rest = unique([c for s in chosen for c in s["key_concepts"] if c not in firsts])
        size = rng.randint(2, 5) - 2
        concepts = unique(firsts + rng.sample(rest, min(size, len(rest))))
        rng.shuffle(concepts)
    return chosen, concepts
