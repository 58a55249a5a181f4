#!/usr/bin/env python3
"""Writes tests/fixtures/rows: the same training rows as JSON lines and as the Parquet files that pyarrow makes of them.

    pip install pyarrow
    python scripts/make_row_fixtures.py --out tests/fixtures/rows
"""

import argparse
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
SPEAKER = pa.struct([("from", pa.string()), ("value", pa.string())])
SCHEMA = pa.schema([
    ("id", pa.int64()),
    ("messages", pa.list_(TURN)),
    ("conversations", pa.large_list(SPEAKER)),
    ("instruction", pa.string()),
    ("input", pa.string()),
    ("output", pa.large_string()),
    ("score", pa.float64()),
    ("checked", pa.bool_()),
    ("tags", pa.list_(pa.string())),
])


def rows():
    yield {"id": 1, "messages": [{"role": "user", "content": "t3 t4"}, {"role": "assistant", "content": "t5"}], "score": 0.5}
    yield {"id": 2, "conversations": [{"from": "human", "value": "t6 “ü”\n"}, {"from": "gpt", "value": "t7"}], "checked": True}
    yield {"id": 3, "instruction": "t8", "input": "", "output": "t9 t10", "tags": []}
    yield {"id": 4, "instruction": "t8", "input": "t11", "output": "t9", "tags": ["a", None, "b"]}
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": f"t{3 + i}"} for i in range(8)]
    yield {"id": -5, "messages": turns, "score": -1.25, "checked": False}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([{**dict.fromkeys(SCHEMA.names), **row} for row in rows()], schema=SCHEMA)
    with (out / "rows.jsonl").open("w") as file:
        for row in table.to_pylist():
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    # Row groups and pages of two rows, so that rows cross their borders.
    pq.write_table(table, out / "snappy.parquet", compression="snappy", row_group_size=2)
    pq.write_table(table, out / "zstd.parquet", compression="zstd", data_page_version="2.0", use_dictionary=False, data_page_size=16)
    pq.write_table(
        table, out / "gzip_v1_item.parquet", compression="gzip", version="1.0", use_compliant_nested_type=False
    )
    (out / "PROVENANCE.md").write_text(
        "# Where these files come from\n\nThe same rows in every file. Made by\n\n"
        "    python scripts/make_row_fixtures.py --out tests/fixtures/rows\n\n"
        f"with pyarrow {pa.__version__}: `snappy.parquet` in row groups of two, `zstd.parquet` with pages of version 2 and\n"
        "without dictionaries, `gzip_v1_item.parquet` in format 1.0 with the older names of list elements.\n"
    )


if __name__ == "__main__":
    main()
