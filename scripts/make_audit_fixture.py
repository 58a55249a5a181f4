"""Writes tests/fixtures/audit.json: the audit's measures on small texts and vectors, computed with numpy and plain loops.

    python3 scripts/make_audit_fixture.py

Each measure is written from its definition, not from the Rust code; needs numpy.
"""

import collections
import gzip
import json
import math
import random
from pathlib import Path

import numpy

random.seed(7)
words = "the a river stone bird sings over under green cold water runs down hill and then stops near old tree".split()
texts = [" ".join(random.choice(words) for _ in range(random.randint(6, 40))) for _ in range(30)]
texts += [texts[0], texts[1] + " once more in the end", "one two three"]


def grams(text, n):
    parts = text.split()
    return [tuple(parts[at : at + n]) for at in range(len(parts) - n + 1)]


def distinct(n):
    every = [gram for text in texts for gram in grams(text, n)]
    return len(set(every)) / len(every)


def self_repetition():
    sets = [set(grams(text, 4)) for text in texts]
    total = 0.0
    for own in sets:
        shared = sum(sum(gram in other for other in sets) - 1 for gram in own)
        total += math.log(1 + shared)
    return total / len(texts)


def bleu(candidate, references):
    logs = 0.0
    for n in range(1, 5):
        counts = collections.Counter(grams(candidate, n))
        matches = 0
        for gram, count in counts.items():
            matches += min(count, max(collections.Counter(grams(other, n))[gram] for other in references))
        logs += math.log((matches or 0.5) / max(1, sum(counts.values())))
    length = len(candidate.split())
    nearest = min((len(other.split()) for other in references), key=lambda other: (abs(other - length), other))
    brevity = 0.0 if length >= nearest else 1 - nearest / length
    return math.exp(brevity + logs / 4)


self_bleu = sum(bleu(text, texts[:at] + texts[at + 1 :]) for at, text in enumerate(texts)) / len(texts)
vectors = numpy.random.default_rng(3).normal(size=(12, 6)).astype(numpy.float32)
vectors[5] = vectors[4]
vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True)
similarity = vectors.astype(numpy.float64) @ vectors.T.astype(numpy.float64)
values = numpy.linalg.eigvalsh(similarity / len(vectors))
values = values[values > 1e-12]
others = similarity - 3 * numpy.eye(len(vectors))
packed = gzip.compress(("\n".join(texts) + "\n").encode(), 6, mtime=0)
fixture = {
    "made_by": "scripts/make_audit_fixture.py",
    "texts": texts,
    "distinct_n": [distinct(n) for n in range(1, 5)],
    "self_repetition": self_repetition(),
    "self_bleu": self_bleu,
    "compression_ratio": len(("\n".join(texts) + "\n").encode()) / len(packed),
    "vectors": [[float(value) for value in row] for row in vectors],
    "vendi": float(numpy.exp(-(values * numpy.log(values)).sum())),
    "nearest_neighbour": float(others.max(axis=1).mean()),
}
path = Path(__file__).parent.parent / "tests" / "fixtures" / "audit.json"
path.write_text(json.dumps(fixture, indent=1) + "\n")
print(f"{path}: {[fixture[key] for key in ('distinct_n', 'self_repetition', 'self_bleu', 'vendi')]}")
