from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

import tma
from tma.config import FOLDS
from tma.data import load as data
from tma.data import suite
from tma.data.instances import token_count
from tma.data.suite import DERIVE, question_fields

# LaTeX in a question has braces too, but never a name of ours in them.
FIELD = re.compile(
    "{(" + "|".join({n for s in suite.sources() for t in s.templates for n in t.needs}) + ")}"
)
KINDS = (
    "arithmetic",
    "classification",
    "extraction",
    "generation",
    "multiple choice",
    "question writing",
    "summarisation",
)

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def whole(cache: Path) -> list[dict[str, str]]:
    assert cache.is_dir()
    return list(tma.load("suite", split="all"))


def test_the_suite_has_the_counts_it_promises() -> None:
    found = suite.sources()
    assert len(found) == len({s.files for s in found}) == 31
    assert sum(len(s.templates) for s in found) == 110
    assert min(len(s.templates) for s in found) == 3
    assert {template.kind for s in found for template in s.templates} == {*KINDS}
    # The names of the folds are known before anything is read.
    assert tuple(suite.folds()) == FOLDS["suite"] == FOLDS["pocket"]
    prompts = Counter(t.prompt for s in found for t in s.templates)
    # TruthfulQA and FiQA both ask the bare question, as people do.
    assert [p for p, n in prompts.items() if n > 1] == ["{question}"]


@pytest.mark.parametrize(
    ("fold", "sources", "kinds", "train", "test"),
    [
        (0, 5, (3, 3, 1, 5, 4, 2, 1), (35338, 79, "a8308f32677498f5"), (7542, "cd2b24c9befd149f")),
        (1, 5, (1, 4, 1, 6, 4, 2, 2), (35220, 78, "2ff3785084287373"), (7660, "b6f0a1f8f2e624b4")),
        (2, 6, (0, 4, 2, 6, 4, 3, 0), (31487, 79, "1e7b9a2ab58b92a7"), (11393, "679c331ca100313c")),
        (3, 6, (0, 4, 3, 6, 4, 3, 0), (35132, 78, "8ced956c83392d82"), (7748, "73dc265505ba18c5")),
        (4, 6, (0, 4, 1, 5, 5, 3, 2), (34343, 78, "24684d19d0d14a30"), (8537, "9fa4943506d364b1")),
        (
            *("validation", 3, (0, 2, 2, 1, 2, 4, 1)),
            *((42880, 98, "93b59f952c985487"), (2056, "8baa16278c796058")),
        ),
    ],
)
def test_a_fold_has_its_tasks_of_each_kind_and_is_the_same_everywhere(
    fold: int | str,
    sources: int,
    kinds: tuple[int, ...],
    train: tuple[int, int, str],
    test: tuple[int, str],
) -> None:
    tested = [source for source in suite.sources() if source.fold == fold]
    names = {source.name for source in tested}
    assert {*suite.folds()[fold]} == names
    counts = Counter(template.kind for source in tested for template in source.templates)
    assert (len(tested), *(counts[kind] for kind in KINDS)) == (sources, *kinds)
    parts = [tma.load("suite", split=split, fold=fold) for split in ("train", "test")]
    found = [(len(part), len({*part["task"]}), data.fingerprint(part)[:16]) for part in parts]
    assert found == [train, (test[0], sum(kinds), test[1])]
    kept_back = {*suite.folds()["validation"]}
    assert {*data.sources(parts[1])} == names
    assert not {*data.sources(parts[0])} & (names | kept_back)
    # Few test instances are drawn of all tasks; Contracts and IMDb have tasks of six and seven.
    tasks = parts[1]["task"][:]
    drawn = Counter(tasks[row] for row in data.drawn_evenly(tasks, 240, 0))
    assert (drawn.total(), {*drawn}) == (240, {*tasks})
    assert min(drawn.values()) >= 6
    assert max(drawn.values()) <= 20


@pytest.mark.parametrize("by", ["task", "source", "instance"])
def test_no_split_trains_on_or_tests_what_is_for_validation(by: str) -> None:
    parts = [tma.load("suite", split=split, by=by) for split in ("train", "test")]
    assert all(len(part) > 1000 for part in parts)
    kept_back = {*suite.folds()["validation"]}
    assert not {name for part in parts for name in data.sources(part)} & kept_back


def test_a_row_is_used_once_and_nothing_is_long_or_said_twice(whole: list[dict[str, str]]) -> None:
    assert len(whole) == 44936
    rows = [(m["dataset"], m["row"]) for m in (json.loads(row["row"]) for row in whole)]
    assert len({*rows}) == len(whole)
    texts = [(row["task"], row["prompt"], row["response"]) for row in whole]
    assert len({*texts}) == len(whole)
    assert not any(FIELD.search(prompt + response) for _, prompt, response in texts)
    assert max(token_count(f"{prompt} {response}") for _, prompt, response in texts) == 128
    counted = data.manifest(tma.load("suite", split="all"))
    assert counted is not None
    assert (counted["read"], counted["rows"]) == (55440, {"train": 44936, "test": 0})


