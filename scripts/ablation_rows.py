#!/usr/bin/env python3
"""Helper of scripts/ablations.sh: requests without the taxonomy, equal sizes, coverage. Standard library only.

    ablation_rows.py ask N SEED                        requests that ask the teacher for a topic, and nothing else
    ablation_rows.py questions TOPICS SEED             requests for a question about each topic that it wrote
    ablation_rows.py answers QUESTIONS                 requests for their answers
    ablation_rows.py rows QUESTIONS ANSWERS            rows for `glan curate --data`
    ablation_rows.py with-duplicates CURATED ANSWERS   training rows, the rejected exact duplicates back in their places
    ablation_rows.py sample FILE N SEED                N of the rows, in their order
    ablation_rows.py coverage BENCHMARK FILE           how much of the benchmark the rows' questions come near to

The teacher of the primer world writes questions for a topic (discipline, subject, sessions, key concepts). Asked for "one
question" without any it goes on with a topic of its own, which is then asked for as GLAN's are: the model's own
distribution of topics instead of the taxonomy's.
"""
import collections
import json
import math
import random
import re
import sys


def read(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(rows):
    for row in rows:
        print(json.dumps(row, ensure_ascii=False))


def request(number, text, seed, **sampling):
    return {"id": str(number), "messages": [{"role": "user", "content": text}], "seed": seed, **sampling}


def ask(count, seed):
    sampling = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 300}
    write(request(n, "Write one question.", seed * 1_000_003 + n, **sampling) for n in range(int(count)))


def topics(path):
    """Topics that are written to their end."""
    return {
        row["id"]: row["text"].strip()
        for row in read(path)
        if row["text"].strip().startswith("Discipline:") and re.search(r"\nKey concepts: .*\.\s*$", row["text"])
    }


def questions(path, seed):
    sampling = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 96}
    found = topics(path)
    print(f"{len(found)} topics", file=sys.stderr)
    for number, (id_, text) in enumerate(found.items()):
        row = request(number, "Write one question.\n" + text, seed * 1_000_003 + 500_000 + number, **sampling)
        print(json.dumps({**row, "id": id_}))


def answers(path):
    rows = [row for row in read(path) if row["finish_reason"] == "stop" and row["text"].strip()]
    write({**request(0, row["text"], 0, temperature=0.0, max_new_tokens=160), "id": row["id"]} for row in rows)


def rows(questions_path, answers_path):
    asked = {row["id"]: row["text"] for row in read(questions_path)}
    for row in read(answers_path):
        if row["finish_reason"] == "stop":
            turns = [("user", asked[row["id"]]), ("assistant", row["text"])]
            messages = [{"role": role, "content": text.strip()} for role, text in turns]
            print(json.dumps({"id": "q" + row["id"], "messages": messages}, ensure_ascii=False))


def with_duplicates(folder, answers_path):
    kept = {row.get("parent", row["id"]): row for row in read(f"{folder}/train.jsonl")}
    again = {row["parent"] for row in read(f"{folder}/rejected.jsonl") if row["reason"] == "exact_duplicate"}
    for row in read(answers_path):
        if row["id"] in kept:
            print(json.dumps(kept[row["id"]], ensure_ascii=False))
        elif row["id"] in again:
            turns = [("user", row["question"]), ("assistant", row["answer"])]
            messages = [{"role": role, "content": text} for role, text in turns]
            print(json.dumps({"id": row["id"], "messages": messages}, ensure_ascii=False))


def sample(path, count, seed):
    with open(path, encoding="utf-8") as file:
        lines = file.readlines()
    chosen = sorted(random.Random(int(seed)).sample(range(len(lines)), int(count)))
    sys.stdout.writelines(lines[place] for place in chosen)


def features(text):
    """Words and word pairs, every number one mark."""
    words = re.findall(r"[a-z]+|#", re.sub(r"\d+", "#", text.lower()))
    return collections.Counter(words + [f"{a} {b}" for a, b in zip(words, words[1:])])


def coverage(benchmark_path, path):
    """Coverage (Naeem et al. 2020, 2002.09797): the share of benchmark items with a question nearer than their 5th neighbour
    in the benchmark; and how even the disciplines of the benchmark items nearest to the questions are."""
    items = read(benchmark_path)
    asked = [next(turn["content"] for turn in row["messages"] if turn["role"] == "user") for row in read(path)]
    counts = [features(item["question"]) for item in items]
    with_feature = collections.Counter(feature for count in counts for feature in count)

    def vector(count):
        weighted = {f: (1 + math.log(n)) * math.log(1 + len(items) / with_feature[f]) for f, n in count.items() if f in with_feature}
        length = math.sqrt(sum(value * value for value in weighted.values())) or 1.0
        return {feature: value / length for feature, value in weighted.items()}

    vectors = [vector(count) for count in counts]
    inverted = collections.defaultdict(list)
    for place, one in enumerate(vectors):
        for feature, value in one.items():
            inverted[feature].append((place, value))

    def similarities(one):
        sums = [0.0] * len(items)
        for feature, value in one.items():
            for place, other in inverted[feature]:
                sums[place] += value * other
        return sums

    radius = []
    for place, one in enumerate(vectors):
        others = similarities(one)
        others[place] = -1.0
        radius.append(sorted(others, reverse=True)[4])
    nearest, disciplines = [-1.0] * len(items), collections.Counter()
    for skeleton, count in collections.Counter(re.sub(r"\d+", "#", text.lower()) for text in asked).items():
        found = similarities(vector(features(skeleton)))
        nearest = [max(pair) for pair in zip(nearest, found)]
        disciplines[items[max(range(len(items)), key=found.__getitem__)]["discipline"]] += count
    covered = sum(found >= least - 1e-9 for found, least in zip(nearest, radius)) / len(items)
    total, known = sum(disciplines.values()), len({item["discipline"] for item in items})
    entropy = -sum(n / total * math.log(n / total) for n in disciplines.values()) / math.log(known)
    skeletons = len({re.sub(r"\d+", "#", text.lower()) for text in asked})
    print(json.dumps({
        "rows": len(asked), "coverage": round(covered, 4), "disciplines": len(disciplines), "evenness": round(entropy, 4),
        "wordings": skeletons,
    }))


COMMANDS = {
    "ask": lambda count, seed: ask(count, int(seed)), "questions": lambda path, seed: questions(path, int(seed)),
    "answers": answers, "rows": rows, "with-duplicates": with_duplicates, "sample": sample, "coverage": coverage,
}

if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    COMMANDS[sys.argv[1]](*sys.argv[2:])
