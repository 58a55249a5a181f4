"""Renders the primer prompts exactly as `configs/prompts/primer/*.jinja` do.

The Rust program renders the templates with minijinja (trim_blocks and
lstrip_blocks on, end stripped); these functions write the same bytes without a
template engine. `tests/fixtures/primer_prompts.json` ties the two together.
"""

import json


def render_subjects(v: dict) -> str:
    return (
        f"List {v['num_subjects']} subjects.\n"
        f"Field: {v['field']}, {v['subfield']}\n"
        f"Discipline: {v['discipline']}"
    )


def render_syllabus(v: dict) -> str:
    return (
        "Write a syllabus.\n"
        f"Discipline: {v['discipline']}\n"
        f"Subject: {v['subject']}\n"
        f"Level: {v['level']}\n"
        f"Topics: {', '.join(v['subtopics'])}."
    )


def render_question(v: dict) -> str:
    lines = [
        "Write one question.",
        f"Discipline: {v['discipline']}",
        f"Subject: {v['subject']}",
        f"Level: {v['level']}",
    ]
    for s in v["syllabus"]["class_sessions"]:
        lines.append(f"- {s['title']}: {', '.join(s['key_concepts'])}.")
    lines.append(f"Sessions: {'; '.join(s['title'] for s in v['class_sessions'])}.")
    lines.append(f"Key concepts: {'; '.join(v['key_concepts'])}.")
    return "\n".join(lines)


def render_answer(v: dict) -> str:
    return v["question"]


RENDERERS = {
    "subjects": render_subjects,
    "syllabus": render_syllabus,
    "question": render_question,
    "answer": render_answer,
}


def compact(value) -> str:
    """JSON without spaces, the form of the structured responses."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True)
