from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tma
from tma.data import load as data
from tma.data.readers import read
from tma.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"prompt": "What is 2+2?", "response": "4", "task": "add"},
    {"prompt": "Sag „ja“\r\nund 👍", "response": "ja", "task": "say"},
    {"prompt": 'A "quoted", word', "response": "NA", "task": "add"},
    {"prompt": "long " * 400_000, "response": "01", "task": "say"},
]
PARTS = ("train", "test")

pytestmark = pytest.mark.usefixtures("own_cache")


def jsonl(rows: list[dict[str, Any]], newline: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + newline for row in rows).encode()


def written_csv(rows: list[dict[str, Any]]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def parquet(rows: list[dict[str, Any]], most: int | None = None) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows)[:most], stream, write_page_checksum=True)
    return stream.getvalue()


def packed(raw: bytes) -> bytes:
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, "zstd") as sink:
        sink.write(raw)
    return bytes(stream.getvalue())


WRITTEN = {
    "a.jsonl": jsonl(ROWS),
    "crlf.jsonl": jsonl(ROWS, "\r\n\r\n"),
    "mark.jsonl": codecs.BOM_UTF8 + jsonl(ROWS)[:-1],
    "a.json": json.dumps(ROWS, indent=1).encode(),
    "mark.json": codecs.BOM_UTF8 + json.dumps(ROWS).encode(),
    "lines.json": jsonl(ROWS),
    "a.csv": written_csv(ROWS),
    "mark.csv": codecs.BOM_UTF8 + written_csv(ROWS),
    "a.parquet": parquet(ROWS),
    "a.jsonl.gz": gzip.compress(jsonl(ROWS)),
    "a.json.zst": packed(json.dumps(ROWS).encode()),
    "a.csv.gz": gzip.compress(written_csv(ROWS)[:100]) + gzip.compress(written_csv(ROWS)[100:]),
    "a.csv.zst": packed(written_csv(ROWS)),
    "a.parquet.gz": gzip.compress(parquet(ROWS)),
}


def loaded(path: Path) -> list[dict[str, Any]]:
    keep = ["prompt", "response", "task"]
    parts = [tma.load(str(path), split=split, by="instance") for split in PARTS]
    return [row for part in parts for row in part.select_columns(keep).to_list()]


def same(found: list[dict[str, Any]], rows: list[dict[str, Any]]) -> bool:
    return sorted(map(str, (sorted(r.items()) for r in found))) == sorted(
        map(str, (sorted(r.items()) for r in rows))
    )


@pytest.mark.parametrize("name", WRITTEN)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(WRITTEN[name])
    assert same(loaded(path), ROWS)


def test_an_arrow_folder_gives_its_rows(tmp_path: Path) -> None:
    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk(tmp_path / "one")
    made.select([3, 2, 1, 0]).save_to_disk(tmp_path / "shards", num_shards=3)
    assert same(loaded(tmp_path / "one"), ROWS)
    assert same(loaded(tmp_path / "shards"), ROWS)
    parts = {"train": made.select([2, 0]), "test": made.select([1]), "more": made.select([3])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d")
    train, test = (tma.load(str(tmp_path / "d"), split=split) for split in PARTS)
    assert train["response"][:] == ["NA", "4"]
    assert test["response"][:] == ["ja"]
    del parts["train"], parts["test"]
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "e")
    with pytest.raises(DataError, match="has no split 'train'; it has more"):
        tma.load(str(tmp_path / "e"), split="train")


def test_an_arrow_folder_that_is_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    """Between two of its messages the file would read as a shorter one."""
    rows = [{"prompt": f"p{k} „ß“", "response": "r"} for k in range(20)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "d")
    file = tmp_path / "d" / "data-00000-of-00001.arrow"
    table = pa.ipc.open_stream(file.read_bytes()).read_all().replace_schema_metadata(None)
    ends = []
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=5):
            ends.append(sink.tell())
            writer.write_batch(batch)
        ends.append(sink.tell())
    raw, random_ = file.read_bytes(), random.Random(0)
    assert len(tma.load(tmp_path / "d", split="all")) == 20
    for place in [*ends, 0, 1, len(raw) - 8, len(raw) - 1, *random_.sample(range(len(raw)), 20)]:
        file.write_bytes(raw[:place])
        with pytest.raises(DataError, match=r"00001\.arrow is cut off: its end is missing\. Copy"):
            tma.load(tmp_path / "d", split="all")


def test_a_json_file_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tma.data.readers._CHUNK", 7)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS[:3], indent=2, ensure_ascii=False), encoding="utf-8")
    (batch,) = read(path)
    assert list(batch.rows) == ROWS[:3]
    assert list(batch.places) == [2, 7, 12]


