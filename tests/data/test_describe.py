from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

import tma
from tma.data.describe import token_counts
from tma.errors import DataError, ParameterError

pytestmark = pytest.mark.usefixtures("own_cache")


def words(texts: list[str], **_: Any) -> dict[str, list[list[str]]]:
    """A tokenizer of words."""
    return {"input_ids": [text.split() for text in texts]}


TOKENIZER: Any = words


@pytest.fixture
def name(tmp_path: Path) -> str:
    rows = [{"prompt": "a b c", "response": "d", "task": f"t{k % 4}"} for k in range(12)]
    rows += [{"prompt": f"p{k} " * 10, "response": "x " * k, "task": f"t{k % 4}"} for k in range(8)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_report_counts_what_is_there_and_what_is_not(name: str) -> None:
    train = tma.load(name, split="train")
    report = tma.describe(train, TOKENIZER, max_tokens=16)
    found = report["value"].to_dict()
    # One task of four is held out: 3 equal rows and 2 others, of which one may be empty.
    assert found["rows read"] == 20
    assert found["rows left out: empty prompt or response"] == 1
    assert found["rows left out: by split or cap"] == 0
    assert found["tasks"] == 3
    assert found["instances without a task"] == 0
    assert found["duplicates"] == 3 * 2
    lengths = [len(f"{row['prompt']} {row['response']}".split()) for row in train]
    assert found["instances"] == len(lengths)
    assert found["over-long (more than 16 tokens)"] == sum(length > 16 for length in lengths)
    assert found["tokens, both, 100th percentile"] == max(lengths)
    assert found["tokens, prompt, 5th percentile"] == 3
    assert report.columns.tolist() == ["value"]
    expected = [[len(row["prompt"].split()), len(row["response"].split())] for row in train]
    np.testing.assert_array_equal(token_counts(train, TOKENIZER), expected)


def test_a_dataset_from_elsewhere_has_no_line_of_its_source() -> None:
    given = {"id": ["7f", "7f-2"], "task": [None] * 2, "prompt": ["a"] * 2, "response": ["b"] * 2}
    report = tma.describe(datasets.Dataset.from_dict(given), TOKENIZER)["value"]
    assert "rows read" not in report
    assert (report["instances"], report["instances without a task"]) == (2, 2)
    assert (report["tasks"], report["duplicates"]) == (0, 1)


SOURCE = [
    "rows read",
    "rows left out: empty prompt or response",
    "rows left out: over max_instance_tokens",
    "rows left out: by split or cap",
    "rows in the other split",
    "rows not in this selection",
    "instances",
]


def test_the_lines_of_the_source_add_up_for_a_split_a_cap_and_a_selection(name: str) -> None:
    def lines(dataset: Any) -> list[int]:
        found = tma.describe(dataset, TOKENIZER)["value"]
        return [int(found[line]) for line in SOURCE]

    train, test = (tma.load(name, split=split) for split in ("train", "test"))
    assert lines(test)[:6] == [20, 1, 0, 0, len(train), 0]
    short = tma.load(name, split="test", max_instance_tokens=20)
    assert lines(short)[2] > 0
    capped = tma.load(name, split="train", per_task=(2, 1))
    for chosen, missing in (
        (train, 0),
        (capped, 0),
        (short, 0),
        (train.select(range(3)), len(train) - 3),
        (train.select([4, 1]), len(train) - 2),
        (train.filter(lambda row: row["prompt"] == "a b c"), len(train) - 9),
    ):
        read, *parts = lines(chosen)
        assert (read, sum(parts), parts[4]) == (20, 20, missing)
    assert lines(train.select([4, 4, 1]))[5:] == [len(train) - 2, 3]
    made = train.map(lambda row: {"prompt": row["prompt"] + "!"})
    assert "rows read" not in tma.describe(made, TOKENIZER)["value"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dataset": [1]}, r"dataset='list' .* expected a datasets\.Dataset, as tma\.load gives"),
        ({"tokenizer": "gpt2"}, r"tokenizer='gpt2' .* as AutoTokenizer\.from_pretrained gives"),
        ({"max_tokens": "x"}, "max_tokens='x' .* at least 1"),
        ({"max_tokens": -3}, "max_tokens=-3 .* at least 1"),
    ],
)
def test_a_wrong_argument_is_named(name: str, given: dict[str, Any], words: str) -> None:
    whole = {"dataset": tma.load(name, split="test"), "tokenizer": TOKENIZER} | given
    for report in (tma.describe, tma.data_figure):
        with pytest.raises(ParameterError, match=words):
            report(**whole)
        with pytest.raises(
            DataError, match=r"no column task; it has id, source, prompt, response, ref"
        ):
            report(tma.load(name, split="test").remove_columns("task"), TOKENIZER)


def test_the_figure_has_a_panel_for_lengths_and_one_for_tasks(name: str) -> None:
    train = tma.load(name, split="train")
    left, right = tma.data_figure(train, TOKENIZER, max_tokens=16).axes
    prompt = left.get_lines()[0]
    assert prompt.get_ydata()[-1] == 1
    assert list(prompt.get_xdata()) == [3, 10]
    sizes = Counter(train["task"]).values()
    assert Counter(right.get_lines()[0].get_ydata()) == Counter(sizes)
    without = train.remove_columns("task").add_column("task", [None] * len(train))
    assert len(tma.data_figure(without, TOKENIZER).axes) == 1
