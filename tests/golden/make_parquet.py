"""Makes tests/golden/text/parquet: the same rows as Parquet, written by the tools that people have, and as JSON lines.

Run with datasets 5 (which trl brings) and its pyarrow:  python tests/golden/make_parquet.py
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

HERE = Path(__file__).parent / "text" / "parquet"

PAIRS = [dict(id=i, language="en" if i % 3 else None, text=f" sentence {i} größe 日本" if i % 7 else "",
              **{"expected text": f"Sentence {i}."}) for i in range(50)]

CHATS = [
    dict(messages=[dict(role="user", content=f"question {i}")] +
         [dict(role=role, content=f"{role} {i} {turn}") for turn in range(i % 3) for role in ("assistant", "user")] +
         [dict(role="assistant", content=f"answer {i}")] * (i % 5 != 4))
    for i in range(20)
]

TOOLS = [
    dict(messages=[
        dict(role="user", content=f"weather in {i}?"),
        dict(role="assistant", content=None, tool_calls=[dict(type="function", function=dict(name="look", arguments=f"{i}"))]),
        dict(role="tool", content="rain", name="look"),
        dict(role="assistant", content="It rains."),
    ])
    for i in range(3)
]

PREFERENCES = [
    dict(prompt=[dict(role="user", content=f"ask {i}")], chosen=[dict(role="assistant", content=f"good {i}")],
         rejected=[dict(role="assistant", content=f"bad {i}" if i else "good 0")])
    for i in range(5)
]


def without_nulls(value):
    """What JSON has of a structure: a key that is null was never written."""
    if isinstance(value, dict):
        return {key: without_nulls(own) for key, own in value.items() if own is not None}
    return [without_nulls(own) for own in value] if isinstance(value, list) else value


def jsonl(name, rows):
    lines = [json.dumps({key: without_nulls(value) for key, value in row.items()}, ensure_ascii=False) for row in rows]
    (HERE / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main():
    HERE.mkdir(parents=True, exist_ok=True)
    # As the Hub keeps them.
    Dataset.from_list(CHATS).to_parquet(HERE / "chats.parquet")
    jsonl("chats", CHATS)
    Dataset.from_list(PREFERENCES).to_parquet(HERE / "preferences.parquet")
    jsonl("preferences", PREFERENCES)
    # Other pages, packings and types of text; several groups of rows.
    table = pa.Table.from_pylist(TOOLS)
    pq.write_table(table, HERE / "tools.parquet", compression="zstd", data_page_version="2.0")
    jsonl("tools", TOOLS)
    columns = {"id": pa.int32(), "language": pa.dictionary(pa.int8(), pa.string()), "text": pa.large_string(),
               "expected text": pa.string()}
    table = pa.Table.from_pylist(PAIRS, schema=pa.schema(columns))
    pq.write_table(table, HERE / "pairs.parquet", compression="none", row_group_size=20, use_dictionary=["language"])
    jsonl("pairs", PAIRS)


if __name__ == "__main__":
    main()