def test_a_repeated_long_text_is_decoded_a_few_rows_at_a_time(tmp_path: Path) -> None:
    made = {"prompt": ["word " * 2_000] * 3_000, "response": list(map(str, range(3_000)))}
    pq.write_table(pa.table(made), tmp_path / "a.parquet")
    assert {len(batch.rows) for batch in read(tmp_path / "a.parquet")} == {500}


GOOD = '{"prompt": "p", "response": "r"}\n'


DOUBLED = GOOD.replace("}\n", ",") + GOOD[1:]
MALFORMED: list[tuple[str, str | bytes, str]] = [
    ("a.jsonl", GOOD * 3 + '{"prompt"\n', r"a\.jsonl, line 4: Expecting ':' delimiter at"),
    ("a.jsonl", GOOD + "\n\n[1]\n", "line 4: a list; expected one JSON object a line"),
    ("a.jsonl", GOOD[:-1] + GOOD, "line 1: Extra data at character 33"),
    ("a.jsonl", GOOD.encode() + b'{"prompt": "caf\xe9"}', "line 2: byte 0xe9 is not UTF-8"),
    ("a.jsonl", GOOD.encode("utf-16"), "it is UTF-16 text. Save it as UTF-8, e.g. with `iconv"),
    ("a.jsonl", '{"a":' + "[" * 100_000, "line 1: .*recursion"),
    ("a.jsonl", "[" * 9, "it is a JSON list and not JSON Lines. Name it .json"),
    ("a.jsonl", GOOD + '{"prompt": "\\ud83d", "response": "r"}', r"line 2: .* \\ud83d, which"),
    ("a.jsonl", '{"prompt": ' + "9" * 5000 + "}", "line 1: Exceeds the limit"),
    ("a.jsonl", DOUBLED, "line 1: the key 'prompt' appears twice"),
    ("a.json", "[" + DOUBLED, "line 1: the key 'prompt' appears twice"),
    ("a.jsonl", "", "the file is empty"),
    ("a.jsonl", "\n \n", r"a\.jsonl' could not be read: it has no rows"),
    ("a.json", "[]", "could not be read: it has no rows"),
    ("a.csv", "prompt,response\n", "could not be read: it has no rows"),
    ("a.parquet", parquet(ROWS[:1], 0), "could not be read: it has no rows"),
    ("a.json", "[" + GOOD, "a.json, line 2: the end of the file; expected a comma"),
    ("a.json", f"[{GOOD},\n7]", "line 3: a int; expected an object"),
    ("a.json", f"[{GOOD}] x", "line 2: more text after the list; expected its end"),
    ("a.json", '[\n{"prompt":\n\n}]', "line 4: Expecting value; expected an object"),
    ("a.json", b'[\n{"prompt":\n"\xff"}]', "line 3: byte 0xff is not UTF-8"),
    ("a.csv", "prompt,response\np,r\np,r,x\n", "line 3: 3 cells; expected 2, one for each"),
    ("a.csv", 'prompt,response\n"p\np",r\np\n', "line 4: 1 cells; expected 2"),
    ("a.csv", 'prompt,response\np,"r\nq,s\n', "line 3: unexpected end of data; expected"),
    ("a.csv", 'prompt,response\np,"r"x\n', "line 2: ',' expected after '\"'"),
    ("a.csv", "\n\nprompt,prompt\np,r\n", "line 3: the column 'prompt' appears twice"),
    ("a.csv", "prompt;response\np;r\n", "it has the columns prompt;response"),
    ("a.parquet", "no parquet", "a.parquet could not be read: "),
    ("a.jsonl.gz", GOOD, "a.jsonl.gz could not be read: "),
    ("a.jsonl.gz", gzip.compress(GOOD.encode() * 9, mtime=0)[:-9], "could not be read: Truncated"),
    ("a.jsonl.zst", packed(GOOD.encode() * 9)[:-4], "Truncated compressed stream"),
    ("a.docx", GOOD, "expected a .jsonl, .json, .csv, .parquet or .txt file"),
    (
        "a.jsonl",
        '{"question": "q", "answer": "a"}',
        "no known format; it has the columns",
    ),
    ("a.jsonl", GOOD, "1 different instances; expected at least 2"),
    ("a.jsonl", '{"prompt": "p", "response": " "}\n' * 3, "expected at least 2"),
    ("a.jsonl", '{"prompt": [1], "response": "r"}\n' * 3, "column prompt holds a list"),
]


@pytest.mark.parametrize(("name", "raw", "words"), MALFORMED, ids=range(len(MALFORMED)))
def test_what_is_malformed_is_named_by_file_and_line(
    tmp_path: Path, name: str, raw: str | bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    with pytest.raises(DataError, match=words) as caught:
        tma.load(str(path), split="train")
    assert "\n" not in str(caught.value)
    assert str(caught.value).encode("utf-8")  # can be printed


def test_a_column_may_first_appear_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tma.data.batches.BATCH_ROWS", 2)
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD * 3 + '{"prompt": "q", "response": "r", "kind": "late"}\n')
    tasks = tma.load(str(path), split="all", columns={"task": "kind"})["task"]
    assert {*tasks} == {None, "late"}
    with pytest.raises(DataError, match="no column sort; it has prompt, response, kind"):
        tma.load(str(path), split="train", columns={"task": "sort"})
    # It can make the format unclear.
    path.write_text(GOOD * 3 + '{"instruction": "i", "output": "o"}\n')
    with pytest.raises(DataError, match=r"fits prompt/response .* and Alpaca"):
        tma.load(str(path), split="train")


