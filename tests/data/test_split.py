from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tma.data.split import TEST, TRAIN, Labels, SplitSpec, assign, capped
from tma.errors import DataError, ParameterError


def labels(
    tasks: list[str | None], sources: list[str | None] | None = None, part: list[int] | None = None
) -> Labels:
    def numbered(names: list[str | None]) -> tuple[np.ndarray, list[str]]:
        known = list(dict.fromkeys(name for name in names if name is not None))
        return np.array([-1 if n is None else known.index(n) for n in names], np.int64), known

    task, task_names = numbered(tasks)
    source, source_names = numbered(sources or [None] * len(tasks))
    own = np.array(part or [0] * len(tasks), dtype=np.int8)
    keys = np.arange(len(tasks), dtype=np.uint64)
    return Labels(own, task, source, keys, task_names, source_names)


def names(tasks: list[str | None], chosen: np.ndarray, split: int) -> set[str | None]:
    return {task for task, own in zip(tasks, chosen, strict=True) if own == split}


def chosen_by(given: Labels, plan: SplitSpec) -> np.ndarray:
    return capped(assign(given, plan), given, plan)


TASKS = [f"t{k % 20}" for k in range(200)]


def test_a_tenth_of_the_tasks_is_held_out_by_seed() -> None:
    chosen = assign(labels(list(TASKS)), SplitSpec())
    assert len(names(list(TASKS), chosen, TEST)) == 2
    assert not names(list(TASKS), chosen, TEST) & names(list(TASKS), chosen, TRAIN)
    other = assign(labels(list(TASKS)), SplitSpec(seed=1))
    assert names(list(TASKS), chosen, TEST) != names(list(TASKS), other, TEST)
    # The choice does not depend on where the rows stand.
    turned = assign(labels(TASKS[::-1]), SplitSpec())
    assert names(TASKS[::-1], turned, TEST) == names(list(TASKS), chosen, TEST)


def test_the_sources_own_split_stands_unless_another_is_asked_for() -> None:
    own = [TRAIN, TEST, 0, TRAIN]
    given = labels(["a", "b", "c", "a"], part=own)
    assert assign(given, SplitSpec()).tolist() == own
    assert assign(given, SplitSpec(by="own")).tolist() == own
    asked = assign(given, SplitSpec(by="task"))
    assert {*asked.tolist()} == {TRAIN, TEST} and asked[0] == asked[3]
    assert assign(given, SplitSpec(held_out=("b",))).tolist() == [TRAIN, TEST, TRAIN, TRAIN]
    assert assign(given, SplitSpec(by="all")).tolist() == [TRAIN] * 4
    # All rows of its test may be empty: none is cut out of training.
    trains = replace(labels(["a", "b"], part=[TRAIN, TRAIN]), has_test=True)
    assert assign(trains, SplitSpec()).tolist() == [TRAIN, TRAIN]


def test_by_source_no_task_and_no_source_is_shared() -> None:
    # Source a and b share task 1, so that they stay together.
    tasks: list[str | None] = ["1", "1", "2", "3", "4", None, "5"]
    sources: list[str | None] = ["a", "b", "b", "c", "d", "e", None]
    tested: set[str | None] = set()
    for seed in range(40):
        chosen = assign(labels(tasks, sources), SplitSpec(by="source", seed=seed))
        assert not (names(tasks, chosen, TEST) & names(tasks, chosen, TRAIN)) - {None}
        assert not (names(sources, chosen, TEST) & names(sources, chosen, TRAIN)) - {None}
        tested |= names(sources, chosen, TEST)
    assert tested == {"a", "b", "c", "d", "e", None}


