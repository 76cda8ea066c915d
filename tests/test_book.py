from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tma import config

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted((ROOT / "book" / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book, built from a copy with every warning an error."""
    copy = tmp_path_factory.mktemp("book")
    shutil.copy(ROOT / "_config.yml", copy)
    shutil.copytree(ROOT / "book", copy / "book")
    program = str(Path(sys.executable).with_name("jupyter-book"))
    command = [program, "build", "book/", "--all", "-W", "-n"]
    done = subprocess.run(
        [*command, "--keep-going"], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stdout + done.stderr
    return copy / "_build" / "html"


def pages(site: Path) -> list[Path]:
    """The pages a reader can open; under `_static` lie the theme's own templates."""
    return [page for page in site.rglob("*.html") if "_static" not in page.parts]


def test_every_page_of_the_contents_is_built(site: Path) -> None:
    contents = (ROOT / "book" / "_toc.yml").read_text()
    named = re.findall(r"(?:root|file): (\S+)", contents)
    assert len(named) == 6
    for page in named:
        assert (site / f"{page}.html").is_file()


def test_every_link_inside_the_site_leads_somewhere(site: Path) -> None:
    for page in pages(site):
        for link in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", link):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loaded = re.compile(
        r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//|<link[^>]+stylesheet[^>]+href="https?:'
    )
    for page in pages(site):
        assert not loaded.search(page.read_text(encoding="utf-8")), page.name


def test_the_chapter_shows_its_numbers_figure_and_citation(site: Path) -> None:
    text = (site / "notebooks" / "04_tma.html").read_text(encoding="utf-8")
    plain = re.sub(r"<[^>]+>", "", text)
    assert re.search(r"nearest-first lies [+-]0\.\d{3} nats from random", plain)
    assert re.search(r"Claim C6 at this scale: (supported|not supported|inconclusive)", plain)
    assert "He et al." in plain
    assert 'alt="Two line charts over training steps.' in text


def test_there_are_chapters() -> None:
    assert [path.stem for path in CHAPTERS] == ["04_tma"]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_published_notebooks_hold_the_code_of_the_current_ones(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    published = [c for c in cells if "injected-parameters" not in c.metadata.get("tags", [])]
    current = nbformat.read(ROOT / "notebooks" / path.name, as_version=4).cells
    assert [c.source for c in published] == [c.source for c in current]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_published_notebooks_ran_whole_and_with_published_parameters(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert "error" not in kinds
    assert all(cell.execution_count for cell in code)
    [injected] = [c for c in code if "injected-parameters" in c.metadata.get("tags", [])]
    assert injected.source.splitlines()[1:] == ['model = "llama"']
    rows = config.RunConfig.at("pocket", order="tma_nft")
    text = "".join(str(o) for c in code for o in c.outputs)
    assert rows.model in text
    assert not re.search(r"/(?:home|root|tmp|work|Users)/", text)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_every_figure_has_a_name_a_caption_and_alt_text(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if any("image/svg+xml" in o.get("data", {}) for o in cell.get("outputs", [])):
            told = cell.metadata["mystnb"]
            assert told["figure"]["name"].startswith("fig-")
            assert len(told["figure"]["caption"]) > 40
            assert len(told["image"]["alt"]) > 40


def test_no_result_is_typed_into_the_chapters() -> None:
    text = (ROOT / "notebooks" / "04_tma.md").read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text.split("## Result", 1)[1], flags=re.DOTALL)
    assert not re.findall(r"(?<![\w`-])\d+\.\d+", prose)


def test_the_readme_gives_the_published_result() -> None:
    script = runpy.run_path(str(ROOT / "book" / "publish.py"))
    notebook = nbformat.read(ROOT / "book" / "notebooks" / "04_tma.ipynb", as_version=4)
    result = script["sentence"](script["glued"](notebook))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert result in readme
    assert script["with_result"](readme, result) == readme


def test_a_notebook_with_a_stored_error_is_not_published() -> None:
    script = runpy.run_path(str(ROOT / "book" / "publish.py"))
    failed = nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])
    cell = nbformat.v4.new_code_cell("raise", outputs=[failed])
    with pytest.raises(SystemExit, match="stored an error"):
        script["publishable"](nbformat.v4.new_notebook(cells=[cell]))