def test_what_is_no_number_is_missing(tmp_path: Path) -> None:
    lines = [f'{{"prompt": "p", "response": {cell}}}\n' for cell in ("NaN", "-Infinity", "1")]
    for name, text in (("a.jsonl", "".join(lines)), ("a.json", f"[{','.join(lines)}]")):
        (tmp_path / name).write_text(text)
        rows = [row["response"] for batch in read(tmp_path / name) for row in batch.rows]
        assert rows == [None, None, 1]


FUZZ = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAMES = st.sampled_from(["f.jsonl", "f.json", "f.csv", "f.parquet", "f.jsonl.gz", "f.csv.zst"])
SHORT = [*ROWS[:3], *({"prompt": f"p{k}", "response": "r", "task": "t"} for k in range(5))]
VALID = [jsonl(SHORT), written_csv(SHORT), parquet(SHORT), json.dumps(SHORT).encode()]


def rows_or_error(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
    for split in PARTS:
        try:
            assert len(tma.load(str(path), split=split)) > 0
        except DataError as error:
            assert str(error)


@FUZZ
@given(name=NAMES, raw=st.binary(max_size=300))
def test_any_bytes_are_rows_or_one_error(tmp_path: Path, name: str, raw: bytes) -> None:
    rows_or_error(tmp_path / name, raw)


TURNS = ["from", "value", "role", "content"]
CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4), inner)
        | st.dictionaries(st.sampled_from(TURNS), st.lists(st.sampled_from(["user", "gpt"])))
        | st.dictionaries(st.sampled_from(TURNS), st.sampled_from(["user", "gpt"]))
    ),
    max_leaves=6,
)
KEYS = ["prompt", "response", "task", "messages", "conversations", "instruction", "output", "meta"]


@FUZZ
@given(st.lists(st.dictionaries(st.sampled_from([*KEYS, "id", "answers"]), CELLS), max_size=4))
def test_any_objects_are_rows_or_one_error(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    rows_or_error(tmp_path / "f.jsonl", "\n".join(map(json.dumps, rows)).encode())


@FUZZ
@given(
    file=st.tuples(NAMES, st.sampled_from(VALID)),
    at=st.floats(0, 1),
    cut=st.integers(0, 4),
    new=st.binary(max_size=4),
)
def test_damaged_files_are_rows_or_one_error(
    tmp_path: Path, file: tuple[str, bytes], at: float, cut: int, new: bytes
) -> None:
    name, valid = file
    place = int(at * len(valid))
    rows_or_error(tmp_path / name, valid[:place] + new + valid[place + cut :])


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_no_corruption_loses_a_row_without_a_word(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """250 corruptions of each kind of file, 1,000 in all: an error, a count, or every row."""
    random_ = random.Random(suffix)
    rows = [
        {"prompt": f'{k}, "a" or\nb? é', "response": f"answer {k}", "task": f"t{k % 3}"}
        for k in range(20)
    ]
    writers = {"jsonl": jsonl, "csv": written_csv, "parquet": parquet}
    raw = writers.get(suffix, lambda given_: json.dumps(given_, indent=1).encode())(rows)
    ended = Counter[str]()
    caplog.set_level("ERROR")
    for _ in range(250):
        place, cut = random_.randrange(len(raw)), random_.choice([0, 1, 1, 3])
        new = random_.choice([b"", b"\n", b'"', b",", b"\x00", b"\xff", b"x", b"{", b"}"])
        path = tmp_path / f"f.{suffix}"
        path.write_bytes(raw[:place] + new + raw[place + cut :])
        ended[_outcome(path, rows)] += 1
    assert ended["lost"] == 0
    assert min(ended["error"], ended["whole"]) > 10


def _outcome(path: Path, rows: list[dict[str, Any]]) -> str:
    """Say how the loader ended; rows that it dropped and counted are not lost."""
    try:
        found = [tma.load(str(path), split=split, by="instance") for split in PARTS]
    except DataError:
        return "error"
    counted = data.manifest(found[0])
    assert counted is not None
    kept = [(row["prompt"], row["response"]) for part in found for row in part]
    if len(kept) + sum(counted["empty"].values()) < len(rows):
        return "lost"
    # At most the two rows that the damage touches may read otherwise.
    missing = Counter((row["prompt"], row["response"]) for row in rows) - Counter(kept)
    return "whole" if missing.total() <= 2 else "lost"