@pytest.mark.parametrize(
    ("by", "words"),
    [
        ("source", r'columns=\{"source": ...\}'),
        ("own", r"no row says .* by='task' or by='instance', or take all"),
    ],
)
def test_what_a_split_needs_is_named(by: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        assign(labels(["a", "b"]), SplitSpec(by=by))


@pytest.mark.parametrize(
    ("by", "kind"),
    [("task", "1 tasks"), ("source", "1 sources"), ("instance", "0 different instances")],
)
def test_too_little_to_hold_out_is_named(by: str, kind: str) -> None:
    rows = 0 if by == "instance" else 3
    given = labels(["t"] * rows, ["s"] * rows)
    with pytest.raises(DataError, match=f"cannot hold out test data: {kind}; expected at least 2"):
        assign(given, SplitSpec(by=by))


def test_sources_that_share_a_task_count_as_one() -> None:
    given = labels(["t", "t"], ["a", "b"])
    words = r"1 sources; expected at least 2\. Source datasets that share a task count as one\."
    with pytest.raises(DataError, match=words):
        assign(given, SplitSpec(by="source"))
    with pytest.raises(DataError, match=r"1 sources; expected at least 2\.$"):
        assign(labels(["t", "t"], ["a", "a"]), SplitSpec(by="source"))


def test_a_source_that_has_tasks_on_both_sides_is_refused() -> None:
    given = labels(["a", "b", "b", "a", None, None], part=[TRAIN, TRAIN, TEST, TEST, TRAIN, TEST])
    for plan in (SplitSpec(), SplitSpec(by="own")):
        with pytest.raises(DataError, match=r"share 2 tasks .* \(a, b\)\. .* by='task'"):
            assign(given, plan)
    assert Counter(assign(given, SplitSpec(by="instance")).tolist()) == {TRAIN: 5, TEST: 1}


def test_equal_content_is_on_one_side() -> None:
    keys = np.array([5, 5, 9, 7, 5, 9], dtype=np.uint64)
    given = replace(labels([None] * 6), key=keys)
    for seed in range(20):
        for by in ("instance", "task"):
            chosen = assign(given, SplitSpec(by=by, seed=seed))
            assert not {*keys[chosen == TEST]} & {*keys[chosen == TRAIN]}


def test_wanted_numbers_of_tasks_and_caps() -> None:
    tasks: list[str | None] = [f"t{k % 100}" for k in range(3000)]
    plan = SplitSpec(by="task", tasks=(60, 15), per_task=(20, 5))
    chosen = chosen_by(labels(tasks), plan)
    for split, count, each in ((TRAIN, 60, 20), (TEST, 15, 5)):
        sizes = Counter(t for t, own in zip(tasks, chosen, strict=True) if own == split)
        assert len(sizes) == count
        assert set(sizes.values()) == {each}


def test_a_smaller_dataset_is_divided_in_the_ratio_of_the_wanted_numbers() -> None:
    tasks: list[str | None] = [f"t{k}" for k in range(73)]
    chosen = assign(labels(tasks), SplitSpec(by="task", tasks=(1600, 225)))
    assert Counter(chosen.tolist()) == {TRAIN: 64, TEST: 9}


def test_a_cap_takes_the_first_of_a_test_task_or_chooses_by_seed() -> None:
    given = labels(["t"] * 50, part=[TEST] * 50)
    first = chosen_by(given, SplitSpec(per_task=(None, 3), first_test=True))
    assert np.flatnonzero(first).tolist() == [0, 1, 2]
    plans = [SplitSpec(per_task=(None, 3), seed=seed) for seed in (0, 0, 1)]
    drawn = [chosen_by(given, plan).tolist() for plan in plans]
    assert drawn[0] == drawn[1] != drawn[2]
    assert sum(drawn[0]) == 3 * TEST


def test_rows_without_a_task_are_not_capped() -> None:
    given = labels([None] * 30, part=[TRAIN] * 29 + [TEST])
    assert (chosen_by(given, SplitSpec(per_task=(2, 2))) == TRAIN).sum() == 29


def test_held_out_names_are_tasks_or_source_datasets() -> None:
    tasks: list[str | None] = ["1", "1", "2", "3", None, None]
    sources: list[str | None] = ["a", "b", "b", "c", "c", None]
    given = labels(tasks, sources)
    assert assign(given, SplitSpec(held_out=("3",))).tolist() == [1, 1, 1, 2, 1, 1]
    # Source a shares task 1 with source b: the task is held out whole, the source is not.
    assert assign(given, SplitSpec(held_out=("a",))).tolist() == [2, 2, 1, 1, 1, 1]
    assert assign(given, SplitSpec(held_out=("c",), left_out=("2",))).tolist() == [1, 1, 0, 2, 2, 1]


def test_a_name_that_is_not_there_is_told_the_nearest() -> None:
    given = labels(["imdb/mood", "imdb/opening", "xsum/editor"], ["imdb", "imdb", "xsum"])
    words = "held_out='imbd' .* the 5 tasks and source datasets, such as imdb"
    with pytest.raises(ParameterError, match=words):
        assign(given, SplitSpec(held_out=("imdb", "imbd")))
    with pytest.raises(ParameterError, match="such as imdb, imdb/mood, imdb/opening"):
        assign(given, SplitSpec(held_out=("?",)))
    with pytest.raises(ParameterError, match="neither tasks nor source datasets"):
        assign(labels([None, None]), SplitSpec(held_out=("imdb",)))
    partial = SplitSpec(held_out=("imdb", "boolq"), left_out=("quac",), partial=True)
    assert assign(given, partial).tolist() == [TEST, TEST, TRAIN]


def test_long_rows_change_nothing_of_what_is_held_out_and_are_not_counted_by_a_cap() -> None:
    long = np.arange(200) % 3 == 0
    plan = SplitSpec(per_task=(4, 4))
    plain, short = (
        assign(replace(labels(list(TASKS)), long=given), plan) for given in (None, long)
    )
    assert short.tolist() == np.where(long, -plain, plain).tolist()
    kept = capped(short, labels(list(TASKS)), plan) > 0
    assert set(Counter(np.array(TASKS)[kept]).values()) == {4}


@given(
    st.lists(
        st.tuples(st.sampled_from([None, *"abcdef"]), st.sampled_from([None, *"xyz"])),
        min_size=2,
        max_size=40,
    ),
    st.sampled_from(["task", "source"]),
    st.integers(0, 5),
)
def test_nothing_is_ever_shared(
    rows: list[tuple[str | None, str | None]], by: str, seed: int
) -> None:
    tasks, sources = [list(column) for column in zip(*rows, strict=True)]
    try:
        chosen = assign(labels(tasks, sources), SplitSpec(by=by, seed=seed))
    except DataError:
        return
    assert set(chosen.tolist()) == {TRAIN, TEST}
    for column in [tasks, sources] if by == "source" else [tasks]:
        assert names(column, chosen, TEST) & names(column, chosen, TRAIN) <= {None}
