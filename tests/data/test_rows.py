"""A user's rows: kept whole, put in order, counted where they are left out."""

from __future__ import annotations

import csv
import datetime
import io
import json
import logging
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tma
from tma.data import load as data
from tma.errors import DataError, ParameterError

pytestmark = pytest.mark.usefixtures("own_cache")

Row = dict[str, Any]

TEXT = st.text('aé \n"\\{},👍', min_size=1, max_size=12).filter(lambda text: not text.isspace())
CELL = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | TEXT
MORE = st.fixed_dictionaries({"note": CELL, "é": st.lists(CELL, max_size=2)})
"""Columns that nothing reads."""


def rows_of(**columns: Any) -> st.SearchStrategy[list[Row]]:
    row = st.tuples(st.fixed_dictionaries(columns), MORE).map(lambda pair: {**pair[1], **pair[0]})
    return st.lists(row, min_size=1, max_size=6)


def message(role: str, **more: Any) -> st.SearchStrategy[Row]:
    return st.fixed_dictionaries({"role": st.just(role), "content": TEXT, **more})


CALL = st.fixed_dictionaries({"name": TEXT, "arguments": st.dictionaries(TEXT, CELL, max_size=2)})
CHAT = st.tuples(
    message("system"),
    message("user"),
    message("assistant", tool_calls=st.lists(CALL, max_size=2), weight=st.sampled_from([1, 1.0])),
    message("tool"),
    message("assistant"),
    message("user", name=CELL),
).map(list)
SHARE = st.lists(TEXT, min_size=2, max_size=4).map(
    lambda texts: [{"from": ("human", "gpt")[k % 2], "value": t} for k, t in enumerate(texts)]
)
ANSWERS = st.fixed_dictionaries(
    {"text": st.lists(TEXT, min_size=1, max_size=3), "answer_start": st.lists(st.integers(0, 9))}
)
JSON_FORMATS = {
    "Alpaca": rows_of(instruction=TEXT, input=TEXT | st.just(""), output=TEXT),
    "prompt/completion": rows_of(prompt=TEXT, completion=TEXT),
    "messages with tools": rows_of(messages=CHAT, tools=st.lists(CALL, max_size=1)),
    "ShareGPT": rows_of(conversations=SHARE),
    "P3": rows_of(
        inputs_pretokenized=TEXT, targets_pretokenized=TEXT, targets=st.lists(st.integers(0, 9))
    ),
    "SQuAD": rows_of(context=TEXT, question=TEXT, answers=ANSWERS),
}
ROUND_TRIP = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def saved(found: datasets.Dataset, order: Any, path: Path) -> list[Row]:
    """Save rows in an order; return them without their ids, which are those of the order."""
    tma.save(found, order, path)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [row.pop("tma_id") for row in rows] == [found["id"][k] for k in order]
    return rows


def same(found: Any, expected: Any) -> bool:
    """Return whether values and their types are equal: 1 is not 1.0, nor True."""
    return repr(found) == repr(expected)


@pytest.mark.parametrize("kind", JSON_FORMATS)
@ROUND_TRIP
@given(st.data())
def test_rows_come_back_value_by_value_in_the_new_order(
    tmp_path: Path, kind: str, draw: st.DataObject
) -> None:
    rows = draw.draw(JSON_FORMATS[kind])
    source = tmp_path / "a.jsonl"
    source.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), "utf-8")
    found = tma.load(source)
    order = draw.draw(st.permutations(range(len(found))))
    assert len(found) == len(rows)
    assert same(saved(found, order, tmp_path / "b.jsonl"), [rows[k] for k in order])


@ROUND_TRIP
@given(
    st.lists(
        st.tuples(TEXT, TEXT, st.text(max_size=3)).map(
            lambda cells: dict(zip("qan", cells, strict=True))
        ),
        min_size=1,
    )
)
def test_rows_of_csv_and_of_plain_text_come_back(tmp_path: Path, rows: list[Row]) -> None:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, ["q", "a", "n"])
    writer.writeheader()
    writer.writerows(rows)
    try:
        (tmp_path / "a.csv").write_bytes(stream.getvalue().encode())
        found = tma.load(tmp_path / "a.csv", columns={"prompt": "q", "response": "a"})
    except (DataError, UnicodeEncodeError):
        return  # the csv module writes a lone \r unquoted; surrogates are no text
    assert same(saved(found, range(len(rows)), tmp_path / "b.jsonl"), rows)
    lines = [" ".join(row["q"].split()) for row in rows]
    (tmp_path / "a.txt").write_text("\n\n".join(lines), "utf-8")
    found = tma.load(tmp_path / "a.txt", answers="optional")
    assert saved(found, range(len(lines)), tmp_path / "c.jsonl") == [{"prompt": t} for t in lines]
    assert found["place"][-1] == f"a.txt, line {2 * len(lines) - 1}"


