from __future__ import annotations

import gzip
import json
import logging
from collections import Counter
from pathlib import Path
from types import MappingProxyType
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict

import tma
from tma.data import load as data
from tma.data.registry import check_dataset
from tma.errors import DataError, ParameterError, StateError
from tma.runs.config import RunConfig

pytestmark = pytest.mark.usefixtures("own_cache")

Rows = list[dict[str, Any]]
PARTS = ("train", "test")


def write(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def plain(count: int) -> Rows:
    return [{"prompt": f"p{k}", "response": "r"} for k in range(count)]


def test_a_file_without_a_test_split_holds_out_whole_tasks(dataset_file: Path) -> None:
    train, test = (tma.load(str(dataset_file), split=split) for split in PARTS)
    assert (len(train), len(test)) == (40, 8)
    assert len(set(test["task"])) == 1
    assert not set(test["task"]) & set(train["task"])
    texts = ["id", "task", "source", "prompt", "response"]
    assert train.column_names == [*texts, "references", "exchanges", "row", "place"]
    lines = dataset_file.read_text().splitlines()
    for row, place in zip(train["row"], train["place"], strict=True):
        assert lines[int(place.removeprefix(f"{dataset_file.name}, line ")) - 1] == row
    held = {tma.load(str(dataset_file), split="test", seed=seed)["task"][0] for seed in range(8)}
    assert len(held) > 1


def test_without_tasks_single_instances_are_held_out(tmp_path: Path) -> None:
    name = write(tmp_path / "a.jsonl", plain(30))
    train, test = (tma.load(name, split=split) for split in PARTS)
    assert (len(train), len(test)) == (27, 3)
    assert set(train["task"]) == {None}


def test_equal_rows_have_different_ids_and_equal_content_equal_ids(tmp_path: Path) -> None:
    rows: Rows = [{"prompt": "p", "response": "r", "task": "a"}] * 3
    rows += [{"prompt": "p", "response": "r", "task": "b"}]
    name = write(tmp_path / "twins.jsonl", rows)
    ids = [i for split in PARTS for i in tma.load(name, split=split)["id"]]
    assert len(set(ids)) == 4
    assert {i.split("-")[0] for i in ids} == {ids[0].split("-")[0], ids[-1].split("-")[0]}
    assert sorted(i.split("-")[1] for i in ids if "-" in i) == ["2", "3"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            '{"question": "q", "answer": "a"}',
            "no known format; it has the columns question, answer",
        ),
        ('{"prompt": "p", "response": "r"}', "1 different instances; expected at least 2"),
        ('{"prompt": "p", "respon', "broken.jsonl, line 1: .* expected one JSON object a line"),
        ("", "could not be read: the file is empty"),
        ('{"prompt": [{"role": "user"}], "response": "r"}\n' * 3, "column prompt holds a list"),
        ('{"prompt": "p", "response": " "}\n' * 3, "expected at least 2"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_data_error(
    tmp_path: Path, content: str, words: str
) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        tma.load(str(path), split="train")


def test_texts_and_fingerprint_are_those_of_the_instances(dataset_file: Path) -> None:
    train = tma.load(str(dataset_file), split="train")
    assert "How many letters has aaa? three" in data.texts(tma.load(dataset_file, split="all"))
    turned = train.select(range(len(train) - 1, -1, -1))
    assert data.fingerprint(train) != data.fingerprint(turned)
    assert data.fingerprint(train) == data.fingerprint(tma.load(str(dataset_file), split="train"))


def test_ids_are_those_of_earlier_versions(tmp_path: Path) -> None:
    rows: Rows = [{"prompt": "é", "response": "1", "task": "t"}, {"prompt": "x", "response": "y"}]
    ids = tma.load(write(tmp_path / "a.jsonl", rows), split="all")["id"]
    assert ids[:] == ["b3ad689d4777d5cd", "bebd947c5e63cad4"]


def test_a_row_stays_whole(tmp_path: Path) -> None:
    rows: Rows = [
        {
            "prompt": f"p{k}",
            "response": [" ", "first", "second", "first"],
            "tags": ["a", None],
            "note": None,
        }
        for k in range(3)
    ]
    test = tma.load(write(tmp_path / "a.jsonl", rows), split="test")
    assert json.loads(test["row"][0]) in rows
    assert test["references"][:] == [["first", "second"]]
    assert test["response"][:] == ["first"]
    assert data.references(test) == [["first", "second"]]
    assert data.references(test.remove_columns("references")) == [["first"]]


def test_the_second_call_reads_the_store_and_warns_again(
    tmp_path: Path, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = write(tmp_path / "a.jsonl", [*plain(5), {"prompt": "p", "response": None}])
    first = tma.load(name, split="train")
    folders = list((own_cache / "datasets").glob("*/"))
    with caplog.at_level(logging.WARNING):
        second = tma.load(name, split="train")
    assert first["id"][:] == second["id"][:]
    assert list((own_cache / "datasets").glob("*/")) == folders
    words = "1 left out without prompt or response (a.jsonl, line 6: no response)"
    assert caplog.messages[-1:] == [f"dataset {name}: {words}"]
    assert data.dropped(first) == [{"place": "a.jsonl, line 6", "reason": "no response"}]
    assert data.manifest(first) == {
        "rows": {"train": 4, "test": 1},
        "read": 6,
        "empty": {"none": 1, "train": 0, "test": 0},
        "long": {"train": [0, 4], "test": [0, 1]},
        "max_instance_tokens": None,
        "notes": {},
        "dropped": ["a.jsonl, line 6: no response"],
        "name": name,
        "commit": None,
        "own_split": False,
    }
    with pytest.raises(DataError, match=r"a\.jsonl, line 6: the response is empty; empty='drop'"):
        tma.load(name, split="train", empty="error")


def test_changed_content_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for response in "xy":
        write(path, [{"prompt": f"p{k}", "response": response} for k in range(3)])
        assert set(tma.load(str(path), split="train")["response"]) == {response}
    # The same bytes under another suffix are read as what they are called.
    content = "prompt,response\np,r\nq,s\n"
    for suffix in ("csv", "jsonl"):
        (tmp_path / f"b.{suffix}").write_text(content)
    assert len(tma.load(str(tmp_path / "b.csv"), split="train")) == 1
    with pytest.raises(DataError, match="expected one JSON object a line"):
        tma.load(str(tmp_path / "b.jsonl"), split="train")


def test_a_failed_reading_leaves_nothing(tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "p", "response": "r"}\n' * 9 + "{")
    with pytest.raises(DataError, match="line 10"):
        tma.load(str(path), split="train")
    assert [p for p in (own_cache / "datasets").iterdir() if p.suffix != ".lock"] == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"by": "tasks"}, r"by='tasks' .* \(did you mean task\?\)"),
        ({"per_task": 0}, "per_task=0 .* at least 1"),
        ({"per_task": (3, "x")}, "per_task='x' .* at least 1"),
        ({"empty": "keep"}, "empty='keep' .* drop, error"),
        ({"seed": -1}, "seed=-1 .* at least 0"),
        ({"max_source_tokens": 0}, "max_source_tokens=0 "),
        ({"max_instance_tokens": 0}, "max_instance_tokens=0 .* at least 1"),
        ({"held_out": "repeat"}, "held_out='repeat' .* names of tasks or source datasets"),
        ({"held_out": ["repaet"]}, "held_out='repaet' .* the 6 tasks .* such as repeat"),
        ({"fold": 0}, "fold=0 .* has no folds, only suite, pocket, p3 have"),
        ({"by": "task", "held_out": ["next"]}, r"by='task' and held_out=\('next',\) each say"),
        ({"by": "task", "split": "all"}, r"split='all' .* which by='task' asks for"),
        ({"columns": ["prompt"]}, r"columns=\['prompt'\] .* expected names"),
        ({"columns": {"prompt": {1}}}, r"columns=\{'prompt': \{1\}\} .* expected names"),
    ],
)
def test_a_wrong_argument_is_named(dataset_file: Path, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        tma.load(str(dataset_file), **({"split": "train"} | given))


@pytest.mark.parametrize(
    ("name", "split", "words"),
    [
        ("pocket", "dev", "split='dev'"),
        ("", "train", "dataset='' cannot be used; expected one of: niv2"),
        ("niv2:/none/here", "train", "dataset='niv2:/none/here': there is no such file"),
    ],
)
def test_a_wrong_name_or_split_is_named(name: Any, split: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        tma.load(name, split=split)


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-here/x.jsonl", "niv2:~nobody-here/x"])
def test_a_name_that_no_file_can_have_is_one_error(name: str) -> None:
    with pytest.raises(DataError, match=r"could not be read|there is no such file"):
        tma.load(name, split="train")
    with pytest.raises(ParameterError, match="dataset="):
        check_dataset(name)


@pytest.mark.parametrize("name", ["caf\udce9.jsonl", "caf\udce9.csv", "caf\udce9.jsonl.gz"])
def test_a_file_name_need_not_be_utf8(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    raw = b"prompt,response\np,r\nq,s\n,t\n"
    if "jsonl" in name:
        raw = b'{"prompt": "p", "response": "r"}\n' * 2 + b'{"prompt": "", "response": "r"}\n'
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    assert len(tma.load(tmp_path / name, split="all")) == 2
    (message,) = caplog.messages
    assert r"caf\udce9." in message
    assert "1 left out without" in message
    (tmp_path / name).write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"caf\\udce9\."):
        tma.load(tmp_path / name, split="all")


def test_every_row_can_be_kept(dataset_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        whole = tma.load(str(dataset_file), split="all")
        assert caplog.messages == []
        tma.load(str(dataset_file), split="train")
    rows = [json.loads(line)["prompt"] for line in dataset_file.read_text().splitlines()]
    assert whole["prompt"][:] == rows
    assert caplog.messages == [
        f"dataset {dataset_file}: 8 rows held out as test; split='all' keeps all"
    ]


def test_a_cache_that_cannot_be_made_is_named(
    dataset_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMA_CACHE", f"{dataset_file}/cache")
    with pytest.raises(StateError, match=r"could not be written: Not a directory.* TMA_CACHE"):
        tma.load(str(dataset_file), split="train")


def test_a_mapping_names_the_columns(tmp_path: Path) -> None:
    rows: Rows = [{"q": f"q{k}", "a": "a", "kind": f"k{k % 2}", "extra": 1} for k in range(4)]
    name = write(tmp_path / "a.jsonl", rows)
    mapping = {"prompt": "q", "response": "a", "task": "kind"}
    test = tma.load(name, split="test", columns=MappingProxyType(mapping))
    assert len(set(test["task"])) == 1
    assert {json.loads(row)["extra"] for row in test["row"]} == {1}
    with pytest.raises(DataError, match="no column query; it has q, a, kind, extra"):
        tma.load(name, split="test", columns=mapping | {"prompt": "query"})


def numbered(path: Path, tasks: str, rows: int = 4) -> str:
    """Write so many instances of each task, a letter each; source datasets x and y by turns."""
    return write(
        path,
        [
            {"prompt": f"{task} {k}", "response": "r", "task": task, "origin": "xy"[place % 2]}
            for place, task in enumerate(tasks)
            for k in range(rows)
        ],
    )


ORIGIN = {"source": "origin"}


def test_held_out_are_the_tasks_and_source_datasets_that_are_named(tmp_path: Path) -> None:
    name = numbered(tmp_path / "a.jsonl", "abcd")
    for held_out, columns, tasks in (
        (["b", "d"], None, {"b", "d"}),
        (("b",), ORIGIN, {"b"}),
        ({"x"}, ORIGIN, {"a", "c"}),
        (["y", "a"], ORIGIN, {"a", "b", "d"}),
    ):
        parts = [tma.load(name, split=s, held_out=held_out, columns=columns) for s in PARTS]
        assert [{*part["task"]} for part in parts] == [{*"abcd"} - tasks, tasks]
    with pytest.raises(DataError, match="no usable rows in its split 'train'"):
        tma.load(name, split="train", held_out=[*"abcd"])


def test_long_instances_are_left_out_with_their_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": "word " * k, "response": "yes", "task": "ab"[k % 2]} for k in range(1, 41)]
    name = write(tmp_path / "a.jsonl", rows)
    train, test = (
        tma.load(name, split=split, held_out=["b"], max_instance_tokens=13, per_task=3)
        for split in PARTS
    )
    # Ten words, the answer, and one token at each end; the cap counts short instances only.
    assert max(len(prompt.split()) for prompt in train["prompt"]) == 10
    assert max(len(prompt.split()) for prompt in test["prompt"]) <= 9
    assert (len(train), len(test)) == (3, 3)
    end = "of 20 rows left out, more than max_instance_tokens=13"
    assert caplog.messages == [
        f"dataset {name}, split train: 15 {end}",
        f"dataset {name}, split test: 15 {end}",
    ]
    counted = data.manifest(test)
    assert counted is not None
    assert counted["long"] == {"train": [15, 20], "test": [15, 20]}
    assert len(tma.load(name, split="all", max_instance_tokens=13)) == 10


def test_the_source_dataset_of_an_instance_is_found_again(tmp_path: Path) -> None:
    name = numbered(tmp_path / "a.jsonl", "ab", rows=2)
    whole = tma.load(name, split="all", columns=ORIGIN)
    assert tma.data.sources(whole) == ["x", "x", "y", "y"]
    assert data.sources(whole.select([3, 0])) == ["y", "x"]
    assert data.sources(tma.load(name, split="all")) == [None] * 4
    assert data.sources(whole.remove_columns("source")) == [None] * 4
    # Also where it is what the task is named after.
    both = {"source": "origin", "task": "origin"}
    assert data.sources(tma.load(name, split="all", columns=both)) == ["x", "x", "y", "y"]
    # A column named dataset needs no mapping, and stays known where rows are changed.
    rows: Rows = [{"prompt": "p", "response": "r", "dataset": d} for d in "uv"]
    own = tma.load(write(tmp_path / "b.jsonl", rows), split="all")
    marked = own.map(lambda row: {"prompt": row["prompt"] + "!"})
    assert data.sources(marked) == ["u", "v"]
    assert data.manifest(datasets.concatenate_datasets([own, whole])) is None


def test_test_data_may_come_from_another_dataset(tmp_path: Path) -> None:
    names = numbered(tmp_path / "train.jsonl", "abc"), numbered(tmp_path / "mine.jsonl", "bz")
    for per_task, limit, counts in (
        ((3, 1), None, [{"a": 3, "b": 3, "c": 3}, {"b": 1, "z": 1}]),
        ((None, 2), None, [{"a": 4, "b": 4, "c": 4}, {"b": 2, "z": 2}]),
        (None, 2, [{"a": 4, "b": 4, "c": 4}, {"b": 1, "z": 1}]),
    ):
        given: dict[str, Any] = {"per_task": per_task, "test_limit": limit}
        pair = data.load_pair(names[0], test_dataset=names[1], **given)
        assert [Counter(part["task"]) for part in pair] == counts
    columns = {"prompt": "task", "response": "origin"}
    pair = data.load_pair(names[0], test_dataset=names[1], columns=columns)
    assert [{*part["prompt"]} for part in pair] == [{*"abc"}, {*"bz"}]


def test_few_test_instances_are_of_as_many_tasks_as_there_are(tmp_path: Path) -> None:
    def part(tasks: str) -> Dataset:
        prompts = [f"{task}{k}" for k, task in enumerate(tasks)]
        return Dataset.from_dict({"prompt": prompts, "response": prompts, "task": list(tasks)})

    both = {"train": part("ddd"), "test": part("aaaaaaaaaaaaaaaaaaaabbbbc")}
    DatasetDict(both).save_to_disk(tmp_path / "folder")
    train, test = data.load_pair(tmp_path / "folder", test_limit=6)
    assert len(train) == 3
    assert Counter(test["task"]) == {"a": 3, "b": 2, "c": 1}
    other = data.load_pair(tmp_path / "folder", test_limit=6, seed=4)[1]
    assert set(other["id"]) != set(test["id"])


def test_a_run_reads_its_data_as_its_settings_say(tmp_path: Path) -> None:
    name = numbered(tmp_path / "a.jsonl", "abcdefghijkl")
    settings: dict[str, Any] = {
        "dataset": name,
        "columns": ORIGIN,
        "held_out": ("a", "b", "c"),
        "per_task": (3, 2),
        "test_limit": 4,
        "data_seed": 3,
        "empty": "error",
    }
    train, test = tma.load_both(RunConfig.at("pocket", order="random", **settings))
    assert Counter(train["task"]) == dict.fromkeys("defghijkl", 3)
    assert {*test["task"]} == {*"abc"} and len(test) == 4
    given = settings | {"seed": 3}
    pair = data.load_pair(given.pop("dataset"), **{k: given[k] for k in given if k != "data_seed"})
    assert [part["id"][:] for part in pair] == [train["id"][:], test["id"][:]]
    other = RunConfig.at("pocket", order="random", **(settings | {"data_seed": 4}))
    assert {*tma.load_both(other)[0]["id"]} != {*train["id"]}


def test_twins_take_places_in_the_pool_that_the_seed_draws(cache: Path) -> None:
    assert cache.is_dir()
    given: dict[str, Any] = {"order": "random", "pool": 100, "seed": 2}
    plain_, test = tma.load_both(RunConfig.at("pocket", **given))
    train, same = tma.load_both(RunConfig.at("pocket", **given, twins=0.5))
    assert same["id"][:] == test["id"][:] and len(test) == 19
    known = {name: row for row, name in enumerate(plain_["id"])}
    drawn = [known[name] for name in train["id"] if name in known]
    added = [row for row in train if row["id"] not in known]
    # Half of 19 test instances; the others are what the seed draws first.
    assert (len(train), len(added)) == (100, 10)
    expected = np.random.default_rng([2, 1]).permutation(len(plain_))[:90]
    assert drawn == expected.tolist()
    metas = [json.loads(row) for row in test["row"]]
    places = {(m["dataset"], m["row"]): task for m, task in zip(metas, test["task"], strict=True)}
    for twin in added:
        meta = json.loads(twin["row"])
        assert places[meta["dataset"], meta["row"]] != twin["task"]  # another template of the row


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"twins": 0.0}, r"twins=0\.0 cannot be used; expected a number above 0"),
        ({"twins": 1.5}, r"twins=1\.5 cannot be used; expected a number of at most 1"),
        ({"twins": True}, "twins=True cannot be used"),
        ({"pool": None}, r"twins=0\.5 .* dataset=suite or pocket and a pool of rows with it"),
        ({"dataset": "p3"}, r"twins=0\.5 .* dataset=suite or pocket and a pool of rows with it"),
    ],
)
def test_twins_without_a_suite_a_pool_or_a_share_are_refused(
    wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        RunConfig.at("pocket", **({"order": "random", "pool": 100, "twins": 0.5} | wrong))
