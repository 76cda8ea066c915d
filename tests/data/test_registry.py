"""The paper's datasets, from small files in each source's own schema."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tma
from tma.data import load as data
from tma.data import p3
from tma.errors import DataError

P3 = Path(tma.__file__).parents[1].parent / "shared" / "data" / "p3" / "p3_t0_train_subset.parquet"

pytestmark = pytest.mark.usefixtures("own_cache")

Rows = list[dict[str, Any]]


def write(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def both(name: str, **given: Any) -> tuple[datasets.Dataset, datasets.Dataset]:
    return tma.load(name, split="train", **given), tma.load(name, split="test", **given)


# Super-NaturalInstructions


def task(instances: Rows, definition: Any = ("Answer the question",)) -> dict[str, Any]:
    return {
        "Contributors": ["nobody"],
        "Source": ["quiz"],
        "Categories": ["Question Answering"],
        "Definition": list(definition),
        "Positive Examples": [
            {"input": "Is it 1?", "output": "yes", "explanation": "so"},
            {"input": "Is it two", "output": "no!", "explanation": ""},
            {"input": "third", "output": "never shown"},
        ],
        "Negative Examples": [],
        "Instances": instances,
    }


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    many = [{"id": f"task1-{k}", "input": f" q{k} ", "output": [f"a{k}"]} for k in range(130)]
    written = {
        "task1_quiz": task(many),
        "task2_quiz": task([{"id": "b", "input": "Ünï?", "output": ["x", "y", "x"]}]),
        "task3_quiz": task(many),
        "task4_other_track": task(many),
    }
    root = tmp_path / "natural-instructions"
    for name, content in written.items():
        write(root / "tasks" / f"{name}.json", [content])
    splits = root / "splits" / "default"
    splits.mkdir(parents=True)
    (splits / "train_tasks.txt").write_bytes(b"task1_quiz\r\ntask2_quiz\r\n")
    (splits / "test_tasks.txt").write_bytes(b"task3_quiz\n")
    return root


PROMPT = (
    "Definition: Answer the question.\n\n"
    " Positive Example 1 -\nInput: Is it 1?\n Output: yes.\n\n"
    " Positive Example 2 -\nInput: Is it two.\n Output: no!\n\n"
    "Now complete the following example -\nInput: {}\nOutput:"
)


def test_a_checkout_has_definition_examples_and_input(checkout: Path) -> None:
    train, test = both(f"niv2:{checkout}")
    assert Counter(train["task"]) == {"task1_quiz": 100, "task2_quiz": 1}
    assert train["prompt"][-1] == PROMPT.format("Ünï?")
    assert data.references(train)[-1] == ["x", "y"]
    row = json.loads(train["row"][-1])
    assert (row["instance"], row["source"], row["response"]) == ("b", ["quiz"], ["x", "y", "x"])
    assert row["categories"] == ["Question Answering"]
    assert train["source"][-1] == "quiz"
    counted = data.manifest(train)
    assert counted is not None and counted["read"] == 130 + 1 + 130
    anew = both(f"niv2:{checkout}", by="instance", per_task=(None, None))
    assert sum(map(len, anew)) == counted["read"]
    # The authors put the instances that test in front.
    assert test["prompt"][:] == [PROMPT.format(f"q{k}.") for k in range(100)]
    assert set(test["task"]) == {"task3_quiz"}
    assert test["id"][:] == tma.load(str(checkout), split="test")["id"][:]


def test_the_cap_chooses_training_instances_by_seed_in_stored_order(checkout: Path) -> None:
    taken = []
    for seed in (0, 0, 1):
        train = tma.load(f"niv2:{checkout}", split="train", seed=seed, per_task=(10, 3))
        numbers = [int(text[1:]) for text in train["response"][:10]]
        assert numbers == sorted(numbers)
        taken.append(numbers)
    assert taken[0] == taken[1] != taken[2]
    assert len(tma.load(f"niv2:{checkout}", split="test", per_task=(10, 3))) == 3
    assert len(tma.load(f"niv2:{checkout}", split="test", per_task=(None, None))) == 130


@pytest.mark.parametrize(("most", "examples"), [(1024, 2), (40, 1), (30, 0), (1, 0)])
def test_a_long_prompt_loses_examples_and_never_its_input(
    checkout: Path, most: int, examples: int
) -> None:
    # 204, 150 and 95 characters, four to a token.
    test = tma.load(f"niv2:{checkout}", split="test", max_source_tokens=most)
    assert test["prompt"][0].count("Positive Example") == examples
    assert test["prompt"][0].endswith("Input: q0.\nOutput:")


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("{", r"task1_quiz\.json could not be read: Expecting property name"),
        ("[]", r"task1_quiz\.json: a list; expected one object"),
        ('{"Definition": ["d"]}', "has no list Positive Examples; it has Definition"),
        (json.dumps(task([{"input": "q"}])), "instance 1: KeyError 'output'; expected input and"),
        (json.dumps(task([{"input": 3, "output": ["a"]}])), "instance 1: AttributeError"),
        (json.dumps(task([{"input": "q", "output": ["a"]}], [])), "instance 1: IndexError"),
    ],
)
def test_a_broken_task_file_is_named(checkout: Path, broken: str, words: str) -> None:
    (checkout / "tasks" / "task1_quiz.json").write_text(broken)
    with pytest.raises(DataError, match=words):
        tma.load(f"niv2:{checkout}", split="train")


def test_the_files_of_a_checkout_are_as_its_lists_say(checkout: Path) -> None:
    path = checkout / "tasks" / "task2_quiz.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"Source": "quiz"}))
    train = tma.load(f"niv2:{checkout}", split="train")
    assert train["source"][-1] == "quiz"  # one text instead of a list
    for names, words in (
        ("task3_quiz task1_quiz", "names 1 tasks twice, such as task1_quiz"),
        ("task5_quiz", r"names 1 tasks without a file; expected .*task5_quiz\.json"),
    ):
        (checkout / "splits" / "default" / "test_tasks.txt").write_text(names)
        with pytest.raises(DataError, match=words):
            tma.load(f"niv2:{checkout}", split="train")


def test_the_hubs_copy_has_definition_and_input(tmp_path: Path) -> None:
    row = {"task_name": "task1_quiz", "definition": "Answer", "inputs": "q"}
    rows = [
        row | {"id": "1", "targets": "x"},
        row | {"id": "1", "targets": "y"},
        row | {"id": "2", "targets": "x"},
    ]
    write(tmp_path / "copy" / "train" / "task1_quiz_train.jsonl", rows)
    other = row | {"task_name": "task9_quiz", "id": "1", "targets": "z"}
    write(tmp_path / "copy" / "test" / "task9_quiz_test.jsonl", [other] * 101)
    train, test = both(f"niv2:{tmp_path / 'copy'}")
    prompt = "Definition: Answer.\n\nNow complete the following example -\nInput: q.\nOutput:"
    assert train["prompt"][:] == [prompt] * 2
    assert data.references(train) == [["x", "y"], ["x"]]
    assert test["task"][:] == ["task9_quiz"]
    assert data.references(test) == [["z"]]
    counted = data.manifest(test)
    assert counted is not None and counted["read"] == 3 + 101


def test_rows_of_the_hubs_copy_are_merged_by_id_and_definition_alone(tmp_path: Path) -> None:
    row = {"task_name": "task1_quiz", "inputs": "q", "targets": "x", "definition": "Answer"}
    rows = [row, row, row | {"id": None}]
    rows += [row | {"id": "1", "definition": text} for text in ("Answer", "Answer", "Reply")]
    train = tma.load(f"niv2:{write(tmp_path / 'a.jsonl', rows)}", split="all")
    assert [text[12:18] for text in train["prompt"]] == ["Answer"] * 4 + ["Reply."]
    assert train["id"][1:4] == [f"{train['id'][0]}-{k}" for k in (2, 3, 4)]


# P3


def p3_row(text: str) -> dict[str, Any]:
    return {
        "answer_choices": ["a", "b"],
        "inputs": [3, 4],
        "inputs_pretokenized": text,
        "targets": [5, 1],
        "targets_pretokenized": "\na",
    }


def test_p3_trains_on_t0s_tasks_and_tests_on_those_it_held_out(tmp_path: Path) -> None:
    names = ["xsum_tldr", "super_glue_wsc.fixed_who", "anli_can_r1", "cnn_dailymail_3.0.0_say"]
    left_out = ["super_glue_boolq_ask", "anli_can_r1_score_eval"]
    rows = [p3_row(name) | {"task": name} for name in names + left_out]
    train, test = both(f"p3:{write(tmp_path / 'p3.jsonl', rows)}")
    assert train["task"][:] == ["xsum_tldr", "cnn_dailymail_3.0.0_say"]
    assert test["task"][:] == ["super_glue_wsc.fixed_who", "anli_can_r1"]
    assert (train["prompt"][0], train["response"][0]) == ("xsum_tldr", "\na")
    assert test["source"][0] == "super_glue_wsc_fixed"
    assert [json.loads(row)["task"] for row in test["row"]] == test["task"][:]
    assert test["place"][:] == ["p3.jsonl, line 2", "p3.jsonl, line 3"]


P3_NAMES = ["glue_mrpc_x", "imdb_y", "imdb_z", "hellaswag_q", "hellaswag_q_score_eval", "math_qa_w"]


@pytest.mark.parametrize("by", [None, "task", "source", "instance"])
def test_rows_outside_t0_are_in_no_split_of_a_p3_file_and_are_counted(
    tmp_path: Path, by: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Batches of two rows: the last holds nothing of T0.
    monkeypatch.setattr("tma.data.batches.BATCH_ROWS", 2)
    rows = [p3_row(name) | {"task": name} for name in P3_NAMES]
    name = f"p3:{write(tmp_path / 'p3.jsonl', rows)}"
    parts = [*both(name, by=by), tma.load(name, split="all")]
    prompts = [sorted(part["prompt"]) for part in parts]
    t0s = ["glue_mrpc_x", "hellaswag_q", "imdb_y", "imdb_z"]
    assert sorted(prompts[0] + prompts[1]) == prompts[2] == t0s
    assert len(prompts[1]) == 1
    for part in parts:
        counted = data.manifest(part)
        assert counted is not None and counted["read"] == 6
        assert sum(counted["rows"].values()) == 4
    # What T0 held out trains where other names are held out.
    held_out = [{*part["task"]} for part in both(name, held_out=["imdb"])]
    assert held_out == [{"glue_mrpc_x", "hellaswag_q"}, {"imdb_y", "imdb_z"}]


def test_p3_configurations_give_training_and_validation(tmp_path: Path) -> None:
    written = {
        "xsum_tldr": ("train", "validation"),
        "super_glue_rte_does": ("train", "validation"),
        "squad_v2_ask": ("train",),
        "super_glue_rte_does_score_eval": ("validation",),
    }
    for name, parts in written.items():
        for part in parts:
            write(tmp_path / "copy" / name / f"{part}.jsonl", [p3_row(f"{name} {part}")])
    train, test = both(f"p3:{tmp_path / 'copy'}")
    assert train["prompt"][:] == ["xsum_tldr train"]
    assert test["prompt"][:] == ["super_glue_rte_does validation"]


@pytest.mark.skipif(not P3.is_file(), reason="the P3 subset is not here")
def test_the_real_subset_of_p3_is_whole(caplog: pytest.LogCaptureFixture) -> None:
    train, test = both(str(P3))
    assert len(train) + len(test) == 45_494
    assert len(set(train["task"]) | set(test["task"])) == 234
    assert not set(train["task"]) & set(test["task"])
    # The file as it is holds no blank text; its duplicates stay, each with an id of its own.
    assert caplog.messages == []
    repeated = [name for part in (train, test) for name in part["id"] if "-" in name]
    assert len(repeated) == 45_494 - 44_341
    assert data.fingerprint(test)[:16] == "f71eb6ea2fd4ed8c"
    train, test = both(str(P3), by="source", per_task=(20, 5))
    datasets_of = [{*part["source"]} for part in (train, test)]
    assert (len(datasets_of[0]), len(datasets_of[1])) == (28, 3)
    assert not datasets_of[0] & datasets_of[1]
    assert set(Counter(test["task"]).values()) == {5}


def test_a_fold_of_p3_is_every_fifth_of_t0s_training_datasets(tmp_path: Path) -> None:
    names = [dataset for dataset, _, _ in p3.datasets()] + ["math_qa"]
    rows = [p3_row(name) | {"task": f"{name}_x"} for name in names]
    train, test = both(f"p3:{write(tmp_path / 'p3.jsonl', rows)}", fold=0)
    # Neither what T0 held out nor what it did not know has a part in it.
    assert (len(train), len(test)) == (31, 8)
    tested = {"glue_mrpc", "adversarial_qa_dbidaf", "ropes", "dream", "wiki_bio", "xsum"}
    assert tested < {*data.sources(test)}
    assert not {*data.sources(test)} & {*data.sources(train)}
    # The fold is the same for a file that holds fewer datasets.
    few = write(tmp_path / "few.jsonl", [row for row in rows if row["task"] != "xsum_x"])
    assert {*data.sources(both(f"p3:{few}", fold=0)[1])} == {*data.sources(test)} - {"xsum"}


def test_folds_of_p3_share_out_its_clusters() -> None:
    cluster = {dataset: name for dataset, split, name in p3.datasets() if split == "train"}
    assert Counter(split for _, split, _ in p3.datasets()) == {"train": 39, "test": 9}
    assert len({name for _, split, name in p3.datasets() if split == "test"}) == 4
    folds = [p3.fold(k)[0] for k in range(5)]
    assert sorted(name for fold in folds for name in fold) == sorted(cluster)
    for name, size in Counter(cluster.values()).items():
        of = [sum(cluster[dataset] == name for dataset in fold) for fold in folds]
        assert {*of} <= {size // 5, -(-size // 5)}


# Flan-mini


def turns(*texts: str) -> Rows:
    return [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]


def test_flan_mini_takes_tasks_by_seed_and_instances_under_the_caps(tmp_path: Path) -> None:
    rows = [
        {"source": f"flan/{t}", "conversations": turns(f"question {t} {k}", "yes"), "id": str(k)}
        for k in range(30)
        for t in range(73)
    ]
    train, test = both(f"flan-mini:{write(tmp_path / 'flan.jsonl', rows)}")
    assert Counter(train["task"]).most_common(64)[-1][1] == 20
    assert (len(train), len(test)) == (64 * 20, 9 * 5)
    assert not set(train["task"]) & set(test["task"])
    assert test["prompt"][0].startswith("question ")
    assert set(json.loads(test["row"][0])) == {"source", "conversations", "id"}


# Conversations


def test_sharegpt_is_read_from_items_and_split_at_random(tmp_path: Path) -> None:
    rows = [{"id": str(k), "items": turns(f"hello {k}", "hi", "more")} for k in range(20)]
    path = tmp_path / "sharegpt_gpt4.json"
    path.write_text(json.dumps(rows))
    train, test = both(f"sharegpt:{path}")
    assert (len(train), len(test)) == (18, 2)
    assert set(train["task"]) == {None}
    assert json.loads(train["row"][0])["items"][2] == {"from": "human", "value": "more"}
    # In a folder that one file is read.
    (tmp_path / "sharegpt_clean.json").write_text("no JSON")
    assert both(f"sharegpt:{tmp_path}")[0]["id"][:] == train["id"][:]


def test_no_robots_keeps_its_own_split(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for part, count in (("train", 3), ("test", 2)):
        turns_ = [("system", "Be brief."), ("user", part), ("assistant", "Yes.")]
        messages = [{"role": role, "content": content} for role, content in turns_]
        row = {"prompt": part, "prompt_id": "7", "messages": messages, "category": "Chat"}
        pq.write_table(pa.Table.from_pylist([row] * count), copy / f"{part}-0.parquet")
    train, test = both(f"no-robots:{copy}")
    assert train["prompt"][:] == ["Be brief.\n\ntrain"] * 3
    assert len(test) == 2
    assert test["row"][0]["category"] == "Chat"


def test_a_malformed_line_of_a_copy_is_named_and_an_edit_is_seen(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    path = write(copy / "data" / "train.jsonl", [{"prompt": "p", "response": "r"}])
    write(copy / "data" / "test.jsonl", [{"prompt": "q", "response": "r"}])
    before = path.stat()
    for text in "rs":
        path.write_text(path.read_text().replace('"r"', f'"{text}"'))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert tma.load(f"no-robots:{copy}", split="train")["response"][:] == [text]
    path.write_text(path.read_text() + "{")
    with pytest.raises(DataError, match=r"data/train\.jsonl, line 2: Expecting"):
        tma.load(f"no-robots:{copy}", split="train")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ((), "a folder with no such files; expected .jsonl"),
        (("train.csv", "train.jsonl"), "with .csv and .jsonl files; expected"),
        (("train_or_test.jsonl",), "says both test and train; expected one split"),
        (("train_sft-00000-of-00001.jsonl",), r"no split 'train'; it has train_sft\. Save the"),
    ],
)
def test_a_copy_that_is_unclear_is_named(
    tmp_path: Path, files: tuple[str, ...], words: str
) -> None:
    (tmp_path / "copy").mkdir()
    for file in files:
        write(tmp_path / "copy" / file, [{"prompt": "p", "response": "r"}])
    with pytest.raises(DataError, match=words):
        tma.load(f"no-robots:{tmp_path / 'copy'}", split="train")


def test_a_folder_of_train_and_test_files_is_a_dataset(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"response": "r", "day": "2020-01-31"}
    for name, train, test in (
        ("copy [1]", "train.jsonl", "test.jsonl"),
        ("a::b", "my.TRAIN.jsonl", "my-eval.jsonl"),
        ("copy*", "Train/a.jsonl", "test/a.jsonl"),
        ("copy 1", "train-00000-of-00001.jsonl", "Testing_set.jsonl"),
    ):
        folder = tmp_path / name
        for file, text in ((train, "p"), (test, "q")):
            write(folder / file, [row | {"prompt": f"{text}{k}"} for k in range(3)])
        write(folder / "notes" / "other.txt", [])
        parts = both(str(folder))
        assert [part["prompt"][:] for part in parts] == [["p0", "p1", "p2"], ["q0", "q1", "q2"]]
        assert json.loads(parts[1]["row"][0])["day"] == "2020-01-31"
        assert len(tma.load(folder, split="all")) == 6
        assert both(f"no-robots:{folder}")[1]["id"][:] == parts[1]["id"][:]
    assert caplog.messages == []
    # A test whose rows are all empty is not cut out of training; other splits are not read.
    write(tmp_path / "copy" / "train.jsonl", [{"prompt": f"p{k}", "response": "r"} for k in "ab"])
    write(tmp_path / "copy" / "test.jsonl", [{"prompt": "q", "response": " "}])
    write(tmp_path / "copy" / "validation.jsonl", [{"prompt": "q", "response": "r"}])
    assert len(tma.load(tmp_path / "copy", split="train")) == 2
    assert caplog.messages[0].endswith("copy: splits that are not read: validation")
    with pytest.raises(DataError, match="no usable rows in its split 'test'"):
        tma.load(tmp_path / "copy", split="test")


# Names


@pytest.mark.parametrize("name", ["nobody/nothing", "no-robots", "p3", f"p3@{'0' * 40}", "niv2@v1"])
def test_without_a_connection_one_message_says_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    # A folder of that name does not stand for a known dataset.
    write(tmp_path / "p3" / "train.jsonl", [{"prompt": "p", "response": "r"}])
    monkeypatch.chdir(tmp_path)
    words = r"the hub cannot be reached \(HF_HUB_OFFLINE is set\)\. Connect once, or give"
    with pytest.raises(DataError, match=words):
        tma.load(name, split="train")


@pytest.mark.parametrize(
    "name", ["nivv2", "a/b/c", "a/b@../c", "hf://datasets/a/b", "pocket:x", "p3@", "x\0y"]
)
def test_a_name_that_is_nothing_is_named_with_the_choices(name: str) -> None:
    with pytest.raises(DataError, match=r"is a folder|expected one of: niv2, p3, .*owner/name"):
        tma.load(name, split="train")
