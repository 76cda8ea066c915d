from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

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
    modules = {p.name for p in (ROOT / "tma").iterdir() if p.suffix in (".py", ".toml")}
    assert modules <= set(named) | {"__init__.py"}
    for name in named:
        assert list(ROOT.glob(name)) or list((ROOT / "tma").glob(name)), name


def test_the_readme_names_the_targets_of_the_makefile() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    used = set(re.findall(r"\bmake ([a-z]+)", readme))
    assert {"study", "test", "book", "lint"} <= used <= set(targets)


def test_no_module_is_longer_than_350_lines() -> None:
    for path in (ROOT / "tma").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, path.name


def test_arranging_knows_no_language_model() -> None:
    script = "import sys, tma.arrange; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "set()"


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
    ids=["ruff", "format", "mypy"],
)
def test_the_code_is_clean(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
