from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


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
    tree = re.search(r"```text\n(.*?)```", README, flags=re.DOTALL)
    assert tree
    named = re.findall(r"^ *(\S+)  +\S", tree[1], flags=re.MULTILINE)
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "tma" / name).exists(), name
    ground, rooms = tree[1].split("the library")[1], {p.parent for p in ROOT.glob("tma/*/*.py")}
    assert {f"{room.name}/" for room in rooms} <= set(named)
    for module in ROOT.glob("tma/**/[!_]*.py"):
        assert re.search(rf"\b{module.stem}\b", ground), module


def test_the_readme_and_ci_use_the_targets_of_the_makefile() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    used = set(re.findall(r"\bmake ([a-z]+)", README))
    assert {"study", "test", "book", "lint"} <= used <= set(targets)
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-2:] == ["make lint", "make test"]


def test_arranging_knows_no_language_model() -> None:
    script = "import sys, tma.arrange; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "set()"


@pytest.mark.parametrize("times", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_all_collections_find_the_same_tests(times: int, tmp_path: Path) -> None:
    """pytest-xdist refuses to run where a name holds the clock, a folder, a hash or an address."""
    plain = {key: text for key, text in os.environ.items() if not key.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "slow or not slow"]
    command += ["-p", "no:cacheprovider", "--assert=plain"]  # sooner, and leaves nothing behind

    def collected(seed: str) -> list[str]:  # takes seconds, so that the clock moves on
        (tmp_path / seed).mkdir()
        changed = plain | {"PYTHONHASHSEED": seed, "TMPDIR": str(tmp_path / seed)}
        text = subprocess.check_output(command, cwd=ROOT, env=changed, text=True)
        return [line for line in text.splitlines() if "::" in line]

    names = collected("0")
    assert len(names) > 500
    assert len(set(names)) == len(names)
    for seed in range(1, times):
        assert collected(str(seed)) == names