TYPED = pa.table(
    {
        "prompt": ["p0", "p1", "p2"],
        "response": ["r"] * 3,
        "price": pa.array([Decimal("1.10"), None, Decimal("2.00")], pa.decimal128(5, 2)),
        "day": pa.array([datetime.date(2020, 1, 31)] * 3),
        "small": pa.array([1, 2, None], pa.int8()),
        "tags": pa.array([["a"], [], None], pa.list_(pa.string())),
        "raw": pa.array([b"\xff", b"", None]),
    }
)


def test_the_types_of_a_table_come_back(tmp_path: Path) -> None:
    pq.write_table(TYPED, tmp_path / "a.parquet")
    found = tma.load(tmp_path / "a.parquet")
    tma.save(found, [2, 0], tmp_path / "b.parquet")
    again = pq.read_table(tmp_path / "b.parquet")
    assert again.drop_columns("tma_id").equals(TYPED.take([2, 0]))
    assert again["tma_id"].to_pylist() == [found["id"][2], found["id"][0]]
    tma.save(found, [1], tmp_path / "folder")
    folder = datasets.load_from_disk(tmp_path / "folder")
    assert folder.data.table.drop_columns("tma_id").cast(TYPED.schema).equals(TYPED.take([1]))
    # Saved and read again, rows have the same ids.
    assert tma.load(tmp_path / "b.parquet")["id"][:] == [found["id"][2], found["id"][0]]


def test_shards_whose_types_differ_are_one_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    base: Row = {"prompt": "p", "response": "r"}
    for name, row in (("a", base | {"n": 1}), ("b", base | {"m": "x"}), ("c", base | {"n": 2.5})):
        pq.write_table(pa.Table.from_pylist([row]), folder / f"train-{name}.parquet")
    found = tma.load(folder)
    assert [row["n"] for row in found["row"]] == [1.0, None, 2.5]
    assert found["place"][:] == [f"train-{name}.parquet, row 1" for name in "abc"]
    pq.write_table(pa.Table.from_pylist([base | {"n": "x"}]), folder / "train-d.parquet")
    mixed = tma.load(folder)
    assert [json.loads(row).get("n") for row in mixed["row"]] == [1, None, 2.5, "x"]


