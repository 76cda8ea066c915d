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


TASKS: list[str | None] = [f"t{k % 20}" for k in range(200)]


def test_a_tenth_of_the_tasks_is_held_out_by_seed() -> None:
    chosen = assign(labels(TASKS), SplitSpec())
    assert len(names(TASKS, chosen, TEST)) == 2
    assert not names(TASKS, chosen, TEST) & names(TASKS, chosen, TRAIN)
    other = assign(labels(TASKS), SplitSpec(seed=1))
    assert names(TASKS, chosen, TEST) != names(TASKS, other, TEST)
    # The choice does not depend on where the rows stand.
    turned = assign(labels(TASKS[::-1]), SplitSpec())
    assert names(TASKS[::-1], turned, TEST) == names(TASKS, chosen, TEST)


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


def test_by_source_every_source_is_tested_by_some_seed() -> None:
    # Source a and b share task 1, so that they stay together.
    tasks: list[str | None] = ["1", "1", "2", "3", "4", None, "5"]
    sources: list[str | None] = ["a", "b", "b", "c", "d", "e", None]
    given = labels(tasks, sources)
    chosen = [assign(given, SplitSpec(by="source", seed=seed)) for seed in range(40)]
    tested = [names(sources, one, TEST) for one in chosen]
    assert set.union(*tested) == {*sources}
    assert all(len(one & {"a", "b"}) != 1 for one in tested)


@pytest.mark.parametrize(
    ("tasks", "sources", "by", "words"),
    [
        ("ab", None, "source", r'columns=\{"source": ...\}'),
        ("ab", None, "own", r"no row says .* by='task' or by='instance', or take all"),
        ("ttt", "sss", "task", "test data: 1 tasks; expected at least 2"),
        ("", None, "instance", "test data: 0 different instances; expected at least 2"),
        ("tt", "aa", "source", r"1 sources; expected at least 2\.$"),
        ("tt", "ab", "source", r"1 sources; .* Source datasets that share a task count as one\."),
    ],
)
def test_what_cannot_be_split_is_named(
    tasks: str, sources: str | None, by: str, words: str
) -> None:
    given = labels([*tasks], [*sources] if sources else None)
    with pytest.raises(DataError, match=words):
        assign(given, SplitSpec(by=by))


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


def test_numbers_of_tasks_and_caps_and_their_ratio_in_a_smaller_dataset() -> None:
    tasks: list[str | None] = [f"t{k % 100}" for k in range(3000)]
    plan = SplitSpec(by="task", tasks=(60, 15), per_task=(20, 5))
    chosen = chosen_by(labels(tasks), plan)
    for split, count, each in ((TRAIN, 60, 20), (TEST, 15, 5)):
        sizes = Counter(t for t, own in zip(tasks, chosen, strict=True) if own == split)
        assert (len(sizes), *set(sizes.values())) == (count, each)
    few = assign(labels([f"t{k}" for k in range(73)]), SplitSpec(by="task", tasks=(1600, 225)))
    assert Counter(few.tolist()) == {TRAIN: 64, TEST: 9}


def test_a_cap_takes_the_first_of_a_test_task_or_chooses_by_seed() -> None:
    given = labels(["t"] * 50, part=[TEST] * 50)
    first = chosen_by(given, SplitSpec(per_task=(None, 3), first_test=True))
    assert np.flatnonzero(first).tolist() == [0, 1, 2]
    plans = [SplitSpec(per_task=(None, 3), seed=seed) for seed in (0, 0, 1)]
    drawn = [chosen_by(given, plan).tolist() for plan in plans]
    assert drawn[0] == drawn[1] != drawn[2]
    assert sum(drawn[0]) == 3 * TEST
    # Rows without a task are not capped.
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
    plain, short = (assign(replace(labels(TASKS), long=given), plan) for given in (None, long))
    assert short.tolist() == np.where(long, -plain, plain).tolist()
    kept = capped(short, labels(TASKS), plan) > 0
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
