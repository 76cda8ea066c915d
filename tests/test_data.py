from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

import tma
from tma import data
from tma.errors import DataError


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_file_without_a_test_split_holds_out_whole_tasks(dataset_file: Path) -> None:
    train, test = (tma.load(str(dataset_file), split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (40, 8)
    assert len(set(test["task"])) == 1
    assert not set(test["task"]) & set(train["task"])
    assert train.column_names == ["id", "task", "prompt", "response"]


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
        ([{"question": "q", "answer": "a"}], "no column prompt or inputs_pretokenized; it has"),
        ([{"prompt": "p", "response": "r"}], "1 instances; expected at least 2"),
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
        ('{"prompt": "p", "respon', "could not be read: Unmatched"),
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
