#!/usr/bin/env python3
"""Loads `dataset/` of a curated run the way other programs do, and compares it with the JSON lines beside it.

    check_dataset.py RUN/curate

Needs `datasets` (and PyYAML, which comes with it). The Hugging Face loader reads the folder by its card; LLaMA-Factory's and
Axolotl's descriptions are read as those programs read them: every file that they name is opened and has the columns that
they name.
"""
import json
import os
import sys
import tempfile


def lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def check(condition, what):
    if not condition:
        sys.exit(f"check_dataset: {what}")


def main(folder):
    import datasets
    import yaml

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    dataset = os.path.join(folder, "dataset")
    cache = tempfile.mkdtemp()
    splits = {"train": "train", "validation": "valid", "test": "test"}
    wanted = {name: lines(os.path.join(folder, f"{file}.jsonl")) for name, file in splits.items()}
    wanted = {name: rows for name, rows in wanted.items() if rows}

    loaded = datasets.load_dataset(dataset, cache_dir=cache)
    check(sorted(loaded) == sorted(wanted), f"splits {sorted(loaded)}, {sorted(wanted)} wanted")
    for name, rows in wanted.items():
        found = loaded[name]
        check(found.features == loaded["train"].features, f"{name} has another schema")
        check(found["id"][:] == [row["id"] for row in rows], f"{name}: ids differ")
        check([list(turns) for turns in found["messages"]] == [row["messages"] for row in rows], f"{name}: messages differ")
        for row, metadata in zip(rows, found["metadata"]):
            own = {"id", "parent", "discipline", "subject", "level", "messages"}
            check(json.loads(metadata) == {key: value for key, value in row.items() if key not in own}, f"{name}: metadata differ")

    # The hub reads the card's head alone to know the files.
    with open(os.path.join(dataset, "README.md"), encoding="utf-8") as file:
        card = yaml.safe_load(file.read().split("---")[1])
    named = {entry["split"]: entry["path"] for entry in card["configs"][0]["data_files"]}
    check(sorted(named) == sorted(wanted), f"the card names {sorted(named)}")

    with open(os.path.join(dataset, "dataset_info.json"), encoding="utf-8") as file:
        info = json.load(file)
    for name, entry in info.items():
        path = os.path.join(dataset, entry["file_name"])
        kind = "parquet" if path.endswith(".parquet") else "json"
        if os.path.getsize(path) == 0:
            continue
        table = datasets.load_dataset(kind, data_files=path, split="train", cache_dir=cache)
        columns = entry["columns"]
        check(set(columns.values()) <= set(table.column_names), f"{name}: {columns} not all in {table.column_names}")
        if entry.get("formatting") == "sharegpt" and len(table):
            tags, turn = entry["tags"], table[0][columns["messages"]][0]
            check({tags["role_tag"], tags["content_tag"]} <= set(turn), f"{name}: a turn has {sorted(turn)}")
            roles = {turn[tags["role_tag"]] for turns in table[columns["messages"]] for turn in turns}
            known = {tags["user_tag"], tags["assistant_tag"], tags["system_tag"]}
            check(roles <= known, f"{name}: roles {roles}")

    with open(os.path.join(dataset, "axolotl.yaml"), encoding="utf-8") as file:
        axolotl = yaml.safe_load(file)
    for entry in axolotl["datasets"] + axolotl["test_datasets"]:
        table = datasets.load_dataset(
            entry["ds_type"], data_files=os.path.join(dataset, entry["path"]), split="train", cache_dir=cache
        )
        mapping = entry["message_property_mappings"]
        check(entry["type"] == "chat_template" and entry["field_messages"] in table.column_names, f"axolotl: {entry}")
        check(not len(table) or set(mapping.values()) <= set(table[0][entry["field_messages"]][0]), f"axolotl: {mapping}")
    print(f"datasets {datasets.__version__} reads {', '.join(f'{len(rows)} {name}' for name, rows in wanted.items())} rows as written")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
