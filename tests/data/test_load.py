from __future__ import annotations

import dataclasses
import gzip
import json
import logging
from collections import Counter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict

import tma
from tma.config import check_dataset
from tma.data import load as data
from tma.errors import DataError, ParameterError
from tma.runs.config import RunConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

pytestmark = pytest.mark.usefixtures("own_cache")


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_file_without_a_test_split_holds_out_whole_tasks(dataset_file: Path) -> None:
    train, test = (tma.load(str(dataset_file), split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (40, 8)
    assert len(set(test["task"])) == 1
    assert not set(test["task"]) & set(train["task"])
    assert train.column_names == ["id", "task", "prompt", "response", "meta"]
    assert set(train["meta"]) == {None}


def test_without_tasks_single_instances_are_held_out(tmp_path: Path) -> None:
    name = write(tmp_path / "a.jsonl", [{"prompt": f"p{k}", "response": "r"} for k in range(30)])
    train, test = (tma.load(name, split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (27, 3)
    assert set(train["task"]) == {None}


def test_another_seed_holds_out_another_task(dataset_file: Path) -> None:
    held = {tma.load(str(dataset_file), split="test", seed=seed)["task"][0] for seed in range(8)}
    assert len(held) > 1


def test_the_columns_of_p3_are_read(tmp_path: Path) -> None:
    rows = [
        {"inputs_pretokenized": f"q{k}", "targets_pretokenized": "a", "task": f"t{k}"}
        for k in range(4)
    ]
    name = write(tmp_path / "p3.jsonl", rows)
    prompts = [p for split in ("train", "test") for p in tma.load(name, split=split)["prompt"]]
    assert sorted(prompts) == ["q0", "q1", "q2", "q3"]


def test_equal_rows_have_different_ids_and_equal_content_equal_ids(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": "p", "response": "r", "task": "a"}] * 3
    rows += [{"prompt": "p", "response": "r", "task": "b"}]
    name = write(tmp_path / "twins.jsonl", rows)
    ids = [i for split in ("train", "test") for i in tma.load(name, split=split)["id"]]
    assert len(set(ids)) == 4
    assert {i.split("-")[0] for i in ids} == {ids[0].split("-")[0], ids[-1].split("-")[0]}
    assert sorted(i.split("-")[1] for i in ids if "-" in i) == ["2", "3"]


def test_rows_without_a_response_are_left_out_with_their_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[dict[str, object]] = [{"prompt": f"p{k}", "response": "r"} for k in range(5)]
    rows += [{"prompt": "p", "response": "  "}, {"prompt": "", "response": "r"}]
    with caplog.at_level(logging.WARNING):
        train = tma.load(write(tmp_path / "a.jsonl", rows), split="train")
    assert len(train) == 4
    assert "2 rows without prompt or response left out" in caplog.text


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [{"question": "q", "answer": "a"}],
            "no known format; it has the columns question, answer",
        ),
        ([{"prompt": "p", "response": "r"}], "1 different instances; expected at least 2"),
    ],
)
def test_unusable_files_are_named(
    tmp_path: Path, rows: list[dict[str, object]], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        tma.load(write(tmp_path / "a.jsonl", rows), split="train")


@pytest.mark.parametrize(
    ("content", "words"),
    [
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


def test_the_answers_zero_and_false_are_answers(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": f"p{k}", "response": k % 2} for k in range(20)]
    name = write(tmp_path / "zero.jsonl", rows)
    answers = [r for split in ("train", "test") for r in tma.load(name, split=split)["response"]]
    assert sorted(answers) == ["0"] * 10 + ["1"] * 10


def test_text_in_a_table_stays_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "odd [1].csv"
    answers = ["None", "NA", "01000", "1.50", "null", "yes"]
    path.write_text("prompt,response\n" + "".join(f"p{k},{a}\n" for k, a in enumerate(answers)))
    found = [r for split in ("train", "test") for r in tma.load(str(path), split=split)["response"]]
    assert sorted(found) == sorted(answers)


def test_a_row_without_task_among_others_stands_for_itself(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": f"p{k}", "response": "r", "task": "a" if k < 10 else None} for k in range(100)
    ]
    name = write(tmp_path / "some.jsonl", rows)
    train, test = (tma.load(name, split=split) for split in ("train", "test"))
    assert len(train) + len(test) == 100
    assert len(test) <= 9 + 10


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(DataError, match="split='dev'"):
        tma.load("pocket", split="dev")


def test_what_is_embedded_is_prompt_and_response(dataset_file: Path) -> None:
    texts = [
        t
        for split in ("train", "test")
        for t in data.texts(tma.load(str(dataset_file), split=split))
    ]
    assert "How many letters has aaa? three" in texts


def test_the_fingerprint_knows_content_and_order(dataset_file: Path) -> None:
    train = tma.load(str(dataset_file), split="train")
    turned = train.select(range(len(train) - 1, -1, -1))
    assert data.fingerprint(train) != data.fingerprint(turned)
    assert data.fingerprint(train) == data.fingerprint(tma.load(str(dataset_file), split="train"))


def test_ids_are_those_of_earlier_versions(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "response": "r"}, {"prompt": "p", "response": "r"}]
    rows += [{"prompt": "é", "response": "1", "task": "t"}, {"prompt": "x", "response": "y"}]
    name = write(tmp_path / "a.jsonl", [dict(row) for row in rows])
    found = {
        row["prompt"]: row["id"]
        for split in ("train", "test")
        for row in tma.load(name, split=split, by="instance", seed=1)
    }
    assert found["é"] == "b3ad689d4777d5cd"
    assert found["x"] == "bebd947c5e63cad4"


def test_what_else_the_source_had_is_in_meta(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": f"p{k}", "response": "r", "level": k, "tags": ["a", None], "note": None}
        for k in range(3)
    ]
    test = tma.load(write(tmp_path / "a.jsonl", rows), split="test")
    assert json.loads(test["meta"][0]) == {"level": int(test["prompt"][0][1]), "tags": ["a", None]}


def test_several_responses_are_references(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": f"p{k}", "response": [" ", "first", "second", "first"]} for k in range(2)
    ]
    test = tma.load(write(tmp_path / "a.jsonl", rows), split="test")
    assert test["response"][:] == ["first"]
    assert data.references(test) == [["first", "second"]]


def test_a_dataset_without_meta_has_its_responses_as_references(dataset_file: Path) -> None:
    test = tma.load(str(dataset_file), split="test")
    assert data.references(test) == [[response] for response in test["response"]]
    assert data.references(test.remove_columns("meta")) == data.references(test)


def test_an_empty_row_can_be_an_error(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": "p", "response": "r"}, {"prompt": "q"}]
    name = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: the response is empty; empty='drop'"):
        tma.load(name, split="train", empty="error")


def test_the_second_call_reads_the_store_and_warns_again(
    tmp_path: Path, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[dict[str, object]] = [{"prompt": f"p{k}", "response": "r"} for k in range(5)]
    name = write(tmp_path / "a.jsonl", [*rows, {"prompt": "p", "response": None}])
    first = tma.load(name, split="train")
    folders = list((own_cache / "datasets").glob("*/"))
    with caplog.at_level(logging.WARNING):
        second = tma.load(name, split="train")
    assert first["id"][:] == second["id"][:]
    assert list((own_cache / "datasets").glob("*/")) == folders
    assert caplog.messages[-1:] == [f"dataset {name}: 1 rows without prompt or response left out"]
    assert data.manifest(first) == {
        "rows": {"train": 4, "test": 1},
        "read": 6,
        "empty": {"none": 1, "train": 0, "test": 0},
        "long": {"train": [0, 4], "test": [0, 1]},
        "max_instance_tokens": None,
        "source": None,
        "name": name,
        "own_split": False,
    }


def test_changed_content_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for response in "xy":
        write(path, [{"prompt": f"p{k}", "response": response} for k in range(3)])
        assert set(tma.load(str(path), split="train")["response"]) == {response}


def test_the_same_bytes_under_another_suffix_are_read_as_what_they_are_called(
    tmp_path: Path,
) -> None:
    content = "prompt,response\np,r\nq,s\n"
    for suffix in ("csv", "jsonl"):
        (tmp_path / f"a.{suffix}").write_text(content)
    assert len(tma.load(str(tmp_path / "a.csv"), split="train")) == 1
    with pytest.raises(DataError, match="expected one JSON object a line"):
        tma.load(str(tmp_path / "a.jsonl"), split="train")


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
        ({"columns": ["prompt"]}, r"columns=\['prompt'\] .* expected names"),
        ({"columns": "prompt"}, "columns='prompt' .* expected names"),
        ({"columns": {1: "a"}}, r"columns=\{1: 'a'\} .* expected names"),
        ({"columns": {"prompt": {1}}}, r"columns=\{'prompt': \{1\}\} .* expected names"),
        ({"tokenizer": "gpt2"}, "tokenizer='gpt2' .* expected a fast one"),
    ],
)
def test_a_wrong_argument_is_named(
    dataset_file: Path, given: dict[str, object], words: str
) -> None:
    with pytest.raises(ParameterError, match=words):
        tma.load(str(dataset_file), split="train", **given)


def test_any_mapping_names_columns(dataset_file: Path) -> None:
    given = MappingProxyType({"prompt": "prompt", "response": "response"})
    assert len(tma.load(str(dataset_file), split="all", columns=given)) == 48
    config = RunConfig.at("pocket", order="random", columns=given)
    assert config.to_json()["columns"] == dict(given)


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
    assert "1 rows without" in message
    (tmp_path / name).write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"caf\\udce9\."):
        tma.load(tmp_path / name, split="all")


def test_an_empty_name_is_repeated() -> None:
    with pytest.raises(DataError, match="dataset='' cannot be used; expected one of: niv2"):
        tma.load("", split="train")


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
    with pytest.raises(ParameterError, match=r"split='all' .* which by='task' asks for"):
        tma.load(str(dataset_file), split="all", by="task")


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-here/x.jsonl", "niv2:~nobody-here/x"])
def test_a_name_that_no_file_can_have_is_one_error(name: str) -> None:
    with pytest.raises(DataError, match=r"could not be read|there is no such file"):
        tma.load(name, split="train")
    with pytest.raises(ParameterError, match="dataset="):
        check_dataset(name)


def test_numbers_of_numpy_and_lists_are_taken(dataset_file: Path) -> None:
    caps = [np.int64(2), 1]
    train = tma.load(str(dataset_file), split="train", per_task=caps, seed=np.int64(1))
    same = tma.load(str(dataset_file), split="train", per_task=(2, 1), seed=1)
    assert train["id"][:] == same["id"][:]


@pytest.mark.parametrize("damage", ["cut", "missing", "broken", "unnamed"])
def test_a_damaged_store_is_made_again(dataset_file: Path, own_cache: Path, damage: str) -> None:
    before = tma.load(str(dataset_file), split="train")["id"][:]
    (folder,) = (own_cache / "datasets").glob("*/")
    if damage == "cut":
        file = folder / "train.arrow"
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "missing":
        (folder / "train.arrow").unlink()
    else:
        (folder / "manifest.json").write_text("{" if damage == "broken" else "{}")
    assert tma.load(str(dataset_file), split="train")["id"][:] == before


def test_a_cache_that_cannot_be_made_is_named(
    dataset_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMA_CACHE", f"{dataset_file}/cache")
    with pytest.raises(ParameterError, match=r"TMA_CACHE='.*/cache' .* written .Not a directory"):
        tma.load(str(dataset_file), split="train")


def test_the_store_knows_what_is_done_with_empty_rows_and_not_the_tokenizer(
    dataset_file: Path, own_cache: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    for given, count in (({}, 1), ({"tokenizer": tokenizer}, 1), ({"empty": "error"}, 2)):
        tma.load(str(dataset_file), split="train", **given)
        assert len(list((own_cache / "datasets").glob("*/"))) == count


def test_datasets_of_several_sources_have_no_manifest(dataset_file: Path, tmp_path: Path) -> None:
    name = write(tmp_path / "a.jsonl", [{"prompt": f"p{k}", "response": "r"} for k in range(3)])
    parts = [tma.load(source, split="train") for source in (name, str(dataset_file))]
    assert data.manifest(datasets.concatenate_datasets(parts)) is None


def test_a_mapping_names_the_columns(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"q": f"q{k}", "a": "a", "kind": f"k{k % 2}", "extra": 1} for k in range(4)
    ]
    name = write(tmp_path / "a.jsonl", rows)
    mapping = {"prompt": "q", "response": "a", "task": "kind"}
    test = tma.load(name, split="test", columns=mapping)
    assert len(set(test["task"])) == 1
    assert set(test["meta"]) == {'{"extra": 1}'}
    with pytest.raises(DataError, match="no column query; it has q, a, kind, extra"):
        tma.load(name, split="test", columns=mapping | {"prompt": "query"})


def test_few_test_instances_are_of_as_many_tasks_as_there_are(tmp_path: Path) -> None:
    def part(tasks: str) -> Dataset:
        prompts = [f"{task}{k}" for k, task in enumerate(tasks)]
        columns = {"prompt": prompts, "response": prompts, "task": list(tasks)}
        return Dataset.from_dict(columns)

    name = str(tmp_path / "folder")
    both = {"train": part("ddd"), "test": part("aaaaaaaaaaaaaaaaaaaabbbbc")}
    DatasetDict(both).save_to_disk(name)
    settings: dict[str, Any] = {"dataset": name, "order": "random", "test_limit": 6}
    config = RunConfig.at("pocket", **settings)
    train, test = tma.load_both(config)
    assert len(train) == 3
    assert Counter(test["task"]) == {"a": 3, "b": 2, "c": 1}
    other = tma.load_both(dataclasses.replace(config, data_seed=4))[1]
    assert set(other["id"]) != set(test["id"])


def numbered(path: Path, tasks: str, rows: int = 4) -> str:
    """Write so many instances of each task, a letter each; source datasets x and y by turns."""
    made = [
        {"prompt": f"{task} {k}", "response": "r", "task": task, "origin": "xy"[place % 2]}
        for place, task in enumerate(tasks)
        for k in range(rows)
    ]
    return write(path, [dict(row) for row in made])


ORIGIN = {"source": "origin"}


def test_held_out_are_the_tasks_and_source_datasets_that_are_named(tmp_path: Path) -> None:
    name = numbered(tmp_path / "a.jsonl", "abcd")
    for held_out, columns, tasks in (
        (["b", "d"], None, {"b", "d"}),
        (("b",), ORIGIN, {"b"}),
        ({"x"}, ORIGIN, {"a", "c"}),
        (["y", "a"], ORIGIN, {"a", "b", "d"}),
    ):
        parts = [
            tma.load(name, split=split, held_out=held_out, columns=columns)
            for split in ("train", "test")
        ]
        assert [{*part["task"]} for part in parts] == [{*"abcd"} - tasks, tasks]
    with pytest.raises(ParameterError, match=r"held_out='z' .* the 4 tasks and source datasets"):
        tma.load(name, split="test", held_out=["z"])
    with pytest.raises(DataError, match="no usable rows in its split 'train'"):
        tma.load(name, split="train", held_out=[*"abcd"])


def test_long_instances_are_left_out_with_their_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": "word " * k, "response": "yes", "task": "ab"[k % 2]} for k in range(1, 41)]
    name = write(tmp_path / "a.jsonl", [dict(row) for row in rows])
    train, test = (
        tma.load(name, split=split, held_out=["b"], max_instance_tokens=13, per_task=3)
        for split in ("train", "test")
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
    with pytest.raises(DataError, match="no usable rows in its split 'test'"):
        tma.load(name, split="test", held_out=["b"], max_instance_tokens=3)


def test_the_source_dataset_of_an_instance_is_found_again(tmp_path: Path) -> None:
    name = numbered(tmp_path / "a.jsonl", "ab", rows=2)
    whole = tma.load(name, split="all", columns=ORIGIN)
    assert data.sources(whole) == ["x", "x", "y", "y"]
    assert data.sources(whole.select([3, 0])) == ["y", "x"]
    assert data.sources(tma.load(name, split="all")) == [None] * 4
    assert data.sources(whole.remove_columns("meta")) == [None] * 4
    # Also where it is what the task is named after.
    both = {"source": "origin", "task": "origin"}
    assert data.sources(tma.load(name, split="all", columns=both)) == ["x", "x", "y", "y"]
    # A column named dataset needs no mapping, and comes through a file that was saved.
    rows: list[dict[str, object]] = [{"prompt": "p", "response": "r", "dataset": d} for d in "uv"]
    own = tma.load(write(tmp_path / "b.jsonl", rows), split="all")
    tma.save(own, [1, 0], tmp_path / "c.jsonl")
    assert data.sources(tma.load(tmp_path / "c.jsonl", split="all")) == ["v", "u"]
    marked = own.map(lambda row: {"prompt": row["prompt"] + "!"})
    assert data.sources(marked) == ["u", "v"]


def test_test_data_may_come_from_another_dataset(tmp_path: Path) -> None:
    train_file = numbered(tmp_path / "train.jsonl", "abc")
    test_file = numbered(tmp_path / "mine.jsonl", "bz")
    config = RunConfig.at(
        "pocket",
        order="random",
        dataset=train_file,
        test_dataset=test_file,
        per_task=(3, 1),
        test_limit=None,
    )
    train, test = tma.load_both(config)
    assert Counter(train["task"]) == {"a": 3, "b": 3, "c": 3}
    assert Counter(test["task"]) == {"b": 1, "z": 1}
    whole = dataclasses.replace(config, per_task=(None, 2))
    assert [len(part) for part in tma.load_both(whole)] == [12, 4]
    few = dataclasses.replace(config, per_task=None, test_limit=3)
    assert [len(part) for part in tma.load_both(few)] == [12, 3]
    columns = dataclasses.replace(config, columns={"prompt": "task", "response": "origin"})
    assert [{*part["prompt"]} for part in tma.load_both(columns)] == [{*"abc"}, {*"bz"}]


def test_a_run_takes_the_fold_and_the_names_of_its_settings(tmp_path: Path) -> None:
    name = numbered(tmp_path / "a.jsonl", "abcd")
    config = RunConfig.at("pocket", order="random", dataset=name, held_out=["c"], test_limit=None)
    assert {*tma.load_both(config)[1]["task"]} == {"c"}
    short = dataclasses.replace(config, max_instance_tokens=3)
    with pytest.raises(DataError, match="no usable rows in its split 'train'"):
        tma.load_both(short)


def test_a_run_reads_its_data_as_its_settings_say(dataset_file: Path) -> None:
    settings: dict[str, Any] = {"dataset": str(dataset_file), "by": "instance", "data_seed": 3}
    config = RunConfig.at("pocket", order="random", **settings, per_task=(2, 1), test_limit=None)
    train, test = tma.load_both(config)
    assert max(Counter(train["task"]).values()) == 2
    assert set(Counter(test["task"]).values()) == {1}
    few = tma.load_both(dataclasses.replace(config, test_limit=2))[1]
    assert len(few) == 2
    assert set(few["id"]) < set(test["id"])
    other = tma.load_both(dataclasses.replace(config, data_seed=4))[0]
    assert set(other["id"]) != set(train["id"])


def test_twins_take_places_in_the_pool_that_the_seed_draws(cache: Path) -> None:
    assert cache.is_dir()
    given: dict[str, Any] = {"order": "random", "pool": 100, "seed": 2}
    plain, test = data.load_both(RunConfig.at("pocket", **given))
    train, same = data.load_both(RunConfig.at("pocket", **given, twins=0.5))
    assert same["id"][:] == test["id"][:] and len(test) == 19
    known = {name: row for row, name in enumerate(plain["id"])}
    drawn = [known[name] for name in train["id"] if name in known]
    added = [row for row in train if row["id"] not in known]
    # Half of 19 test instances; what else is there is what the seed draws first.
    assert (len(train), len(added)) == (100, 10)
    expected = np.random.default_rng([2, 1]).permutation(len(plain))[:90]
    assert drawn == expected.tolist()
    metas = [json.loads(meta) for meta in test["meta"]]
    places = {(m["dataset"], m["row"]): task for m, task in zip(metas, test["task"], strict=True)}
    for twin in added:
        meta = json.loads(twin["meta"])
        assert places[meta["dataset"], meta["row"]] != twin["task"]  # another template of the row


@pytest.mark.parametrize(
    "wrong", [{"twins": 0.0}, {"twins": 1.5}, {"twins": True}, {"pool": None}, {"dataset": "p3"}]
)
def test_twins_without_a_suite_a_pool_or_a_share_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=r"twins=.* a share in .* with dataset=suite or"):
        RunConfig.at("pocket", **({"order": "random", "pool": 100, "twins": 0.5} | wrong))
