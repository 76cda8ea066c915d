from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import tma
from benchmarks import arrangement, coverage, training
from benchmarks import data as data_benchmark


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
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(arrangement, "CASES", {"6k": (6000, 2000), "5k whole": (5000, 5000)})
    monkeypatch.setattr(arrangement, "QUICK", ("6k", "5k whole"))
    monkeypatch.setattr(arrangement, "TESTS", 50)
    path = tmp_path / "table.json"
    monkeypatch.setattr(sys, "argv", ["arrangement.py", "--quick", "--json", str(path)])
    arrangement.main()
    lines = json.loads(path.read_text("ascii"))
    assert [(line["case"], line["system"]) for line in lines] == [
        ("6k", "tma"), ("6k", "product"), ("6k", "faiss"), ("6k", "literal"), ("6k", "literal-t"),
        ("5k whole", "tma"), ("5k whole", "product"), ("5k whole", "literal"),
        ("5k whole", "literal-t"),
    ]  # fmt: skip
    assert set(lines[0]) == {"case", "system", "seconds", "ratio_to_ours", "peak_mb", "runs"}
    assert all(line["seconds"] > 0 for line in lines)
    assert lines[0]["ratio_to_ours"] == 1
    assert "literal-t" in capsys.readouterr().out


def test_loading_and_writing_are_measured_in_processes_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data_benchmark, "QUICK", (400,))
    monkeypatch.setattr(data_benchmark, "KINDS", ("jsonl",))
    path = tmp_path / "table.json"
    monkeypatch.setattr(sys, "argv", ["data.py", "--quick", "--json", str(path)])
    data_benchmark.main()
    lines = json.loads(path.read_text("ascii"))
    works = ["nothing", "load", "again", "stored jsonl", "random jsonl", "select jsonl"]
    assert [line["work"] for line in lines] == works
    assert lines[3]["ratio_to_stored"] == 1
    assert all(line["peak_mb"] > 10 for line in lines)
    assert "random jsonl" in capsys.readouterr().out


@pytest.mark.usefixtures("cache")
def test_all_systems_train_and_measure_the_same(
    tiny_model: Path,
    dataset_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {"MODEL": str(tiny_model), "WIDTH": 64, "ROWS": 2, "STEP": 4}.items():
        monkeypatch.setattr(training, name, value)
    path = tmp_path / "table.json"
    given = ["--quick", "--json", str(path), "--data", str(dataset_file)]
    monkeypatch.setattr(sys, "argv", ["training.py", *given])
    training.main()
    lines = json.loads(path.read_text("ascii"))
    assert [(line["case"], line["system"]) for line in lines] == [
        (case, system) for case in ("training", "evaluation") for system in ("tma", "padded", "trl")
    ]
    for case in (lines[:3], lines[3:]):
        ours, padded, trl = (line["loss"] for line in case)
        assert ours == pytest.approx(padded, abs=0.02)
        assert ours == pytest.approx(trl, abs=0.2)  # its evaluation is a mean over batches
    assert "16 instances of " in capsys.readouterr().out


def test_the_training_benchmark_takes_what_is_there(
    cache: Path, dataset_file: Path, tmp_path: Path
) -> None:
    assert cache.is_dir()
    assert training.real_data(tmp_path / "repository") == "pocket"
    folder = tmp_path / "shared" / "data" / "p3"
    folder.mkdir(parents=True)
    (folder / "a.parquet").touch()
    assert training.real_data(tmp_path / "repository") == str(folder / "a.parquet")
    few = training.instances(str(dataset_file), 10_000)
    assert len(few) == len(tma.load(str(dataset_file), split="train")) < 48


def test_the_coverage_of_intervals_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(coverage, "SIZES", coverage.SIZES[1:2])
    path = tmp_path / "table.json"
    monkeypatch.setattr(sys, "argv", ["coverage.py", "--quick", "--json", str(path)])
    coverage.main()
    lines = json.loads(path.read_text("ascii"))
    assert [line["design"] for line in lines] == [design.name for design in coverage.DESIGNS]
    # 95 % are asked for; 100 samples tell it to seven in a hundred.
    for name in ("these tasks", "other datasets"):
        assert all(0.86 < line[name] <= 1 for line in lines)
    assert "other datasets" in capsys.readouterr().out
