"""MinHash in Python packages, on the texts of a file: rates per processor second on one thread, one JSON line each.

    python3 scripts/peers/curation.py docs.jsonl --perm 128

`--make MB` first writes the file: the Python sources and notes that this interpreter ships, cut into documents of about
2,500 characters. Packages that are missing are named.
"""

import argparse
import glob
import json
import os
import random
import sysconfig
import time

os.environ.setdefault("RAYON_NUM_THREADS", "1")


def make(path, megabytes):
    roots = [sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"]]
    documents, size = [], 0
    for root in roots:
        for name in sorted(glob.glob(os.path.join(root, "**", "*"), recursive=True)):
            if size > megabytes * 1e6:
                break
            if not name.endswith((".py", ".md", ".rst", ".txt")):
                continue
            try:
                with open(name, encoding="utf-8") as file:
                    text = file.read()
            except (OSError, UnicodeDecodeError):
                continue
            for start in range(0, len(text), 2500):
                document = text[start : start + 2500]
                if len(document) > 200:
                    documents.append(document)
                    size += len(document.encode())
    random.Random(0).shuffle(documents)
    with open(path, "w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps({"text": document}) + "\n")


def processor_seconds(work, repeats=3):
    least = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        least = min(least, time.process_time() - start)
    return least


def shingles(text, length=5):
    words = text.split()
    return [" ".join(words[at : at + length]) for at in range(max(1, len(words) - length + 1))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--make", type=float, default=0, metavar="MB")
    parser.add_argument("--perm", type=int, default=128)
    parser.add_argument("--limit", type=int, default=4000, help="documents measured")
    options = parser.parse_args()
    if options.make:
        make(options.file, options.make)
        return
    with open(options.file, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file][: options.limit]
    sets = [shingles(text) for text in texts]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    count = sum(len(members) for members in sets)

    def say(peer, seconds):
        row = {"peer": peer, "functions": options.perm, "docs_s": len(texts) / seconds, "mb_s": megabytes / seconds}
        print(json.dumps({**row, "mshingles_s": count / seconds / 1e6}), flush=True)

    say("python shingles", processor_seconds(lambda: [shingles(text) for text in texts]))
    try:
        import rensa
    except ImportError as error:
        print(json.dumps({"peer": "rensa", "missing": str(error)}))
    else:
        for name in ("RMinHash", "CMinHash"):
            kind = getattr(rensa, name)

            def sign(make_sets):
                for members in make_sets():
                    sketch = kind(num_perm=options.perm, seed=42)
                    sketch.update(members)
                    sketch.digest()

            say(f"rensa {name} signatures", processor_seconds(lambda: sign(lambda: sets)))
            say(
                f"rensa {name} shingles and signatures",
                processor_seconds(lambda: sign(lambda: map(shingles, texts))),
            )
    try:
        from datasketch import MinHash
    except ImportError as error:
        print(json.dumps({"peer": "datasketch", "missing": str(error)}))
        return

    def sketch_all():
        for members in sets:
            sketch = MinHash(num_perm=options.perm)
            sketch.update_batch([member.encode() for member in members])

    say("datasketch signatures", processor_seconds(sketch_all, 1))


if __name__ == "__main__":
    main()
