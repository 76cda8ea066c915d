from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tma
from tma.data import load as data
from tma.data import save as saving
from tma.errors import DataError, ParameterError

pytestmark = pytest.mark.usefixtures("own_cache")

KINDS = ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "folder")


@pytest.fixture
def train(dataset_file: Path) -> datasets.Dataset:
    return tma.load(str(dataset_file), split="train")


def prompts(path: Path) -> list[str]:
    """Read what was written with other tools than ours."""
    if path.suffix == ".parquet":
        return list(datasets.Dataset.from_parquet(str(path))["prompt"])
    if path.is_dir():
        return list(datasets.load_from_disk(str(path))["prompt"])
    with pa.input_stream(str(path)) as stream:
        return [json.loads(line)["prompt"] for line in stream.read().decode().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_is_kept(train: datasets.Dataset, tmp_path: Path, kind: str) -> None:
    order = np.random.default_rng(0).permutation(len(train))[:25]
    tma.save(train, order, tmp_path / kind)
    stored = train["prompt"][:]
    assert prompts(tmp_path / kind) == [stored[row] for row in order]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".new")] == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_can_be_loaded(tmp_path: Path, kind: str) -> None:
    rows = [
        {"prompt": f"p{k}\n“é”", "response": ["r", "s"], "dataset": f"d{k % 3}", "task": f"t{k}"}
        for k in range(9)
    ]
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = tma.load(source, split="all")
    order = np.random.default_rng(3).permutation(9)
    tma.save(first, order, tmp_path / kind)
    again, ordered = tma.load(tmp_path / kind, split="all"), first.select(order)
    texts = ["task", "prompt", "response", "id"]
    assert again.select_columns(texts).to_list() == ordered.select_columns(texts).to_list()
    assert data.sources(again) == data.sources(ordered)
    assert data.references(again) == [["r", "s"]] * 9


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.lists(st.text("aé", max_size=3), max_size=5), min_size=1, max_size=4),
    order=st.lists(st.integers(0, 1000), max_size=20),
)
def test_any_chunks_in_any_order(tmp_path: Path, parts: list[list[str]], order: list[int]) -> None:
    made = [datasets.Dataset.from_dict({"prompt": part}) for part in parts if part]
    if not made:
        return
    whole = datasets.concatenate_datasets(made)
    rows = [row % len(whole) for row in order]
    with patch.object(saving, "BLOCK_BYTES", 30), patch.object(saving, "PIECE_ROWS", 2):
        tma.save(whole, rows, tmp_path / "a.jsonl")
    assert prompts(tmp_path / "a.jsonl") == [whole["prompt"][row] for row in rows]


def test_a_selection_is_saved_as_it_is_seen_and_equal_orders_give_equal_bytes(
    train: datasets.Dataset, tmp_path: Path
) -> None:
    turned = train.select(range(len(train) - 1, 4, -2))
    for kind in KINDS[:4]:
        path = tmp_path / kind
        tma.save(turned, None, path)
        assert prompts(path) == turned["prompt"][:]
        first = path.read_bytes()
        tma.save(turned, None, path)
        assert path.read_bytes() == first
        tma.save(turned, [2, 0], path)
        assert prompts(path) == [turned["prompt"][2], turned["prompt"][0]]


@pytest.mark.parametrize(
    ("order", "name", "words"),
    [
        ([0, 40], "a.jsonl", r"order\[1\] is 40; expected row numbers from 0 to 39"),
        ([-1], "a.jsonl", r"order\[0\] is -1"),
        ([0.5], "a.jsonl", "1 dimensions of float64; expected one of row numbers"),
        ([[1]], "a.jsonl", "2 dimensions of int64"),
        ([[1], [2, 3]], "a.jsonl", "order: .*expected one dimension of row numbers"),
        (None, "file/a.jsonl", "could not be written: "),
        (None, "a.parquet.gz", "expected .jsonl, .parquet, or a folder's name"),
    ],
)
def test_what_cannot_be_saved_is_named(
    train: datasets.Dataset, tmp_path: Path, order: object, name: str, words: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=words):
        tma.save(train, order, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_other_refusals_name_what_came(train: datasets.Dataset, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(DataError, match=r"a\.jsonl' could not be written: Is a directory"):
        tma.save(train, None, tmp_path / "a.jsonl")
    with pytest.raises(ParameterError, match=r"dataset='list' .* expected a datasets.Dataset"):
        tma.save([1], None, tmp_path / "b.jsonl")
    for path in (3, ""):
        with pytest.raises(ParameterError, match=rf"path={path!r} .* expected a text"):
            tma.save(train, None, path)
    numbers = datasets.Dataset.from_dict({"score": [float("nan")]})
    with pytest.raises(DataError, match=r"as JSON: .*float values.* Save as \.parquet"):
        tma.save(numbers, None, tmp_path / "b.jsonl")
    tma.save(train, [3], tmp_path / "folder")
    with pytest.raises(DataError, match=r"exists\. Remove it, or give another name"):
        tma.save(train, [4], tmp_path / "folder")
    assert prompts(tmp_path / "folder") == [train["prompt"][3]]
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".lock"] == []


def test_a_tilde_is_the_home_folder(
    train: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    tma.save(train, [0], "~/sub/a.jsonl")
    assert len(tma.load("~/sub/a.jsonl", split="all")) == 1
    assert not (tmp_path / "~").exists()
