"""Writes the training texts and held-out benchmarks of the primer world.

    python3 scripts/primer/make_text.py --out DIR [--seed 0]
        [--teacher-tokens 10000000] [--base-tokens 7000000] [--check]

DIR receives teacher.jsonl (conversations), base.jsonl (plain text) and
tokenizer.txt (a sample of both). The benchmarks, the taxonomy and the prompt
samples are written into the repository, or with --check compared with what is
there. Everything is a function of the seed. The script also proves the promises
the texts make: no benchmark question in any training text, every benchmark word
in the base text, no answer format in the base text, ASCII only.
"""

import argparse
import re
import sys
from pathlib import Path
from random import Random

from bench import committed_files, to_jsonl
from core import SKILLS
from prompts import compact
from rows import base_rows, estimate_tokens, teacher_rows
from world import load_world

ROOT = Path(__file__).resolve().parents[2]
WORD = re.compile(r"[A-Za-z]+")
TOKENIZER_CHARS = 4_000_000
ASCII_LINE = "".join(chr(c) for c in range(32, 127))
PREFIX_WORDS = 4


def check_wordings() -> None:
    """Enough wordings per skill; none both trained and held out."""
    for made in SKILLS.values():
        train = {w for group in made.train_groups() for w in group}
        held = {w for group in made.held_groups() for w in group}
        assert len(train) >= 8, (made.name, len(train))
        assert len(held) >= 3, made.name
        assert not train & held, (made.name, train & held)


def texts_of(row: dict) -> list[str]:
    """The texts of a teacher or base row."""
    return [m["content"] for m in row["messages"]] if "messages" in row else [row["text"]]


class QuestionIndex:
    """Finds benchmark questions inside training texts, word by word."""

    def __init__(self, questions: list[str]):
        self.by_prefix: dict[tuple, list[list[str]]] = {}
        for question in questions:
            words = question.split()
            self.by_prefix.setdefault(tuple(words[:PREFIX_WORDS]), []).append(words)
        self.short = {p for p in self.by_prefix if len(p) < PREFIX_WORDS}
        self.starts = {p[0] for p in self.by_prefix}

    def find(self, text: str) -> str | None:
        """A benchmark question contained in the text, if any."""
        words = text.split()
        for i, word in enumerate(words):
            if word not in self.starts:
                continue
            prefixes = [tuple(words[i : i + PREFIX_WORDS])]
            if self.short:
                prefixes += [prefixes[0][:k] for k in range(1, PREFIX_WORDS)]
            for prefix in prefixes:
                for wanted in self.by_prefix.get(prefix, ()):
                    if words[i : i + len(wanted)] == wanted:
                        return " ".join(wanted)
        return None


def check_texts(teacher: list[dict], base: list[dict], bench: list[dict]) -> set[str]:
    """Asserts the promises of the module docstring; returns the distinct words."""
    index = QuestionIndex([row["question"] for row in bench])
    base_words: set[str] = set()
    words: set[str] = set()
    for row in base:
        text = row["text"]
        assert text.isascii() and "?" not in text, row["id"]
        assert "the answer is" not in text.lower(), row["id"]
        assert not (found := index.find(text)), (row["id"], found)
        base_words.update(WORD.findall(text))
    for row in teacher:
        for text in texts_of(row):
            assert text.isascii(), row["id"]
            assert not (found := index.find(text)), (row["id"], found)
            words.update(w.lower() for w in WORD.findall(text))
    lower = {w.lower() for w in base_words}
    for row in bench:
        used = WORD.findall(row["question"])
        # Choices are left out: a wrong plural among them ("mans") is no word at all.
        if "choices" not in row:
            used += WORD.findall(row["answer"])
        missing = [w for w in used if w.lower() not in lower]
        assert not missing, (row["id"], row["question"], missing)
    unseen_case = {w for row in bench for w in WORD.findall(row["question"])} - base_words
    print("benchmark words seen by the base only in another case:", sorted(unseen_case))
    return words | lower


def tokenizer_text(rng: Random, teacher: list[dict], base: list[dict]) -> str:
    """A sample of all texts, one per line or block, with every printable character."""
    parts, size = [ASCII_LINE], 0
    pools = [rng.sample(teacher, len(teacher)), rng.sample(base, len(base))]
    while size < TOKENIZER_CHARS and all(pools):
        # Turns of about equal length: several conversations per document.
        rows = [pools[0].pop() for _ in range(min(2, len(pools[0])))] + [pools[1].pop()]
        for text in (t for row in rows for t in texts_of(row)):
            parts.append(text)
            size += len(text) + 1
    return "\n".join(parts) + "\n"


def report(name: str, rows: list[dict]) -> None:
    """Prints rows, estimated tokens and the longest row of a file."""
    sizes = [sum(estimate_tokens(t) for t in texts_of(row)) for row in rows]
    print(f"{name}: {len(rows)} rows, about {sum(sizes)} tokens, longest row {max(sizes)}")


def report_stages(teacher: list[dict]) -> None:
    """Prints the mixture of the teacher rows."""
    stages: dict[str, list[int]] = {}
    for row in teacher:
        stages.setdefault(row["id"].rsplit("-", 1)[0], []).append(
            sum(estimate_tokens(t) for t in texts_of(row))
        )
    for stage, sizes in sorted(stages.items()):
        print(f"  {stage}: {len(sizes)} rows, about {sum(sizes)} tokens, longest {max(sizes)}")


def write_committed(files: dict[str, str], check: bool) -> None:
    """Writes the committed files, or compares them."""
    stale = []
    for name, text in files.items():
        path = ROOT / name
        if check:
            if not path.exists() or path.read_text() != text:
                stale.append(name)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if stale:
        sys.exit("differs from a rebuild: " + ", ".join(stale))
    print("committed files", "match" if check else "written:", *files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the training texts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher-tokens", type=int, default=10_000_000)
    parser.add_argument("--base-tokens", type=int, default=7_000_000)
    parser.add_argument("--check", action="store_true", help="compare the committed files")
    args = parser.parse_args()

    world = load_world()
    check_wordings()
    files, bench = committed_files(world)
    write_committed(files, args.check)

    # A stream each, so that the size of one text does not change the other.
    teacher = teacher_rows(Random(f"{args.seed} teacher"), world, args.teacher_tokens)
    base = base_rows(Random(f"{args.seed} base"), world, args.base_tokens)
    sample = tokenizer_text(Random(f"{args.seed} tokenizer"), teacher, base)

    args.out.mkdir(parents=True, exist_ok=True)
    for name, text in {
        "teacher.jsonl": "".join(compact(row) + "\n" for row in teacher),
        "base.jsonl": to_jsonl(base),
        "tokenizer.txt": sample,
    }.items():
        (args.out / name).write_text(text)

    report("teacher.jsonl", teacher)
    report_stages(teacher)
    report("base.jsonl", base)
    print(f"tokenizer.txt: {len(sample)} characters")
    words = check_texts(teacher, base, bench)
    print(f"distinct words: {len(words)}")


if __name__ == "__main__":
    main()