def test_the_tasks_of_a_source_are_as_equal_as_its_rows_allow(whole: list[dict[str, str]]) -> None:
    sizes = Counter(row["task"] for row in whole)
    of = {s.name: [sizes[f"{s.name}/{t.name}"] for t in s.templates] for s in suite.sources()}
    assert of["asdiv"] == [571, 571, 571, 570]
    assert of["medmcqa"] == [1024, 1024, 1023, 1023]
    assert of["privacy_qa"] == [3130, 3131, 3130]
    # Most of its articles are too long for the two templates that hold them whole.
    assert of["xsum"] == [20, 19, 948]
    assert sizes.most_common()[-1] == ("contracts/ask", 6)


def test_pocket_is_the_suite_with_a_few_instances_a_task() -> None:
    for split, count, most, fingerprint in (
        ("train", 1510, 20, "a1969389b4e6b5e0"),
        ("test", 95, 5, "bc7e40c0880a54de"),
        ("all", 2130, 20, None),
    ):
        part = tma.load("pocket", split=split)
        assert (len(part), max(Counter(part["task"]).values())) == (count, most)
        assert fingerprint in (None, data.fingerprint(part)[:16])
    tests = [{*tma.load("pocket", split="test", seed=seed)["id"]} for seed in (0, 1)]
    assert len(tests[0] & tests[1]) < 95 / 4
    fold = tma.load("pocket", split="test", fold="validation")
    assert Counter(data.sources(fold)) == {"commonsense_qa": 20, "boolq": 20, "quac": 20}


def test_every_source_states_its_terms_on_the_page_that_the_readme_names() -> None:
    root = Path(__file__).parents[2]
    page = (root / "book" / "sources.md").read_text(encoding="utf-8")
    readme = (root / "README.md").read_text(encoding="utf-8")
    for source in suite.sources():
        row = f"| `{source.name}` | {source.fold} | {len(source.templates)} | {source.about} |"
        assert row in page
    assert "(book/sources.md)" in readme
    assert f"{len(suite.sources())} sources" in readme


def test_a_row_takes_the_template_with_the_fewest_rows_that_fits() -> None:
    source = next(s for s in suite.sources() if s.name == "commonsense_qa")
    options = "A. one\nB. two"
    rows = [{"question": f"Q{k}?", "options": options, "answer": "A. one"} for k in range(40)]
    rows = [row | {"file": "test"} for row in rows]
    long = [row | {"question": f"{'long ' * 60}{row['question']}"} for row in rows]
    made = list(source.instances(rows))
    assert Counter(row["task"] for row in made) == {
        f"commonsense_qa/{t.name}": 10 for t in source.templates
    }
    assert [row["row"] for row in made] != sorted(row["row"] for row in made)
    assert {row["row"] for row in made} == {*range(40)}
    # The same row again makes the same instance, if it takes the same template.
    assert len(list(source.instances(rows[:1] * 40))) <= 4
    # With so long a question two templates would make more than 360 characters.
    assert {row["task"].split("/")[1] for row in source.instances(long)} == {"open", "choose"}


def test_a_twin_is_the_same_row_under_another_template(whole: list[dict[str, str]]) -> None:
    test = tma.load("pocket", split="test", fold=4)
    found = suite.twins(test.select(range(len(test) - 1, -1, -1)))[::-1]
    pairs = [(row, twin) for row, twin in zip(test, found, strict=True) if twin is not None]
    # An article that is too long to be summed up fits one template only.
    alone = [row["task"] for row, twin in zip(test, found, strict=True) if twin is None]
    assert alone == ["xsum/report"] * 5
    known = {row["id"] for row in whole}
    for row, twin in pairs:
        own, other = (json.loads(one["row"]) for one in (row, twin))
        assert (own["dataset"], own["row"]) == (other["dataset"], other["row"])
        assert twin["task"] != row["task"]
        assert {*twin} == {*row}
        assert twin["id"] not in known


def test_fields_of_options_and_of_coreference() -> None:
    row = {"question": "Q", "options": "\nA. one\nB. two", "answer": ["two"], "file": "test"}
    fields = question_fields(row, row, random.Random(0))
    assert (fields["answer"], fields["letter"], fields["text"]) == ("B. two", "B", "two")
    assert fields["wrong"] == "one"
    row = {"text": " The clerk called [The guard] because [MASK] was late."}
    fields = DERIVE["winobias"](row, row, random.Random(0))
    assert fields["person"] == "the guard"
    assert fields["resolved"] == "The clerk called The guard because the guard was late."
    assert DERIVE["winobias"]({"text": "No brackets here."}, row, random.Random(0)) == {}


def test_the_suite_is_capped_and_split_like_any_dataset() -> None:
    test = tma.load("suite", split="test", per_task=(None, 2))
    assert set(Counter(test["task"]).values()) == {2}
    mixed = {split: tma.load("pocket", split=split, by="instance") for split in ("train", "test")}
    assert not set(mixed["train"]["id"]) & set(mixed["test"]["id"])
    assert set(mixed["train"]["task"]) & set(mixed["test"]["task"])
    named = {s: tma.load("suite", split=s, held_out=["imdb", "boolq/title"]) for s in mixed}
    assert Counter(data.sources(named["test"])) == {"imdb": 196, "boolq": 135}
    assert len(named["train"]) == 44936 - 196 - 135
