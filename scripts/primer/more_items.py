"""More held-out questions of the primer world than the committed benchmark has, as a task of one's own.

    python3 -B scripts/primer/more_items.py --out benchmarks/primer --per-discipline 120     # what is committed
    python3 -B scripts/primer/more_items.py --out DIR --seed 2
    glan improve -c configs/improve.toml --set 'evaluate.tasks=["DIR/primer_more.toml"]' --set evaluate.data_dir=DIR

None of them is in the committed benchmarks. With 40 questions a discipline (20 to choose by, 20 to measure by) only large
changes can be told from chance. `evaluate.data_dir` makes `glan curate` drop training rows that hold one of them.
"""

import argparse
import json
from pathlib import Path
from random import Random

from bench import held_item, to_jsonl
from world import load_world, skill_variants

TASK = r"""task = "primer_more"
dataset_file = "primer_more.jsonl"
doc_to_text = "{{question}}"
doc_to_target = "{{answer}}"
num_fewshot = 0
generation_kwargs = { until = ["\n"], max_gen_toks = 96 }
metadata = { version = 1.0 }

[[filter_list]]
name = "extract"
filter = [{ function = "regex", regex_pattern = "answer is:? *(.+?)\\.?\\s*$", group_select = -1 }, { function = "take_first" }]

[[metric_list]]
metric = "exact_match"
ignore_case = true
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-discipline", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    benchmarks = Path(__file__).parents[2] / "benchmarks/primer"
    seen = {
        json.loads(line)["question"]
        for name in ("primer.jsonl", "primer_mc.jsonl")
        for line in (benchmarks / name).read_text().splitlines()
    }
    rng, rows = Random(args.seed), []
    for discipline in load_world():
        variants = skill_variants(discipline)
        for turn in range(args.per_discipline):
            skill, question, slots = held_item(rng, variants, turn, seen)
            rows.append(
                {
                    "id": f"primer-more-{len(rows):05d}",
                    "discipline": discipline.name,
                    "skill": skill,
                    "question": question,
                    "answer": slots["x"],
                }
            )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "primer_more.jsonl").write_text(to_jsonl(rows))
    (args.out / "primer_more.toml").write_text(TASK)


if __name__ == "__main__":
    main()
