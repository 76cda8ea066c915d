from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tma
from benchmarks import arrangement, coverage, embedding, training
from benchmarks import data as data_benchmark
from tma.arrange.spec import MEASURES

Table = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Table:
    """Run a benchmark with other settings; returns its table."""

    def run(module: Any, *given: str, **settings: Any) -> list[dict[str, Any]]:
        for name, value in settings.items():
            monkeypatch.setattr(module, name, value)
        path = tmp_path / "table.json"
        monkeypatch.setattr(sys, "argv", ["benchmark", "--quick", "--json", str(path), *given])
        module.main()
        lines: list[dict[str, Any]] = json.loads(path.read_text("ascii"))
        return lines

    return run


def test_all_systems_find_the_same_rounds() -> None:
    X, Y = arrangement.unit_rows(3000, 0), arrangement.unit_rows(100, 1)
    rounds = arrangement.ours(X, Y, 900)
    assert rounds == arrangement.literal(X, Y, 900) == arrangement.literal_transposed(X, Y, 900)


def test_faiss_gets_the_smallest_k_that_the_rounds_need() -> None:
    X, Y = arrangement.unit_rows(3000, 0), arrangement.unit_rows(100, 1)
    ranked = np.argsort(-(Y @ X.T), axis=1, kind="stable")
    taken = np.zeros(len(X), dtype=bool)
    deepest = 0
    for found in tma.test_centric_rounds(X, Y, 900):
        for j in range(len(Y)):
            deepest = max(deepest, int(np.argmin(taken[ranked[j]])) + 1)
        taken[found] = True
    assert arrangement.needed(X, Y, 900) == deepest


def test_the_table_has_a_line_for_each_case_and_system(
    table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        "6k": partial(arrangement.rounds, 6000, 2000),
        "5k whole": partial(arrangement.rounds, 5000, 5000),
        "crowded": partial(arrangement.crowded, 500, 10),
        "distances": partial(arrangement.distances, 500, 200),
    }
    lines = table(arrangement, CASES=cases, QUICK=tuple(cases), TESTS=50)
    found = {case: [line["system"] for line in lines if line["case"] == case] for case in cases}
    assert found == {
        "6k": ["tma", "product", "faiss", "literal", "literal-t"],
        "5k whole": ["tma", "product", "literal", "literal-t"],
        "crowded": ["ordinary", "train", "both"],
        "distances": ["product", "wsd", *MEASURES],
    }
    assert set(lines[0]) == {"case", "system", "seconds", "ratio", "peak_mb", "runs"}
    assert all(line["seconds"] >= 0 for line in lines)  # the smallest take less than a tick
    assert lines[0]["ratio"] == 1
    assert "literal-t" in capsys.readouterr().out


def test_loading_and_writing_are_measured_in_processes_of_their_own(table: Table) -> None:
    lines = table(data_benchmark, QUICK=(400,), KINDS=("jsonl",))
    works = ["nothing", "load", "again", "stored jsonl", "random jsonl", "select jsonl"]
    assert [line["work"] for line in lines] == works
    assert lines[3]["ratio_to_stored"] == 1
    assert all(line["peak_mb"] > 10 for line in lines)


@pytest.mark.usefixtures("cache")
def test_embedding_is_measured_beside_sentence_transformers(table: Table) -> None:
    cache = os.environ["TMA_CACHE"]
    lines = table(embedding, QUICK={"minilm": 8, "static": 16})
    works = ["tma", "alone", "again", "one new"]
    assert [(line["encoder"], line["work"], line["texts"]) for line in lines] == [
        (name, work, texts) for name, texts in (("minilm", 8), ("static", 16)) for work in works
    ]
    assert lines[1]["ratio_to_alone"] == 1
    assert all(line["texts_per_second"] > 0 for line in lines)
    assert os.environ["TMA_CACHE"] == cache


@pytest.mark.usefixtures("cache")
def test_all_systems_train_and_measure_the_same(
    tiny_model: Path, dataset_file: Path, table: Table
) -> None:
    settings = {"MODEL": str(tiny_model), "WIDTH": 64, "ROWS": 2, "STEP": 4}
    lines = table(training, "--data", str(dataset_file), **settings)
    assert [(line["case"], line["system"]) for line in lines] == [
        (case, system) for case in ("training", "evaluation") for system in ("tma", "padded", "trl")
    ]
    for case in (lines[:3], lines[3:]):
        ours, padded, trl = (line["loss"] for line in case)
        assert ours == pytest.approx(padded, abs=0.02)
        assert ours == pytest.approx(trl, abs=0.2)  # its evaluation is a mean over batches


@pytest.mark.usefixtures("cache")
def test_the_training_benchmark_takes_what_is_there(dataset_file: Path, tmp_path: Path) -> None:
    assert training.real_data(tmp_path / "repository") == "pocket"
    folder = tmp_path / "shared" / "data" / "p3"
    folder.mkdir(parents=True)
    (folder / "a.parquet").touch()
    assert training.real_data(tmp_path / "repository") == str(folder / "a.parquet")
    few = training.instances(str(dataset_file), 10_000)
    assert len(few) == len(tma.load(str(dataset_file), split="train")) < 48


def test_the_coverage_of_intervals_is_measured(table: Table) -> None:
    lines = table(coverage, SIZES=coverage.SIZES[1:2])
    assert [line["design"] for line in lines] == [design.name for design in coverage.DESIGNS]
    # 95% are asked for; 100 samples tell it to seven in a hundred.
    for name in ("these tasks", "other datasets"):
        assert all(0.86 < line[name] <= 1 for line in lines)
