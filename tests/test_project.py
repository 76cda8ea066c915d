from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent


def pins(text: str) -> dict[str, str]:
    found = re.findall(r"^\s*(?:- )?([A-Za-z0-9_.-]+)==(\S+)$", text, flags=re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in found}


LOCK = pins((ROOT / "requirements.lock").read_text())


def test_the_conda_environment_has_the_versions_of_the_lock() -> None:
    environment = pins((ROOT / "environment.yml").read_text())
    assert environment.items() <= LOCK.items()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["book"], *extras["dev"]]
    names = {re.split(r"[<>=]", d)[0].lower().replace("_", "-") for d in declared}
    assert set(environment) == names


def test_the_lock_names_exact_versions_and_torch_without_a_build() -> None:
    lines = [x for x in (ROOT / "requirements.lock").read_text().splitlines() if x[:1] != "#"]
    assert len(LOCK) == len(lines)
    assert LOCK["torch"] == "2.13.0"


def test_installed_versions_are_those_of_the_lock() -> None:
    command = [sys.executable, "-m", "pip", "freeze"]
    installed = pins(subprocess.check_output(command, text=True))
    for name in ("torch", "transformers", "datasets", "numpy", "papermill", "jupyter-book"):
        assert installed[name].split("+")[0] == LOCK[name]


def test_the_readme_prints_the_tree_as_it_is() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"```text\n(.*?)```", readme, flags=re.DOTALL)
    assert tree
    named = re.findall(r"^ *(\S+)  +\S", tree[1], flags=re.MULTILINE)
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "tma" / name).exists(), name
    ground, rooms = tree[1].split("the library:")[1], {p.parent for p in ROOT.glob("tma/*/*.py")}
    assert {f"{room.name}/" for room in rooms} <= set(named)
    for module in ROOT.glob("tma/**/[!_]*.py"):
        assert re.search(rf"\b{module.stem}\b", ground), module


def test_the_readme_names_the_targets_of_the_makefile() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    used = set(re.findall(r"\bmake ([a-z]+)", readme))
    assert {"study", "test", "book", "lint"} <= used <= set(targets)


def test_arranging_knows_no_language_model() -> None:
    script = "import sys, tma.arrange; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "set()"


def test_five_collections_find_the_same_tests(tmp_path: Path) -> None:
    """pytest-xdist refuses to run where a name holds the clock, a folder, a hash or an address."""
    turn = threading.Lock()
    plain = {key: text for key, text in os.environ.items() if not key.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "slow or not slow"]
    command += ["-p", "no:cacheprovider", "--assert=plain"]  # sooner, and leaves nothing behind

    def collected(seed: int) -> tuple[int, list[str]]:
        folder = tmp_path / str(seed)
        folder.mkdir()
        with turn:
            time.sleep(1)
            started = int(time.time())
        environment = plain | {"PYTHONHASHSEED": str(seed), "TMPDIR": str(folder)}
        text = subprocess.check_output(command, cwd=ROOT, env=environment, text=True)
        return started, [line for line in text.splitlines() if "::" in line]

    with ThreadPoolExecutor(2) as pool:
        seconds, names = zip(*pool.map(collected, range(5)), strict=True)
    assert len(set(seconds)) == 5
    assert len(names[0]) > 1000
    assert len(set(names[0])) == len(names[0])
    for again in names[1:]:
        assert again == names[0]


def test_ci_runs_lint_and_tests() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-2:] == ["make lint", "make test"]