def test_what_a_table_stores_beside_its_types_is_read(tmp_path: Path) -> None:
    """Columns of any JSON value, and classes, which are numbers with names."""
    rows: list[Row] = [
        {
            "messages": [
                {"role": "user", "content": "Name a tree."},
                {"role": "bot", "content": "oak"},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": [{"text": "A bird?"}]},
                {"role": "bot", "content": "wren"},
            ]
        },
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = datasets.Dataset.from_json(str(tmp_path / "a.jsonl"), cache_dir=str(tmp_path / "hf"))
    made.to_parquet(tmp_path / "b.parquet")
    made.save_to_disk(tmp_path / "c")
    wanted = tma.load(tmp_path / "a.jsonl")
    for name in ("b.parquet", "c"):
        found = tma.load(tmp_path / name)
        assert (found["prompt"][:], found["response"][:]) == (
            ["Name a tree.", "A bird?"],
            ["oak", "wren"],
        )
        assert found["id"][:] == wanted["id"][:]
        tma.save(found, [1, 0], tmp_path / f"{name}.jsonl")
        assert tma.load(tmp_path / f"{name}.jsonl")["id"][:] == wanted["id"][::-1]
    classes = datasets.Features(
        {"prompt": datasets.Value("string"), "response": datasets.ClassLabel(names=["no", "yes"])}
    )
    made = datasets.Dataset.from_dict({"prompt": ["a", "b"], "response": [1, 0]}, features=classes)
    found = tma.load(made)
    assert found["response"][:] == ["yes", "no"]
    tma.save(found, None, tmp_path / "d")
    assert datasets.load_from_disk(tmp_path / "d").features["response"].names == ["no", "yes"]


GIVEN: dict[str, Callable[[list[Row]], Any]] = {
    "list": list,
    "frame": pd.DataFrame,
    "dataset": datasets.Dataset.from_list,
    "selection": lambda rows: datasets.Dataset.from_list([*rows, *rows]).select(range(len(rows))),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_rows_need_no_file(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows: list[Row] = [{"prompt": f"p{k}", "response": "r" * (k != 1), "n": k} for k in range(4)]
    found = tma.load(GIVEN[kind](rows))
    assert found["prompt"][:] == ["p0", "p2", "p3"]
    assert found["place"][:] == [f"(given rows), row {k}" for k in (1, 3, 4)]
    words = "1 left out without prompt or response ((given rows), row 2: no response)"
    assert caplog.messages == [f"dataset (given rows): {words}"]
    assert saved(found, [2, 0], tmp_path / "a.jsonl") == [rows[3], rows[0]]
    changed = tma.load(GIVEN[kind]([rows[0] | {"response": "other"}]))
    assert changed["response"][:] == ["other"]


@pytest.mark.parametrize("wrong", [7, {"train": []}, ["a"], None])
def test_what_are_no_rows_is_refused(wrong: Any) -> None:
    with pytest.raises(ParameterError, match=r"name='\w+' cannot be used; expected a name, a file"):
        tma.load(wrong)


def test_a_changed_turn_changes_the_id(tmp_path: Path) -> None:
    turns = [{"role": ("user", "assistant")[k % 2], "content": f"t{k}"} for k in range(4)]
    chats = [turns, [*turns[:3], turns[3] | {"content": "other"}]]
    found = tma.load([{"messages": chat} for chat in chats])
    assert len({*found["id"]}) == 2
    assert found["prompt"][:] == ["t0", "t0"]
    assert data.exchanges(found)[1] == [("t0", "t1"), ("t2", "other")]


def test_places_and_counts_say_what_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chat = [{"role": ("user", "assistant")[k % 2], "content": f"t{k}"} for k in range(4)]
    lines = ["", json.dumps({"messages": chat}), "", json.dumps({"messages": chat[:1]})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = tma.load(tmp_path / "a.jsonl")
    assert found["place"][:] == ["a.jsonl, line 2"]
    assert data.dropped(found) == [{"place": "a.jsonl, line 4", "reason": "no response"}]
    assert [text.partition(": ")[2] for text in caplog.messages] == [
        "1 left out without prompt or response (a.jsonl, line 4: no response)",
        "1 rows have more than one exchange, of which view='first' reads one "
        "(first: a.jsonl, line 2)",
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        every = tma.load(tmp_path / "a.jsonl", view="all", answers="optional")
    assert [(row["prompt"], row["response"]) for row in every] == [
        ("t0", "t1"),
        ("t2", "t3"),
        ("t0", None),
    ]
    assert every["place"][:] == [f"a.jsonl, line {k}" for k in (2, 2, 4)]
    assert caplog.messages == []
    tma.save(every, None, tmp_path / "b.jsonl")
    assert "1 rows are written more than once" in caplog.text


def test_prompts_alone_can_be_arranged_for(tmp_path: Path) -> None:
    (tmp_path / "ask.txt").write_text("What is 2+2?\nName a tree.\n")
    test = tma.load(tmp_path / "ask.txt", answers="optional")
    assert test["prompt"][:] == ["What is 2+2?", "Name a tree."]
    assert data.texts(test) == ["What is 2+2?", "Name a tree."]
    assert data.exchanges(test) == [[("What is 2+2?", "")], [("Name a tree.", "")]]
    with pytest.raises(DataError, match=r"no known format.* answers='optional'"):
        tma.load(tmp_path / "ask.txt")


@pytest.mark.parametrize(
    ("suffix", "bad"),
    [
        ("jsonl", "line 3"),
        ("json", "line 3"),
        ("csv", "line 4"),
        ("parquet", "row 3"),
        ("list", "row 3"),
    ],
)
def test_an_error_names_the_row_it_is_about(tmp_path: Path, suffix: str, bad: str) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    rows = [chat, chat, {"messages": [{"content": "no role"}]}, chat]
    path = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        squad = [{"context": "c", "question": "q", "answers": ""}] * 2
        pd.DataFrame([*squad, squad[0] | {"answers": "['x']"}]).to_csv(path, index=False)
    elif suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == "json":
        path.write_text("[" + ",\n".join(map(json.dumps, rows)) + "]")
    elif suffix == "jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(DataError, match=f"{bad}: column (messages|answers)"):
        tma.load(rows if suffix == "list" else path)


def test_a_mix_of_formats_is_named_by_line(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "response": "r"}] * 2 + [{"instruction": "i", "output": "o"}]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(DataError, match=r"line 3: dataset=.* fits prompt/response .* and Alpaca"):
        tma.load(tmp_path / "a.jsonl")


GOOD = b'{"prompt": "p", "response": "r"}\n'


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("a.jsonl", b"\x1f\x8b\x08\0", r"compressed by gzip\. Name it a\.jsonl\.gz"),
        ("a.parquet", b"\x28\xb5\x2f\xfd", r"compressed by zstd\. Name it a\.parquet\.zst"),
        ("a.json", GOOD.decode().encode("utf-16-le"), "UTF-16 text"),
        ("a.jsonl", GOOD + b"\xef\xbb\xbf" + GOOD, "line 2: .* byte-order mark: remove it"),
        ("a.json", b'{"version": 1, "data": [' + GOOD + b"]}", "one object with a list under data"),
        ("a.JSONL", GOOD, r"Suffixes are in lower case: rename it to a\.jsonl"),
        ("a.csv", b"prompt, response\np,r\n", "it has the columns prompt, ' response'"),
        ("a.jsonl", GOOD.replace(b"\n", b"\r") * 2, "line ends are those of old Macs"),
    ],
)
def test_a_file_that_is_something_else_is_told(
    tmp_path: Path, name: str, raw: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=words):
        tma.load(tmp_path / name)


def test_a_long_order_of_a_table_is_written_in_pieces(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{k}", "response": "r", "n": k} for k in range(25_000)]
    found = tma.load(datasets.Dataset.from_list(rows))
    order = np.random.default_rng(0).permutation(len(rows))
    tma.save(found, order, tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / "a.parquet")["n"].to_pylist() == order.tolist()
